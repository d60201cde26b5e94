"""Items whose results are kept are passed over, many at a time, and no others are read ahead."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, SqliteLedger
from batch_llm.exceptions import DuplicateItemError, SourceError
from fakes import Script


def item(number, *, version="", output="out"):
    return LLMWorkItem(str(number), direct_call=Script(output), context=number, version=version)


def run(path, given, **options):
    with SqliteLedger(path) as ledger:
        return asyncio.run(ParallelBatchProcessor(store=ledger, **options).process(given))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.sqlite"


@pytest.mark.parametrize("order", [1, -1])
def test_each_item_comes_out_once_whatever_the_order(path, order):
    run(path, (item(n) for n in range(300)))

    again = run(path, (item(n, version="2" if n % 50 == 7 else "") for n in range(350)[::order]))

    assert sorted(result.context for result in again.results) == list(range(350))
    asked = {result.context for result in again.results if not result.is_reused}
    assert asked == {n for n in range(350) if n % 50 == 7 or n >= 300}
    assert all(result.output == "out" for result in again.results)


def test_no_more_new_items_are_pulled_than_there_is_room_for(path):
    run(path, [item(0), item(1)])
    pulled = []

    def given():
        for n in range(50):
            pulled.append(n)
            yield item(n)

    async def main(ledger):
        config = ProcessorConfig(max_workers=2, concurrency=2)
        stream = ParallelBatchProcessor(store=ledger, config=config).stream(given(), buffer=1)
        first = await anext(stream)
        await asyncio.sleep(0.05)
        await stream.aclose()
        return first

    with SqliteLedger(path) as ledger:
        assert asyncio.run(main(ledger)).is_reused
    assert len(pulled) < 15


def test_a_source_that_breaks_gives_what_came_before(path):
    run(path, (item(n) for n in range(10)))

    def given():
        yield from (item(n) for n in range(12))
        raise OSError("gone")

    with pytest.raises(SourceError, match="gone") as caught:
        run(path, given())
    assert len(caught.value.partial.results) == 12


def test_an_id_that_comes_twice_is_refused(path):
    run(path, (item(n) for n in range(10)))

    with pytest.raises(DuplicateItemError):
        run(path, [item(3), item(4), item(3)])


def test_the_event_loop_has_its_turns_meanwhile(path):
    run(path, (item(n) for n in range(2000)))
    turns = 0

    async def main(ledger):
        nonlocal turns

        async def tick():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        result = await ParallelBatchProcessor(store=ledger).process(item(n) for n in range(2000))
        ticking.cancel()
        return result

    with SqliteLedger(path) as ledger:
        assert asyncio.run(main(ledger)).total_items == 2000
    assert turns > 2000 // 128
