"""How long the gate stays closed tells what kind of limit it is."""

from __future__ import annotations

import pytest

from admissions import ONE, admission, start_all
from batch_llm import Limits
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS


def test_the_first_call_let_in_after_the_first_refusal_shows_how_fast_its_cost_comes_back():
    one = admission(dimensions=(REQUESTS, TOKENS))
    cost = Cost(1.0, 1000.0)
    one.accepted(0.1, one.start(0.0, cost))
    one.refused(0.2, one.start(0.1, cost), latency=0.1)
    one.accepted(4.2, one.start(4.1, cost))

    assert one.budgets[TOKENS].rate == pytest.approx(0.5 * 1000 / 4.0)


def test_a_cost_that_comes_back_late_lowers_no_rate():
    one = admission(dimensions=(REQUESTS,))
    for n in range(20):
        one.accepted(0.1 * n, one.start(0.1 * n, ONE))
    one.refused(2.1, one.start(2.0, ONE), latency=0.1)
    low = one.budgets[REQUESTS].rate

    one.accepted(60.1, one.start(60.0, ONE))

    assert one.budgets[REQUESTS].rate >= low


def test_a_told_limit_that_opens_when_its_first_call_is_a_minute_old_is_counted_by_the_minute():
    one = admission(limits=Limits(requests_per_minute=60))
    requests = one.budgets[REQUESTS]
    for n in range(60):
        one.accepted(0.5 * n, one.start(0.5 * n, ONE))
    one.refused(30.0, one.start(30.0, ONE), latency=0.1)
    assert requests.rate == 1.0  # it is no lower for that

    one.accepted(60.2, one.start(60.1, ONE))

    assert requests.is_sliding
    assert one.wait(60.2, ONE) == pytest.approx(60.75 - 60.2)  # the second one's


def test_one_that_opens_sooner_is_one_per_fixed_minute():
    one = admission(limits=Limits(requests_per_minute=60))
    for n in range(60):
        one.accepted(0.5 * n, one.start(0.5 * n, ONE))
    one.refused(30.0, one.start(30.0, ONE), latency=0.1)

    one.accepted(40.1, one.start(40.0, ONE))

    assert one.budgets[REQUESTS].is_window
    assert one.budgets[REQUESTS].reset_at == 100.0


@pytest.mark.parametrize(
    ("calls", "seconds"), [(20, 30.0), (80, 30.0), (60, 70.0)],
    ids=["a small bucket", "a bucket", "too late"],
)  # fmt: skip
def test_a_told_limit_is_not_counted_unless_just_a_minute_s_worth_was_let_in(calls, seconds):
    one = admission(limits=Limits(requests_per_minute=60))
    for n in range(calls):
        at = seconds * n / calls
        one.accepted(at, one.start(at, ONE))
    one.refused(seconds, one.start(seconds, ONE), latency=0.1)

    one.accepted(seconds + 40, one.start(seconds + 39.9, ONE))

    assert not one.budgets[REQUESTS].is_window
    assert not one.budgets[REQUESTS].is_sliding


def test_a_long_closure_that_a_bucket_explains_not_twice_a_minute_apart_is_a_fixed_minute():
    one = admission(limits=Limits(requests_per_minute=600))
    for opened_at in (60.0, 120.0):
        one.accepted(opened_at - 40, one.start(opened_at - 41, ONE))
        one.refused(opened_at - 29.9, one.start(opened_at - 30, ONE), latency=0.1)
        one.accepted(opened_at + 0.1, one.start(opened_at, ONE))

    assert one.budgets[REQUESTS].is_window
    assert one.budgets[REQUESTS].reset_at == 180.0

    one.refused(150.0, one.start(149.9, ONE), latency=0.1)  # in mid-minute, with room left
    assert not one.budgets[REQUESTS].is_window


def test_a_provider_that_counts_one_limit_by_the_minute_counts_all_of_them_so():
    one = admission(limits=Limits(requests_per_minute=600, tokens_per_minute=6000))
    cost = Cost(1.0, 100.0)
    for n in range(60):
        one.accepted(0.1 * n, one.start(0.1 * n, cost))
    one.refused(6.1, one.start(6.0, cost), latency=0.1)
    assert one.budgets[REQUESTS].level > 500  # it was not that one

    one.accepted(30.1, one.start(30.0, cost))

    assert one.budgets[TOKENS].is_window
    assert one.budgets[REQUESTS].is_window


def test_how_a_used_up_minute_opens_is_tried_with_few_calls():
    one = admission(limits=Limits(requests_per_minute=600))
    for n in range(590):
        one.accepted(0.01 * n, one.start(0.01 * n, ONE))

    one.refused(6.1, one.start(6.0, ONE), latency=0.1, retry_after=30.0)

    assert len(start_all(one, 36.2)) == 2


def test_a_gate_that_was_closed_for_moments_is_no_fixed_minute():
    one = admission(limits=Limits(requests_per_minute=600))
    for opened_at in (60.0, 120.0):
        one.accepted(opened_at - 40, one.start(opened_at - 41, ONE))
        one.refused(opened_at - 3.9, one.start(opened_at - 4, ONE), latency=0.1)
        one.accepted(opened_at + 0.1, one.start(opened_at, ONE))

    assert not one.budgets[REQUESTS].is_window
