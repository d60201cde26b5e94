"""A rate that was measured to the fraction of a call: what is used of it, and until when."""

from __future__ import annotations

import math

import pytest

from admissions import admission
from batch_llm.strategies.admission.budgets import Budget
from batch_llm.strategies.admission.exact_rate import ExactRate
from batch_llm.strategies.admission.ready_points import Measured
from batch_llm.strategies.dimensions import REQUESTS, TOKENS


def test_where_nothing_is_refused_beyond_a_measured_rate_it_is_forgotten():
    one = admission(dimensions=(REQUESTS,))
    one.budgets[REQUESTS].learn_rate(5.0)
    one._retry_after.exact.take(Measured(REQUESTS, 6.0, 6.0), one.budgets.values(), lambda _: 1.0)
    assert one.budgets[REQUESTS].rate == pytest.approx(0.99 * 6)

    one._retry_after.hints.note(0.0, 0.5, 1.0, 0.0)
    one._search.note_refuted(2)

    assert not one._retry_after.exact.is_known
    assert one._retry_after.hints.most == math.inf


def learned(name, rate):
    """Return the budget of an unknown limit that is believed to have a rate."""
    budget = Budget(name, None, 0.0, 60.0)
    budget.learn_rate(rate)
    return budget


def test_the_other_dimensions_are_left_room_beside_it():
    requests, tokens, one = learned(REQUESTS, 1.0), learned(TOKENS, 100.0), ExactRate()
    one.take(Measured(TOKENS, 4000.0, 8.0), [requests, tokens], lambda _: 1.0)

    assert tokens.rate == pytest.approx(0.99 * 4000)
    assert requests.rate == 2 * 8.0
    assert one.is_of(tokens)
    assert not one.is_of(requests)


def test_no_limit_that_is_told_or_was_never_met_is_set_by_it():
    told, unmet = Budget(REQUESTS, 600.0, 0.0, 60.0), Budget(TOKENS, None, 0.0, 60.0)
    ExactRate().take(Measured(REQUESTS, 5.0, 5.0), [told, unmet], lambda _: 1.0)

    assert told.rate == 10.0
    assert unmet.rate == math.inf


def test_what_is_forgotten_is_of_no_budget():
    requests, one = learned(REQUESTS, 1.0), ExactRate()
    one.take(Measured(REQUESTS, 5.0, 5.0), [requests], lambda _: 1.0)
    one.forget()

    assert not one.is_known
    assert not one.is_of(requests)
