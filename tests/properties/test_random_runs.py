"""Whole runs at random on virtual time: nothing lost, nothing doubled, nothing hangs."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from batch_llm import (
    LLMWorkItem,
    MetricsObserver,
    ParallelBatchProcessor,
    ProcessorConfig,
    RetryConfig,
)
from batch_llm.testing import VirtualTimeLoop
from fakes import Classifier, PermanentError, Ramp, RateLimited

RUN_SECONDS = 1e7


class World:
    """A provider with moods, and a book of all that it did."""

    def __init__(self, seed, *, suspends):
        self.dice = random.Random(seed)
        self.suspends = suspends
        self.weights = [self.dice.random() ** 2 for _ in range(6)]
        self.weights[0] += 0.3
        self.spent = Counter()
        self.calls = Counter()
        self.refusals = 0
        self.in_flight = self.peak = 0

    def call_for(self, item_id):
        async def call(attempt, timeout):
            self.calls[item_id] += 1
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            try:
                return await self.answer(item_id)
            finally:
                self.in_flight -= 1

        return call

    async def answer(self, item_id):
        if self.suspends:
            await asyncio.sleep(self.dice.choice([0, 0.001, 0.1, self.dice.random() * 3]))
        mood = self.dice.choices(range(6), self.weights)[0]
        if mood == 1:
            self.refusals += 1
            raise RateLimited(self.dice.choice([None, 0.0, 0.5, 7.0]))
        if mood == 2:
            raise self.paid(item_id, RuntimeError("flaky"))
        if mood == 3:
            raise self.paid(item_id, ValueError("bad output"))
        if mood == 4:
            raise PermanentError("no")
        if mood == 5 and self.suspends:
            await asyncio.sleep(1e5)
        tokens = self.dice.randrange(100)
        self.spent[item_id] += tokens
        return item_id, {"input_tokens": tokens, "output_tokens": 0}

    def paid(self, item_id, error):
        tokens = self.dice.randrange(100)
        self.spent[item_id] += tokens
        error.usage = {"input_tokens": tokens, "output_tokens": 0}
        return error


def in_virtual_time(main):
    async def bounded():
        async with asyncio.timeout(RUN_SECONDS):
            return await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(bounded())


def build(world, workers, ramp_items, metrics, max_queue_size=0):
    """Build a processor; without a number of items on the ramp it learns limits."""
    ramp = Ramp(cooldown=5.0, ramp_items=ramp_items or 0, ramp_delay=0.1)
    return ParallelBatchProcessor(
        config=ProcessorConfig(
            max_workers=workers,
            timeout_per_item=30.0,
            retry=RetryConfig(max_rate_limits=50),
            max_queue_size=max_queue_size,
            progress_interval=0,
        ),
        error_classifier=Classifier(),
        rate_limit_strategy=None if ramp_items is None else ramp,
        observers=[metrics],
    )


runs = {
    "seed": st.integers(0, 2**32),
    "workers": st.one_of(st.integers(1, 12), st.integers(1, 200)),
    "count": st.integers(0, 150),
    "ramp_items": st.sampled_from([None, 0, 1, 50]),
    "suspends": st.booleans(),
    "how": st.sampled_from(["queue", "process", "stream", "bounded queue"]),
}


@given(**runs)
@settings(max_examples=150)
def test_every_item_has_exactly_one_result_and_the_counts_are_exact(
    seed, workers, count, ramp_items, suspends, how
):
    world, metrics = World(seed, suspends=suspends), MetricsObserver()
    ids = [f"item {n}" for n in range(count)]

    async def main():
        items = [LLMWorkItem(item_id=i, direct_call=world.call_for(i), context=i) for i in ids]
        processor = build(world, workers, ramp_items, metrics, 3 if how == "bounded queue" else 0)
        if how == "stream":
            results = [result async for result in processor.stream(items)]
        elif how == "process":
            results = (await processor.process(iter(items))).results
        elif how == "queue":
            for item in items:
                await processor.add_work(item)
            results = (await processor.process_all()).results
        else:

            async def produce():
                for item in items:
                    await processor.add_work(item)

            producer = asyncio.create_task(produce())
            await asyncio.sleep(0)
            results = (await processor.process_all()).results
            await producer
        return results, processor.statistics(), await metrics.get_metrics()

    results, numbers, measured = in_virtual_time(main)

    assert sorted(result.item_id for result in results) == sorted(ids)
    for result in results:
        assert result.context == result.item_id
        assert result.success == (result.output == result.item_id)
        assert result.token_usage["input_tokens"] == world.spent[result.item_id]
        assert result.attempts == world.calls[result.item_id]
    succeeded = sum(result.success for result in results)
    assert (numbers.succeeded, numbers.failed) == (succeeded, count - succeeded)
    assert (measured["items_succeeded"], measured["items_failed"]) == (succeeded, count - succeeded)
    assert numbers.attempts == sum(world.calls.values())
    assert numbers.rate_limit_count == measured["rate_limits_hit"] == world.refusals
    assert numbers.input_tokens == sum(world.spent.values())
    assert world.peak <= workers
    assert (numbers.in_flight, numbers.waiting, numbers.retrying) == (0, 0, 0)


@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 50),
    ramp_items=st.sampled_from([None, 1]),
    stop_at=st.floats(0, 20),
    how=st.sampled_from(["drain", "abandon", "cancel"]),
)
@settings(max_examples=100)
def test_however_a_run_is_ended_nothing_is_left_running(seed, workers, ramp_items, stop_at, how):
    world, metrics = World(seed, suspends=True), MetricsObserver()
    ids = [f"item {n}" for n in range(100)]

    async def main():
        before = asyncio.all_tasks()
        processor = build(world, workers, ramp_items, metrics)
        items = [LLMWorkItem(item_id=i, direct_call=world.call_for(i)) for i in ids]
        running = asyncio.create_task(processor.process(items))
        await asyncio.sleep(stop_at)
        if how == "cancel":
            running.cancel()
        else:
            processor.stop(drain=how == "drain")
        await asyncio.wait([running])
        assert asyncio.all_tasks() == before
        return None if running.cancelled() else running.result()

    result = in_virtual_time(main)

    assert world.in_flight == 0
    if result is not None:
        seen = [r.item_id for r in result.results]
        assert len(seen) == len(set(seen))
        assert set(seen) >= set(world.calls)  # each item that was called has its result
