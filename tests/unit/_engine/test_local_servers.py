"""Lanes of servers that were asked: as many calls as they work on, whatever the latency."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import (
    ConfigError,
    Limits,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
)
from batch_llm._engine.admission_gate import AdmissionGate
from batch_llm._engine.lanes import Lanes
from batch_llm.core.request import Request
from batch_llm.providers.base import Capacity, LaneFacts, Outcome
from batch_llm.strategies import FixedDelayStrategy
from fakes import USAGE, Classifier, Models, RateLimited, asked


def now():
    return asyncio.get_running_loop().time()


class Server:
    """Works on ``slots`` calls of ``seconds`` at once, queues the rest, or refuses them.

    Args:
        told: What it says when it is asked; an exception is raised.
        ask_seconds: How long it takes to say it.
    """

    def __init__(self, told, *, slots=1000, seconds=1.0, places=1, ask_seconds=0.0, refuses=False):
        self.told, self.seconds, self.refuses = told, seconds, refuses
        self.ask_seconds = ask_seconds
        self.slots = [asyncio.Semaphore(slots) for _ in range(places)]
        self.here = self.most_here = self.asked = self.refusals = 0
        self.starts = []

    def lane(self, _):
        return "model"

    def facts(self, _):
        return LaneFacts(places=len(self.slots), ask=(self.ask,) * len(self.slots))

    async def ask(self):
        self.asked += 1
        await asyncio.sleep(self.ask_seconds)
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    async def call(self, _, attempt):
        slots = self.slots[attempt.place]
        self.starts.append(now())
        if self.refuses and slots.locked():
            self.refusals += 1
            await asyncio.sleep(0.05)
            return Outcome(error=RateLimited())
        self.here += 1
        self.most_here = max(self.most_here, self.here)
        try:
            async with slots:
                await asyncio.sleep(self.seconds)
        finally:
            self.here -= 1
        return Outcome("ok", USAGE)

    def processor(self, **config):
        config.setdefault("timeout_per_item", 1e6)
        return ParallelBatchProcessor(
            config=ProcessorConfig(progress_interval=0, **config),
            error_classifier=Classifier(),
            requests=self,
        )


def requests(count):
    return [LLMWorkItem(str(n), request=Request.of("sim:x", "hi")) for n in range(count)]


def limits(built):
    return [(one.dimension, one.limit, one.source) for one in built.statistics().limits]


TOLD = Capacity(4, "server")
ASSUMED = Capacity(256, "assumed")
SEARCHED = Capacity(16, "searched")


@pytest.mark.parametrize(
    ("told", "config", "most_here"),
    [
        (TOLD, {}, 6),
        (TOLD, {"concurrency": "auto"}, 6),
        (TOLD, {"limits": Limits()}, 6),
        (TOLD, {"concurrency": 3}, 3),
        (TOLD, {"max_workers": 5}, 5),
        (TOLD, {"concurrency": 500}, 6),
        (Capacity(64, "server"), {}, 72),
        (ASSUMED, {}, 256),
        (ASSUMED, {"concurrency": 300}, 300),
        (ASSUMED, {"max_workers": 40}, 40),
        (ASSUMED, {"concurrency": "auto", "max_workers": 40}, 40),
        (ASSUMED, {"concurrency": "auto", "max_workers": 300}, 256),
        (TOLD, {"limits": Limits(requests_per_minute=60_000)}, 6),
        (SEARCHED, {"concurrency": 300}, 300),
        (None, {"concurrency": 300}, 300),
    ],
)
async def test_as_many_calls_are_in_flight_as_the_server_works_on(told, config, most_here):
    server = Server(told, slots=4, seconds=10.0)
    result = await server.processor(**config).process(requests(400))

    assert result.succeeded == 400
    assert server.most_here == most_here


@pytest.mark.parametrize(
    ("slots", "places", "config", "most_here"),
    [
        (2000, 1, {}, 2250),
        (800, 2, {}, 1800),
        (2000, 1, {"concurrency": "knee"}, 2250),
        (2000, 1, {"concurrency": 1500}, 1500),
        (2000, 1, {"concurrency": "auto", "max_workers": 1500}, 1500),
    ],
)
async def test_more_slots_than_the_usual_most_are_filled_up_to_the_ceiling(
    slots, places, config, most_here
):
    server = Server(Capacity(slots, "server"), slots=slots, places=places, seconds=60.0)
    built = server.processor(**config)
    await built.process(requests(3000))

    assert server.most_here == most_here
    if config.get("concurrency") != "knee":
        assert built.statistics().concurrency == most_here


async def test_a_known_limit_does_not_lift_what_a_search_has_found():
    server = Server(SEARCHED, slots=100, seconds=1.0)
    await server.processor(limits=Limits(requests_per_minute=60_000)).process(requests(5000))

    assert server.most_here <= 300


async def test_a_full_server_is_not_read_ahead_of():
    server, taken = Server(TOLD, slots=4, seconds=10.0), []
    built = server.processor()
    running = asyncio.create_task(built.process(taken.append(one) or one for one in requests(400)))
    await asyncio.sleep(200)

    assert built.statistics().processed >= 76
    assert len(taken) - built.statistics().processed <= 20
    built.stop(drain=False)
    await running


class Mixed(Models):
    """Two models: "local" is on a server of one's own with one slot, the other one is not."""

    def __init__(self, behaviour=lambda *_: None, *, ask_seconds=0.0):
        super().__init__(behaviour)
        self.asked, self.ask_seconds = 0, ask_seconds

    def facts(self, one, /):
        return LaneFacts(ask=(self.ask if self.lane(one) == "local" else None,))

    async def ask(self):
        self.asked += 1
        await asyncio.sleep(self.ask_seconds)
        return Capacity(1, "server")


@pytest.mark.parametrize("ask_seconds", [0.0, 60.0])
async def test_a_full_or_silent_server_does_not_hold_up_other_lanes(ask_seconds):
    provider = Mixed(ask_seconds=ask_seconds)

    await provider.processor().process(asked(("local", "b")[n % 2], n) for n in range(600))

    assert max(provider.of("b")) < 10
    assert max(provider.of("local")) > 40


async def test_while_a_server_is_asked_those_that_wait_keep_their_priorities():
    provider = Mixed(ask_seconds=1.0)
    items = [asked("local", n, priority=n) for n in range(5)]

    result = await provider.processor(max_workers=5).process(items)

    order = [one.item_id for one in result.results]
    assert order == [f"local {n}" for n in range(4, -1, -1)]


async def test_a_run_that_is_given_up_while_asking_can_still_tell_of_itself():
    """Another lane is closed at that moment, so the run looks at all of its lanes."""
    provider = Mixed(lambda model, _: RateLimited(60.0) if model == "b" else None, ask_seconds=1.0)
    built = provider.processor()
    running = asyncio.create_task(built.process([asked("b", 0), asked("local", 0)]))
    await asyncio.sleep(0.5)
    built.stop(drain=False)
    await running

    assert built.statistics().state == "finished"
    assert (await built.process([asked("local", 1)])).succeeded == 1
    assert provider.asked == 2


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (TOLD, [("concurrency", 4, "server")]),
        (ASSUMED, [("concurrency", 256, "assumed")]),
        (SEARCHED, []),
        (None, []),
    ],
)
async def test_the_statistics_say_what_the_server_said(told, shown):
    built = Server(told).processor()
    await built.process(requests(3))

    assert limits(built) == shown


async def test_the_ceiling_that_is_shown_is_the_one_that_holds():
    shown = []
    for told, config in [(TOLD, {}), (TOLD, {"concurrency": 3}), (ASSUMED, {}), (None, {})]:
        built = Server(told).processor(**config)
        await built.process(requests(3))
        shown.append(built.statistics().concurrency)

    assert shown == [6, 3, 256, 1000]


@pytest.mark.parametrize("seconds", [1.0, 100.0, 3000.0])
async def test_no_latency_is_too_long_for_all_slots_to_be_in_use(seconds):
    server = Server(Capacity(64, "server"), slots=64, seconds=seconds)
    await server.processor().process(requests(640))

    # Ten turns of 64 calls; the start lets calls in over the first seconds.
    assert now() < 10 * seconds + 5


async def test_every_place_is_asked_once_and_holds_its_own():
    server = Server(TOLD, slots=4, places=3, ask_seconds=0.5)
    built = server.processor()
    for _ in range(2):
        await built.process(requests(100))

    assert server.asked == 3
    assert server.most_here == 18
    assert [one.lane for one in built.statistics().limits] == ["model #1", "model #2", "model #3"]


async def test_the_first_calls_wait_for_the_answer_and_nobody_asks_twice():
    server = Server(TOLD, ask_seconds=1.0)
    built = server.processor()
    running = asyncio.create_task(built.process(requests(20)))
    await asyncio.sleep(0.5)
    seen = built.statistics()
    await running

    assert (seen.waiting > 0, seen.in_flight) == (True, 0)
    assert (server.asked, min(server.starts)) == (1, 1.0)


async def test_nobody_slips_in_while_a_server_is_asked():
    lanes = Lanes(10, None, Server(TOLD, ask_seconds=1.0), None, asyncio.get_running_loop())
    one = AdmissionGate(lanes, lambda *_: None, lambda: None)

    assert [one.enter_now(item) for item in requests(3)] == [None] * 3
    await asyncio.sleep(1.5)
    assert one.enter_now(requests(1)[0]) is not None


async def test_a_server_that_cannot_be_asked_is_called_all_the_same():
    server = Server(OSError("no"))
    built = server.processor()
    result = await built.process(requests(50))

    assert (result.succeeded, limits(built)) == (50, [])


async def test_a_run_that_is_given_up_while_asking_ends_and_the_next_one_asks():
    server = Server(TOLD, ask_seconds=1.0)
    built = server.processor()
    before = asyncio.all_tasks()
    running = asyncio.create_task(built.process(requests(5)))
    await asyncio.sleep(0.5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0.1)
    assert (server.starts, asyncio.all_tasks()) == ([], before)

    await built.process(requests(50))
    assert (server.asked, server.most_here) == (2, 6)


async def test_refusals_teach_that_it_is_fewer():
    server = Server(Capacity(64, "server"), slots=16, seconds=2.0, refuses=True)
    built = server.processor()
    await built.process(requests(3000))

    assert limits(built) == [("concurrency", 16, "learned")]
    assert server.refusals < 150


async def test_a_number_that_nobody_knows_is_searched():
    server = Server(SEARCHED, slots=100, seconds=1.0)
    built = server.processor()
    await built.process(requests(20_000))

    assert now() < 1.1 * 200
    assert server.most_here <= 300
    ((dimension, limit, source),) = limits(built)
    assert (dimension, source) == ("concurrency", "learned")
    assert 90 <= limit <= 130


@pytest.mark.parametrize("told", [None, TOLD])
async def test_the_knee_is_searched_where_it_is_asked_for(told):
    server = Server(told, slots=100, seconds=1.0)
    built = server.processor(concurrency="knee")
    await built.process(requests(20_000))

    assert 90 <= built.statistics().limits[0].limit <= 150
    assert server.most_here > 90


async def test_calls_that_time_out_in_the_queue_make_the_search_go_down():
    server = Server(Capacity(64, "searched"), slots=4, seconds=10.0)
    built = server.processor(timeout_per_item=30.0)
    await built.process(requests(300))

    assert built.statistics().concurrency < 32


async def test_max_workers_is_the_ceiling_of_the_search():
    server = Server(None, slots=100, seconds=1.0)
    await server.processor(concurrency="knee", max_workers=24).process(requests(2000))

    assert server.most_here == 24


async def test_the_search_learns_limits_and_takes_no_cooldown():
    with pytest.raises(ConfigError, match="left out when limits are learned"):
        ParallelBatchProcessor(
            config=ProcessorConfig(concurrency="knee"), rate_limit_strategy=FixedDelayStrategy()
        )
    assert ProcessorConfig(concurrency="knee", rate_limit=RateLimitConfig()).learns_limits


@pytest.mark.parametrize("told", [Capacity(64, "server"), Capacity(72, "assumed")])
async def test_slots_that_are_told_or_assumed_are_filled_soon(told):
    server = Server(told, slots=72)

    await server.processor().process(requests(720))

    assert server.starts[71] <= 1.3  # ten calls a slot, of one second each
    assert now() <= 12.5
