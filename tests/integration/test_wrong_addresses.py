"""Servers that answer, and are not what was meant: said after a few rows, not after all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from batch_llm.simulator.server import Simulator
from local_server import Handler, LocalServer

ROWS = 60
PAGE = b"<!doctype html><title>Sign in</title><script>alert(1)</script>"


class Elsewhere(LocalServer):
    """Answers whatever it is told to."""

    def __init__(self, status, body, headers=()):
        super().__init__(_Handler)
        self.told, self.calls = (status, body, headers), 0


class _Handler(Handler):
    def respond(self):
        self.server.calls += 1
        self.answer(*self.server.told)


@pytest.fixture
def run(cli, tmp_path):
    (tmp_path / "q.txt").write_text("".join(f"Question {n}?\n" for n in range(ROWS)))

    def run(server, *arguments):
        return cli("run", "q.txt", "-m", "openai-chat:m", "--base-url", server.url, *arguments,
                   env={"OPENAI_API_KEY": "any"})  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("status", "body", "headers", "told"),
    [
        (200, PAGE, [("content-type", "text/html")], "does not speak this API: check the address"),
        (200, b"null", [], "does not speak this API: check the address"),
        (302, b"", [("location", "/login")], "the server redirects; the base URL is wrong"),
        (405, b"", [("allow", "GET")], "check the name and the address"),
    ],
)
def test_the_run_ends_after_a_few_rows_with_the_address(run, status, body, headers, told):
    with Elsewhere(status, body, headers) as server:
        done = run(server, "--retries", "0")

    assert done.returncode == 4, done.stderr
    assert told in done.stderr
    assert f"{server.url}/chat/completions" in done.stderr
    assert server.calls < ROWS / 2
    assert "not done" in done.stderr


def test_what_was_answered_with_a_page_stands_among_the_failed_rows_with_the_way_to_run_it(
    run, cli, tmp_path
):
    with Elsewhere(200, PAGE) as server:
        done = run(server, "--retries", "0")
    failed = len((tmp_path / "q.failed.jsonl").read_text().splitlines())

    assert "next      batch-llm retry q.results.jsonl" in done.stderr
    assert "continue  batch-llm resume q.results.jsonl" in done.stderr
    assert 5 <= failed < ROWS / 2


def test_one_wrong_address_of_two_does_not_stop_the_other(run):
    with Elsewhere(200, PAGE) as wrong, Simulator("fast?latency=0.1") as right:
        both = SimpleNamespace(url=f"{wrong.url},{right.base_url}")
        done = run(both, "--retries", "0", "-c", "20")

    assert done.returncode == 1, done.stderr
    assert "refuses everything" not in done.stderr


def test_nonsense_behind_good_answers_stops_nothing(cli, tmp_path):
    """Gateways answer so in a bad hour; the run's other rows go on."""
    (tmp_path / "q.txt").write_text("Question?\n" * 30 + "<<pgarbage>>\n" * 30 + "Question?\n" * 5)

    done = cli("run", "q.txt", "-m", "sim:fast", "--retries", "0", "--no-dedupe", "-c", "5")

    assert done.returncode == 1, done.stderr
    assert "succeeded        35    53.8 %" in done.stderr
    assert "            server_error: MalformedResponseError: The answer is no" in done.stderr
