"""Several keys and servers, limits per day and what is remembered: the command over sockets."""

from __future__ import annotations

import collections
import json
import socket
import threading

import pytest

from batch_llm.simulator.server import Simulator
from local_server import Handler, LocalServer

KEYS = {
    "FIRST_KEY": "sk-first-aaaaaaaaaaaaaaaa",
    "SECOND_KEY": "sk-second-bbbbbbbbbbbbbbb",
    "THIRD_KEY": "third.key.of.an.odd.shape",
}
ANSWER = {
    "model": "m",
    "choices": [{"message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}


class Provider(LocalServer):
    """Answers what ``behaviour(key, count)`` says: None for a good answer, or status and code."""

    def __init__(self, behaviour=lambda _key, _count: None, headers=lambda _key, _count: {}):
        super().__init__(_Handler)
        self.behaviour, self.headers = behaviour, headers
        self.calls = collections.Counter()
        self.lock = threading.Lock()


class _Handler(Handler):
    def respond(self):
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        with self.server.lock:
            self.server.calls[key] += 1
            count = self.server.calls[key]
        found = self.server.behaviour(key, count)
        status, code = found or (200, None)
        words = f"Incorrect API key provided: {key}. Authorization: Bearer {key}"
        body = ANSWER if found is None else {"error": {"message": words, "code": code}}
        self.answer(status, json.dumps(body).encode(), self.server.headers(key, count).items())


@pytest.fixture
def run(cli, tmp_path):
    (tmp_path / "q.txt").write_text("".join(f"Question {n}?\n" for n in range(60)))
    environ = KEYS | {"BATCH_LLM_LIMITS_FILE": str(tmp_path / "state" / "limits.json")}

    def run(*arguments, env=None, name="q.txt"):
        return cli("run", name, "--overwrite", *arguments, env=environ | (env or {}))

    return run


def shown_anywhere(done, folder):
    """All that a run said and wrote."""
    files = [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
    return "\n".join([done.stdout, done.stderr, *files])


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "invalid_api_key"), (429, "insufficient_quota")],
)
def test_a_key_that_fails_for_good_is_set_aside_and_never_shown(run, tmp_path, status, code):
    bad = KEYS["SECOND_KEY"]
    with Provider(lambda key, _: (status, code) if key == bad else None) as provider:
        done = run("-m", "openai-chat:m", "--base-url", provider.url, "--keys", ",".join(KEYS),
                   "-v", "--json", "--progress", "json", "--retries", "0")  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert provider.calls[bad] <= 10
    assert min(provider.calls[KEYS["FIRST_KEY"]], provider.calls[KEYS["THIRD_KEY"]]) > 5
    assert "Key or server #2 of 3 (SECOND_KEY) is set aside: HTTP" in done.stderr
    assert "earlier rows" not in done.stderr
    everything = shown_anywhere(done, tmp_path)
    assert not [key for key in KEYS.values() if key in everything]


def test_when_all_keys_fail_the_run_ends_at_once_with_a_clear_word(run, tmp_path):
    with Provider(lambda *_: (401, "invalid_api_key")) as provider:
        done = run("-m", "openai-chat:m", "--base-url", provider.url, "--keys", ",".join(KEYS))

    assert done.returncode == 4
    assert "error: openai-chat:m refuses everything (auth, " in done.stderr
    assert "Check FIRST_KEY or SECOND_KEY or THIRD_KEY: " in done.stderr
    everything = shown_anywhere(done, tmp_path)
    assert not [key for key in KEYS.values() if key in everything]


@pytest.mark.parametrize("given", [KEYS["FIRST_KEY"], f"FIRST_KEY,{KEYS['THIRD_KEY']}", "gsk_abc"])
def test_a_key_in_the_place_of_its_variable_is_refused_and_not_repeated(run, tmp_path, given):
    done = run("-m", "openai-chat:m", "--keys", given)

    assert done.returncode == 2
    assert "keys must be names of variables such as OPENAI_API_KEY" in done.stderr
    assert given not in shown_anywhere(done, tmp_path)


def test_the_same_key_under_two_names_is_refused(run):
    done = run("-m", "openai-chat:m", "--keys", "FIRST_KEY, OTHER",
               env={"OTHER": KEYS["FIRST_KEY"]})  # fmt: skip

    assert done.returncode == 2
    assert done.stderr == (
        "error: keys must be variables with keys that are all different, "
        "got 'the same key in FIRST_KEY and OTHER'.\n"
    )


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--keys", "FIRST_KEY,FIRST_KEY"], "keys must be variables that are all different"),
        (["--base-url", "http://h/v1,http://h/v1"], "got 'http://h/v1/chat/completions twice'"),
    ],
)
def test_the_same_place_twice_is_refused(run, flags, told):
    done = run("-m", "openai-chat:m", *flags)

    assert done.returncode == 2
    assert told in done.stderr


def test_places_that_differ_in_key_and_server_are_called_by_both(run):
    bad = KEYS["SECOND_KEY"]
    with Provider(lambda key, _: (401, "no") if key == bad else None) as one, Provider() as other:
        done = run("-m", "openai-chat:m", "--base-url", f"{one.url},{other.url}",
                   "--keys", "FIRST_KEY,SECOND_KEY")  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert f"#2 of 4 (SECOND_KEY at 127.0.0.1:{one.server_port}) is set aside" in done.stderr


def test_a_server_that_is_not_there_costs_no_attempt(run):
    with socket.socket() as taken, Simulator("fast") as there:
        taken.bind(("127.0.0.1", 0))  # bound, and not listened on: connections are refused
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        done = run("-m", "openai-chat:m", "--base-url", f"{gone},{there.base_url}",
                   "--retries", "0", env={"OPENAI_API_KEY": "any"})  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "succeeded        60   100.0 %" in done.stderr


def test_an_overloaded_server_costs_no_attempt(run):
    with Simulator("fast?p503=1") as busy, Simulator("fast") as well:
        done = run("-m", "openai-chat:m", "--base-url", f"{busy.base_url},{well.base_url}",
                   "--retries", "0", env={"OPENAI_API_KEY": "any"})  # fmt: skip

    assert done.returncode == 0, done.stderr


def test_two_servers_share_the_calls(run):
    with Provider() as one, Provider() as other:
        done = run("-m", "openai-chat:m", "--base-url", f"{one.url},{other.url}",
                   env={"OPENAI_API_KEY": "any"})  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert one.calls["any"] + other.calls["any"] == 60
    assert min(one.calls["any"], other.calls["any"]) > 5


def test_a_limit_per_day_fails_the_rest_at_once_with_a_clear_word(run, tmp_path):
    done = run("--rpd", "10", "--longest-pause", "5s")

    assert done.returncode == 1
    assert "(requests_per_day), longer than the longest pause. Run what is left" in done.stderr
    assert "error: The limits of the provider allow the next call in 8,6" in done.stderr
    assert "next      batch-llm retry q.results.jsonl" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "q.failed.jsonl").read_text().splitlines()]
    assert len(rows) == 50
    assert {row["error"].partition(":")[0] for row in rows} == {"LimitPauseError"}


def test_groqs_headers_park_the_run_and_say_so(run, tmp_path):
    """Groq counts requests by the day: ``limit`` and ``remaining`` are the day's."""

    def headers(_key, count):
        return {
            "x-ratelimit-limit-requests": "1000",
            "x-ratelimit-remaining-requests": str(max(0, 20 - count)),
            "x-ratelimit-reset-requests": "2h30m0s",
        }

    with Provider(headers=headers) as provider:
        done = run("-m", "openai-chat:m", "--base-url", provider.url, "--longest-pause", "1m",
                   env={"OPENAI_API_KEY": "any"})  # fmt: skip

    assert done.returncode == 1
    assert "(requests_per_day), longer than the longest pause" in done.stderr
    # Answers tell how many are left; those under way at the end are not taken back.
    assert 15 <= provider.calls["any"] <= 50


def test_what_was_learned_is_kept_without_keys_and_can_be_forgotten(run, tmp_path):
    """A server of another name than this machine's own, which it is all the same."""

    def headers(_key, _count):
        return {
            "x-ratelimit-limit-requests": "6000",
            "x-ratelimit-remaining-requests": "5990",
            "x-ratelimit-reset-requests": "0.1s",
        }

    path = tmp_path / "state" / "limits.json"
    with Provider(headers=headers) as provider:
        url = provider.url.replace("127.0.0.1", "0.0.0.0")
        asked = ["-m", "openai-chat:m", "--base-url", url, "--keys", "FIRST_KEY,SECOND_KEY"]
        first = run(*asked)
        assert first.returncode == 0, first.stderr
        known = json.loads(path.read_text())
        wrong = {name: one | {"at": one["at"] - 60} for name, one in known.items()}
        for one in wrong.values():
            one["limits"]["requests"] = [None, 0.02, 1.0]
        path.write_text(json.dumps(wrong | {"another": next(iter(wrong.values()))}))
        again = run(*asked, "--forget-limits")

    assert again.returncode == 0, again.stderr
    assert len(known) == 2
    after = json.loads(path.read_text())
    assert {name: after[name]["limits"]["requests"][0] for name in known} == dict.fromkeys(
        known, 6000.0
    )
    assert "another" in after
    assert not [key for key in KEYS.values() if key in path.read_text()]


@pytest.mark.parametrize(
    "content",
    [
        b'{"openai-chat:m 0.0.0.0": {"version": 9, "limits": []}}',
        b'{"openai-chat:m 0.0.0.0": {"at": 9, "lim',
    ],
)
def test_a_limits_file_of_another_version_or_torn_is_never_fatal(run, tmp_path, content):
    path = tmp_path / "state" / "limits.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with Provider() as provider:
        url = provider.url.replace("127.0.0.1", "0.0.0.0")
        done = run("-m", "openai-chat:m", "--base-url", url, "--keys", "FIRST_KEY")

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["/proc/nowhere/limits.json", "q.txt/x"])
def test_a_limits_file_that_cannot_be_is_never_fatal(run, place):
    with Provider() as provider:
        url = provider.url.replace("127.0.0.1", "0.0.0.0")
        done = run("-m", "openai-chat:m", "--base-url", url, "--keys", "FIRST_KEY",
                   env={"BATCH_LLM_LIMITS_FILE": place})  # fmt: skip

    assert done.returncode == 0, done.stderr
