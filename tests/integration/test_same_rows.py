"""The command with rows that ask the same, and with a cache, beside the simulator's own count."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from batch_llm import (
    AnswerCache,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    Request,
    RetryConfig,
)
from batch_llm.providers.registry import SIMULATED, resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import HttpTransport
from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator
from command import ENVIRON, rows

KEY = {"OPENAI_API_KEY": "sk-secret-0123456789"}
FAULTS = "retry_after=ms&p429=0.02&p500=0.05&ptruncate=0.1&prefuse=0.05&pfilter=0.05"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def simulator():
    with Simulator("fast?latency=0.05") as running:
        yield running


def arguments_of(simulator, *arguments, command="run"):
    where = ["-m", "openai-chat:x", "--base-url", simulator.base_url]
    return [sys.executable, "-m", "batch_llm", command, "q.jsonl", *where, *arguments]


@pytest.fixture
def cli(tmp_path):
    def cli(*arguments):
        return subprocess.run(
            arguments,
            cwd=tmp_path,
            env=ENVIRON | KEY,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    return cli


@pytest.fixture
def run(cli, simulator):
    return lambda *arguments, **how: cli(*arguments_of(simulator, *arguments, **how))


def write_questions(tmp_path, count, distinct):
    lines = [
        json.dumps({"id": f"q{n}", "prompt": f"Question {n % distinct}?"}) for n in range(count)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))


def check_rows(path, count):
    found = rows(path)
    assert sorted(row["id"] for row in found) == sorted(f"q{n}" for n in range(count))
    assert all(answer_digest(row["prompt"]) in row["output"] for row in found)
    return found


def test_rows_that_ask_the_same_are_sent_once(tmp_path, cli):
    write_questions(tmp_path, 300, 20)

    with Simulator("fast?latency=2") as simulator:
        ran = cli(*arguments_of(simulator, "-c", "300", "--json"))

    assert ran.returncode == 0, ran.stderr
    found = check_rows(tmp_path / "q.results.jsonl", 300)
    stats = simulator.stats()
    done = json.loads(ran.stdout.splitlines()[-1])
    assert stats.calls == 300 - done["shared"] == sum(row["attempts"] for row in found)
    assert done["shared"] > 200
    assert done["input_tokens"] == stats.input_tokens == sum(row["input_tokens"] for row in found)
    assert done["output_tokens"] == stats.output_tokens
    assert "asked the same as a row in flight; not sent" in ran.stderr
    ledger = sqlite3.connect(tmp_path / ".batch-llm/runs/q.results.jsonl.sqlite")
    verdicts = dict(ledger.execute("SELECT verdict, count(*) FROM attempts GROUP BY 1"))
    assert verdicts == {"ok": stats.calls, "shared": done["shared"]}
    ((item_id, leader),) = ledger.execute(
        "SELECT item_id, error FROM attempts WHERE verdict = 'shared' LIMIT 1"
    )
    ledger.close()
    shown = cli(sys.executable, "-m", "batch_llm", "show", "q.results.jsonl", "--id", item_id)
    assert "no call" in shown.stdout
    assert f"shared  {leader}\n" in shown.stdout


@pytest.mark.parametrize("fault", ["prefuse", "ptruncate"])
def test_a_failure_of_the_content_is_shared_and_kept_until_it_is_to_be_tried_again(
    tmp_path, cli, fault
):
    write_questions(tmp_path, 40, 1)
    with Simulator(f"fast?latency=0.1&{fault}=1") as simulator:
        ran = cli(*arguments_of(simulator, "-c", "40", "--retries", "0"))
        calls = simulator.stats().calls
        again = cli(*arguments_of(simulator, "-c", "40", "--retries", "0"))

        assert (ran.returncode, again.returncode) == (1, 1)
        assert simulator.stats().calls == calls < 40
    assert len(rows(tmp_path / "q.failed.jsonl")) == 40
    assert "40 failed ones are kept" in again.stderr


@pytest.mark.parametrize("arguments", [["--no-dedupe"], ["-s", "temperature=0.7"]])
def test_each_row_is_sent_where_that_is_wanted(tmp_path, run, simulator, arguments):
    write_questions(tmp_path, 60, 5)

    ran = run(*arguments)

    assert ran.returncode == 0, ran.stderr
    check_rows(tmp_path / "q.results.jsonl", 60)
    assert simulator.stats().calls == 60


def test_check_tells_which_rows_need_no_call(tmp_path, run, simulator):
    write_questions(tmp_path, 60, 50)
    run("--limit", "30", "--cache", "kept", "-o", "first.jsonl")
    calls = simulator.stats().calls

    ran = run("--cache", "kept", command="check")
    as_json = json.loads(run("--cache", "kept", "--json", command="check").stdout)
    separate = json.loads(run("--no-dedupe", "--json", command="plan").stdout)

    assert "cached    40 rows are answered by kept; not in the numbers below" in ran.stdout
    assert "same" not in ran.stdout
    assert (as_json["cached_rows"], as_json["same_rows"]) == (40, 0)
    assert (separate["cached_rows"], separate["same_rows"]) == (0, 0)
    fresh = json.loads(run("--json", command="check").stdout)
    assert (fresh["cached_rows"], fresh["same_rows"]) == (0, 10)
    assert fresh["input_tokens_estimate"] > as_json["input_tokens_estimate"] > 0
    assert simulator.stats().calls == calls


def test_check_makes_no_cache(tmp_path, run):
    write_questions(tmp_path, 3, 3)

    assert run("--cache", "kept", command="check").returncode == 0
    assert not (tmp_path / "kept").exists()


def test_another_run_is_answered_by_the_cache(tmp_path, run, simulator):
    write_questions(tmp_path, 40, 40)
    assert run("--cache", "kept").returncode == 0
    first = {row["id"]: row["output"] for row in rows(tmp_path / "q.results.jsonl")}

    again = run("--cache", "kept", "-o", "again.jsonl", "--rpm", "1", "--json")

    assert again.returncode == 0, again.stderr
    found = check_rows(tmp_path / "again.jsonl", 40)
    assert {row["id"]: row["output"] for row in found} == first
    done = json.loads(again.stdout.splitlines()[-1])
    assert (done["cached"], done["input_tokens"], done["cost_usd"]) == (40, 0, "0")
    assert "cached           40            answered by the cache; not sent" in again.stderr
    assert simulator.stats().calls == 40
    assert (tmp_path / "kept/.gitignore").read_text() == "*\n"
    kept = (tmp_path / "kept/answers.sqlite").read_bytes()
    assert b"Question 7?" not in kept
    assert KEY["OPENAI_API_KEY"].encode() not in kept


@pytest.mark.parametrize("change", [["-s", "max_tokens=50"], ["--system", "Be brief."]])
def test_another_question_is_not_answered_by_the_cache(tmp_path, run, simulator, change):
    write_questions(tmp_path, 5, 5)
    run("--cache", "kept")

    assert run("--cache", "kept", "-o", "again.jsonl", *change).returncode == 0

    assert simulator.stats().calls == 10


@pytest.mark.parametrize("provider", sorted(SIMULATED))
def test_every_providers_answers_are_kept_and_read_again(tmp_path, cli, provider):
    write_questions(tmp_path, 12, 6)
    command = [sys.executable, "-m", "batch_llm", "run", "q.jsonl", "-m", f"{provider}:fast"]
    command += ["--choices", "good,bad", "--cache", "kept"]

    first = cli(*command)
    again = cli(*command, "-o", "again.jsonl", "--json")

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    outputs, kept = (
        {row["id"]: (row["output"], row["model"]) for row in rows(tmp_path / name)}
        for name in ("q.results.jsonl", "again.jsonl")
    )
    assert outputs == kept
    assert all(output for output, _ in kept.values())
    done = json.loads(again.stdout.splitlines()[-1])
    assert (done["cached"] + done["shared"], done["input_tokens"]) == (12, 0)


def test_a_run_goes_on_without_a_ledger_by_its_cache(tmp_path, run, simulator):
    write_questions(tmp_path, 30, 30)
    run("--no-store", "--cache", "kept", "--limit", "20")

    assert run("--no-store", "--cache", "kept", "--overwrite").returncode == 0

    check_rows(tmp_path / "q.results.jsonl", 30)
    assert simulator.stats().calls == 30


def test_what_has_expired_is_asked_again(tmp_path, run, simulator):
    write_questions(tmp_path, 5, 5)
    run("--cache", "kept")
    time.sleep(0.02)

    run("--cache", "kept", "--cache-expires", "10ms", "-o", "a.jsonl")
    assert simulator.stats().calls == 10
    run("--cache", "kept", "--cache-expires", "7d", "-o", "b.jsonl")
    assert simulator.stats().calls == 10


def test_a_pilots_answers_are_kept_for_the_run(tmp_path, run, simulator):
    write_questions(tmp_path, 20, 20)

    piloted = run("--cache", "kept", "--pilot", "5", command="plan")

    assert piloted.returncode == 0, piloted.stderr
    assert run("--cache", "kept").returncode == 0
    assert simulator.stats().calls == 20


def test_a_cache_can_be_looked_into_and_cleared(tmp_path, cli, run):
    write_questions(tmp_path, 5, 5)
    run("--cache", "kept")
    batch_llm = [sys.executable, "-m", "batch_llm", "cache"]

    listed = cli(*batch_llm, "ls", "kept")
    as_json = json.loads(cli(*batch_llm, "ls", "kept", "--json").stdout)

    assert "openai-chat:x                            5 answers" in listed.stdout
    assert as_json["models"][0]["answers"] == 5
    young = cli(*batch_llm, "clear", "kept", "--older-than", "1d")
    assert "0 answers removed" in young.stdout
    other = cli(*batch_llm, "clear", "kept", "--model", "openai-chat:y")
    assert "0 answers removed" in other.stdout
    assert "5 answers removed" in cli(*batch_llm, "clear", "kept").stdout
    assert json.loads(cli(*batch_llm, "ls", "kept", "--json").stdout)["models"] == []


def test_trouble_with_a_cache_is_told_before_anything_is_sent(tmp_path, cli, run, simulator):
    write_questions(tmp_path, 5, 5)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/answers.sqlite").write_bytes(b"no database " * 500)

    ran = run("--cache", "bad")
    missing = cli(sys.executable, "-m", "batch_llm", "cache", "ls", "none")
    alone = run("--cache-expires", "7d")

    assert ran.returncode == 2
    assert "error: the cache bad/answers.sqlite cannot be used: it is damaged, or no cache" in (
        ran.stderr
    )
    assert "--cache FOLDER   uses another one; without it, every row is sent" in ran.stderr
    assert missing.returncode == 2
    assert "the cache none/answers.sqlite cannot be used: there is none" in missing.stderr
    assert alone.returncode == 2
    assert "--cache-expires must be given with --cache FOLDER" in alone.stderr
    assert simulator.stats().calls == 0


def test_two_runs_at_once_share_a_cache(tmp_path, cli, simulator):
    write_questions(tmp_path, 400, 400)
    started = [
        subprocess.Popen(
            arguments_of(simulator, "--cache", "kept", "-o", f"{name}.jsonl", "-c", "8"),
            cwd=tmp_path,
            env=ENVIRON | KEY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]

    said = [one.communicate(timeout=90)[1] for one in started]

    assert [one.returncode for one in started] == [0, 0], said
    check_rows(tmp_path / "a.jsonl", 400)
    check_rows(tmp_path / "b.jsonl", 400)
    assert simulator.stats().calls <= 800
    calls = simulator.stats().calls
    third = cli(*arguments_of(simulator, "--cache", "kept", "-o", "c.jsonl"))
    assert third.returncode == 0, third.stderr
    assert simulator.stats().calls == calls


def test_a_run_that_is_killed_again_and_again_ends_with_each_answer_paid_for_once(
    tmp_path, cli, simulator
):
    dice = random.Random()
    write_questions(tmp_path, 400, 100)
    places = 8
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(
            arguments_of(simulator, "--cache", "kept", "-c", str(places), "-q"),
            cwd=tmp_path,
            env=ENVIRON | KEY,
        )
        time.sleep(0.8 + 0.7 * dice.random())
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()

    last = cli(*arguments_of(simulator, "--cache", "kept", "-c", str(places)))

    assert last.returncode == 0, last.stderr
    check_rows(tmp_path / "q.results.jsonl", 400)
    # Besides what was in flight, a kill costs what had been answered and was not written yet.
    assert simulator.stats().calls <= 100 + kills * 4 * places


async def send(simulator, questions, **arguments):
    transport = HttpTransport()
    endpoint = resolve("openai-chat:x", base_url=simulator.base_url, environ=KEY)
    processor = ParallelBatchProcessor(
        config=ProcessorConfig(
            retry=RetryConfig(max_attempts=3, initial_wait=0.01),
            max_workers=40,
            remember_limits=False,
            progress_interval=0,
        ),
        requests=RequestCaller(endpoint, transport),
        **arguments,
    )
    items = [
        LLMWorkItem(f"{n}", request=Request.of("openai-chat:x", question))
        for n, question in enumerate(questions)
    ]
    try:
        done = await processor.process(items)
    finally:
        await transport.aclose()
    return done, processor.statistics()


async def test_what_is_booked_is_the_providers_bill_to_the_token_under_faults(tmp_path):
    dice = random.Random()
    questions = [f"Question {dice.randrange(80)}?" for _ in range(600)]
    spent = [0, 0]
    with Simulator(f"fast?{FAULTS}") as simulator:
        for _ in range(3):
            with AnswerCache(tmp_path) as cache:
                done, now = await send(simulator, questions, cache=cache)

            spent[0] += now.input_tokens
            spent[1] += now.output_tokens
            assert len({result.item_id for result in done.results}) == 600
            assert now.input_tokens == done.total_input_tokens
            for result in done.results:
                asked = questions[int(result.item_id)]
                assert not result.success or answer_digest(asked) in result.output
        stats = simulator.stats()
    assert spent == [stats.input_tokens, stats.output_tokens]
    assert now.cached + now.shared > 300


async def test_many_processors_at_once_can_share_one_cache(simulator, tmp_path):
    questions = [f"Question {n}?" for n in range(50)]
    with AnswerCache(tmp_path) as cache:
        both = await asyncio.gather(*[send(simulator, questions, cache=cache) for _ in range(3)])

        again, now = await send(simulator, questions, cache=cache)

    assert all(done.succeeded == 50 for done, _ in both)
    assert now.cached == 50
    assert again.succeeded == 50
