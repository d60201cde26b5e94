"""Random duplicates, failures and stops: each item one result, and each call paid for once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, RetryConfig
from batch_llm.core.request import Request, Settings
from batch_llm.exceptions import RefusedError, StatusError, TransportError
from batch_llm.providers.base import LaneFacts, Outcome
from batch_llm.stores.memory import MemoryLedger
from batch_llm.testing import VirtualTimeLoop
from fakes import Refusing

MOODS = ("answers", "cut off", "refuses", "bad request", "limits", "server error")


class World:
    """A provider with moods that answers what it was asked, with a book of all that it did."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.weights = [self.dice.random() ** 2 for _ in MOODS]
        self.weights[0] += 0.5
        self.calls = Counter()
        self.under_way = Counter()
        self.failures = Counter()
        self.spent = 0
        self.most_of_one = 0

    def lane(self, item, /):
        return ""

    def facts(self, item, /):
        return LaneFacts(model="x:m")

    def content(self, item, /):
        return f"{item.item_id} {self.exchange(item)}".encode()

    def exchange(self, item, /):
        return repr(item.request).encode()

    def read_again(self, item, answer, /):
        return Outcome(answer.decode(), {}, answer=answer)

    async def call(self, item, attempt, /):
        asked = item.request.messages[0].content
        self.calls[asked] += 1
        self.under_way[asked] += 1
        if item.request.settings.temperature is None:
            # Two calls for one question at a time: only after one of them has failed.
            assert self.under_way[asked] <= 1 + self.failures[asked]
        try:
            await asyncio.sleep(self.dice.choice([0, 0.001, 0.1, self.dice.random() * 3]))
        finally:
            self.under_way[asked] -= 1
        mood = self.dice.choices(MOODS, self.weights)[0]
        if mood != "answers":
            self.failures[asked] += 1
        if mood == "cut off":
            raise TransportError("cut off")
        if mood in {"bad request", "limits", "server error"}:
            status = {"bad request": 400, "limits": 429, "server error": 500}[mood]
            raise StatusError(status, mood)
        tokens = self.dice.randrange(100)
        self.spent += tokens
        usage = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
        if mood == "refuses":
            return Outcome(usage=usage, error=RefusedError("no"))
        return Outcome(asked, usage, answer=asked.encode())


def in_virtual_time(main):
    async def bounded():
        async with asyncio.timeout(1e7):
            return await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(bounded())


def items_of(questions, sampled):
    return [
        LLMWorkItem(
            f"{number}",
            request=Request.of(
                "x:m",
                f"question {question}",
                settings=Settings(temperature=1.0) if question in sampled else None,
            ),
        )
        for number, question in enumerate(questions)
    ]


def built(world, workers, ledger):
    return ParallelBatchProcessor(
        config=ProcessorConfig(
            max_workers=workers,
            retry=RetryConfig(max_attempts=2, initial_wait=0.5, max_rate_limits=20),
            remember_limits=False,
            progress_interval=0,
        ),
        error_classifier=Refusing(),
        requests=world,
        store=ledger,
    )


runs = {
    "seed": st.integers(0, 2**32),
    "workers": st.integers(1, 40),
    "questions": st.lists(st.integers(0, 6), max_size=60),
    "sampled": st.sets(st.integers(0, 6), max_size=2),
}


@given(**runs)
@settings(max_examples=150)
def test_each_item_has_one_result_and_each_call_is_booked_once(seed, workers, questions, sampled):
    world, ledger = World(seed), MemoryLedger()
    items = items_of(questions, sampled)

    async def main():
        processor = built(world, workers, ledger)
        done = await processor.process(items)
        return done, processor.statistics()

    done, now = in_virtual_time(main)

    assert sorted(int(result.item_id) for result in done.results) == list(range(len(items)))
    by_id = {result.item_id: result for result in done.results}
    for item in items:
        result = by_id[item.item_id]
        if result.success:
            assert result.output == item.request.messages[0].content
        if result.shared_with is not None:
            assert questions[int(result.shared_with)] == questions[int(item.item_id)]
            assert questions[int(item.item_id)] not in sampled
            assert by_id[result.shared_with].success == result.success
            assert by_id[result.shared_with].shared_with is None
            assert (result.attempts, sum(result.token_usage.values())) == (0, 0)
    assert now.input_tokens == world.spent == done.total_input_tokens
    assert sum(result.attempts for result in done.results) == world.calls.total() == now.attempts
    assert now.shared == sum(result.shared_with is not None for result in done.results)
    assert (now.following, now.retrying, now.in_flight) == (0, 0, 0)
    for question in set(questions) & sampled:
        asked = sum(one == question for one in questions)
        assert world.calls[f"question {question}"] >= asked


@given(**runs, stop_after=st.floats(0, 5), how=st.sampled_from(["drain", "calls", "abandon"]))
@settings(max_examples=150)
def test_a_stop_at_any_moment_leaves_each_item_taken_with_one_result(
    seed, workers, questions, sampled, stop_after, how
):
    world, ledger = World(seed), MemoryLedger()
    items = items_of(questions, sampled)

    async def main():
        processor = built(world, workers, ledger)

        async def stop():
            await asyncio.sleep(stop_after)
            processor.stop(drain=how != "abandon", retry=how == "drain")

        stopping = asyncio.create_task(stop())
        done = await processor.process(items)
        stopping.cancel()
        return done, processor.statistics()

    done, now = in_virtual_time(main)

    ids = [result.item_id for result in done.results]
    assert len(ids) == len(set(ids)) == now.started
    assert (now.following, now.retrying, now.in_flight) == (0, 0, 0)
    assert now.input_tokens == world.spent


@given(**runs, cancel_after=st.floats(0, 5))
@settings(max_examples=100)
def test_a_cancellation_and_another_run_answer_everything(
    seed, workers, questions, sampled, cancel_after
):
    world, ledger = World(seed), MemoryLedger()
    items = items_of(questions, sampled)

    async def main():
        first = asyncio.create_task(built(world, workers, ledger).process(items))
        await asyncio.sleep(cancel_after)
        first.cancel()
        await asyncio.wait([first])
        return await built(world, workers, ledger).process(items)

    done = in_virtual_time(main)

    assert sorted(int(result.item_id) for result in done.results) == list(range(len(items)))
    assert not any(result.error_code == "cancelled" for result in done.results)
