"""Many lanes in one run, and how many items are in the building."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import BaseMiddleware, Limits, ParallelBatchProcessor, ProcessorConfig
from batch_llm._engine.admission_gate import MOST_HELD
from batch_llm.strategies.admission.header_belief import LimitHeader
from fakes import USAGE, Models, RateLimited, asked, item


def now():
    return asyncio.get_running_loop().time()


def closed(model, *, until=60.0):
    """Make a provider refuse one model's calls."""
    return Models(lambda name, _: RateLimited(until) if name == model and now() < until else None)


class Counted:
    """A source that knows how many items it gave."""

    def __init__(self, items):
        self.items, self.taken = items, 0

    def __iter__(self):
        for one in self.items:
            self.taken += 1
            yield one


async def stopped(built, running):
    built.stop(drain=False)
    await asyncio.wait([running])


@pytest.mark.parametrize("config", [{}, {"max_workers": 8}, {"max_workers": 2}])
async def test_a_closed_lane_does_not_hold_up_the_others(config):
    provider = closed("a")
    items = [asked("ab"[n % 2], n) for n in range(400)]

    result = await provider.processor(**config).process(items)

    workers = config.get("max_workers", 10)
    assert max(provider.of("b")) < 200 / workers * 0.5 + 5
    assert sum(at < 60 for at in provider.of("a")) <= 4
    assert result.succeeded == 400


async def test_rows_of_the_closed_lane_that_come_first_are_read_past():
    provider = closed("a", until=600.0)
    source = Counted([asked("a", n) for n in range(3000)] + [asked("b", n) for n in range(100)])

    built = provider.processor(max_workers=20)
    running = asyncio.create_task(built.process(source))
    await asyncio.sleep(30)

    assert len(provider.of("b")) == 100
    await stopped(built, running)


async def test_items_that_wait_for_a_closed_lane_are_bounded():
    provider = closed("a", until=1e6)
    source = Counted(asked("a" if n < 11_000 else "b", n) for n in range(12_000))

    built = provider.processor()
    running = asyncio.create_task(built.process(source))
    await asyncio.sleep(30)

    assert MOST_HELD < source.taken <= MOST_HELD + 20
    assert provider.of("b") == []  # it is behind them
    await stopped(built, running)


async def test_two_runs_with_a_source_each_do_not_block_each_other_at_all():
    provider = closed("a", until=1e6)
    built = provider.processor()
    stuck = asyncio.create_task(built.process(asked("a", n) for n in range(12_000)))

    await built.process([asked("b", n) for n in range(1000)])

    assert now() < 60
    await stopped(built, stuck)


@pytest.mark.parametrize("most", [None, 5000])
async def test_in_a_slow_lane_few_items_are_in_the_building(most):
    source = Counted(asked("a", n) for n in range(100_000))
    config = {} if most is None else {"max_workers": most}
    built = Models(seconds=1.0).processor(
        limits=Limits(requests_per_minute=60, burst_seconds=1.0), **config
    )

    running = asyncio.create_task(built.process(source))
    await asyncio.sleep(300)

    assert built.statistics().processed > 290
    assert source.taken - built.statistics().processed < 15
    await stopped(built, running)


async def test_two_slow_lanes_are_not_read_ahead_of():
    source = Counted(asked("ab"[n % 2], n) for n in range(100_000))
    built = Models(seconds=1.0).processor(limits=Limits(requests_per_minute=60, burst_seconds=1.0))

    running = asyncio.create_task(built.process(source))
    await asyncio.sleep(300)

    assert built.statistics().processed > 580
    assert source.taken - built.statistics().processed < 40
    await stopped(built, running)


async def test_five_workers_that_nobody_asked_for_cap_no_large_account():
    """30,000 a minute, answered after 5 s: 2,500 calls in flight."""
    provider = Models(seconds=5.0)

    built = provider.processor(limits=Limits(requests_per_minute=30_000))
    await built.process(asked("a", n) for n in range(20_000))

    assert now() < 40  # with a thousand at a time it is 100
    assert 2400 < provider.peak <= 5000


async def test_limits_in_headers_raise_the_number_in_flight_too():
    built = Models().processor()
    header = LimitHeader(30_000, 29_000, 1.0)

    async def call(attempt, timeout):
        await asyncio.sleep(1.0)
        return "ok", USAGE

    running = asyncio.create_task(built.process([item("a", call)]))
    await asyncio.sleep(0.5)
    (lane,) = built._lanes.by_name.values()
    assert (built._lanes.most, lane.places[0].admission.max_in_flight) == (1000, 1000)
    lane.places[0].admission.budgets["requests"].headers.sync(now(), now(), 1, 0, header)
    built._lanes.note_known(lane.places[0])
    await running

    assert (built._lanes.most, lane.places[0].admission.max_in_flight) == (5000, 5000)


async def test_several_keys_with_known_limits_are_each_used():
    """Twice 1,500 a minute, answered after 60 s: more than the usual thousand in flight."""
    provider = Models(seconds=60.0, places=2)

    built = provider.processor(limits=Limits(requests_per_minute=1500, burst_seconds=1.0))
    running = asyncio.create_task(built.process(asked("a", n) for n in range(5000)))
    await asyncio.sleep(59)

    assert provider.peak == 1500
    await stopped(built, running)


async def test_when_more_may_be_in_flight_other_lanes_that_waited_for_it_go_on():
    provider = Models(seconds=60.0)
    built = provider.processor()
    full = asyncio.create_task(built.process(asked("a", n) for n in range(1000)))
    await asyncio.sleep(30)
    waiting = asyncio.create_task(built.process(asked("b", n) for n in range(5)))
    await asyncio.sleep(10)
    assert (len(provider.of("a")), provider.of("b")) == (1000, [])

    place = built._lanes.by_name["a"].places[0]
    header = LimitHeader(30_000, 29_000, 1.0)
    place.admission.budgets["requests"].headers.sync(now(), now(), 1, 0, header)
    built._lanes.note_known(place)

    await asyncio.sleep(5)
    assert len(provider.of("b")) == 5
    await full
    await waiting


async def test_without_a_known_limit_no_more_than_a_thousand_are_in_flight():
    provider = Models(seconds=60.0)

    built = provider.processor(concurrency="auto")
    running = asyncio.create_task(built.process(asked("a", n) for n in range(3000)))
    await asyncio.sleep(50)

    assert provider.peak == 1000
    await stopped(built, running)


async def test_with_auto_a_number_of_workers_is_a_ceiling():
    provider = Models(seconds=60.0)

    built = provider.processor(
        concurrency="auto", max_workers=70, limits=Limits(requests_per_minute=30_000)
    )
    running = asyncio.create_task(built.process(asked("a", n) for n in range(3000)))
    await asyncio.sleep(50)

    assert provider.peak == 70
    await stopped(built, running)


async def test_slow_hooks_do_not_hold_the_calls_up():
    class Slow(BaseMiddleware):
        async def before_process(self, work_item, /):
            await asyncio.sleep(2.0)
            return work_item

    built = ParallelBatchProcessor(
        config=ProcessorConfig(progress_interval=0, limits=Limits(requests_per_minute=30_000)),
        requests=Models(),
        middlewares=[Slow()],
    )

    await built.process(asked("a", n) for n in range(5000))

    assert now() < 2 * (5000 / 500 + 2.5)


async def test_a_lane_that_waits_for_its_limit_is_told_with_its_reason():
    built = Models().processor(limits=Limits(requests_per_day=10))

    running = asyncio.create_task(built.process([asked("a", n) for n in range(20)]))
    await asyncio.sleep(60)
    seen = built.statistics()

    (pause,) = seen.pauses
    assert (pause.lane, pause.reason, pause.waiting) == ("a", "requests_per_day", seen.waiting)
    assert pause.seconds == pytest.approx(8640 - 60, abs=5)
    assert (seen.state, seen.cooldown_reason) == ("cooling", "requests_per_day")
    assert seen.cooldown_remaining_seconds == pause.seconds
    await stopped(built, running)
    assert built.statistics().pauses == []


async def test_one_closed_lane_of_two_is_told_and_the_run_goes_on():
    provider = closed("a")
    built = provider.processor()

    running = asyncio.create_task(built.process(asked("ab"[n % 2], n) for n in range(10_000)))
    await asyncio.sleep(5)
    seen = built.statistics()

    assert seen.state == "running"
    assert [(pause.lane, pause.reason) for pause in seen.pauses] == [("a", "refused")]
    await stopped(built, running)
