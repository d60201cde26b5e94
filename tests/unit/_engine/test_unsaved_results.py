"""Results that wait to be saved, while their workers go on; and workers that wait for them."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, StoreError, WorkItemResult
from batch_llm._engine.events import EventDispatcher
from batch_llm._engine.progress import Progress
from batch_llm._engine.unsaved import Unsaved
from batch_llm.stores.base import Saving
from batch_llm.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


class Later(Saving):
    """Ends when the store says so."""

    def __init__(self):
        self.calls = []
        self.done = asyncio.get_running_loop().create_future()

    def then(self, call, value, /):
        self.calls.append((call, value))

    def end(self, error=None):
        for call, value in self.calls:
            call(error, value)
        self.done.set_result(None)

    def __await__(self):
        yield from asyncio.shield(self.done).__await__()


class SlowStore(MemoryStore):
    """Saves nothing until it is told to."""

    def __init__(self):
        super().__init__()
        self.waiting = []
        self.forgotten = []

    def finish(self, result, history, /):
        super().finish(result, history)
        self.waiting.append(Later())
        return self.waiting[-1]

    def forget(self, item_id, history, /):
        self.forgotten.append(item_id)
        super().forget(item_id, history)

    def save(self, count):
        for saving in self.waiting[:count]:
            saving.end()
        del self.waiting[:count]


async def quick(_attempt, _timeout):
    return "out", {}


async def rested():
    for _ in range(50):
        await asyncio.sleep(0)


class Stream:
    """A stream that is being read, over items that count how many of them were taken."""

    def __init__(self, *, workers, buffer, count=100, call=quick):
        self.store, self.taken, self.shown = SlowStore(), 0, []
        self.processor = ParallelBatchProcessor(store=self.store, max_workers=workers)

        def items():
            for number in range(count):
                self.taken += 1
                yield LLMWorkItem(str(number), direct_call=call)

        async def read():
            async for result in self.processor.stream(items(), buffer=buffer):
                self.shown.append(result.item_id)

        self.reading = asyncio.create_task(read())

    async def leave(self):
        """Leave the stream: what was accepted is saved first."""
        self.reading.cancel()
        while not self.reading.done():
            await rested()
            self.store.save(len(self.store.waiting))


async def test_no_more_items_are_taken_than_may_be_unsaved_and_are_in_work():
    stream = Stream(workers=3, buffer=5)
    await rested()

    assert stream.taken == 5 + 3 - 1  # the last of those that may be unsaved waits as well
    assert stream.shown == []
    await stream.leave()


async def test_what_is_saved_is_shown_and_makes_room_for_others():
    stream = Stream(workers=3, buffer=5)
    await rested()

    stream.store.save(4)
    await rested()

    assert len(stream.shown) == 4
    assert len(stream.store.waiting) == 5
    assert stream.taken == 4 + 5
    await stream.leave()


async def test_all_go_on_when_all_is_saved_and_everything_is_shown_once():
    stream = Stream(workers=4, buffer=3, count=50)
    while not stream.reading.done():
        await rested()
        stream.store.save(2)

    assert sorted(map(int, stream.shown)) == list(range(50))


async def test_workers_with_calls_that_take_time_all_go_on():
    """One that is woken and then waits for its call does not keep the others from being woken."""
    under_way = []

    async def slow(_attempt, _timeout):
        under_way.append(1)
        await asyncio.sleep(5)
        under_way.pop()
        return "out", {}

    stream = Stream(workers=4, buffer=3, call=slow)
    await asyncio.sleep(6)
    while len(under_way) < 4:
        assert not stream.reading.done()
        stream.store.save(1)
        await rested()
        if not stream.store.waiting:
            break
    await rested()

    assert len(under_way) == 4
    await stream.leave()


async def test_a_worker_that_is_cancelled_as_it_waits_gives_back_nothing_that_has_a_result():
    store = SlowStore()
    processor = ParallelBatchProcessor(store=store, max_workers=2)
    for number in range(3000):
        await processor.add_work(LLMWorkItem(str(number), direct_call=quick))
    running = asyncio.create_task(processor.process_all())
    await rested()
    accepted = len(store.waiting)
    assert accepted < 3000

    running.cancel()
    await rested()
    store.save(accepted)
    with pytest.raises(asyncio.CancelledError):
        await running

    assert store.forgotten == []
    assert processor.statistics().succeeded == accepted
    again = asyncio.create_task(processor.process_all())
    while not again.done():
        await rested()
        store.save(len(store.waiting))
    ids = [result.item_id for result in again.result().results]
    assert len(ids) == len(set(ids)) == 3000 - accepted


class Holding:
    """Results of a run that are being saved, as far as a test looks at them."""

    def __init__(self, show):
        self.errors = []
        self.unsaved = Unsaved(2, show, EventDispatcher([]), self.errors.append)

    def take(self, item_id):
        saving = Later()
        assert self.unsaved.take(saving, WorkItemResult(item_id, success=True), None, Progress())
        return saving


async def test_what_showing_a_saved_result_raises_is_told_and_the_others_are_shown():
    shown = []

    def show(result, _worker, _progress):
        if result.item_id == "a":
            raise ValueError("no room for it")
        shown.append(result.item_id)

    held = Holding(show)
    first, second = held.take("a"), held.take("b")
    first.end()
    second.end()
    await held.unsaved.show_all()

    assert [str(error) for error in held.errors] == ["no room for it"]
    assert shown == ["b"]


async def test_what_could_not_be_saved_is_told_and_not_shown():
    shown = []
    held = Holding(lambda result, _worker, _progress: shown.append(result))

    held.take("a").end(StoreError("a", "the disk is gone"))
    await held.unsaved.show_all()

    assert [error.args for error in held.errors] == [("a", "the disk is gone")]
    assert shown == []


async def test_nobody_goes_on_while_whoever_takes_the_results_has_no_room():
    room = asyncio.get_running_loop().create_future()
    held = Holding(lambda _result, _worker, _progress: room)
    held.take("a").end()

    assert not held.unsaved.take(Later(), WorkItemResult("b", success=True), None, Progress())
    room.set_result(None)
    await rested()
    held.take("c").end()
    await held.unsaved.show_all()
