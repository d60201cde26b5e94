"""A cache around the calls: what it answers costs nothing, waits for nothing, and fits."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import (
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RetryConfig,
)
from batch_llm.core.config import Limits
from batch_llm.core.request import Request, Settings
from batch_llm.core.schema import OutputSchema
from batch_llm.exceptions import BadOutputError, RefusedError, TruncatedError
from batch_llm.providers.base import LaneFacts, Outcome
from batch_llm.stores.memory import MemoryLedger

USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


class Cache:
    """A cache in a dict; a look-up takes a moment."""

    def __init__(self):
        self.kept = {}
        self.asked = self.runs = 0

    def begin_run(self):
        self.runs += 1

    async def look_up(self, key, /):
        self.asked += 1
        await asyncio.sleep(0.001)
        return self.kept.get(key)

    def put(self, key, answer, /, *, model):
        assert model == "x:m"
        self.kept[key] = answer


class Provider:
    """Answers each call with the next text, or error, and the last one for ever."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.sent = []

    def lane(self, item, /):
        return ""

    def facts(self, item, /):
        return LaneFacts(model="x:m")

    def content(self, item, /):
        return f"{item.item_id} {self.exchange(item)}".encode()

    def exchange(self, item, /):
        return repr(item.request.messages).encode()

    def read_again(self, item, answer, /):
        shape = item.request.output
        try:
            output = answer.decode() if shape is None else shape.parse(answer.decode())
        except BadOutputError as error:
            return Outcome(usage=USAGE, error=error)
        return Outcome(output, USAGE, model="m-1", answer=answer)

    async def call(self, item, attempt, /):
        self.sent.append(item.item_id)
        await asyncio.sleep(1)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            return Outcome(usage=USAGE, error=step, answer=b"what it said")
        return self.read_again(item, step.encode())

    async def run(self, items, cache, *, store=None, **config):
        config.setdefault("retry", RetryConfig(max_attempts=1))
        self.processor = ParallelBatchProcessor(
            config=ProcessorConfig(remember_limits=False, progress_interval=0, **config),
            requests=self,
            cache=cache,
            store=store,
        )
        done = await self.processor.process(items)
        return {result.item_id: result for result in done.results}


def asks(item_id, prompt="same", *, output=None, settings=None, **fields):
    request = Request.of("x:m", prompt, output=output, settings=settings)
    return LLMWorkItem(item_id, request=request, context=item_id, **fields)


async def test_a_second_run_is_answered_for_nothing():
    provider, cache = Provider("ok"), Cache()
    await provider.run([asks(f"q{n}", f"p{n}") for n in range(5)], cache)
    ledger = MemoryLedger()

    found = await provider.run([asks(f"r{n}", f"p{n}") for n in range(6)], cache, store=ledger)

    assert len(provider.sent) == 6
    result = found["r3"]
    assert (result.output, result.model, result.context) == ("ok", "m-1", "r3")
    assert (result.is_cached, result.attempts, sum(result.token_usage.values())) == (True, 0, 0)
    assert not found["r5"].is_cached
    now = provider.processor.statistics()
    assert (now.cached, now.attempts, now.input_tokens, now.succeeded) == (5, 1, 10, 6)
    (note,) = ledger.attempts("r3")
    assert (note.number, note.error_code, sum(note.usage.values())) == (0, "cached", 0)
    assert cache.runs == 2


async def test_what_is_cached_passes_no_gate_and_counts_in_no_cap():
    provider, cache = Provider("ok"), Cache()
    items = [asks(f"q{n}", f"p{n}") for n in range(300)]
    await provider.run(items, cache)

    found = await provider.run(
        items, cache, limits=Limits(requests_per_minute=1), max_tokens_total=15
    )

    assert all(result.is_cached for result in found.values())
    now = provider.processor.statistics()
    assert now.elapsed_seconds < 2
    assert now.stopped_by is None


@pytest.mark.parametrize("error", [RefusedError("no"), TruncatedError("x"), ValueError("bad")])
async def test_what_failed_is_not_kept(error):
    provider, cache = Provider(error, "ok"), Cache()
    await provider.run([asks("q")], cache)

    found = await provider.run([asks("q")], cache)

    assert found["q"].output == "ok"
    assert not found["q"].is_cached


async def test_an_answer_that_does_not_fit_is_not_kept_and_the_one_that_does_is():
    provider, cache = Provider("neither", "b"), Cache()
    shape = OutputSchema.choices("a", "b")

    found = await provider.run([asks("q", output=shape)], cache, retry=RetryConfig(max_attempts=2))

    assert (found["q"].output, found["q"].attempts) == ("b", 2)
    assert list(cache.kept.values()) == [b"b"]


async def test_a_kept_answer_that_no_longer_fits_is_asked_for_again_and_replaced():
    provider, cache = Provider("c", "a"), Cache()
    await provider.run([asks("q", output=OutputSchema.choices("a", "c"))], cache)
    shape = OutputSchema.choices("a", "b")

    found = await provider.run([asks("q", output=shape)], cache)

    assert (found["q"].output, found["q"].is_cached) == ("a", False)
    assert list(cache.kept.values()) == [b"a"]


async def test_rows_that_ask_the_same_share_what_the_cache_answers():
    provider, cache = Provider("ok"), Cache()
    await provider.run([asks("q")], cache)
    asked = cache.asked

    found = await provider.run([asks(f"r{n}") for n in range(5)], cache)

    assert provider.sent == ["q"]
    assert [found[f"r{n}"].is_cached for n in range(5)] == [True, False, False, False, False]
    assert {found[f"r{n}"].shared_with for n in range(1, 5)} == {"r0"}
    assert cache.asked == asked + 1


async def test_after_the_leaders_end_the_cache_answers_what_asks_the_same():
    provider, cache = Provider("ok"), Cache()

    async def slow_source():
        yield asks("a")
        await asyncio.sleep(5)
        yield asks("b")

    found = await provider.run(slow_source(), cache)

    assert provider.sent == ["a"]
    assert found["b"].is_cached


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        ({"settings": Settings(temperature=1.0)}, {}),
        ({"can_share": False}, {}),
        ({}, {"dedupe": False}),
    ],
)
async def test_answers_that_are_to_be_separate_are_kept_for_their_id(fields, config):
    provider, cache = Provider(*[f"answer {n}" for n in range(9)]), Cache()
    items = [asks(f"q{n}", **fields) for n in range(4)]
    first = await provider.run(items, cache, **config)

    again = await provider.run([*items, asks("new", **fields)], cache, **config)

    assert len({result.output for result in again.values()}) == 5
    assert all(again[name].output == first[name].output for name in first)
    assert [name for name, result in again.items() if not result.is_cached] == ["new"]


async def test_with_a_ledger_what_is_finished_does_not_ask_the_cache():
    provider, cache, ledger = Provider("ok"), Cache(), MemoryLedger()
    await provider.run([asks("q")], cache, store=ledger)
    asked = cache.asked

    found = await provider.run([asks("q")], cache, store=ledger)

    assert found["q"].is_reused
    assert cache.asked == asked


async def test_a_failed_item_that_is_tried_again_is_sent():
    provider, cache, ledger = Provider(TruncatedError("x"), "ok"), Cache(), MemoryLedger()
    await provider.run([asks("q")], cache, store=ledger)
    ledger.retry()

    found = await provider.run([asks("q")], cache, store=ledger)

    assert (found["q"].output, provider.sent) == ("ok", ["q", "q"])


async def test_a_run_that_is_stopped_during_a_look_up_ends():
    provider, cache = Provider("ok"), Cache()
    running = asyncio.create_task(provider.run([asks(f"q{n}", f"p{n}") for n in range(5)], cache))
    await asyncio.sleep(0.0005)

    provider.processor.stop(retry=False)

    found = await running
    assert {result.error_code for result in found.values()} == {"cancelled"}
    assert provider.sent == []


async def test_code_is_not_cached():
    calls = []

    async def call(attempt, timeout):
        calls.append(attempt)
        return "ok", {}

    cache = Cache()
    for _ in range(2):
        await Provider("ok").run([LLMWorkItem("q", direct_call=call)], cache)

    assert (len(calls), cache.asked) == (2, 0)
