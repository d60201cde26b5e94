"""What Retry-After tells of a limit that nobody told."""

from __future__ import annotations

import math

import pytest

from admissions import ONE, admission
from batch_llm import Limits
from batch_llm.strategies.dimensions import REQUESTS


@pytest.mark.parametrize(
    ("retry_after", "whole", "worked_out"),
    [(None, False, False), (2.0, True, False), (0.0, True, False), (1.25, False, True)],
)
def test_a_fraction_of_a_second_was_worked_out_from_a_limit(retry_after, whole, worked_out):
    asked = admission(dimensions=(REQUESTS,))._retry_after

    assert asked.is_whole(retry_after) is whole
    assert asked.is_worked_out(retry_after) is worked_out


@pytest.mark.parametrize(
    ("limits", "most"), [(None, 2.0), (Limits(requests_per_minute=60), math.inf)]
)
def test_it_tells_something_only_where_nobody_told_the_limit(limits, most):
    one = admission(limits=limits)
    one._retry_after.note(one.start(0.0, ONE), 0.5, 0)

    assert one._retry_after.hints.most == most


def test_a_burst_that_makes_a_higher_rate_likely_is_gone_on_from_there():
    one = admission(dimensions=(REQUESTS,))
    one.budgets[REQUESTS].peak = 0.1
    one.budgets[REQUESTS].learn_rate(0.1)
    one._retry_after.note(one.start(0.0, ONE), 0.5, 0)
    one._retry_after.raise_to_likely()

    assert one.budgets[REQUESTS].rate == pytest.approx(one._retry_after.hints.least)
    assert 0.1 < one.budgets[REQUESTS].rate < 2.0


@pytest.mark.parametrize("is_chance", [False, True])
def test_what_is_chance_measures_nothing(is_chance):
    """Refused at 0 and at 5 seconds, and ten let in between."""
    one = admission(dimensions=(REQUESTS,))
    one.budgets[REQUESTS].learn_rate(1.0)
    one._belief.is_first = False
    for sent_at in (0.0, 5.0):
        refused = one.start(sent_at, ONE)
        one._retry_after.begin(sent_at, refused)
        one._retry_after.note(refused, 0.5, 0)
        if is_chance:
            one._chance_belief.believe(0.1)
        one._retry_after.measure()
        for _ in range(10):
            one.start(sent_at + 1.0, ONE)

    assert one._retry_after._ready.has_measured != is_chance
