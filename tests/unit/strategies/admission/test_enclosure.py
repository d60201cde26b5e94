"""What was let in between two refusals encloses the limit's rate."""

from __future__ import annotations

import math

import pytest

from batch_llm.strategies.admission.enclosure import (
    FEWEST_CALLS,
    LONGEST_SECONDS,
    Round,
    came_back,
    measured_rate,
)


def test_with_hardly_any_closure_it_is_what_was_let_in_over_the_time():
    assert measured_rate(None, Round(100.0, 2.0, 1.6), 1.0) == 50.0


def test_too_few_calls_tell_nothing():
    assert measured_rate(None, Round(FEWEST_CALLS - 1, 1.0, 1.0), 1.0) is None
    assert measured_rate(None, Round(0.0, 1.0, 1.0), 0.0) is None


def test_a_long_closure_tells_nothing_on_its_own():
    assert measured_rate(None, Round(55.0, 2.0, 1.0), 1.0) is None


@pytest.mark.parametrize("held", [5.0, 50.0], ids=["ran over", "held all"])
def test_two_rounds_of_different_length_tell_it_whatever_the_bucket_holds(held):
    """Fifty a second, and a closure of a second before each round."""
    short, long = Round(held + 50.0, 2.0, 1.0), Round(held + 100.0, 3.0, 2.0)

    assert measured_rate(short, long, 1.0) == pytest.approx(50.0, rel=0.02)


def test_rounds_that_are_alike_can_not_be_compared():
    assert measured_rate(Round(55.0, 2.0, 1.0), Round(60.0, 2.1, 1.1), 1.0) is None


def test_a_long_round_is_not_compared_because_the_limit_may_have_changed():
    long = Round(500.0, LONGEST_SECONDS + 1, LONGEST_SECONDS)

    assert measured_rate(long, Round(55.0, 2.0, 1.0), 1.0) is None


def test_two_rounds_tell_no_more_than_was_let_in_while_the_gate_was_open():
    short, long = Round(20.0, 2.0, 1.0), Round(100.0, 3.0, 2.0)

    assert measured_rate(short, long, 1.0) == (100.0 + 1.0) / 2.0


@pytest.mark.parametrize(
    ("let_in", "fills_in"), [(100.0, 10.0), (100.0, 1.0), (55.0, 0.1)], ids=["ten", "one", "small"]
)
def test_what_came_back_is_the_rate_whatever_the_bucket_holds(let_in, fills_in):
    """Fifty a second: a second closed, and then a second of calls."""
    assert came_back(Round(let_in, 2.0, 1.0), 1.0, fills_in) == pytest.approx(50.0)


def test_what_was_sent_in_the_same_moment_has_a_finite_rate():
    assert 0 < came_back(Round(10.0, 2.0, 0.0), 0.0, 0.0) < math.inf
