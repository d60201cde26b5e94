"""A limit in headers that is far below what is let in is not believed; a true one always is."""

from __future__ import annotations

import random

import pytest

from admissions import ONE, admission
from batch_llm import Limits
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.admission.understated import ALLOWED_CALLS, ALLOWED_TIMES, Understated
from batch_llm.strategies.dimensions import REQUESTS
from virtual_lane import Bucket, ExactBucket, Lane, Reply

RATE = 50.0


def telling(provider, header):
    def reply(now):
        return provider(now)._replace(headers={REQUESTS: header(now, provider)})

    return reply


def lane(reply, limits=None):
    return Lane(Admission(0.0, limits, dimensions=(REQUESTS,), dice=random.Random(1)), reply)


@pytest.mark.parametrize("remaining", [0, 1])
@pytest.mark.parametrize("burst", [1e9, 100.0])
def test_a_limit_of_one_a_minute_where_fifty_a_second_are_let_in_is_not_kept_to(burst, remaining):
    provider = Bucket(1, rate=RATE, burst=burst, seconds=(0.8, 1.2), retry_after=1.0)
    one = lane(telling(provider, lambda *_: LimitHeader(1, remaining, 60))).run(60)

    assert len(one.ends["taken"]) > 0.8 * 60 * RATE


def test_a_told_limit_is_kept_to_in_place_of_one_that_is_not_believed():
    provider = Bucket(1, seconds=(0.8, 1.2))
    limits = Limits(requests_per_minute=600)
    one = lane(telling(provider, lambda *_: LimitHeader(1, 1, 60)), limits).run(60)

    assert 600 <= len(one.ends["taken"]) <= 1200


@pytest.mark.parametrize("rate", [1 / 60, 0.1, 1.0, 50.0])
@pytest.mark.parametrize("holds_seconds", [60, 10])
def test_a_true_limit_is_kept_to(rate, holds_seconds):
    provider = ExactBucket(rate, max(1.0, rate * holds_seconds))

    def true(_, bucket):
        return LimitHeader(60 * rate, int(bucket.level), (bucket.burst - bucket.level) / rate)

    one = lane(telling(provider, true)).run(120)

    assert [(n, s) for n, _, s in one.admission.known_limits()] == [(REQUESTS, "header")]
    assert len(one.ends["refused"]) <= 20


def test_a_limit_that_falls_is_believed():
    limit = 6000

    def reply(now):
        left = limit if now < 5 else 60
        return Reply("taken", 0.5, None, None, {REQUESTS: LimitHeader(left, left - 1, 0.1)})

    one = lane(reply).run(20)

    assert [limit for _, limit, _ in one.admission.known_limits()] == [60]


def answers_until_it_is_too_low(limit, known_at, told=None):
    """Return how many calls of the start are answered until a limit a minute is not believed."""
    understated, one, answers = Understated(), admission(), 1
    header = LimitHeader(limit, 0.0, 1.0)
    understated.note_accepted(known_at, one.start(0.0, ONE), header)
    while answers < 1000:
        answers += 1
        later = header if told is None else header._replace(limit=told)
        if understated.note_accepted(known_at + 1, one.start(0.0, ONE), later):
            break
    return answers


@pytest.mark.parametrize("minutes", [0, 2])
def test_twice_the_limit_may_be_let_in_and_as_much_again_with_each_minute(minutes):
    most = ALLOWED_TIMES * 10 * (1 + minutes) + ALLOWED_CALLS

    assert answers_until_it_is_too_low(10, 60.0 * minutes) == most + 1


def test_answers_that_tell_another_limit_say_nothing_of_the_first():
    assert answers_until_it_is_too_low(10, 0.0, told=20) == 1000
