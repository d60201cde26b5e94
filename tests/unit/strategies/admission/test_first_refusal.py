"""What the first refusal means is seen from the calls around it."""

from __future__ import annotations

import pytest

from admissions import ONE, admission, start_all
from batch_llm import Limits
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import INPUT, OUTPUT, REQUESTS


@pytest.mark.parametrize(
    ("retry_after", "fills_in"), [(1.0, 5.0), (2.0, 60.0), (0.9, 60.0), (None, 60.0)]
)
def test_a_bucket_that_asks_for_a_second_is_taken_for_one_that_fills_in_a_few(
    retry_after, fills_in
):
    one = admission(dimensions=(REQUESTS,))
    for _ in range(24):
        one.accepted(0.1, one.start(0.0, ONE))
    one.refused(0.3, one.start(0.2, ONE), latency=0.1, retry_after=retry_after)

    assert one.budgets[REQUESTS].rate == pytest.approx(24 / (fills_in + 0.2))


def test_the_first_refusal_of_a_told_limit_shows_a_smaller_bucket_and_no_lower_rate():
    one = admission(limits=Limits(requests_per_minute=600))
    for _ in range(20):
        one.accepted(0.0, one.start(0.0, ONE))
    one.refused(0.1, one.start(0.0, ONE), latency=0.1)

    assert one.budgets[REQUESTS].rate == 10.0
    assert one.budgets[REQUESTS].capacity == pytest.approx(0.8 * 21)


def test_the_first_refusal_shows_the_buckets_of_all_told_limits_in_seconds_of_their_rates():
    one = admission(
        limits=Limits(
            requests_per_minute=600, input_tokens_per_minute=60_000, output_tokens_per_minute=6000
        )
    )
    call = Cost(1.0, input_tokens=500.0, output_tokens=20.0, pending=20.0)
    for _ in range(20):
        one.accepted(0.0, one.start(0.0, call), Cost(1.0, input_tokens=500.0, output_tokens=20.0))
    one.refused(0.1, one.start(0.0, call), latency=0.1)

    seconds = 0.8 * 21 * 500 / 1000  # the input of all calls, the refused one's included
    assert one.budgets[INPUT].capacity == pytest.approx(seconds * 1000)
    assert one.budgets[OUTPUT].capacity == pytest.approx(seconds * 100)


def steady_then_refused(others_refused=0):
    """Use a told bucket of 100 calls up, keep to its rate for a minute, and refuse a call then.

    Some that were sent just before it are refused as well, which is known later.
    """
    one, now = admission(limits=Limits(requests_per_minute=600), burst_seconds=10), 30.0
    while now < 90.0:
        now += max(one.wait(now, ONE), 1e-3)
        for grant in start_all(one, now):
            one.accepted(now, grant)
    now += one.wait(now, ONE) + others_refused / 10
    others = [one.start(now, ONE) for _ in range(others_refused)]
    first = one.start(now, ONE)
    one.refused(now, first, latency=0.1, retry_after=5.0)
    for grant in others:
        one.refused(now + 0.01, grant, latency=0.1, retry_after=5.0)
    return one.budgets[REQUESTS]


def test_a_first_refusal_long_after_the_start_shows_no_small_bucket():
    assert steady_then_refused().capacity == pytest.approx(0.8 * 100, abs=1)


def test_calls_refused_with_the_first_one_show_that_the_bucket_holds_less_by_as_many():
    assert steady_then_refused(others_refused=20).capacity == pytest.approx(0.8 * 80, abs=1)
