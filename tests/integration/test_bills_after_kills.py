"""What a killed run has cost: the ledger's bill against the simulator's own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, SqliteLedger
from batch_llm.core.prices import Price, Prices
from batch_llm.simulator.server import Simulator

ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "BATCH_LLM_"))}
ENVIRON |= {"OPENAI_API_KEY": "any"}
LEDGER = ".batch-llm/runs/q.results.jsonl.sqlite"
ROWS, IN_FLIGHT = 300, 20


def write_questions(folder, count=ROWS):
    # All of one length, so that each call takes the same number of tokens from the bill.
    lines = [json.dumps({"id": f"q{n}", "prompt": f"<<echo>>{n:04}"}) for n in range(count)]
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


def summed(usages, kind):
    return sum(one[kind] for one in usages)


def test_the_bill_of_a_run_that_was_killed_is_the_simulators_to_the_token(tmp_path):
    write_questions(tmp_path)
    with Simulator("fast?latency=0.1") as simulator:
        command = command_for(simulator)
        for calls in (50, 60, 40):
            kill_in_mid_run(command, tmp_path, simulator, calls)
        done, told = finish(command, tmp_path)
        assert done.returncode == 0, done.stderr
        time.sleep(0.3)  # calls of killed processes are answered, too
        billed = simulator.stats()
    cut_off = told["cut_off_calls"]
    known = summed(told["usage"], "calls") + summed(told["usage_before"], "calls")
    assert 0 < cut_off <= 3 * IN_FLIGHT
    assert billed.answers <= known + cut_off, "a call was made of which nobody knows"
    assert known <= billed.answers
    for kind in ("input_tokens", "output_tokens"):
        of_one = getattr(billed, kind) // billed.answers
        booked = summed(told["usage"], kind) + summed(told["usage_before"], kind)
        assert booked == known * of_one
        assert booked + (billed.answers - known) * of_one == getattr(billed, kind)
        assert summed(told["usage_at_most"], kind) >= cut_off * of_one
    with sqlite3.connect(tmp_path / LEDGER) as tool:
        (count,) = tool.execute(
            "SELECT count(*) FROM attempts WHERE verdict = 'interrupted' AND item_id LIKE 'q%'"
        ).fetchone()
        assert count >= cut_off  # some had ended, and were not saved: those are known
    tool.close()


def test_what_was_cut_off_counts_against_a_cap_at_its_most(tmp_path):
    write_questions(tmp_path)
    with Simulator("fast?latency=0.3") as simulator:
        kill_in_mid_run(command_for(simulator), tmp_path, simulator, 10)
        calls = simulator.stats().calls
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
            token = ledger.call_begins("a", 1, 1.0, named, Size(100, 0, 50))
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
