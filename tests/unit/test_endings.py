"""How runs end before their end, and what is left then."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import BaseMiddleware, DuplicateItemError, StoreError
from batch_llm.stores.memory import MemoryStore
from fakes import PermanentError, Script, item, processor


def items(count, seconds=1.0):
    return [item(str(n), Script(seconds)) for n in range(count)]


def ids(results):
    return sorted(result.item_id for result in results)


class Slow(BaseMiddleware):
    """Takes ten seconds in one of its hooks."""

    def __init__(self, hook):
        self.hook = hook

    async def before_process(self, work_item, /):
        await asyncio.sleep(10 if self.hook == "before" else 0)
        return work_item

    async def after_process(self, result, /):
        await asyncio.sleep(10 if self.hook == "after" else 0)
        return result

    async def on_error(self, work_item, error, /):
        await asyncio.sleep(10 if self.hook == "error" else 0)


async def abandoned(built, work, at):
    asyncio.get_running_loop().call_later(at, lambda: built.stop(drain=False))
    return await built.process(work)


async def test_an_answer_that_is_being_post_processed_is_not_lost_when_the_run_is_abandoned():
    async def post_process(result):
        await asyncio.sleep(10)

    built = processor(max_workers=5, post_processor=post_process)
    result = await abandoned(built, items(20), 2)

    assert result.succeeded == built.statistics().succeeded == 5
    assert built.statistics().elapsed_seconds == 2


@pytest.mark.parametrize(("hook", "step"), [("after", 1.0), ("error", PermanentError("no"))])
async def test_an_outcome_that_a_hook_has_in_hand_is_not_lost_when_the_run_is_abandoned(hook, step):
    built = processor(max_workers=2, middlewares=[Slow(hook)])
    result = await abandoned(built, [item(str(n), Script(step)) for n in range(4)], 2)

    assert result.total_items == 2
    assert result.succeeded == (2 if hook == "after" else 0)
    assert not any("Abandoned" in (one.error or "") for one in result.results)


async def test_a_drain_without_retries_waits_for_calls_and_makes_no_more():
    calls = {
        "good": Script(5.0),
        "failing": Script(RuntimeError("no"), delay=3.0),
        "between": Script(RuntimeError("no")),
        "queued": Script(),
    }
    built = processor(max_workers=2)
    built.config.retry.initial_wait = 100.0
    asyncio.get_running_loop().call_later(1, lambda: built.stop(retry=False))
    result = await built.process([item(name, call) for name, call in calls.items()])

    found = {one.item_id: one for one in result.results}
    assert found["good"].success
    assert found["failing"].error_code == "cancelled"
    assert [len(call.times) for call in calls.values()][:2] == [1, 1]
    assert asyncio.get_running_loop().time() == 5.0


async def test_an_item_that_has_not_been_sent_is_not_sent_after_all():
    calls = [Script() for _ in range(4)]
    built = processor(max_workers=2, middlewares=[Slow("before")])
    result = await abandoned(built, [item(str(n), call) for n, call in enumerate(calls)], 2)

    assert {one.error_code for one in result.results} == {"cancelled"}
    assert not any(call.times for call in calls)


async def test_a_cancelled_run_gives_its_items_back_to_the_queue():
    built = processor(max_workers=2)
    for one in items(6):
        await built.add_work(one)
    running = asyncio.create_task(built.process_all())
    await asyncio.sleep(1.5)
    running.cancel()
    await asyncio.wait([running])
    with pytest.raises(DuplicateItemError):
        await built.add_work(items(3)[2])

    result = await built.process_all()

    assert ids(result.results) == ["2", "3", "4", "5"]  # 0 and 1 had their results


async def test_a_second_run_at_the_same_time_is_refused_and_changes_nothing():
    built = processor(max_workers=4)
    for one in items(3):
        await built.add_work(one)
    running = asyncio.create_task(built.process_all())
    await asyncio.sleep(0.5)
    with pytest.raises(RuntimeError, match="in a run already"):
        await built.process_all()
    with pytest.raises(DuplicateItemError):
        await built.add_work(items(2)[1])

    assert (await running).succeeded == 3


async def test_an_id_may_be_used_again_in_the_next_run():
    built = processor()
    for _ in range(2):
        await built.add_work(items(1)[0])
        assert (await built.process_all()).succeeded == 1


async def test_an_id_whose_adding_was_cancelled_is_free():
    built = processor()
    built.config.max_queue_size = 1
    limited = processor(config=built.config)
    await limited.add_work(item("a", Script()))
    adding = asyncio.create_task(limited.add_work(item("b", Script())))
    await asyncio.sleep(0)
    adding.cancel()
    await asyncio.wait([adding])
    adding = asyncio.create_task(limited.add_work(item("b", Script())))

    assert ids((await limited.process_all()).results) == ["a", "b"]
    await adding


async def test_results_before_a_duplicate_are_with_the_error():
    with pytest.raises(DuplicateItemError) as caught:
        await processor(max_workers=4).process([*items(9), items(1)[0]])

    assert ids(caught.value.partial.results) == [str(n) for n in range(9)]


class SlowStore(MemoryStore):
    """Saves in a second; the third save fails."""

    def __init__(self, *, keep_ids=True, fails_at=None):
        super().__init__(keep_ids=keep_ids)
        self.fails_at = fails_at
        self.saved = []

    def finish(self, result, history, /):
        super().finish(result, history)
        return self._save(result)

    async def _save(self, result):
        await asyncio.sleep(1)
        if len(self.saved) == self.fails_at:
            raise StoreError(result.item_id, "disk full")
        self.saved.append(result.item_id)


@pytest.fixture
def store(monkeypatch):
    made = SlowStore()
    monkeypatch.setattr("batch_llm.parallel.MemoryStore", lambda **_: made)
    return made


async def test_nobody_sees_a_result_before_it_is_saved(store):
    seen = []

    def post_process(result):
        seen.append((result.item_id in store.saved, asyncio.get_running_loop().time()))

    await processor(max_workers=2, post_processor=post_process).process(items(2))

    assert seen == [(True, 2.0), (True, 2.0)]


async def test_workers_that_somebody_else_cancels_end_the_run_with_an_error():
    before = asyncio.all_tasks()
    built = processor(max_workers=2)
    running = asyncio.create_task(built.process([item("a", Script(RuntimeError("wait")))]))
    await asyncio.sleep(0.5)  # between two attempts
    for task in asyncio.all_tasks() - before - {running}:
        task.cancel()

    with pytest.raises(RuntimeError, match="cancelled from outside"):
        await running


async def test_an_abandoned_item_is_no_longer_in_work(store):
    built = processor(max_workers=2)
    await abandoned(built, items(4), 0.5)

    assert store._running == set()


@pytest.mark.parametrize("is_abandoned", [True, False])
async def test_a_result_that_is_being_saved_is_saved_whatever_ends_the_run(store, is_abandoned):
    built = processor(max_workers=2)
    running = asyncio.create_task(built.process(items(4)))
    await asyncio.sleep(1.5)
    if is_abandoned:
        built.stop(drain=False)
    else:
        running.cancel()
    await asyncio.wait([running])

    assert sorted(store.saved) == ["0", "1"]
    if is_abandoned:
        assert (await running).succeeded == 2


async def test_a_store_that_cannot_save_ends_the_run_with_the_results_before(store):
    store.fails_at = 2

    with pytest.raises(StoreError, match="disk full") as caught:
        await processor(max_workers=1).process(items(9))

    assert ids(caught.value.partial.results) == ["0", "1"] == sorted(store.saved)
