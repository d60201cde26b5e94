from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest

from batch_llm import DuplicateItemError, ProcessorConfig, RetryConfig, SourceError
from fakes import USAGE, PermanentError, RateLimited, Script, item, processor, run_one


def now():
    return asyncio.get_running_loop().time()


async def test_an_empty_queue_gives_an_empty_result():
    result = await processor().process_all()

    assert (result.total_items, result.results) == (0, [])


async def test_a_processor_can_be_used_again():
    built = processor()
    await built.add_work(item("a", Script()))
    await built.process_all()
    await built.add_work(item("a", Script()))

    result = await built.process_all()

    assert [r.item_id for r in result.results] == ["a"]
    assert (await built.get_stats())["total"] == 1


async def test_no_more_calls_run_than_there_are_workers():
    running = most = 0

    async def call(attempt, timeout):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return None, None

    await processor(max_workers=7).process([item(str(n), call) for n in range(50)])

    assert most == 7
    assert now() == 8.0


async def test_context_and_id_come_back_untouched():
    context = object()
    result = await processor().process([item("\x00 any / text", Script(), context=context)])

    assert result.results[0].item_id == "\x00 any / text"
    assert result.results[0].context is context


async def test_a_duplicate_id_is_refused_when_it_is_added():
    built = processor()
    await built.add_work(item("a", Script()))

    with pytest.raises(DuplicateItemError, match="'a' is already in this run"):
        await built.add_work(item("a", Script()))


async def test_a_duplicate_id_stops_an_iterable_after_the_items_before():
    first = Script()

    with pytest.raises(DuplicateItemError):
        await processor(max_workers=1).process([item("a", first), item("a", Script())])

    assert len(first.times) == 1


async def test_work_may_be_added_while_running():
    built = processor()
    added = []

    async def add_more(result):
        if len(added) < 3:
            added.append(result.item_id)
            await built.add_work(item(f"{result.item_id}+", Script()))

    built.post_processor = add_more
    await built.add_work(item("a", Script()))

    result = await built.process_all()

    assert [r.item_id for r in result.results] == ["a", "a+", "a++", "a+++"]


async def test_adding_waits_while_the_queue_is_full():
    built = processor(config=ProcessorConfig(max_queue_size=2, max_workers=1))
    sizes = []

    async def produce():
        for n in range(10):
            await built.add_work(item(str(n), Script(1.0)))
            sizes.append(len(built._queue))

    producer = asyncio.create_task(produce())
    await asyncio.sleep(0)
    assert max(sizes) == 2
    assert not producer.done()

    result = await built.process_all()

    assert producer.done()
    assert result.succeeded == 10


async def test_a_cancelled_add_leaves_nothing_behind():
    built = processor(config=ProcessorConfig(max_queue_size=1))
    await built.add_work(item("a", Script()))
    waiting = asyncio.create_task(built.add_work(item("b", Script())))
    await asyncio.sleep(0)

    waiting.cancel()
    await asyncio.wait([waiting])
    result = await built.process_all()

    assert [r.item_id for r in result.results] == ["a"]


async def test_another_thread_can_add_work():
    built = processor()
    async with built:
        thread = threading.Thread(
            target=lambda: built.add_work_threadsafe(item("a", Script())).result(5)
        )
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.01)
        result = await built.process_all()

    assert result.succeeded == 1


def test_a_thread_cannot_add_to_a_processor_without_a_loop():
    with pytest.raises(RuntimeError, match="does not know its event loop"):
        processor().add_work_threadsafe(item("a", Script()))


async def test_one_run_at_a_time():
    built = processor()
    running = asyncio.create_task(built.process([item("a", Script(5.0))]))
    await asyncio.sleep(1)

    with pytest.raises(RuntimeError, match="in a run already"):
        await built.process_all()

    assert (await running).succeeded == 1


async def test_async_iterables_are_read_one_at_a_time():
    async def numbers():
        for n in range(20):
            await asyncio.sleep(0.1)
            yield item(str(n), Script(1.0))

    result = await processor(max_workers=5).process(numbers())

    assert sorted(int(r.item_id) for r in result.results) == list(range(20))


async def test_a_failing_source_keeps_the_results_before_it():
    def broken():
        yield item("a", Script(3.0))
        raise KeyError("line 2")

    with pytest.raises(SourceError, match="failed after 1 items: KeyError") as caught:
        await processor().process(broken())

    assert isinstance(caught.value.__cause__, KeyError)
    assert [r.item_id for r in caught.value.partial.results] == ["a"]


async def test_a_stream_yields_results_as_they_come():
    items = [item("slow", Script(9.0)), item("quick", Script(1.0))]

    seen = [(r.item_id, now()) async for r in processor().stream(items)]

    assert seen == [("quick", 1.0), ("slow", 9.0)]


async def test_a_slow_consumer_slows_the_reader():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield item(str(taken), Script())

    consumed = 0
    async with aclosing(processor(max_workers=3).stream(endless(), buffer=4)) as results:
        async for _ in results:
            consumed += 1
            await asyncio.sleep(1)
            assert taken - consumed <= 4 + 2 * 3 + 1
            if consumed == 50:
                break

    assert consumed == 50


async def test_leaving_a_stream_cancels_what_is_in_work():
    cancelled = []

    async def hang(attempt, timeout):
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(now())
            raise

    async with aclosing(processor().stream([item("a", Script()), item("b", hang)])) as results:
        async for _ in results:
            break

    assert cancelled == [0.0]


async def test_a_streams_source_error_comes_after_its_results():
    def broken():
        yield item("a", Script(1.0))
        raise KeyError("line 2")

    stream = processor().stream(broken())

    assert (await anext(stream)).item_id == "a"
    with pytest.raises(SourceError):
        await anext(stream)


async def test_draining_finishes_what_is_in_work_and_leaves_the_rest_queued():
    built = processor(max_workers=2)
    for n in range(6):
        await built.add_work(item(str(n), Script(10.0)))
    asyncio.get_running_loop().call_later(5, built.stop)

    first = await built.process_all()
    rest = await built.process_all()

    assert [r.item_id for r in first.results] == ["0", "1"]
    assert all(r.success for r in first.results)
    assert sorted(r.item_id for r in rest.results) == ["2", "3", "4", "5"]


async def test_draining_wakes_workers_that_wait_for_a_slow_source():
    async def slow():
        yield item("a", Script(1.0))
        await asyncio.sleep(1e6)
        yield item("never", Script())

    built = processor()
    asyncio.get_running_loop().call_later(5, built.stop)

    result = await built.process(slow())

    assert [r.item_id for r in result.results] == ["a"]
    assert now() == 5.0


async def test_abandoning_gives_items_in_work_a_result_that_says_so():
    built = processor(max_workers=2)
    for n in range(3):
        await built.add_work(item(str(n), Script(10.0)))
    asyncio.get_running_loop().call_later(5, lambda: built.stop(drain=False))

    result = await built.process_all()

    assert now() == 5.0
    assert (result.total_items, result.failed) == (2, 2)
    assert result.results[0].error.startswith("AbandonedError: ")
    assert result.results[0].error_code == "cancelled"


async def test_cancelling_the_run_cancels_its_calls_and_passes():
    cancelled = []

    async def hang(attempt, timeout):
        try:
            await asyncio.sleep(1000)
        finally:
            cancelled.append(1)

    built = processor(max_workers=3)
    running = asyncio.create_task(built.process([item(str(n), hang) for n in range(9)]))
    await asyncio.sleep(1)

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(cancelled) == 3
    assert (await built.process([item("b", Script())])).succeeded == 1


async def test_statistics_add_up_in_mid_run():
    built = processor(max_workers=10)
    calls = [Script(0.5 + n % 3) if n % 4 else Script(PermanentError()) for n in range(40)]
    running = asyncio.create_task(
        built.process([item(str(n), call) for n, call in enumerate(calls)])
    )
    while not running.done():
        await asyncio.sleep(0.25)
        stats = await built.get_stats()
        assert stats["processed"] == stats["succeeded"] + stats["failed"]

    stats = await built.get_stats()
    assert (stats["succeeded"], stats["failed"]) == (30, 10)
    assert stats["error_counts"] == {"PermanentError": 10}
    assert stats["start_time"] is not None
    numbers = built.statistics()
    assert (numbers.state, numbers.attempts, numbers.input_tokens) == ("finished", 40, 300)
    assert 0.45 < numbers.latency_p50 < 2.7


async def test_statistics_tell_the_time_spent_in_cooldowns():
    built = processor(max_workers=1)
    calls = [Script(RateLimited(wait=3.0)), Script(5.0), Script(RateLimited(wait=4.0))]
    running = asyncio.create_task(built.process([item(str(n), c) for n, c in enumerate(calls)]))
    await asyncio.sleep(1.0)

    now = built.statistics()
    assert (now.cooldown_seconds, now.cooldown_remaining_seconds) == (1.0, 2.0)
    await running
    assert built.statistics().cooldown_seconds == 7.0


async def test_usage_of_a_result_is_that_of_its_call():
    result = await run_one(Script())

    assert result.token_usage == USAGE
    assert (result.attempts, result.success, result.error) == (1, True, None)


async def test_items_that_never_wait_do_not_starve_the_loop():
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    await processor(max_workers=1).process([item(str(n), Script()) for n in range(1000)])
    ticker.cancel()

    assert ticks >= 10


@pytest.mark.parametrize(("interval", "lines"), [(10, 3), (7, 5), (0, 0)])
async def test_progress_is_logged_at_its_interval(interval, lines, caplog):
    caplog.set_level("INFO", "batch_llm.pipeline")
    built = processor(config=ProcessorConfig(progress_interval=interval))

    await built.process([item(str(n), Script()) for n in range(35)])

    assert len([r for r in caplog.records if "items done" in r.message]) == lines


@pytest.mark.parametrize(("detailed", "lines"), [(True, 1), (False, 0)])
async def test_detailed_logging_tells_of_each_failed_attempt(detailed, lines, caplog):
    caplog.set_level("INFO", "batch_llm.calls")
    config = ProcessorConfig(enable_detailed_logging=detailed, retry=RetryConfig(jitter=False))

    await processor(config=config).process([item("a", Script(RuntimeError("boom")))])

    assert len([r for r in caplog.records if "boom" in r.message]) == lines
