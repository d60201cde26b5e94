"""One dimension: a bucket or a fixed minute, told, seen in headers or learned."""

from __future__ import annotations

import math

import pytest

from batch_llm.strategies.admission import REQUESTS, TOKENS
from batch_llm.strategies.budgets import Budget, LimitHeader


def told(per_minute=600.0, burst_seconds=60.0):
    return Budget(REQUESTS, per_minute, 0.0, burst_seconds)


def synced(budget, now, remaining, reset, *, limit=600.0, sent_at=None, pending=0.0):
    """Show a header to a call that was just sent; return whether the limit was news."""
    sent_at = now if sent_at is None else sent_at
    return budget.sync(now, sent_at, budget.spent, pending, LimitHeader(limit, remaining, reset))


def window():
    """Return a budget that headers have shown to be one per fixed minute, the next at 60."""
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    for now in (2.0, 4.0, 6.0, 8.0):
        budget.charge(now, 50.0)
        synced(budget, now, 600.0 - 25.0 * now, 60.0 - now)
    assert budget.is_window
    assert budget.reset_at == 60.0
    return budget


def opened_twice(first=100.0, second=160.0, limit=600.0):
    budget = Budget(REQUESTS, limit, 0.0, 60.0)
    budget.charge(first, 400.0)
    budget.note_cut()
    budget.seems_a_window(first, first)
    assert not budget.is_window
    budget.seems_a_window(second, second)
    return budget


def test_a_learned_bucket_holds_the_largest_call():
    budget = Budget(TOKENS, None, 0.0, 60.0)
    budget.largest = 5000.0

    budget.learn_rate(10.0)

    assert budget.capacity == 5000.0


def test_a_limit_that_is_believed_no_more_is_none():
    budget = Budget(TOKENS, None, 0.0, 60.0)
    budget.learn_rate(10.0)

    budget.release()

    assert budget.wait(0.0, 1e9) == 0.0
    assert not budget.is_limited


def test_the_first_header_is_believed_less_what_was_sent_since_and_is_still_to_be_charged():
    budget = Budget(TOKENS, None, 0.0, 60.0)
    spent_then = budget.spent
    budget.charge(0.0, 100.0)

    assert budget.sync(0.0, 0.0, spent_then, 30.0, LimitHeader(600, 500.0, 10.0))

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

    synced(budget, 10.0, 300.0, 50.0, pending=100.0)
    assert budget.level == 250.0  # between 200 and 300

    synced(budget, 10.0, 300.0, 50.0, pending=20.0)
    assert budget.level == 250 + 0.2 * 30

    budget.level = 280.0
    synced(budget, 10.0, 200.0, 50.0, pending=20.0)
    assert budget.level == 240.0


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
    # Until the first second's have left: a fixed minute would open for all 600 then.
    assert budget.wait(6.0, 350.0) == pytest.approx(61.0 - 6.0)


def test_what_others_take_of_a_sliding_minute_is_seen_in_fresh_headers_only():
    fresh, late = sliding(), sliding()

    synced(fresh, 6.0, 100.0, 54.0)
    synced(late, 8.0, 100.0, 52.0, sent_at=6.0)

    assert fresh.wait(8.0, 250.0) > 0.0
    assert late.wait(8.0, 250.0) == 0.0


def closed(*, others=False, opened_at=31.0, is_long=True):
    """Return a budget that let a hundred in, refused for long, and is open again."""
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    for number in range(10):
        budget.charge(0.1 * number, 10.0)
    budget.burst = 100.0
    budget.learn_rate(1.6)
    budget.note_cut()
    budget.explain_opening(opened_at, 0.0, opened_at, is_long=is_long, others=others)
    return budget


def test_an_unknown_limit_that_opens_long_after_it_refused_is_one_per_fixed_minute():
    budget = closed()

    assert budget.is_window
    assert budget.capacity == 100.0
    assert budget.reset_at == 91.0
    assert budget.shown_source == "learned"


def test_one_that_opens_a_minute_after_the_first_call_is_one_per_sliding_minute():
    budget = closed(opened_at=60.5)

    assert budget.is_sliding
    assert budget.wait(60.5, 10.0) == pytest.approx(0.5)


def test_one_that_opens_at_once_is_a_bucket():
    budget = closed(opened_at=1.5, is_long=False)

    assert not budget.is_window
    assert not budget.is_sliding


def test_where_tokens_may_be_what_is_counted_some_more_calls_are_tried():
    assert closed(others=True).capacity == pytest.approx(115.0)


def test_a_learned_window_is_fitted_to_what_it_let_in_and_grows_when_it_refuses_nothing():
    budget = closed()
    budget.refill(91.2)
    budget.charge(91.3, 90.0)
    budget.fit_window(92.0, is_refused=True)
    assert budget.capacity == 90.0

    budget.fit_window(153.0, is_refused=False)
    assert budget.capacity == pytest.approx(94.5)
    budget.fit_window(214.0, is_refused=False)
    assert budget.capacity == pytest.approx(94.5 * 1.1)


def test_a_told_limit_that_opens_twice_whole_minutes_apart_is_one_per_fixed_minute():
    budget = opened_twice(100.0, 223.0)

    assert budget.is_window
    assert budget.level == 600.0
    assert budget.reset_at == 283.0


@pytest.mark.parametrize("second", [110.0, 100.5, 190.0], ids=["soon", "at once", "half"])
def test_openings_that_are_not_whole_minutes_apart_prove_nothing(second):
    assert not opened_twice(100.0, second).is_window


def test_a_limit_that_nobody_told_is_never_taken_for_one_per_fixed_minute():
    assert not opened_twice(limit=None).is_window


def test_an_opening_within_a_fixed_minute_changes_nothing():
    budget = opened_twice()
    budget.charge(170.0, 100.0)

    budget.seems_a_window(220.0, 220.0)

    assert budget.reset_at == 220.0
    assert budget.spent_at_reset == 400.0


def refused_in_mid_window(budget, now, spent):
    budget.refill(now)
    budget.charge(now, spent)
    budget.distrust_window(now)
    return budget


def test_a_refusal_in_mid_minute_with_room_left_ends_the_belief_for_good():
    budget = refused_in_mid_window(opened_twice(), 180.0, 100.0)

    assert not budget.is_window
    assert budget.rate == budget.ceiling
    for minute in range(5):
        budget.seems_a_window(300.0 + 60 * minute, 300.0 + 60 * minute)
    assert not budget.is_window


def test_a_refusal_in_a_later_minute_ends_a_belief_that_headers_gave():
    budget = window()
    budget.refill(61.0)

    assert not refused_in_mid_window(budget, 90.0, 100.0).is_window


def test_a_refusal_when_most_of_the_minute_is_used_up_does_not():
    assert refused_in_mid_window(opened_twice(), 180.0, 500.0).is_window


@pytest.mark.parametrize("second", [0.5, 59.5])
def test_a_refusal_near_the_turn_of_the_minute_does_not_where_headers_told_of_it(second):
    budget = window()
    budget.refill(61.0)

    assert refused_in_mid_window(budget, 120.0 + second, 1.0).is_window


def test_a_refusal_near_the_turn_of_the_minute_does_where_they_did_not():
    assert not refused_in_mid_window(opened_twice(), 160.5, 1.0).is_window


def test_a_refusal_in_the_minute_in_which_it_was_first_seen_does_not():
    assert refused_in_mid_window(window(), 30.0, 1.0).is_window


def test_a_window_that_ends_keeps_to_the_told_burst():
    budget = Budget(REQUESTS, 600.0, 0.0, 10.0)
    for at in (100.0, 160.0):
        budget.charge(at, 50.0)
        budget.note_cut()
        budget.seems_a_window(at, at)
    assert budget.capacity == 600.0

    refused_in_mid_window(budget, 170.0, 1.0)

    assert budget.capacity == 100.0
    assert budget.level <= 100.0
    assert math.isfinite(budget.wait(170.0, 1000.0))


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


@pytest.mark.parametrize("how", ["settled with less", "never sent"])
def test_a_late_refund_gives_back_no_more_than_is_missing_still(how):
    """The charge of 30 was refilled by 30 s; then the bucket of 60 was emptied by others."""
    budget = told(60.0)
    budget.charge(0.0, 30.0)
    budget.charge(30.0, 60.0)
    assert budget.level == pytest.approx(0.0)

    if how == "never sent":
        budget.uncharge(30.0, 30.0, 0.0, refund=True)
    else:
        budget.settle(30.0, -30.0, 0.0)

    assert budget.level == pytest.approx(0.0)


def test_a_refund_before_the_bucket_was_full_again_is_paid_in_full():
    budget = told(60.0)
    budget.charge(0.0, 30.0)
    budget.charge(10.0, 20.0)

    budget.settle(10.0, -30.0, 0.0)

    assert budget.level == pytest.approx(60 - 30 + 10 - 20 + 30)


def test_what_was_sent_since_a_fixed_minute_opened_is_not_there_any_more():
    budget = opened_twice()
    assert budget.level == 600.0

    late = Budget(REQUESTS, 600.0, 0.0, 60.0)
    late.charge(30.0, 600.0)
    late.note_cut()
    late.may_be_counted = True
    late.charge(40.0, 70.0)
    late.explain_opening(41.0, 0.0, 40.0, is_long=True)
    assert late.level == 530.0


def test_a_late_answer_does_not_bring_an_old_limit_back():
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    synced(budget, 10.0, 300.0, 30.0, limit=600.0)
    synced(budget, 20.0, 100.0, 30.0, limit=300.0)

    assert not synced(budget, 21.0, 300.0, 30.0, limit=600.0, sent_at=15.0)

    assert budget.limit == 300.0


def test_a_told_window_that_opens_sooner_than_a_minute_later_is_none():
    later, sooner = opened_twice(), opened_twice()

    later.opens_again(170.0, 219.0)
    assert later.is_window
    assert later.reset_at == 219.0

    sooner.opens_again(170.0, 173.0)
    assert not sooner.is_window


def test_a_limit_that_opens_again_as_soon_as_a_bucket_is_not_counted():
    budget = told(600.0)
    budget.may_be_counted = True

    budget.explain_opening(21.0, 0.0, 20.0, is_long=False)

    assert not budget.is_window
    assert not budget.may_be_counted
