"""What headers say of a budget is believed as far as it can be."""

from __future__ import annotations

import math

import pytest

from batch_llm.strategies.admission.budgets import Budget
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.dimensions import REQUESTS, TOKENS
from budget_states import synced, told, window


def test_the_first_header_is_believed_less_what_was_sent_since_and_is_still_to_be_charged():
    budget = Budget(TOKENS, None, 0.0, 60.0)
    spent_then = budget.spent
    budget.charge(0.0, 100.0)

    assert budget.headers.sync(0.0, 0.0, spent_then, 30.0, LimitHeader(600, 500.0, 10.0))

    assert budget.level == pytest.approx(500 - 100 - 30)
    assert not synced(budget, 0.0, 400.0, 20.0)


def test_more_room_than_thought_is_believed_slowly_and_less_of_it_quickly():
    more, less = Budget(REQUESTS, None, 0.0, 60.0), Budget(REQUESTS, None, 0.0, 60.0)
    for budget in (more, less):
        synced(budget, 0.0, 300.0, 30.0)

    synced(more, 0.0, 400.0, 20.0, pending=50.0)
    synced(less, 0.0, 200.0, 40.0)

    assert more.level == pytest.approx(300 + 0.2 * (400 - 50 - 300))
    assert less.level == pytest.approx(300 - 0.5 * 100)


def test_what_has_come_back_since_a_header_s_call_was_sent_is_room():
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    synced(budget, 0.0, 300.0, 30.0)

    synced(budget, 10.0, 300.0, 30.0, sent_at=0.0)

    assert budget.level == pytest.approx(400.0)


def test_a_header_above_the_told_limit_only_lowers_what_is_left():
    budget = told(600.0)

    assert not synced(budget, 0.0, 50.0, 1.0, limit=6000.0)
    assert budget.level == 50.0
    assert not synced(budget, 0.0, 6000.0, 1.0, limit=6000.0)
    assert budget.level == 50.0
    assert budget.ceiling == 10.0


def test_a_header_never_gives_a_told_limit_a_larger_burst():
    budget = told(600.0, burst_seconds=2.0)

    synced(budget, 0.0, 600.0, 0.0)

    assert budget.capacity == 20.0


def test_what_is_paid_back_may_be_used_again_however_the_headers_go():
    budget = told(600.0)
    budget.charge(0.0, 500.0)
    budget.uncharge(0.0, 500.0, 0.0, refund=True)

    synced(budget, 0.0, 600.0, 0.0)

    assert budget.level == 598.0  # two calls of a bucket that headers show are held back


def test_a_reset_that_stands_still_while_the_remainder_moves_is_a_fixed_minute():
    budget = window()
    budget.drain(8.0, 0.0)

    assert budget.wait(8.0, 1.0) == pytest.approx(52.1)
    assert budget.wait(60.05, 1.0) == pytest.approx(0.05)
    assert budget.wait(60.11, 600.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "used"), [(0.05, 1.0), (0.3, -1.0)], ids=["too soon", "as a bucket fills"]
)
def test_sightings_that_are_alike_anyway_prove_no_fixed_minute(seconds, used):
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    for number in range(6):
        now = seconds * number
        synced(budget, now, 500.0 - used * number, 10.0 - now)

    assert not budget.is_window


def test_a_reset_that_moves_is_no_fixed_minute():
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    for number in range(10):
        synced(budget, 2.0 * number, 600.0 - 50.0 * number, 5.0 * number)

    assert not budget.is_window


def test_a_fixed_minute_whose_reset_moves_again_is_a_bucket():
    budget = window()
    for number in range(6):
        synced(budget, 10.0 + 2 * number, 400.0 - 50.0 * number, 10.0 + 5.0 * number)

    assert not budget.is_window
    assert budget.rate == budget.ceiling == 10.0


def test_fixed_minutes_that_passed_unused_are_passed_over():
    budget = window()

    budget.refill(200.0)

    assert budget.reset_at == 240.0


def test_a_header_of_the_last_minute_says_nothing_of_this_one():
    budget = window()
    budget.refill(61.0)
    assert budget.level == 600.0

    synced(budget, 61.0, 10.0, 5.0, sent_at=50.0)

    assert budget.level == 600.0
    assert budget.reset_at == 120.0


def test_in_a_fixed_minute_more_room_is_believed_slowly_and_less_of_it_quickly():
    budget = window()
    budget.level = 250.0

    synced(budget, 10.0, 300.0, 50.0)
    assert budget.level == 250 + 0.2 * 50

    budget.level = 280.0
    synced(budget, 10.0, 200.0, 50.0)
    assert budget.level == 240.0


def test_of_what_is_left_of_a_fixed_minute_output_is_taken_that_was_charged_since():
    budget = window()
    budget.level = 400.0

    synced(budget, 10.0, 300.0, 50.0, pending=100.0)  # pending when the call was sent, and no more

    assert budget.level == 300.0  # half way to 200


def test_a_fixed_minute_that_refused_is_used_up_whatever_late_answers_say():
    budget = window()
    budget.drain(8.0, 0.0)

    synced(budget, 10.0, 300.0, 50.0)
    assert budget.level == 0.0

    budget.refill(60.2)
    assert budget.level == 600.0


def test_more_left_than_the_limit_is_not_believed_in_a_fixed_minute():
    budget = window()

    for _ in range(40):
        synced(budget, 10.0, 6000.0, 50.0)

    assert budget.level == pytest.approx(600.0, abs=0.1)


def sliding():
    """Return a budget that headers show to be counted over the last minute."""
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    for number in range(6):
        budget.charge(float(number), 50.0)
        synced(budget, float(number), 550.0 - 50.0 * number, 60.0 - number)
    return budget


def test_a_reset_that_stands_still_a_minute_after_the_first_call_is_a_sliding_minute():
    budget = sliding()

    assert budget.is_sliding
    assert not budget.is_window
    assert budget.wait(6.0, 300.0) == 0.0
    # Until the first have left: a fixed minute would open for all 600 then.
    assert budget.wait(6.0, 350.0) == pytest.approx(60.25 - 6.0)


def test_what_others_take_of_a_sliding_minute_is_seen_in_fresh_headers_only():
    fresh, late = sliding(), sliding()

    synced(fresh, 6.0, 100.0, 54.0)
    synced(late, 8.0, 100.0, 52.0, sent_at=6.0)

    assert fresh.wait(8.0, 250.0) > 0.0
    assert late.wait(8.0, 250.0) == 0.0


def test_refused_calls_do_not_use_up_the_told_limit_where_headers_show_room():
    budget = told(600.0)
    budget.charge(0.0, 600.0)
    budget.uncharge(0.0, 600.0, 0.0, refund=False)
    assert budget.level == 0.0

    for _ in range(30):
        synced(budget, 0.0, 600.0, 0.0)

    assert budget.level > 590.0


def test_in_fixed_windows_wrong_headers_do_not_pass_a_told_limit():
    """A told 60 a minute, at once at the most; headers that promise a new window each second."""
    budget = Budget(REQUESTS, 60.0, 0.0, 60.0)
    for at in (0.0, 2.0, 4.0, 6.0):  # a reset that stands still makes it a window
        synced(budget, at, 60.0 - 5 * at, 10.0 - at, limit=60.0)
    assert budget.is_window

    now, seconds = 10.0, 300.0
    while now < 10.0 + seconds:
        while budget.wait(now, 1.0) == 0:
            budget.charge(now, 1.0)
        now += 0.5
        synced(budget, now, 60.0, 1.0, limit=60.0)

    assert 300 <= budget.spent <= 60 + 60 * (10.0 + seconds) / 60


def test_a_late_answer_does_not_bring_an_old_limit_back():
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    synced(budget, 10.0, 300.0, 30.0, limit=600.0)
    synced(budget, 20.0, 100.0, 30.0, limit=300.0)

    assert not synced(budget, 21.0, 300.0, 30.0, limit=600.0, sent_at=15.0)

    assert budget.limit == 300.0


def test_a_reset_that_never_comes_is_nonsense():
    assert LimitHeader(600.0, 0.0, 60.0).is_sound
    assert not LimitHeader(600.0, 0.0, math.inf).is_sound
