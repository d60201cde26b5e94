"""Limits as users tell them, as they are shown, and for the next run."""

from __future__ import annotations

import pytest

from admissions import ONE, admission
from batch_llm import Limits
from batch_llm.strategies.admission.budgets import Budget
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.admission.known_limits import (
    Known,
    limits_to_remember,
    shown_limits,
    told_limits,
)
from batch_llm.strategies.admission.slots import Slots
from batch_llm.strategies.dimensions import INPUT, REQUESTS, REQUESTS_PER_DAY, TOKENS


def learned(rate):
    """Return the budget of requests whose limit was learned."""
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    budget.learn_rate(rate)
    return budget


def test_a_user_tells_some_limits_and_leaves_others_out():
    told = told_limits(
        Limits(requests_per_minute=60, input_tokens_per_minute=5000, requests_per_day=900)
    )

    assert told == {REQUESTS: 60, INPUT: 5000, REQUESTS_PER_DAY: 900}
    assert told_limits(None) == told_limits(Limits()) == {}


def test_limits_are_shown_per_minute_and_a_days_per_day():
    budgets = [
        learned(2.0),
        Budget(TOKENS, None, 0.0, 60.0),  # never met
        Budget(REQUESTS_PER_DAY, 900.0, 0.0, 60.0),
    ]

    assert shown_limits(budgets, Slots()) == [
        (REQUESTS, pytest.approx(120.0), "learned"),
        (REQUESTS_PER_DAY, 900.0, "told"),
    ]


def test_under_a_limit_on_calls_in_flight_a_learned_rate_means_nothing():
    slots = Slots()
    slots.told(8)

    assert shown_limits([learned(2.0)], slots) == [("concurrency", 8, "learned")]
    assert limits_to_remember([learned(2.0)], slots) == {}


def test_what_was_told_is_not_remembered():
    told = Budget(TOKENS, 900.0, 0.0, 60.0)

    assert limits_to_remember([told, learned(2.0)], Slots()) == {REQUESTS: Known(None, 2.0, 2.0)}


def test_what_headers_say_is_remembered_with_its_limit():
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE), None, {REQUESTS: LimitHeader(600, 500, 10.0)})
    known = limits_to_remember(one.budgets.values(), Slots())[REQUESTS]

    assert (known.limit, known.rate) == (600, 10)
