"""The processor under limits that it learns, against a provider on virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from batch_llm import (
    ConfigError,
    DefaultErrorClassifier,
    Limits,
    ProcessorConfig,
    RetryConfig,
    StatusError,
)
from batch_llm._engine.admission_gate import AdmissionGate
from batch_llm._engine.lanes import Lanes
from batch_llm.providers.base import LaneFacts
from fakes import USAGE, Ramp, RateLimited, Recorder, Script, item, processor


class Bucket:
    """Takes ``rate`` calls a second, ``burst`` at once; the others are refused."""

    def __init__(self, rate, burst, *, latency=2.0, tells=True):
        self.rate, self.level, self.burst = rate, burst, burst
        self.latency, self.tells = latency, tells
        self.at = 0.0
        self.calls = self.refusals = self.in_flight = self.peak = 0

    async def __call__(self, attempt, timeout):
        now = asyncio.get_running_loop().time()
        self.calls += 1
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < 1:
            self.refusals += 1
            await asyncio.sleep(0.1)
            raise RateLimited((1 - self.level) / self.rate if self.tells else None)
        self.level -= 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(self.latency)
        finally:
            self.in_flight -= 1
        return "ok", USAGE


def learning(limits=None, concurrency="auto", **arguments):
    return processor(
        config=ProcessorConfig(
            limits=limits,
            concurrency=concurrency,
            retry=RetryConfig(jitter=False),
            progress_interval=0,
        ),
        rate_limit_strategy=None,
        **arguments,
    )


@pytest.mark.parametrize("tells", [True, False])
async def test_an_unknown_limit_is_found_with_few_refusals(tells):
    bucket = Bucket(rate=20.0, burst=20.0, tells=tells)

    result = await learning().process([item(str(n), bucket) for n in range(2000)])

    seconds = asyncio.get_running_loop().time()
    assert result.succeeded == 2000
    assert seconds < 1.3 * (1980 / 20 + 2)
    assert bucket.refusals < 0.04 * 2000


async def test_a_told_limit_is_used_in_full():
    bucket = Bucket(rate=20.0, burst=1200.0)

    built = learning(Limits(requests_per_minute=1200))
    result = await built.process([item(str(n), bucket) for n in range(2000)])

    assert result.succeeded == 2000
    assert asyncio.get_running_loop().time() < 1.06 * (800 / 20 + 2)
    assert bucket.refusals <= 1


async def test_the_number_of_items_in_work_follows_what_is_let_in():
    bucket, taken = Bucket(rate=10.0, burst=10.0, latency=5.0), 0

    def source():
        nonlocal taken
        for n in range(5000):
            taken += 1
            yield item(str(n), bucket)

    built = learning()
    running = asyncio.create_task(built.process(source()))
    await asyncio.sleep(60)

    assert bucket.peak > 30  # five workers would not do
    assert taken - built.statistics().processed < 120  # and not everything is in the building
    running.cancel()
    await asyncio.wait([running])


async def test_an_outage_of_half_a_minute_loses_nothing_and_costs_little_more():
    calls = 0

    async def call(attempt, timeout):
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.1)
        if 5 < asyncio.get_running_loop().time() < 35:
            raise StatusError(529, "overloaded")
        await asyncio.sleep(0.9)
        return "ok", USAGE

    built = learning(concurrency=20, limits=Limits(), error_classifier=DefaultErrorClassifier())
    result = await built.process([item(str(n), call) for n in range(400)])

    assert result.succeeded == 400
    assert asyncio.get_running_loop().time() < 20 + 30 + 12
    assert calls < 400 + 600


class OneLane:
    """Knows one lane for all items."""

    def __init__(self, **facts):
        self._facts = LaneFacts(**facts)

    def lane(self, _):
        return ""

    def facts(self, _):
        return self._facts


def gate(limits=None, most=1, **facts):
    lanes = Lanes(most, limits, OneLane(**facts), None, asyncio.get_running_loop())
    return AdmissionGate(lanes, lambda *_: None, lambda: None)


def places(one):
    """Return the admissions of the one lane."""
    return [place.admission for place in one.lanes.by_name[""].places]


async def test_retries_go_before_fresh_items():
    one, log = gate(), []
    first = await one.enter(item("0", Script()), is_retry=False)

    async def hold(name, is_retry):
        ticket = await one.enter(item(name, Script()), is_retry=is_retry)
        log.append(name)
        one.leave(ticket)

    tasks = [asyncio.create_task(hold(name, name.isupper())) for name in ("a", "b", "R", "S")]
    await asyncio.sleep(1)
    one.leave(first)
    await asyncio.wait(tasks)

    assert log == ["R", "S", "a", "b"]


async def test_a_waiter_cancelled_in_the_step_in_which_it_is_let_in_gives_its_place_back():
    one = gate()
    first = await one.enter(item("0", Script()), is_retry=False)
    waiter = asyncio.create_task(one.enter(item("1", Script()), is_retry=False))
    await asyncio.sleep(1)

    one.leave(first)  # lets it in …
    waiter.cancel()  # … which it never wakes to know
    await asyncio.wait([waiter])

    assert one.in_flight == 0
    assert places(one)[0].in_flight == 0


async def test_a_call_whose_end_nobody_told_is_closed_with_its_place():
    one = gate()

    one.leave(await one.enter(item("0", Script()), is_retry=False))

    assert places(one)[0].in_flight == 0


async def test_a_number_is_a_ceiling():
    bucket = Bucket(rate=1000.0, burst=1000.0)

    await learning(concurrency=7, limits=Limits()).process(
        [item(str(n), bucket) for n in range(100)]
    )

    assert bucket.peak == 7


async def test_what_was_learned_is_in_the_statistics():
    bucket = Bucket(rate=20.0, burst=20.0)
    built = learning()

    await built.process([item(str(n), bucket) for n in range(1500)])

    found = {one.dimension: one for one in built.statistics().limits}
    assert found["requests"].source == "learned"
    assert found["requests"].limit == pytest.approx(1200, rel=0.35)


async def test_long_waits_are_told_to_observers_as_cooldowns():
    recorder, calls = Recorder(), []

    async def call(attempt, timeout):
        calls.append(asyncio.get_running_loop().time())
        if len(calls) == 1:
            raise RateLimited(30.0)
        return "ok", USAGE

    built = learning(observers=[recorder])
    await built.process([item(str(n), call) for n in range(3)])

    assert [data["duration"] for data in recorder.data("cooldown_started")] == [
        pytest.approx(30.0, abs=0.05)
    ]
    assert len(recorder.data("cooldown_ended")) == 1
    assert built.statistics().cooldown_seconds == pytest.approx(30.0, abs=0.05)
    assert max(calls) >= 30.0


async def test_a_cooldown_ends_for_observers_when_its_run_does():
    recorder = Recorder()

    async def call(attempt, timeout):
        await asyncio.sleep(1.0)
        raise RateLimited(30.0)

    built = learning(observers=[recorder])
    running = asyncio.create_task(built.process([item("a", call)]))
    await asyncio.sleep(5)
    built.stop(drain=False)
    await running

    ends = [name for name in recorder.names() if name.startswith(("cooldown", "batch_c"))]
    assert ends == ["cooldown_started", "cooldown_ended", "batch_completed"]
    assert recorder.data("cooldown_ended")[0]["duration"] == pytest.approx(4.0)


async def test_a_retry_after_of_an_overload_is_waited_for():
    calls = []

    async def call(attempt, timeout):
        calls.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.1)
        if 2 <= calls[-1] < 42:
            raise StatusError(503, "come back later", headers={"retry-after": "40"})
        return "ok", USAGE

    built = learning(
        Limits(requests_per_minute=600, burst_seconds=1.0),
        error_classifier=DefaultErrorClassifier(),
    )
    result = await built.process([item(str(n), call) for n in range(200)])

    during = [at for at in calls if 2 <= at < 42]
    assert result.succeeded == 200
    assert len(during) <= 6  # three that tell of it, and those sent meanwhile
    assert max(during) < 3
    assert asyncio.get_running_loop().time() < 2 + 40 + 18 + 8


async def test_hardly_a_worker_comes_or_goes_while_limits_hold():
    recorder, dice = Recorder(), random.Random(1)

    async def call(attempt, timeout):
        await asyncio.sleep(dice.expovariate(2))
        return "ok", USAGE

    built = learning(Limits(requests_per_minute=3000, burst_seconds=0.1), observers=[recorder])
    result = await built.process([item(str(n), call) for n in range(3000)])

    assert result.succeeded == 3000
    assert len(recorder.data("worker_started")) < 300


async def test_cancelled_waiters_give_their_places_back():
    bucket = Bucket(rate=5.0, burst=5.0)
    built = learning()
    running = asyncio.create_task(built.process([item(str(n), bucket) for n in range(500)]))
    await asyncio.sleep(20)
    built.stop(drain=False)
    result = await running

    numbers = built.statistics()
    assert (numbers.in_flight, bucket.in_flight) == (0, 0)
    assert {one.error_code for one in result.results} == {None, "cancelled"}
    gate = built._run._gate
    assert places(gate)[0].in_flight == 0


def test_a_strategy_and_learning_exclude_each_other():
    with pytest.raises(ConfigError, match="left out when limits are learned"):
        processor(config=ProcessorConfig(limits=Limits()), rate_limit_strategy=Ramp())


@pytest.mark.parametrize("concurrency", [0, "many", 2.5])
def test_an_impossible_concurrency_is_refused(concurrency):
    with pytest.raises(ConfigError, match='concurrency must be >= 1, "auto" or "knee"'):
        processor(config=ProcessorConfig(concurrency=concurrency))


def test_an_impossible_limit_is_refused():
    with pytest.raises(ConfigError, match="tokens_per_minute must be > 0"):
        processor(config=ProcessorConfig(limits=Limits(tokens_per_minute=0)))
