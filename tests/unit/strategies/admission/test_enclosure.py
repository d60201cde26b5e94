"""What was let in between two refusals encloses the limit's rate."""

from __future__ import annotations

import math

import pytest

from batch_llm.strategies.admission.enclosure import (
    FEWEST_CALLS,
    Round,
    came_back,
    measured_rate,
)


def test_with_hardly_any_closure_it_is_what_was_let_in_over_the_time():
    assert measured_rate(Round(100.0, 2.0, 1.6), 1.0) == 50.0


def test_too_few_calls_tell_nothing():
    assert measured_rate(Round(FEWEST_CALLS - 1, 1.0, 1.0), 1.0) is None
    assert measured_rate(Round(0.0, 1.0, 1.0), 0.0) is None


def test_a_long_closure_tells_nothing_on_its_own():
    assert measured_rate(Round(55.0, 2.0, 1.0), 1.0) is None


@pytest.mark.parametrize(
    ("let_in", "fills_in"), [(100.0, 10.0), (100.0, 1.0), (55.0, 0.1)], ids=["ten", "one", "small"]
)
def test_what_came_back_is_the_rate_whatever_the_bucket_holds(let_in, fills_in):
    """Fifty a second: a second closed, and then a second of calls."""
    assert came_back(Round(let_in, 2.0, 1.0), 1.0, fills_in) == pytest.approx(50.0)


def test_what_was_sent_in_the_same_moment_has_a_finite_rate():
    assert 0 < came_back(Round(10.0, 2.0, 0.0), 0.0, 0.0) < math.inf
