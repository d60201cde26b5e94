"""Refusals under known limits are random when they go on however far rates have fallen."""

from __future__ import annotations

import pytest

from batch_llm.strategies.admission.fallen_rates import (
    FEWEST_CALLS,
    LARGEST_SHARE,
    FallenPace,
    FallenRates,
)
from batch_llm.strategies.dimensions import REQUESTS, TOKENS

FAST, SLOW = {REQUESTS: 100.0}, {REQUESTS: 50.0}


def slower(falls, of=100.0):
    """Return the rates that are let in after so many cuts."""
    return {REQUESTS: of * 0.9**falls}


def noted(one, now, rates, calls, times=1.0):
    """Tell whether refusals are taken for random."""
    return one.note(now, rates, calls, times=times) > 0


def test_the_fourth_refusal_that_no_limit_explains_is_taken_for_random():
    one = FallenRates()
    one.note(0.0, FAST, 19, times=1.0)

    shares = [one.note(float(n), slower(n), 19, times=1.0) for n in range(1, 5)]

    assert shares == [0.0, 0.0, 0.0, pytest.approx(0.05)]


def test_the_share_is_bounded():
    one = FallenRates()
    one.note(0.0, FAST, 8, times=1.0)
    few = [one.note(n / 2, slower(n), 8 if n % 2 else 1, times=1.0) for n in range(1, 9)]

    assert max(few) == LARGEST_SHARE


def test_so_many_times_more_may_be_asked_for():
    one = FallenRates()
    one.note(0.0, FAST, 20, times=2.0)

    believed = [noted(one, float(n), slower(n), 20, times=2.0) for n in range(1, 9)]

    assert believed == [False] * 7 + [True]


def test_refusals_near_the_rate_that_was_let_in_are_a_limit_s():
    one = FallenRates()
    noted(one, 0.0, FAST, 20)

    assert not any(noted(one, float(n), {REQUESTS: 95.0}, 20) for n in range(1, 20))


def test_one_that_a_limit_explains_begins_the_row_anew():
    one = FallenRates()
    noted(one, 0.0, FAST, 20)
    for n in (1, 2, 3):
        noted(one, float(n), slower(n), 20)

    assert not noted(one, 4.0, FAST, 20)
    assert not noted(one, 5.0, slower(4), 20)


@pytest.mark.parametrize("lower", [SLOW, slower(1)], ids=["half", "a tenth lower"])
def test_a_limit_that_has_fallen_explains_all_refusals_at_its_new_rate(lower):
    one = FallenRates()
    noted(one, 0.0, FAST, 20)

    assert not any(noted(one, float(n), lower, 20) for n in range(1, 40))


def test_refusals_that_follow_the_rate_down_however_low_it_gets_are_random():
    one = FallenRates()
    noted(one, 0.0, FAST, 20)
    noted(one, 1.0, SLOW, 20)  # this may have been a limit that fell

    believed = [noted(one, 1.0 + n, slower(n, of=50.0), 20) for n in (1, 2, 3)]

    assert believed == [False, False, True]


def test_any_dimension_that_is_used_as_much_as_ever_explains_a_refusal():
    one = FallenRates()
    noted(one, 0.0, {REQUESTS: 100.0, TOKENS: 1000.0}, 20)

    rates = {REQUESTS: 50.0, TOKENS: 1000.0}
    assert not any(noted(one, float(n), rates, 20) for n in range(1, 20))


def test_a_dimension_that_nothing_is_taken_of_explains_no_refusal():
    one = FallenRates()
    noted(one, 0.0, {REQUESTS: 100.0, TOKENS: 0.0}, 20)

    rates = [{**slower(n), TOKENS: 0.0} for n in range(1, 5)]
    assert any(noted(one, float(n), rate, 20) for n, rate in enumerate(rates))


def test_few_calls_between_refusals_prove_nothing():
    one = FallenRates()
    noted(one, 0.0, FAST, 20)
    few = [noted(one, float(n), slower(n), FEWEST_CALLS - 1) for n in (1, 2, 3, 4)]
    noted(one, 10.0, FAST, 20)
    enough = [noted(one, 10.0 + n, slower(n), FEWEST_CALLS) for n in (1, 2, 3, 4)]

    assert not any(few)
    assert enough == [False, False, False, True]


def test_what_was_let_in_is_forgotten_after_two_minutes_but_for_the_last_three():
    recent, old, very_old = FallenRates(), FallenRates(), FallenRates()
    for one, seconds, between in ((recent, 29.0, 3), (old, 31.0, 3), (very_old, 1000.0, 0)):
        noted(one, 0.0, FAST, 20)
        for n in range(between):
            noted(one, seconds, slower(n + 1), 20)
        noted(one, 4 * seconds, {REQUESTS: 88.0}, 20)

    assert recent._in_a_row == 3
    assert old._in_a_row == 0
    assert very_old._in_a_row == 1


def test_few_calls_between_refusals_do_not_begin_the_row_anew_either():
    one = FallenRates()
    noted(one, 0.0, FAST, 20)

    believed = [noted(one, float(n), slower(n), 20 if n % 2 else 2) for n in range(1, 8)]

    assert believed == [False] * 6 + [True]


def paces(*rates, calls=19, between=1.0, times=1.0):
    """Return the share that each refusal at such a rate of sending shows to be random."""
    one = FallenPace()
    return [one.note(between * n, rate, calls, times=times) for n, rate in enumerate(rates)]


def test_a_rate_of_sending_that_falls_below_half_by_refusal_after_refusal_shows_chance():
    assert paces(100, 80, 70, 60, 44) == [0.0, 0.0, 0.0, 0.0, pytest.approx(0.05)]
    assert not any(paces(100, 44, 44, 44, 44, 44))  # a limit that fell so far
    assert not any(paces(100, 90, 80, 70, 60, 50, 50, 50))  # one that was halved


def test_a_rate_of_sending_that_is_back_where_it_was_is_a_limit_s():
    assert not any(paces(100, 80, 60, 95, 80, 60, 44))


def test_few_calls_show_no_fall_of_the_rate_of_sending():
    assert not any(paces(100, 80, 70, 60, 44, calls=FEWEST_CALLS - 1))
    assert not any(paces(100, 80, 70, 60, 44, times=2.0))


def test_the_rate_of_sending_from_long_ago_is_no_measure():
    assert not any(paces(100, 80, 70, 60, 44, 40, between=60.0))
