"""Our bill beside the simulator's own, and caps that hold, over sockets."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import partial

import pytest

from batch_llm import (
    FixedDelayStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    Price,
    Prices,
    ProcessorConfig,
    Request,
)
from batch_llm.core.config import RetryConfig
from batch_llm.core.request import Settings
from batch_llm.core.schema import OutputSchema
from batch_llm.providers.registry import resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import HttpTransport
from batch_llm.simulator.server import Simulator
from command import rows

PRICES = Prices({"sim:fast": Price(input=1, output=4), "openai-chat:x": Price(input=1, output=4)})
TABLE = '["openai-chat:x"]\ninput = 1\noutput = 4\nbatch = 0.5\n'
#: Faults after which the answer, and with it what it cost, still arrives; or nothing is billed.
TOLD = (
    "retry_after=ms&p429=0.01&p500=0.08&p503=0.01&pschema=0.1&ptruncate=0.1&prefuse=0.03"
    "&pfilter=0.02"
)
#: Faults after which nobody can know.
UNTOLD = "preset=0.05&pgarbage=0.05"

KEY = {"OPENAI_API_KEY": "any"}


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def send(simulator, count=300, *, shape=None, prompt="Tell me of number {}.", **settings):
    transport = HttpTransport()
    endpoint = resolve("openai-chat:x", base_url=simulator.base_url, environ=KEY)
    chosen = {"retry": RetryConfig(max_attempts=4, initial_wait=0.01), "max_workers": 32}
    config = ProcessorConfig(**chosen | {"prices": PRICES, "remember_limits": False} | settings)
    processor = ParallelBatchProcessor(
        config=config,
        requests=RequestCaller(endpoint, transport),
        rate_limit_strategy=FixedDelayStrategy(cooldown=0.01, delay_between_requests=0.0),
    )
    asked = Settings(max_tokens=200)
    items = [
        LLMWorkItem(
            str(n),
            request=Request.of("x", prompt.format(n), output=shape, settings=asked),
        )
        for n in range(count)
    ]
    try:
        await processor.process(items)
    finally:
        await transport.aclose()
    return processor.statistics(), simulator.stats()


def billed(stats):
    return (stats.input_tokens + 4 * Decimal(stats.output_tokens)) / 10**6


@pytest.mark.parametrize("shape", [None, OutputSchema.choices("good", "bad")])
async def test_our_bill_is_the_providers_to_the_token_under_faults(shape):
    with Simulator(f"fast?seed=3&{TOLD}") as simulator:
        now, stats = await send(simulator, shape=shape)

    assert sum(stats.faults.values()) > 40
    assert now.attempts > 300
    (used,) = now.usage
    assert (used.input_tokens, used.output_tokens) == (stats.input_tokens, stats.output_tokens)
    assert used.calls == stats.answers
    assert used.unmeasured_calls == 0
    assert PRICES.bill(now.usage).usd == billed(stats)


async def test_answers_that_never_arrived_are_counted_one_by_one():
    with Simulator(f"fast?seed=5&{TOLD}&{UNTOLD}") as simulator:
        now, stats = await send(simulator)

    used = now.usage[0]
    lost = stats.faults["preset"] + stats.faults["pgarbage"]
    assert lost > 10
    assert used.unmeasured_calls == lost
    assert used.calls == stats.answers - lost
    assert PRICES.bill(now.usage).usd < billed(stats)


@pytest.mark.parametrize("cap", ["0.01", "0.03"])
async def test_a_cap_holds_on_the_providers_own_bill(cap):
    with Simulator(f"fast?seed=7&{TOLD}&{UNTOLD}") as simulator:
        now, stats = await send(simulator, max_cost_usd=Decimal(cap))

    assert now.stopped_by == "max_cost_usd"
    assert (
        Decimal(cap) / 10 < billed(stats) <= Decimal(cap)
    )  # lost answers are booked at their most


async def test_a_cap_on_tokens_is_nearly_used_up_where_nothing_is_lost():
    with Simulator("fast") as simulator:
        now, stats = await send(simulator, 2000, max_tokens_total=20_000)

    total = stats.input_tokens + stats.output_tokens
    assert now.input_tokens + now.output_tokens == total
    assert 19_500 < total <= 20_000


@pytest.fixture
def cli(cli, tmp_path):
    (tmp_path / "q.jsonl").write_text(
        "".join(f'{{"id": "q{n}", "prompt": "Question {n}?"}}\n' for n in range(120))
    )
    (tmp_path / "prices.toml").write_text(TABLE)

    return partial(cli, env=KEY | {"BATCH_LLM_LIMITS_FILE": ""})


def test_a_capped_run_ends_with_3_and_the_rest_can_be_run(cli, tmp_path):
    with Simulator("fast") as simulator:
        there = ["-m", "openai-chat:x", "--base-url", simulator.base_url]
        again = [*there, "--prices", "prices.toml", "-s", "max_tokens=100", "-q", "--json"]
        done = cli("run", "q.jsonl", *again, "--max-cost", "0.004")
        stats = simulator.stats()
        end = json.loads(done.stdout.splitlines()[-1])
        sent = rows(tmp_path / "q.results.jsonl")
        rest = cli("resume", "--max-cost", "1", "-q", "--json")

    assert done.returncode == 3, done.stderr
    assert "stopped by --max-cost: $0.003" in done.stderr
    assert end["stopped_by"] == "max_cost_usd"
    assert Decimal(end["cost_usd"]) == billed(stats)
    assert 0 < len(sent) == 120 - end["not_done"]
    assert not (tmp_path / "q.failed.jsonl").exists()  # nothing has failed
    assert rest.returncode == 0, rest.stderr
    assert json.loads(rest.stdout.splitlines()[-1])["reused"] == len(sent)
    found = rows(tmp_path / "q.results.jsonl")
    assert sorted(row["id"] for row in found) == sorted(f"q{n}" for n in range(120))


def test_without_a_ledger_rows_that_a_cap_left_are_kept_to_be_run(cli, tmp_path):
    capped = ["--max-tokens-total", "500", "-s", "max_tokens=30", "--no-store"]

    done = cli("run", "q.jsonl", *capped)

    assert done.returncode == 3
    assert "of them not sent)" in done.stderr
    sent, left = rows(tmp_path / "q.results.jsonl"), rows(tmp_path / "q.failed.jsonl")
    assert {row["id"] for row in sent + left} == {f"q{n}" for n in range(120)}
    assert len(sent) + len(left) == 120


def test_the_command_for_the_rest_is_printed(cli):
    done = cli("run", "q.jsonl", "--max-tokens-total", "500", "-s", "max_tokens=30")

    assert done.returncode == 3
    assert "  failed    q" not in done.stderr
    assert "continue  batch-llm resume q.results.jsonl" in done.stderr
    assert "next      batch-llm" not in done.stderr
    assert "cost      unknown: no price for sim:fast" in done.stderr


def test_the_same_command_with_a_higher_cap_goes_on(cli, tmp_path):
    cli("run", "q.jsonl", "--max-tokens-total", "500", "-s", "max_tokens=30")

    done = cli("run", "q.jsonl", "--max-tokens-total", "1M", "-s", "max_tokens=30")

    assert done.returncode == 0
    assert " reused, " in done.stderr
    rows = (tmp_path / "q.results.jsonl").read_text().splitlines()
    assert len(rows) == len((tmp_path / "q.jsonl").read_text().splitlines())


def test_a_cap_without_a_price_is_refused_before_sending(cli, tmp_path):
    for command in ("run", "check"):
        done = cli(command, "q.jsonl", "--max-cost", "5")

        assert done.returncode == 2
        assert "--max-cost cannot be kept: no price is known for sim:fast" in done.stderr
        assert not (tmp_path / "q.results.jsonl").exists()


def test_a_deadline_ends_with_3(cli):
    done = cli("run", "q.jsonl", "-m", "sim:fast?latency=0.5", "-c", "2", "--deadline", "2s", "-q")

    assert done.returncode == 3
    assert "stopped by --deadline: 2 s have gone by" in done.stderr


def test_a_share_of_failures_ends_with_3(cli):
    done = cli("run", "q.jsonl", "-m", "sim:fast?prefuse=0.9", "-c", "1", "--max-failed", "50%")

    assert done.returncode == 3
    assert "stopped by --max-failed: " in done.stderr
    assert "of 20 finished items have failed" in done.stderr


def test_a_plan_says_what_a_run_takes_and_sends_nothing(cli, tmp_path):
    done = cli(
        "plan", "q.jsonl", "-m", "openai-chat:gpt-4o-mini", "-s", "max_tokens=100", "--rpm", "60",
        "--json",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    low, high = map(Decimal, found["estimate"]["cost_usd"])
    assert (found["rows"], found["estimate"]["output_tokens"][2]) == (120, 12_000)
    assert high - low == 12_000 * Decimal("0.6") / 10**6
    assert [Decimal(one) * 2 for one in found["estimate"]["batch_cost_usd"]] == [low, high]
    assert found["estimate"]["seconds"] == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prices.toml", "q.jsonl"]


def test_a_pilot_sends_so_many_rows_and_its_interval_holds(cli, tmp_path):
    with Simulator("fast") as simulator:
        flags = ["-m", "openai-chat:x", "--base-url", simulator.base_url, "--prices", "prices.toml"]
        done = cli("plan", "q.jsonl", *flags, "--pilot", "20", "--json")
        stats = simulator.stats()
        told = cli("plan", "q.jsonl", *flags, "--pilot", "24")
        before = simulator.stats()
        run = cli("run", "q.jsonl", *flags)
        after = simulator.stats()

    found = json.loads(done.stdout)
    assert (stats.calls, found["pilot"]["rows"]) == (20, 20)
    assert Decimal(found["pilot"]["cost_usd"]) == billed(stats)
    known = 24 - (before.calls - stats.calls)
    assert f"{24 - known} rows sent, {known} known from before: 24 ok, 0 failed" in told.stdout
    assert "`run` with the same output does not send these rows again" in told.stdout
    assert not (tmp_path / "q.pilot.jsonl").exists()
    assert f"{before.calls} reused, {120 - before.calls} to do" in run.stderr
    assert after.calls == 120
    assert len(rows(tmp_path / "q.results.jsonl")) == 120
    low, _, high = found["estimate"]["output_tokens"]
    assert low * 0.97 <= after.output_tokens <= high * 1.03
    assert found["estimate"]["input_tokens"] == pytest.approx(after.input_tokens, rel=0.05)
