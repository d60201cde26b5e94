"""A processor's whole life as a state machine on virtual time.

Items are added, runs are started, drained, abandoned and cancelled, the provider refuses, fails
and hangs, in any order. What was added is always either queued, in work, or has its one result.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batch_llm import (
    BaseMiddleware,
    DuplicateItemError,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RetryConfig,
)
from batch_llm.testing import VirtualTimeLoop
from fakes import Classifier, PermanentError, Ramp, RateLimited

LONG_SECONDS = 1e6
STEPS = st.sampled_from(["ok", "ok", "slow", "refused", "refused 3", "flaky", "bad", "no", "hang"])


class Provider:
    """Does what an item's script says, and keeps a book of it."""

    def __init__(self):
        self.in_flight = self.peak = 0
        self.tokens = Counter()
        self.times = []

    def call(self, item_id, script):
        steps = list(script)

        async def call(attempt, timeout):
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            self.times.append(asyncio.get_running_loop().time())
            try:
                return await self.answer(item_id, steps.pop(0) if steps else "ok")
            finally:
                self.in_flight -= 1

        return call

    async def answer(self, item_id, step):
        if step == "slow":
            await asyncio.sleep(3.0)
        elif step == "hang":
            await asyncio.sleep(LONG_SECONDS)
        elif step == "refused":
            raise RateLimited
        elif step == "refused 3":
            raise RateLimited(3.0)
        elif step in {"flaky", "bad", "no"}:
            self.tokens[item_id] += 1
            kind = {"flaky": RuntimeError, "bad": ValueError, "no": PermanentError}[step]
            error = kind(step)
            error.usage = {"input_tokens": 1, "output_tokens": 0}
            raise error
        self.tokens[item_id] += 1
        return item_id, {"input_tokens": 1, "output_tokens": 0}


class Patient(BaseMiddleware):
    """A hook with an await in it, where a cancellation may land."""

    async def after_process(self, result, /):
        await asyncio.sleep(0.5)
        return result


class ProcessorLife(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.provider = Provider()
        self.numbers = iter(range(10**6))
        self.adding = {}
        self.added = set()
        self.results = []
        self.abandoned = set()
        self.running = None

    @initialize(
        workers=st.integers(1, 6),
        queue_size=st.sampled_from([0, 1, 3]),
        hooks=st.booleans(),
        learns=st.booleans(),
        hedge=st.booleans(),
    )
    def make(self, workers, queue_size, hooks, learns, hedge):
        async def build():
            return ParallelBatchProcessor(
                config=ProcessorConfig(
                    max_workers=workers,
                    timeout_per_item=20.0,
                    max_queue_size=queue_size,
                    retry=RetryConfig(max_rate_limits=10, jitter=False),
                    progress_interval=0,
                    hedge=hedge,
                ),
                error_classifier=Classifier(),
                rate_limit_strategy=None
                if learns
                else Ramp(cooldown=5.0, ramp_items=2, ramp_delay=0.5),
                middlewares=[Patient()] if hooks else [],
                post_processor=self.post_process,
            )

        self.seen = []
        self.workers = workers
        self.processor = self.runner.run(build())

    def post_process(self, result):
        self.seen.append(result.item_id)

    def wait(self, seconds):
        self.runner.run(asyncio.sleep(seconds))
        self.collect()

    def collect(self):
        for item_id in [i for i, task in self.adding.items() if task.done()]:
            self.adding.pop(item_id).result()
            self.added.add(item_id)
        if self.running is not None and self.running.done():
            running, self.running = self.running, None
            if not running.cancelled():
                self.results += running.result().results

    @rule(script=st.lists(STEPS, max_size=4))
    def add(self, script):
        item_id = str(next(self.numbers))
        item = LLMWorkItem(item_id, direct_call=self.provider.call(item_id, script), can_hedge=True)

        async def start():
            return asyncio.create_task(self.processor.add_work(item))

        self.adding[item_id] = self.runner.run(start())
        self.wait(0)

    @precondition(lambda self: self.adding)
    @rule()
    def give_up_adding(self):
        item_id, task = self.adding.popitem()

        async def cancel():
            task.cancel()
            await asyncio.wait([task])

        self.runner.run(cancel())
        if not task.cancelled():
            self.added.add(item_id)

    @precondition(lambda self: self.left())
    @rule()
    def add_twice(self):
        taken = min(self.left())

        async def again():
            if taken in self.seen:  # its run ended in the very step before
                return
            with pytest.raises(DuplicateItemError):
                async with asyncio.timeout(0):
                    await self.processor.add_work(LLMWorkItem(taken, agent=object()))

        self.runner.run(again())

    @precondition(lambda self: self.running is None)
    @rule()
    def start(self):
        async def start():
            return asyncio.create_task(self.processor.process_all())

        self.running = self.runner.run(start())
        self.wait(0)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0]))
    def let_time_pass(self, seconds):
        self.wait(seconds)

    @precondition(lambda self: self.running is not None)
    @rule(how=st.sampled_from(["drain", "abandon", "cancel"]))
    def end(self, how):
        async def end():
            if how == "cancel":
                self.running.cancel()
            else:
                self.processor.stop(drain=how == "drain")
            await asyncio.wait([self.running])

        self.runner.run(end())
        self.lose_results_of_a_cancelled_run()
        self.collect()

    def lose_results_of_a_cancelled_run(self):
        """A cancelled call returns nothing; who saw its results is the post-processor.

        The items that it was working on are queued again, and the next run counts anew.
        """
        if self.running.cancelled():
            known = {result.item_id for result in self.results}
            self.abandoned |= set(self.seen) - known
            for item_id in self.added - set(self.seen):
                self.provider.tokens[item_id] = 0

    @invariant()
    def each_result_is_the_only_one(self):
        counts = Counter(self.seen)
        assert not [i for i, count in counts.items() if count > 1]
        ids = [result.item_id for result in self.results]
        assert len(ids) == len(set(ids))

    @invariant()
    def no_more_calls_than_workers(self):
        assert self.provider.peak <= getattr(self, "workers", 0) or not self.provider.peak

    @invariant()
    def counts_belong_together(self):
        if not hasattr(self, "processor"):
            return
        numbers = self.processor.statistics()
        assert numbers.processed == numbers.succeeded + numbers.failed
        assert numbers.in_flight == self.provider.in_flight
        assert numbers.started >= numbers.processed

    def teardown(self):
        if not hasattr(self, "processor"):
            return
        try:
            self.finish_everything()
        finally:
            self.runner.close()

    def finish_everything(self):
        """Run what is left to its end: then each item has its one result."""
        for _ in range(50):
            if self.running is None:
                self.start()
            self.wait(LONG_SECONDS)
            if not self.adding and self.running is None and not self.left():
                break
        assert not self.left()
        assert (self.provider.in_flight, self.adding) == (0, {})
        for result in self.results:
            if result.error_code != "cancelled":
                assert result.token_usage["input_tokens"] == self.provider.tokens[result.item_id]
            assert result.success == (result.output == result.item_id)

    def left(self):
        self.collect()
        known = {result.item_id for result in self.results}
        return self.added - known - self.abandoned


def test_whatever_happens_in_a_processors_life_each_item_gets_its_one_result():
    run_state_machine_as_test(
        ProcessorLife, settings=settings(max_examples=150, stateful_step_count=30)
    )
