"""What a killed run has cost: the ledger's bill against the simulator's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from decimal import Decimal

import pytest

from batch_llm import (
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RetryConfig,
    SqliteLedger,
    TransportError,
)
from batch_llm.core.prices import Price, Prices, usd
from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator

ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "BATCH_LLM_"))}
ENVIRON |= {"OPENAI_API_KEY": "any"}
LEDGER = ".batch-llm/runs/q.results.jsonl.sqlite"
ROWS, IN_FLIGHT = 300, 20


def prompt_of(number):
    return f"Question {number}? " + "x" * (number * 37 % 400)


def write_questions(folder, count=ROWS):
    lines = [json.dumps({"id": f"q{n}", "prompt": prompt_of(n)}) for n in range(count)]
    (folder / "q.jsonl").write_text("\n".join(lines))


def command_for(simulator, *more):
    return [
        sys.executable, "-m", "batch_llm", "run", "q.jsonl", "-m", "openai-chat:x",
        "-c", str(IN_FLIGHT), "--base-url", simulator.base_url, "--progress", "json", *more,
    ]  # fmt: skip


def kill_in_mid_run(command, folder, simulator, calls):
    """Start the command, and kill it when so many more calls have come."""
    before = simulator.stats().calls
    process = subprocess.Popen(
        command, cwd=folder, env=ENVIRON, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 40
    while simulator.stats().calls < before + calls and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def finish(command, folder):
    done = subprocess.run(
        command, cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=90, check=False
    )
    return done, json.loads(done.stderr.strip().splitlines()[-1])


def wait_for(is_so):
    deadline = time.monotonic() + 40
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def wait_for_silence(simulator):
    """Return the last numbers: calls of killed processes are answered, too."""
    wait_for(lambda: simulator.stats().calls == simulator.stats().answers)
    return simulator.stats()


def calls_at_last(simulator):
    """Return how many calls have come, when no more of them lie in a socket."""
    while True:
        before = simulator.stats().calls
        time.sleep(0.5)
        if simulator.stats().calls == before:
            return before


def is_quiet(simulator):
    """Tell whether no call is under way, and for a while none has come."""
    before = simulator.stats()
    time.sleep(1.0)
    return before.calls == before.answers == simulator.stats().calls


def summed(usages, kind):
    return sum(one[kind] for one in usages)


def by_row(simulator, count):
    """Return what the simulator billed for each row, and how many answers nobody collected."""
    row_of = {answer_digest(prompt_of(n)): f"q{n}" for n in range(count)}
    billed: dict[str, Counter] = defaultdict(Counter)
    uncollected = Counter()
    for call in simulator.billed_calls():
        billed[row_of[call.asked]][call.input_tokens, call.output_tokens] += 1
        uncollected[row_of[call.asked]] += not call.is_collected
    return billed, uncollected


def attempts(folder):
    """Return what the ledger booked for each row with its tokens, and how many calls without."""
    with contextlib.closing(sqlite3.connect(folder / LEDGER)) as tool:
        booked: dict[str, Counter] = defaultdict(Counter)
        cut_off = Counter()
        for row, sent, got, verdict in tool.execute(
            "SELECT item_id, input_tokens, output_tokens, verdict FROM attempts"
        ):
            if sent is None:
                assert verdict == "interrupted"
                cut_off[row] += 1
            else:
                booked[row][sent, got] += 1
    return booked, cut_off


@pytest.mark.parametrize("latency", [0.1, 0.4])
def test_the_bill_of_a_run_that_was_killed_is_the_simulators_to_the_token(tmp_path, latency):
    write_questions(tmp_path)
    with Simulator(f"fast?latency={latency}&tail=0.5&log=on") as simulator:
        command = command_for(simulator)
        for calls in (50, 60, 40):
            kill_in_mid_run(command, tmp_path, simulator, calls)
        done, told = finish(command, tmp_path)
        assert done.returncode == 0, done.stderr
        stats = wait_for_silence(simulator)
        billed, uncollected = by_row(simulator, ROWS)
    booked, cut_off = attempts(tmp_path)

    # Call by call: each that is booked was billed just so, and each that was billed is known.
    unread, never_there = Counter(), Counter()
    lost: Counter = Counter()
    for row in [f"q{n}" for n in range(ROWS)]:
        assert booked[row] <= billed[row], f"{row} has a call that was not billed"
        rest = billed[row] - booked[row]
        assert uncollected[row] <= rest.total() <= cut_off[row], f"nobody knows of a call of {row}"
        # Two moments in which a kill cannot be told from another: the answer was read from the
        # socket and not looked at yet; the call was about to be handed to the system.
        unread[row] = rest.total() - uncollected[row]
        never_there[row] = cut_off[row] - rest.total()
        for (sent, got), count in rest.items():
            lost["input_tokens"] += sent * count
            lost["output_tokens"] += got * count
    assert told["cut_off_calls"] == cut_off.total()
    assert cut_off.total() == uncollected.total() + unread.total() + never_there.total()
    assert uncollected.total() == sum(one.calls for one in stats.uncollected.values())
    assert 0 < uncollected.total() <= 3 * IN_FLIGHT

    # In sums: what was printed, and what nobody collected, are the bill.
    for kind in ("input_tokens", "output_tokens"):
        printed = summed(told["usage"], kind) + summed(told["usage_before"], kind)
        assert printed + lost[kind] == getattr(stats, kind)
        if not unread.total():
            assert printed + getattr(stats.uncollected["x"], kind) == getattr(stats, kind)
        assert lost[kind] <= summed(told["usage_at_most"], kind)
    if not never_there.total():
        assert summed(told["usage_likely"], "input_tokens") == lost["input_tokens"]
    assert summed(told["usage_at_most"], "input_tokens") == sum(
        sent * cut_off[row] for row in booked for sent, _ in [max(booked[row])]
    )


def test_the_tokens_of_an_answer_that_was_read_and_not_saved_are_known(tmp_path):
    write_questions(tmp_path)
    with Simulator("fast?latency=0.2&log=on") as simulator:
        command = command_for(simulator)
        process = subprocess.Popen(
            command, cwd=tmp_path, env=ENVIRON, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        wait_for(lambda: simulator.stats().calls >= 60)
        with contextlib.closing(sqlite3.connect(tmp_path / LEDGER, isolation_level=None)) as tool:
            tool.execute("BEGIN IMMEDIATE")  # from here on nothing can be saved
            before = simulator.stats().answers
            wait_for(lambda: simulator.stats().answers > before + IN_FLIGHT)
            wait_for(lambda: is_quiet(simulator))
            (saved,) = tool.execute("SELECT count(*) FROM tries").fetchone()
            unsaved = simulator.stats().answers - saved
            process.send_signal(signal.SIGKILL)
            process.wait()
        done, told = finish(command, tmp_path)
        assert done.returncode == 0, done.stderr
        stats = wait_for_silence(simulator)

    assert unsaved > IN_FLIGHT
    assert stats.answers == ROWS + unsaved, "they are asked again"
    assert (told["cut_off_calls"], stats.uncollected) == (0, {})
    for kind in ("input_tokens", "output_tokens"):
        printed = summed(told["usage"], kind) + summed(told["usage_before"], kind)
        assert printed == getattr(stats, kind)


def test_show_verify_and_the_summary_tell_the_same_bill(tmp_path):
    write_questions(tmp_path)
    (tmp_path / "prices.toml").write_text('["openai-chat:x"]\ninput = 1\noutput = 2\n')

    with Simulator("fast?latency=0.3") as simulator:
        command = command_for(simulator, "--prices", "prices.toml")
        kill_in_mid_run(command, tmp_path, simulator, 30)
        between = look(tmp_path, "show").stdout
        done, told = finish(command, tmp_path)
    assert done.returncode == 0, done.stderr
    words = " ".join(between.split())
    assert re.search(r"cut off by a kill.*; `batch-llm resume .*` books them", words), between

    sent, got = (
        summed(told["usage"], kind) + summed(told["usage_before"], kind)
        for kind in ("input_tokens", "output_tokens")
    )
    likely, most = (
        f"{summed(told[name], 'input_tokens'):,} in, {summed(told[name], 'output_tokens'):,} out"
        for name in ("usage_likely", "usage_at_most")
    )
    calls = f"{told['cut_off_calls']:,} calls cut off by a kill: about {likely}, at most {most}"
    line = f" tokens {sent:,} in, {got:,} out; and {calls} "
    for command in ("show", "verify"):  # their lines are broken where a terminal ends
        shown = look(tmp_path, command).stdout
        assert line in " ".join(shown.split())
        assert max(map(len, shown.splitlines())) < 80
    assert "all is well" in look(tmp_path, "verify").stdout
    assert float(told["cost_usd"]) == pytest.approx((sent + 2 * got) / 1e6)
    assert f"cost      {usd(Decimal(told['cost_usd']))} in all" in look(tmp_path, "show").stdout

    with SqliteLedger(tmp_path / LEDGER) as ledger:
        bill = ledger.manifest()["bill"]
        assert (bill["input_tokens"], bill["output_tokens"]) == (sent, got)
        assert bill["cut_off_likely_usd"] == told["cut_off_likely_usd"]
        ledger.note({"bill": bill | {"output_tokens": got + 1}})
    assert f"billed {sent:,} tokens in, {got + 1:,} out" in look(tmp_path, "verify").stdout


@pytest.mark.parametrize("cap", ["--max-cost", "--max-tokens-total"])
def test_a_cap_holds_over_all_sessions_with_what_kills_have_cut_off(tmp_path, cap):
    write_questions(tmp_path)
    (tmp_path / "prices.toml").write_text('["openai-chat:x"]\ninput = 1\noutput = 1\n')
    most, amount = 18_000, {"--max-cost": "0.018", "--max-tokens-total": "18k"}[cap]
    options = ["--prices", "prices.toml", "--set", "max_tokens=40"]
    with Simulator("fast?latency=0.2&tail=0.5") as simulator:
        command = command_for(simulator, *options, cap, amount)
        for calls in (40, 30, 20):
            kill_in_mid_run(command, tmp_path, simulator, calls)
        done, told = finish(command, tmp_path)
        spent = wait_for_silence(simulator)
        rest, end = finish(command_for(simulator, *options), tmp_path)

    assert done.returncode == 3, done.stderr
    assert told["stopped_by"] == {"--max-cost": "max_cost_usd"}.get(cap, "max_tokens_total")
    assert told["cut_off_calls"] > 0
    # All that anybody billed, collected or not, is within the cap, and most of the cap is used.
    assert most / 2 < spent.input_tokens + spent.output_tokens <= most
    assert rest.returncode == 0, rest.stderr
    assert (end["not_done"], told["succeeded"] + told["reused"] + end["succeeded"]) == (0, ROWS)


def test_a_call_that_had_not_left_the_process_is_not_on_the_bill(tmp_path):
    write_questions(tmp_path, 30)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Whoever connects waits for a TLS handshake that never comes: no call is sent.
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        command = [
            sys.executable, "-m", "batch_llm", "run", "q.jsonl", "-m", "openai-chat:x",
            "--base-url", url, "-c", "5",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=tmp_path, env=ENVIRON, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        notes = tmp_path / f"{LEDGER}-calls"
        # All that waits is noted, as what it is.
        wait_for(lambda: notes.exists() and b"q0" in notes.read_bytes())
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "cut off" not in look(tmp_path, "show").stdout
    with Simulator("fast") as simulator:
        done, told = finish(command_for(simulator), tmp_path)
        assert done.returncode == 0, done.stderr
        assert simulator.stats().answers == 30
    assert (told["cut_off_calls"], told["usage_before"]) == (0, [])


def look(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "batch_llm", *words],
        cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_resume_and_retry_go_on_with_the_bill_of_all_sessions(tmp_path):
    write_questions(tmp_path, 60)
    with (tmp_path / "q.jsonl").open("a") as file:
        for n in range(5):
            file.write("\n" + json.dumps({"id": f"r{n}", "prompt": f"<<prefuse>> {n}"}))
    with Simulator("fast?latency=0.3&log=on") as simulator:
        kill_in_mid_run(command_for(simulator), tmp_path, simulator, 10)
        resumed = look(tmp_path, "resume", "--progress", "json")
        retried = look(tmp_path, "retry", "--progress", "json")
        stats = wait_for_silence(simulator)
    first, second = (json.loads(one.stderr.splitlines()[-1]) for one in (resumed, retried))

    assert (resumed.returncode, retried.returncode) == (1, 1)
    assert 0 < first["cut_off_calls"] == second["cut_off_calls"] <= IN_FLIGHT
    assert summed(second["usage_before"], "calls") == stats.calls - 5 - uncollected_calls(stats)
    assert summed(second["usage"], "calls") == 5
    for kind in ("input_tokens", "output_tokens"):
        printed = summed(second["usage"], kind) + summed(second["usage_before"], kind)
        assert printed + getattr(stats.uncollected["x"], kind) == getattr(stats, kind)


def uncollected_calls(stats):
    return sum(one.calls for one in stats.uncollected.values())


def test_to_overwrite_keeps_the_bill_of_what_was_cut_off_with_the_old_ledger(tmp_path):
    write_questions(tmp_path, 60)
    with Simulator("fast?latency=0.3") as simulator:
        kill_in_mid_run(command_for(simulator), tmp_path, simulator, 10)
        cut_off = uncollected_calls(wait_for_silence(simulator))
        done, told = finish(command_for(simulator, "--overwrite"), tmp_path)
        assert done.returncode == 0, done.stderr
        assert (told["cut_off_calls"], told["usage_before"]) == (0, [])
        old = look(tmp_path, "show", f"{LEDGER}.old").stdout
        noted = re.search(r"(\d+) calls are cut off by a kill", old)
        assert noted is not None, old
        assert int(noted[1]) >= cut_off > 0  # some may not have left the process

        finish(command_for(simulator, "--overwrite"), tmp_path)
    # The new `.old` was ended in order: it has no calls of the one before.
    assert "cut off" not in look(tmp_path, "show", f"{LEDGER}.old").stdout
    assert not (tmp_path / f"{LEDGER}.old-calls").exists()


def test_what_was_cut_off_counts_against_a_cap_at_its_most(tmp_path):
    write_questions(tmp_path)
    with Simulator("fast?latency=20") as simulator:  # none is answered before the kill
        kill_in_mid_run(command_for(simulator), tmp_path, simulator, 10)
        calls = calls_at_last(simulator)
        # Each of the calls that were cut off may have taken much: nobody bounded them.
        done, told = finish(command_for(simulator, "--max-tokens-total", "20k"), tmp_path)
        assert done.returncode == 3, done.stderr
        assert told["stopped_by"] == "max_tokens_total"
        assert told["cut_off_calls"] >= 5
        assert simulator.stats().calls == calls


def test_a_cap_is_for_all_sessions_of_a_run(tmp_path):
    prices = Prices({"m": Price(input=0, output=1)})

    def run(count, cap):
        async def call(_attempt, _timeout):
            return "out", {"input_tokens": 0, "output_tokens": 10, "total_tokens": 10}

        items = [LLMWorkItem(str(n), direct_call=call) for n in range(count)]
        config = ProcessorConfig(max_tokens_total=cap, prices=prices)
        with SqliteLedger(tmp_path / "run.sqlite") as ledger:
            built = ParallelBatchProcessor(store=ledger, config=config)
            asyncio.run(built.process(items))
            return built.statistics()

    assert run(20, 100_000).stopped_by is None
    again = run(21, 205)
    assert (again.stopped_by, again.succeeded) == ("max_tokens_total", 20)
    assert summed([{"t": one.output_tokens} for one in again.usage_before], "t") == 200


def test_calls_of_unknown_cost_count_in_the_next_session_too(tmp_path):
    """They count like two others: nobody knows what was held for them any more."""
    prices = Prices({"m": Price(input=0, output=1)})

    def run(count, cap, unknown=0):
        broken = iter(range(unknown))

        async def call(attempt, _timeout):
            if attempt == 1 and next(broken, None) is not None:
                raise TransportError("the connection broke")
            return "out", {"input_tokens": 0, "output_tokens": 10, "total_tokens": 10}

        items = [LLMWorkItem(str(n), direct_call=call) for n in range(count)]
        retry = RetryConfig(initial_wait=0.0)
        config = ProcessorConfig(max_tokens_total=cap, prices=prices, retry=retry)
        with SqliteLedger(tmp_path / "run.sqlite") as ledger:
            built = ParallelBatchProcessor(store=ledger, config=config)
            asyncio.run(built.process(items))
            return built.statistics()

    first = run(20, 100_000, unknown=3)
    assert [one.unmeasured_calls for one in first.usage] == [3]
    again = run(21, 265)
    assert again.succeeded == 20
    assert again.stop_reason.startswith(
        "260 tokens of 265 are spent (3 calls of unknown cost booked at their most)"
    )


def test_a_cap_holds_over_sessions_where_nobody_ever_tells_what_calls_take(tmp_path):
    """They count like the next one may: there are no others to go by."""

    async def call(_attempt, _timeout):
        return "out", {}

    def run():
        items = [LLMWorkItem(str(n), direct_call=call) for n in range(40)]
        config = ProcessorConfig(max_tokens_total=100_000)
        with SqliteLedger(tmp_path / "run.sqlite") as ledger:
            built = ParallelBatchProcessor(store=ledger, config=config)
            asyncio.run(built.process(items))
            return built.statistics()

    first, again = run(), run()

    assert 0 < first.succeeded < 40
    assert again.succeeded == first.succeeded  # the same ones, from the ledger
    assert again.stopped_by == "max_tokens_total"
    assert again.stop_reason.startswith(first.stop_reason.partition(", and")[0])


@pytest.mark.parametrize("is_told", [True, False])
def test_a_note_that_is_left_is_booked_once(tmp_path, is_told):
    from batch_llm.stores.base import Attempt
    from batch_llm.strategies.caps import Size

    path, named = tmp_path / "run.sqlite", ("p:m", "", "standard")
    usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    with SqliteLedger(path) as ledger:

        async def begin():
            await ledger.begin_run(keeps_ids=True)
            ledger.start("a", b"one")
            token = ledger.call_begins("a", 1, 1.0, named, Size(100, 0, 50), False)
            if is_told:
                ledger.call_ended("a", token, Attempt(1, 1.0, 0.5, usage, None, None, named))

        asyncio.run(begin())
        ledger._open.clear()  # as if the process had ended here

        async def spent():
            await ledger.begin_run(keeps_ids=True)
            return ledger.spent()

        for _ in range(2):
            ledger._is_in_run = False
            found = asyncio.run(spent())
            if is_told:
                assert [(one.model, one.input_tokens) for one in found.usage] == [("p:m", 7)]
                assert found.at_most == []
            else:
                (one,) = found.at_most
                assert (one.calls, one.output_tokens, found.usage) == (1, 50, [])
                assert one.input_tokens >= 100
        assert ledger.find("a").state == "pending"
