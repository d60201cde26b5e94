"""Whole runs with second copies, ended in any way: one result each, and every place given back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, RetryConfig
from batch_llm.testing import VirtualTimeLoop
from fakes import Classifier, PermanentError, Ramp, RateLimited

RUN_SECONDS = 1e7


class World:
    """A provider with stragglers, and a book of all that it did."""

    def __init__(self, seed, trouble):
        self.dice = random.Random(seed)
        self.trouble = trouble
        self.calls, self.spent = Counter(), Counter()
        self.in_flight = self.peak = 0
        self.running = Counter()
        self.most_copies = 0

    def call_for(self, item_id):
        async def call(attempt, timeout):
            self.calls[item_id] += 1
            self.running[item_id] += 1
            self.most_copies = max(self.most_copies, self.running[item_id])
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            try:
                return await self.answer(item_id)
            finally:
                self.in_flight -= 1
                self.running[item_id] -= 1

        return call

    async def answer(self, item_id):
        seconds = self.dice.choice([1.0, 1.0, 1.5, self.dice.random()])
        straggles = self.dice.random() < 0.06
        if straggles:
            seconds = self.dice.choice([4.0, 8.0, 1e5])
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if self.dice.random() > self.trouble:
                raise
            await asyncio.sleep(self.dice.choice([0.0, 0.5]))  # answers all the same
        if self.dice.random() < self.trouble:
            self.fail(item_id)
        return item_id, self.usage(item_id)

    def fail(self, item_id):
        kind = self.dice.choice([RateLimited, RuntimeError, ValueError, PermanentError])
        if kind is RateLimited:
            raise RateLimited(self.dice.choice([None, 0.5]))
        error = kind("trouble")
        error.usage = self.usage(item_id)
        raise error

    def usage(self, item_id):
        tokens = self.dice.randrange(50)
        self.spent[item_id] += tokens
        return {"input_tokens": tokens, "output_tokens": 0}


def build(workers, *, learns):
    return ParallelBatchProcessor(
        config=ProcessorConfig(
            max_workers=workers,
            timeout_per_item=30.0,
            retry=RetryConfig(max_rate_limits=50),
            progress_interval=0,
            hedge=True,
        ),
        error_classifier=Classifier(),
        rate_limit_strategy=None if learns else Ramp(cooldown=1.0),
    )


def items(world, count):
    for n in range(count):
        item_id = f"item {n}"
        yield LLMWorkItem(item_id, direct_call=world.call_for(item_id), can_hedge=True)


def check_permits(processor, world):
    """All places came back: at the provider, in the gate, and in the lane's budgets."""
    assert world.in_flight == 0
    numbers = processor.statistics()
    assert (numbers.in_flight, numbers.retrying) == (0, 0)
    assert not processor._run._pool._sweeper._deadlines
    timer = processor._run._hedging._timer
    assert timer is None or timer.cancelled()
    lanes = processor._lanes
    if lanes is None:
        return
    assert lanes.in_flight == 0
    for lane in lanes.by_name.values():
        for place in lane.places:
            admission = place.admission
            while (grant := admission._doubt.silent(1e9)) is not None:
                admission._confirm(1e9, grant)
            assert (admission.in_flight, admission._doubt.calls) == (0, 0)
            assert all(abs(one.pending) < 1e-6 for one in admission.budgets.values())


def in_virtual_time(main):
    async def bounded():
        async with asyncio.timeout(RUN_SECONDS):
            return await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(bounded())


worlds = {
    "seed": st.integers(0, 2**32),
    "trouble": st.sampled_from([0.0, 0.0, 0.01, 0.1]),
    "workers": st.one_of(st.integers(1, 6), st.integers(20, 100)),
    "learns": st.booleans(),
}


def check_whole_run(seed, trouble, workers, learns, count, how):
    """Let a run come to its end, and check all that must hold; return its numbers."""
    world = World(seed, trouble)

    async def main():
        before = asyncio.all_tasks()
        processor = build(workers, learns=learns)
        if how == "stream":
            results = [result async for result in processor.stream(items(world, count))]
        elif how == "process":
            results = (await processor.process(items(world, count))).results
        else:
            for item in items(world, count):
                await processor.add_work(item)
            results = (await processor.process_all()).results
        check_permits(processor, world)
        assert asyncio.all_tasks() == before
        return results, processor.statistics()

    results, numbers = in_virtual_time(main)

    assert sorted(result.item_id for result in results) == sorted(f"item {n}" for n in range(count))
    for result in results:
        assert result.success == (result.output == result.item_id)
        assert result.token_usage["input_tokens"] == world.spent[result.item_id]
        assert result.attempts == world.calls[result.item_id]
    assert numbers.attempts == sum(world.calls.values())
    assert numbers.input_tokens == sum(world.spent.values())
    assert numbers.hedges_won <= numbers.hedged <= max(1, 0.05 * count)
    assert world.peak <= workers
    assert world.most_copies <= 2
    return numbers


@given(**worlds, count=st.integers(20, 120), how=st.sampled_from(["queue", "process", "stream"]))
@settings(max_examples=150)
def test_with_second_copies_every_item_has_one_result_and_the_counts_are_exact(
    seed, trouble, workers, learns, count, how
):
    check_whole_run(seed, trouble, workers, learns, count, how)


def test_such_runs_have_copies_that_win_and_copies_that_lose():
    runs = [check_whole_run(seed, 0.0, 60, True, 100, "process") for seed in range(40)]

    won = sum(numbers.hedges_won for numbers in runs)
    assert won > 3
    assert sum(numbers.hedged for numbers in runs) > won


@given(
    **worlds,
    stop_at=st.floats(0, 60),
    how=st.sampled_from(["drain", "no retry", "abandon", "cancel", "abandon and cancel"]),
)
@settings(max_examples=200)
def test_however_a_run_with_second_copies_is_ended_nothing_is_left(
    seed, trouble, workers, learns, stop_at, how
):
    world = World(seed, trouble)

    async def main():
        before = asyncio.all_tasks()
        processor = build(workers, learns=learns)
        running = asyncio.create_task(processor.process(items(world, 80)))
        await asyncio.sleep(stop_at)
        if how.startswith("abandon"):
            processor.stop(drain=False)
        elif how != "cancel":
            processor.stop(retry=how != "no retry")
        if how.endswith("cancel"):
            await asyncio.sleep(0)
            running.cancel()
        await asyncio.wait([running])
        check_permits(processor, world)
        assert asyncio.all_tasks() == before
        return None if running.cancelled() else running.result()

    result = in_virtual_time(main)

    if result is not None:
        seen = [one.item_id for one in result.results]
        assert len(seen) == len(set(seen))
        assert set(seen) >= set(world.calls)  # each item that was called has its result
