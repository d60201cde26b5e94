from __future__ import annotations

import asyncio

from batch_llm import BaseObserver, MetricsObserver, ProcessingEvent
from fakes import USAGE, PermanentError, RateLimited, Recorder, Script, item, processor


async def test_every_event_is_emitted_with_its_data():
    recorder = Recorder()
    calls = [Script(RateLimited(wait=4.0)), Script(PermanentError())]

    await processor(observers=[recorder], max_workers=1).process(
        [item(str(n), call) for n, call in enumerate(calls)]
    )

    assert set(recorder.names()) == {event.value for event in ProcessingEvent}
    assert recorder.names()[0] == "batch_started"
    assert recorder.names()[-1] == "batch_completed"
    assert recorder.data("rate_limit_hit") == [
        {"item_id": "0", "worker_id": 0, "error_type": "RateLimited", "consecutive": 1}
    ]
    assert recorder.data("cooldown_started")[0]["duration"] == 4.0
    assert recorder.data("item_completed") == [
        {"item_id": "0", "worker_id": 0, "duration": 4.0, "tokens": 15}
    ]
    assert recorder.data("item_failed")[0]["error_type"] == "PermanentError"


async def test_each_worker_that_starts_stops():
    recorder = Recorder()

    await processor(observers=[recorder], max_workers=8).process(
        [item(str(n), Script(1.0)) for n in range(30)]
    )

    started = [data["worker_id"] for data in recorder.data("worker_started")]
    assert sorted(started) == list(range(8))
    assert sorted(data["worker_id"] for data in recorder.data("worker_stopped")) == sorted(started)


class Slow(BaseObserver):
    async def on_event(self, event, data, /):
        await asyncio.sleep(5)


class Raising(BaseObserver):
    async def on_event(self, event, data, /):
        data.clear()
        raise RuntimeError("observer")


async def test_slow_and_raising_observers_hold_up_and_break_nothing():
    recorder = Recorder()
    built = processor(observers=[Slow(), Raising(), recorder])

    result = await built.process([item(str(n), Script(1.0)) for n in range(5)])

    assert result.succeeded == 5
    assert asyncio.get_running_loop().time() < 5.0
    assert len(recorder.data("item_completed")) == 5
    assert recorder.data("item_completed")[0]["item_id"] == "0"


async def test_the_last_event_tells_all_tokens():
    recorder = Recorder()

    await processor(observers=[recorder]).process([item("a", Script()), item("b", Script())])

    assert recorder.data("batch_completed")[0]["tokens"] == 2 * USAGE["total_tokens"]


async def test_events_that_an_observer_is_too_slow_for_are_dropped_and_counted(monkeypatch, caplog):
    monkeypatch.setattr("batch_llm._engine.events.MAX_WAITING", 4)

    class Slow(Recorder):
        async def on_event(self, event, data, /):
            await super().on_event(event, data)
            await asyncio.sleep(0.001)

    slow = Slow()
    await processor(observers=[slow]).process([item(str(n), Script()) for n in range(10)])

    assert len(slow.events) == 5  # the one in hand, and those that waited
    assert "events were dropped" in caplog.text


async def test_metrics_agree_with_the_results():
    metrics = MetricsObserver()
    calls = [
        Script(RateLimited(wait=1.0), RateLimited(wait=3.0)),
        Script(PermanentError()),
        *[Script(2.0) for _ in range(8)],
    ]

    result = await processor(observers=[metrics], max_workers=1).process(
        [item(str(n), call) for n, call in enumerate(calls)]
    )

    found = await metrics.get_metrics()
    assert found["items_processed"] == result.total_items == 10
    assert (found["items_succeeded"], found["items_failed"]) == (9, 1)
    assert found["rate_limits_hit"] == 2
    assert found["total_cooldown_time"] == 4.0
    assert found["error_counts"] == {"PermanentError": 1}
    assert found["success_rate"] == 0.9
    assert len(found["processing_times"]) == 10
    assert found["avg_processing_time"] == (4.0 + 8 * 2.0) / 10


async def test_metrics_can_be_reset():
    metrics = MetricsObserver()
    fresh = await metrics.get_metrics()
    calls = [Script(), Script(PermanentError()), Script(RateLimited())]
    await processor(observers=[metrics]).process([item(str(n), c) for n, c in enumerate(calls)])
    assert all(value != fresh[name] for name, value in (await metrics.get_metrics()).items())

    metrics.reset()

    assert await metrics.get_metrics() == fresh


async def test_the_post_processor_sees_successes_and_failures_once():
    seen = []

    async def later(result):
        await asyncio.sleep(1)
        seen.append((result.item_id, result.success))

    await processor(post_processor=later, max_workers=1).process(
        [
            item("a", Script()),
            item("b", Script(PermanentError())),
        ]
    )

    assert seen == [("a", True), ("b", False)]


async def test_a_post_processor_that_raises_or_hangs_changes_nothing(caplog):
    async def bad(result):
        if result.item_id == "raises":
            raise RuntimeError("post")
        await asyncio.sleep(1e6)

    result = await processor(post_processor=bad).process(
        [
            item("raises", Script()),
            item("hangs", Script()),
        ]
    )

    assert result.succeeded == 2
    assert asyncio.get_running_loop().time() == 75.0
    assert caplog.text.count("post_processor failed") == 2
