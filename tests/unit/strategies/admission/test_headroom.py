"""Where headers show what is left, a call that came a moment too soon costs no rate."""

from __future__ import annotations

import pytest

from admissions import ONE, admission
from batch_llm.strategies.admission import headroom
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS

RATE, BURST = 10.0, 50.0


def header(left, limit=60 * RATE):
    return {REQUESTS: LimitHeader(limit, left, (BURST - left) / RATE)}


def after_the_first_refusal():
    """A controller that knows from headers that nothing is left, and was refused a call before."""
    one = admission()
    first, other = one.start(0.0, ONE), one.start(0.0, ONE)
    one.accepted(0.05, first, ONE, header(0.0))
    one.refused(0.05, other, latency=0.05, headers=header(0.0))
    one.accepted(0.11, one.start(0.1, ONE), ONE, header(0.0))
    return one


def refuse(one, now, cost=ONE, left=0.9):
    one.refused(now + 0.01, one.start(now, cost), latency=0.01, headers=header(left))
    return one.budgets[REQUESTS]


def test_a_fraction_of_a_call_is_waited_for_and_the_rate_stays():
    budget = refuse(after_the_first_refusal(), 0.19)

    assert budget.rate == RATE
    assert budget.headers.kept_seconds == pytest.approx(0.05)


def test_each_further_one_keeps_more_back_up_to_a_bound():
    one, kept = after_the_first_refusal(), []
    for n in range(5):
        budget = refuse(one, 0.19 + n / 10)
        kept.append(budget.headers.kept_seconds)
        one.accepted(0.21 + n / 10, one.start(0.2 + n / 10, ONE), ONE, header(0.0))

    assert kept == pytest.approx([0.05, 0.1, 0.2, 0.25, 0.25])
    assert budget.rate < RATE  # the last one was not to be explained so


def test_when_more_than_that_is_missing_the_rate_is_cut():
    budget = refuse(after_the_first_refusal(), 0.19, Cost(10.0))

    assert budget.rate < RATE
    assert budget.headers.kept_seconds == 0.0


def test_when_nothing_is_missing_the_rate_is_cut():
    budget = refuse(after_the_first_refusal(), 0.22, left=1.2)

    assert budget.rate < RATE
    assert budget.headers.kept_seconds == 0.0


def test_where_others_use_the_limit_nothing_is_kept_back():
    one = after_the_first_refusal()
    one.budgets[REQUESTS].headers.is_shared = True

    assert not headroom.explains(one.budgets, one.start(0.19, ONE), header(0.9))


@pytest.mark.parametrize("kind", ["is_window", "is_sliding"])
def test_where_minutes_are_counted_nothing_is_missing_for_a_moment_only(kind):
    one = after_the_first_refusal()
    setattr(one.budgets[REQUESTS], kind, True)

    assert not headroom.explains(one.budgets, one.start(0.19, ONE), header(0.9))
