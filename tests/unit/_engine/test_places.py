"""Pools: keys and servers that stand in for each other."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from batch_llm import Limits, RetryConfig, StatusError, TransportError
from batch_llm.providers.base import LaneFacts
from fakes import Models, RateLimited, asked

ONE_ATTEMPT = RetryConfig(max_attempts=1, jitter=False)
GONE = TransportError("could not connect to h", was_never_sent=True)


def now():
    return asyncio.get_running_loop().time()


def pool(behaviour, places=2, **arguments):
    return Models(lambda _, place: behaviour(place), places=places, **arguments)


def items(count):
    return [asked("m", n) for n in range(count)]


@pytest.mark.parametrize(
    "error",
    [
        StatusError(401, "bad key"),
        StatusError(403, "not yours"),
        StatusError(402, "pay first"),
        StatusError(429, "no credit", "insufficient_quota", None, {"code": "insufficient_quota"}),
        StatusError(404, "no such model"),
    ],
)
async def test_what_fails_for_good_is_set_aside_and_costs_nothing(error, caplog):
    provider = pool(lambda place: error if place == 1 else None, places=3)

    with caplog.at_level(logging.WARNING, "batch_llm"):
        result = await provider.processor(retry=ONE_ATTEMPT).process(items(300))

    assert result.succeeded == 300
    assert len(provider.at(1)) <= 5  # those that were under way when the first one failed
    assert [r.getMessage() for r in caplog.records] == [f"m #2 of 3 is set aside: {error}"]


async def test_a_place_is_probed_with_one_call_at_a_time_ever_more_rarely():
    provider = pool(lambda place: StatusError(401, "bad") if place == 0 else None, seconds=1.0)
    limits = Limits(requests_per_minute=600, burst_seconds=1.0)

    await provider.processor(limits=limits).process(items(3000))

    probes = [at for at in provider.at(0) if at > 1]
    waits = [b - a for a, b in zip([0.0, *probes], probes, strict=False)]
    assert waits == pytest.approx([30.0, 60.0, 120.0], abs=2.0)


async def test_a_place_that_comes_back_is_told(caplog):
    def behaviour(place):
        return StatusError(402, "pay first") if place == 0 and now() < 20 else None

    provider = pool(behaviour, seconds=1.0, facts=LaneFacts(places=2, labels=("FIRST", "SECOND")))
    limits = Limits(requests_per_minute=600, burst_seconds=1.0)

    with caplog.at_level(logging.WARNING, "batch_llm"):
        result = await provider.processor(limits=limits).process(items(1000))

    assert result.succeeded == 1000
    assert [record.getMessage() for record in caplog.records] == [
        "m #1 of 2 (FIRST) is set aside: HTTP 402: pay first",
        "m #1 of 2 (FIRST) is used again",
    ]
    assert len([at for at in provider.at(0) if at > 30]) > 100


async def test_late_answers_to_earlier_calls_do_not_bring_a_place_back():
    """The account runs out of credit while its calls are under way; those are answered."""
    provider = pool(
        lambda place: StatusError(402, "pay") if place == 0 and now() > 5 else None, seconds=8.0
    )

    result = await provider.processor(max_workers=100).process(items(1000))

    assert result.succeeded == 1000
    failed = [at for at in provider.at(0) if at > 5]
    assert len([at for at in failed if at > failed[0] + 0.1]) <= 3


async def test_a_probe_that_is_refused_shows_that_the_place_is_well():
    def behaviour(place):
        if place == 0 and now() < 20:
            return StatusError(401, "bad")
        return RateLimited(1.0) if place == 0 and now() < 31 else None

    built = pool(behaviour).processor(max_workers=1)
    await built.process(items(200))

    assert built._lanes.by_name["m"].places[0].aside_until == 0


async def test_when_all_fail_that_is_seen_at_once():
    provider = pool(lambda _: StatusError(401, "bad key"), places=3)

    result = await provider.processor().process(items(30))

    assert result.succeeded == 0
    assert {one.error_code for one in result.results} == {"auth", "cancelled"}
    assert now() < 10


@pytest.mark.parametrize("error", [GONE, StatusError(503, "busy"), StatusError(529, "busy")])
async def test_a_server_that_is_down_or_busy_costs_no_attempt_and_the_other_takes_over(error):
    provider = pool(lambda place: error if place == 0 else None)

    result = await provider.processor(retry=ONE_ATTEMPT).process(items(300))

    assert result.succeeded == 300
    at_once = [at for at in provider.at(0) if at < 1]
    probes = [at for at in provider.at(0) if at >= 1]
    assert len(at_once) < 40
    assert all(later - at >= 0.5 for at, later in itertools.pairwise(probes))
    assert max(one.duration_seconds for one in result.results) < 5


@pytest.mark.parametrize("error", [GONE, StatusError(503, "busy")])
async def test_a_server_that_comes_back_is_used_again(error):
    provider = pool(lambda place: error if place == 0 and 2 < now() < 40 else None)

    result = await provider.processor(max_workers=4, retry=ONE_ATTEMPT).process(items(1000))

    late = [place for at, _, place in provider.calls if at > 80]
    assert result.succeeded == 1000
    assert late.count(0) > len(late) / 3
    assert len([at for at in provider.at(0) if 3 < at < 40]) < 40


async def test_when_no_server_was_ever_there_attempts_are_used_up():
    provider = pool(lambda _: GONE)

    result = await provider.processor(retry=RetryConfig(max_attempts=2, jitter=False)).process(
        items(5)
    )

    assert {(one.error_code, one.success) for one in result.results} == {("connection", False)}
    assert now() < 30


async def test_one_dead_server_does_not_end_the_patience_with_the_others():
    """After half an hour of an outage attempts are used up; here one place of two works."""
    busy = iter([True])

    def behaviour(place):
        if place == 0 and now() > 5:
            return GONE
        return StatusError(503, "busy") if place == 1 and now() > 2200 and next(busy, 0) else None

    provider = pool(behaviour, seconds=1.0)
    result = await provider.processor(max_workers=2, retry=ONE_ATTEMPT).process(items(5000))

    assert result.succeeded == 5000
    assert now() > 2000


async def test_a_broken_connection_is_the_calls_own_matter_but_others_are_preferred():
    provider = pool(lambda place: TransportError("the connection broke") if place == 0 else None)

    result = await provider.processor(max_workers=1).process(items(1))

    assert (result.succeeded, result.results[0].attempts) == (1, 2)
    assert [place for *_, place in provider.calls] == [0, 1]


async def test_the_fuller_key_is_used_less():
    """Told limits are each key's own; a third of one key's is used by somebody else."""
    provider = pool(
        lambda place: RateLimited(5.0) if place == 0 and now() % 10 < 5 else None, places=2
    )

    limits = Limits(requests_per_minute=600, burst_seconds=1.0)
    await provider.processor(limits=limits).process(items(600))

    answered = len([at for at in provider.at(0) if now and at % 10 >= 5])
    assert len(provider.at(1)) > 1.3 * answered
    assert now() < 600 / 15 * 1.3
