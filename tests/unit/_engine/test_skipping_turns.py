"""Which worker passes over kept items, and when the others have their turn."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm._engine.skipping import AT_ONCE, SkippingSource
from batch_llm._engine.sources import IterableSource
from batch_llm.base import LLMWorkItem, WorkItemResult
from batch_llm.exceptions import SourceError


async def nothing(attempt, timeout):
    return None, None


def items(*ids):
    return [LLMWorkItem(item_id, direct_call=nothing) for item_id in ids]


class Kept:
    """A store that has the results of some ids, and takes others for known ones."""

    def __init__(self, ids, taken_for_known=()):
        self.ids, self.known = set(ids), {*ids, *taken_for_known}

    has_results = True

    def may_have(self, item_id):
        return item_id in self.known

    def kept(self, asked):
        return [
            WorkItemResult(item_id, success=True) if item_id in self.ids else None
            for item_id, _ in asked
        ]


def skipping(given, store, shown, wait=None):
    def show(item, kept):
        shown.append(item.item_id)
        return None if wait is None else wait()

    return SkippingSource(IterableSource(given), store, lambda item: b"", show)


async def taken(source):
    found = []
    while (item := await source.take()) is not None:
        found.append(item.item_id)
    return found


async def test_items_without_a_result_are_given_and_the_others_shown_in_their_order():
    shown = []
    ids = [str(n) for n in range(1000)]
    done = [one for one in ids if int(one) % 7]
    source = skipping(items(*ids), Kept(done, taken_for_known=["7", "14"]), shown)

    given = await taken(source)

    assert given == [one for one in ids if not int(one) % 7]
    assert shown == done
    assert source.is_empty


async def test_several_workers_get_each_item_once():
    shown = []
    ids = [str(n) for n in range(2000)]
    done = [one for one in ids if int(one) % 10]
    source = skipping(items(*ids), Kept(done, taken_for_known=ids), shown)

    found = await asyncio.gather(*(taken(source) for _ in range(20)))

    assert sorted(one for part in found for one in part) == sorted(set(ids) - set(done))
    assert shown == done


async def test_many_workers_show_no_more_in_a_turn_of_the_loop_than_one():
    shown = []
    ids = [str(n) for n in range(50 * AT_ONCE)]
    source = skipping(items(*ids), Kept(ids), shown)
    most = 0

    async def watch():
        nonlocal most
        while True:
            before = len(shown)
            await asyncio.sleep(0)
            most = max(most, len(shown) - before)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(taken(source) for _ in range(50)))
    watching.cancel()

    assert shown == ids
    assert most == AT_ONCE


async def test_no_more_is_read_until_there_is_room():
    shown = []
    room = asyncio.get_running_loop().create_future()
    ids = [str(n) for n in range(2 * AT_ONCE)]
    source = skipping(items(*ids), Kept(ids), shown, wait=lambda: room)

    taking = asyncio.create_task(taken(source))
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(shown) == AT_ONCE

    room.set_result(None)
    assert await taking == []
    assert shown == ids


async def test_an_error_of_the_source_comes_after_what_it_gave_before():
    def broken():
        yield from items("1", "2", "3")
        raise OSError("gone")

    shown = []
    source = skipping(broken(), Kept(["1"], taken_for_known=["2", "3"]), shown)

    assert [(await source.take()).item_id for _ in range(2)] == ["2", "3"]
    with pytest.raises(SourceError):
        await source.take()
    assert await source.take() is None
    assert shown == ["1"]


async def test_a_worker_that_is_cancelled_while_it_waits_leaves_the_rest_to_others():
    shown = []
    room = asyncio.get_running_loop().create_future()
    ids = [str(n) for n in range(AT_ONCE)]
    source = skipping(items(*ids, "new"), Kept(ids), shown, wait=lambda: room)
    first, second = (asyncio.create_task(source.take()) for _ in range(2))
    await asyncio.sleep(0)
    assert len(shown) == AT_ONCE
    first.cancel()
    await asyncio.sleep(0)

    room.set_result(None)

    assert (await second).item_id == "new"
    assert first.cancelled()
