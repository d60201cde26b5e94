"""A limit that an earlier run used up refuses the first call: it is no limit of one call."""

from __future__ import annotations

import math

import pytest

from admissions import ONE, admission
from batch_llm import Limits
from batch_llm.strategies.dimensions import REQUESTS
from virtual_lane import Lane, Reply


def refused_at_first(retry_after, **arguments):
    """Refuse the first call; return the admission, reopened by the next one."""
    one = admission(dimensions=(REQUESTS,), **arguments)
    one.refused(0.1, one.start(0.0, ONE), latency=0.1, retry_after=retry_after)
    now = one.closed_until
    one.accepted(now + 0.1, one.start(now, ONE))
    return one


def minute(now, *, used, rate):
    """A fixed minute's count that ``used`` calls were taken from before the run."""
    counts = {0: used}

    def reply(at):
        number = int((now + at) // 60)
        if counts.get(number, 0) >= rate:
            return Reply("refused", 0.1, math.ceil(60 - (now + at) % 60))
        counts[number] = counts.get(number, 0) + 1
        return Reply("taken", 0.2)

    return reply


def test_nothing_is_believed_of_a_limit_that_was_used_up_before_the_first_call():
    one = refused_at_first(40.0)

    assert one.budgets[REQUESTS].rate == math.inf
    assert one.known_limits() == []


def test_it_is_kept_closed_for_as_long_as_it_asks_and_longer_when_that_was_too_short():
    one = admission(dimensions=(REQUESTS,))
    one.refused(0.1, one.start(0.0, ONE), latency=0.1, retry_after=40.0)
    first = one.closed_until
    one.refused(first + 0.1, one.start(first, ONE), latency=0.1, retry_after=2.0)

    assert 40.1 <= first < 40.2
    assert first + 0.1 + 3.0 < one.closed_until < first + 0.1 + 5.0
    assert one.budgets[REQUESTS].rate == math.inf


def test_the_next_refusal_after_it_is_taken_for_the_first():
    one = refused_at_first(40.0)
    now = one.closed_until + 1
    for n in range(30):
        one.accepted(now + 0.1 * n, one.start(now + 0.1 * n, ONE))
    one.refused(now + 3.1, one.start(now + 3.0, ONE), latency=0.1)

    assert 0 < one.budgets[REQUESTS].rate < 30


def test_a_short_pause_before_the_first_answer_is_a_refusal_like_others():
    assert refused_at_first(1.0).budgets[REQUESTS].rate < math.inf


def test_a_told_limit_is_kept_to_after_it():
    one = refused_at_first(40.0, limits=Limits(requests_per_minute=60))

    assert one.budgets[REQUESTS].rate <= 1.0


@pytest.mark.parametrize("rate", [100, 600])
def test_a_minute_that_was_used_up_before_the_run_costs_what_is_left_of_it(rate):
    lane = Lane(admission(dimensions=(REQUESTS,)), minute(20.0, used=rate, rate=rate)).run(160.0)

    assert lane.count("taken", 40.0, 100.0) == rate
    assert lane.count("taken", 100.0, 160.0) == rate
