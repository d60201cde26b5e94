"""Limits that are counted by the minute are told from buckets."""

from __future__ import annotations

import math
from collections import Counter, deque

import pytest

from admissions import ONE, admission
from batch_llm.strategies.admission.budgets import Budget
from batch_llm.strategies.admission.grants import Grant
from batch_llm.strategies.admission.window_guess import WINDOW_SHARE
from batch_llm.strategies.costs import FIELDS, PENDING, Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS
from budget_states import opened_twice, opening, told, window
from virtual_lane import Lane, Reply


def sent(budget, now, cost=ONE):
    """Charge a call as the controller does."""
    grant = Grant(now, 0, cost, 1, 0)
    grant.spent_then = [budget.charge(now, cost[budget.field], cost[PENDING])]
    grant.pending_then = [budget.pending]
    return grant


def refused(budget, now, cost=ONE):
    """Charge a call, and take it back: it was refused."""
    grant = sent(budget, now, cost)
    budget.note_end(now, cost[PENDING])
    budget.uncharge(now, cost[budget.field], now, refund=False, late=cost[PENDING])
    return grant


def closed(*, is_one_of_several=False, opened_at=31.0, is_long=True):
    """Return a budget that let a hundred in, refused for long, and is open again."""
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    for number in range(10):
        budget.charge(0.1 * number, 10.0)
    budget.let_in_at_start = 100.0
    budget.learn_rate(1.6)
    budget.charged_when_empty = budget.charged
    budget.windows.explain_opening(
        opened_at,
        0.0,
        opening(budget, opened_at),
        is_long=is_long,
        is_one_of_several=is_one_of_several,
    )
    return budget


def test_an_unknown_limit_that_opens_long_after_it_refused_is_one_per_fixed_minute():
    budget = closed()

    assert budget.is_window
    assert budget.capacity == 100.0
    assert budget.reset_at == 91.0
    assert budget.shown_source == "learned"


def test_one_that_opens_a_minute_after_the_first_call_is_one_per_sliding_minute():
    budget = closed(opened_at=60.1)

    assert budget.is_sliding
    assert budget.wait(60.1, 10.0) == pytest.approx(0.15)  # until the first two have left


def test_one_that_opens_at_once_is_a_bucket():
    budget = closed(opened_at=1.5, is_long=False)

    assert not budget.is_window
    assert not budget.is_sliding


def test_where_tokens_may_be_what_is_counted_some_more_calls_are_tried():
    # A tenth is one over the root of their number.
    assert closed(is_one_of_several=True).capacity == pytest.approx(110.0)


def test_a_learned_window_is_fitted_to_what_it_let_in_and_grows_when_it_refuses_nothing():
    budget = closed()
    budget.refill(91.2)
    budget.charge(91.3, 90.0)
    budget.windows.fit(92.0, refused(budget, 92.0))
    assert budget.capacity == 90.0

    budget.windows.fit(153.0)
    assert budget.capacity == pytest.approx(94.5)
    budget.windows.fit(214.0)
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

    budget.windows.seems_a_window(220.0, opening(budget, 220.0))

    assert budget.reset_at == 220.0
    assert budget.charged_at_reset == 400.0


def refused_in_mid_window(budget, now, spent):
    budget.refill(now)
    budget.charge(now, spent)
    budget.windows.distrust(now)
    return budget


def test_a_refusal_in_mid_minute_with_room_left_ends_the_belief_for_good():
    budget = refused_in_mid_window(opened_twice(), 180.0, 100.0)

    assert not budget.is_window
    assert budget.rate == budget.ceiling
    for minute in range(5):
        now = 300.0 + 60 * minute
        budget.windows.seems_a_window(now, opening(budget, now))
    assert not budget.is_window


def test_a_refusal_when_most_of_the_minute_is_used_up_does_not():
    assert refused_in_mid_window(opened_twice(), 180.0, 500.0).is_window


def test_a_refusal_near_the_turn_of_the_minute_does_where_they_did_not():
    assert not refused_in_mid_window(opened_twice(), 160.5, 1.0).is_window


def test_a_refusal_in_the_minute_in_which_it_was_first_seen_does_not():
    assert refused_in_mid_window(window(), 30.0, 1.0).is_window


def test_a_window_that_ends_keeps_to_the_told_burst():
    budget = Budget(REQUESTS, 600.0, 0.0, 10.0)
    for at in (100.0, 160.0):
        budget.charge(at, 50.0)
        budget.windows.seems_a_window(at, opening(budget, at))
    assert budget.capacity == 600.0

    refused_in_mid_window(budget, 170.0, 1.0)

    assert budget.capacity == 100.0
    assert budget.level <= 100.0
    assert math.isfinite(budget.wait(170.0, 1000.0))


def test_what_was_sent_since_a_fixed_minute_opened_is_not_there_any_more():
    budget = opened_twice()
    assert budget.level == 600.0

    late = Budget(REQUESTS, 600.0, 0.0, 60.0)
    late.charge(30.0, 600.0)
    late.windows.may_be_counted = True
    first = opening(late, 40.0)
    late.charge(40.0, 70.0)
    late.windows.explain_opening(41.0, 0.0, first, is_long=True)
    assert late.level == 530.0


def test_a_told_window_that_opens_sooner_than_a_minute_later_is_none():
    later, sooner = opened_twice(), opened_twice()

    later.windows.opens_again(170.0, 219.0)
    assert later.is_window
    assert later.reset_at == 219.0

    sooner.windows.opens_again(170.0, 173.0)
    assert not sooner.is_window


def test_a_limit_that_opens_again_as_soon_as_a_bucket_is_not_counted():
    budget = told(600.0)
    budget.windows.may_be_counted = True

    budget.windows.explain_opening(21.0, 0.0, opening(budget, 20.0), is_long=False)

    assert not budget.is_window
    assert not budget.windows.may_be_counted


def test_a_refusal_in_a_later_minute_ends_a_belief_that_headers_gave():
    budget = window()
    budget.refill(61.0)

    assert not refused_in_mid_window(budget, 90.0, 100.0).is_window


@pytest.mark.parametrize("second", [0.5, 59.5])
def test_a_refusal_near_the_turn_of_the_minute_does_not_where_headers_told_of_it(second):
    budget = window()
    budget.refill(61.0)

    assert refused_in_mid_window(budget, 120.0 + second, 1.0).is_window


def test_a_dimension_that_no_refusal_was_blamed_on_has_no_limit_to_learn():
    budget = Budget(TOKENS, None, 0.0, 60.0)
    budget.charge(0.0, 400.0)

    budget.windows.explain_opening(31.0, 0.0, opening(budget, 31.0), is_long=True)

    assert not budget.is_limited
    assert not budget.is_window


def test_more_is_tried_of_a_learned_fixed_window_until_it_refuses():
    budget = closed()

    assert budget.windows.is_tried(40.0)

    budget.drain(41.0, 0.0)

    assert not budget.windows.is_tried(42.0)

    budget.refill(92.0)

    assert budget.windows.is_tried(92.0)
    assert not window().windows.is_tried(9.0)  # headers tell it


def test_of_a_learned_sliding_window_when_it_has_refused_nothing_for_a_minute_and_a_half():
    budget = closed(opened_at=60.1)
    budget.windows.fit(70.0, refused(budget, 70.0))

    assert not budget.windows.is_tried(159.0)
    assert budget.windows.is_tried(161.0)


def test_a_large_sliding_window_grows_by_what_was_let_in_beyond_it():
    budget = closed(opened_at=60.1)
    budget.windows.fit(70.0, refused(budget, 70.0))
    limit = budget.limit

    budget.charge(150.0, limit + 2.0)
    budget.windows.fit(150.1, is_large=True)
    assert budget.limit == limit  # what was let in is not known yet

    budget.windows.fit(161.0, is_large=True)
    assert budget.limit == limit + 2.0


def test_a_sliding_minute_has_no_more_room_for_what_was_to_come_when_it_refused():
    budget = Budget(TOKENS, None, 0.0, 60.0)
    budget.field, budget.counts_output = FIELDS[TOKENS], True
    budget.limit = budget.capacity = 1000.0
    budget.is_sliding, budget.pending_let_in = True, 500.0
    budget.charge(1.0, 850.0)

    assert fits(budget, 2.0)
    sent(budget, 2.0, CALL)
    assert not fits(budget, 2.0)


def test_a_told_sliding_minute_has_less_room_for_half_of_what_is_to_come():
    budget = told(1000.0, name=TOKENS)
    budget.field, budget.counts_output = FIELDS[TOKENS], True
    budget.is_sliding = True
    budget.charge(0.0, 500.0)

    calls = 0
    while fits(budget, 31.0):
        sent(budget, 31.0, CALL)
        calls += 1

    assert calls == 4  # of 100 tokens, and half of 50 each


def test_openings_at_other_times_speak_against_a_fixed_minute():
    budget = closed(opened_at=60.1)
    for at in (60.1, 150.0):
        budget.windows.seems_a_window(at, opening(budget, at))

    for minute in range(1, 5):
        at = 150.0 + 60.0 * minute
        budget.windows.seems_a_window(at, opening(budget, at))

    assert not budget.is_window


@pytest.mark.parametrize("seconds", [0.3, 4.0])
def test_a_sliding_minute_that_was_filled_at_once_refuses_little_in_a_long_run(seconds):
    let_in = deque()

    def reply(now):
        while let_in and let_in[0] <= now - 60.0:
            let_in.popleft()
        if len(let_in) < 420:
            let_in.append(now)
            return Reply("taken", seconds)
        return Reply("refused", 0.15)

    lane = Lane(admission(), reply).run(2000.0)

    assert lane.count("taken", 200.0, 2000.0) > 0.97 * 420 * 30
    assert lane.count("refused", 200.0, 2000.0) < 0.01 * 420 * 30


def test_a_fixed_window_that_lets_in_more_than_was_seen_is_used_to_its_end():
    budget = closed()
    budget.charge(40.0, 130.0)

    budget.windows.fit(41.0, refused(budget, 41.0))

    assert budget.limit == 130.0


def test_a_learned_window_that_is_believed_no_more_is_not_fitted_either():
    budget = closed()

    budget.release()
    budget.windows.fit(200.0)

    assert not budget.is_limited
    assert budget.wait(200.0, 1e9) == 0.0


def test_a_sliding_window_is_no_fixed_one_whenever_it_opens():
    budget = opened_twice(100.0, 100.5)
    budget.is_sliding = True

    budget.windows.seems_a_window(160.0, opening(budget, 160.0))

    assert not budget.is_window


@pytest.mark.parametrize("limit", [70, 120])
@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_fixed_minutes_in_whose_first_moment_the_calls_began_are_found(limit, seconds):
    minutes = Counter()

    def reply(now):
        minutes[now // 60] += 1
        if minutes[now // 60] <= limit:
            return Reply("taken", seconds)
        minutes[now // 60] -= 1
        return Reply("refused", 0.005)

    lane = Lane(admission(), reply).run(1500.0)

    assert lane.count("taken", 700.0, 1500.0) > 0.9 * limit * 800 / 60
    assert lane.count("refused", 700.0, 1500.0) < 0.2 * limit * 800 / 60


def test_a_sliding_minute_of_tokens_is_fitted_to_what_the_provider_had_counted_at_the_refusal():
    """Twenty calls of 100 tokens and 50 more to come, ten have ended; then one that is refused."""
    budget = Budget(TOKENS, None, 0.0, 60.0)
    budget.field, budget.counts_output = FIELDS[TOKENS], True
    budget.limit = budget.capacity = 3000.0
    budget.rate, budget.is_sliding = 50.0, True
    call = Cost(1.0, 150.0, 100.0, 50.0, 50.0)
    for number in range(20):
        sent(budget, 10.0 + 0.1 * number, call)
    budget.note_end(12.5, 10 * 50.0)
    last = refused(budget, 13.0, call)
    late = sent(budget, 13.1, call)

    budget.windows.fit(13.2, last)
    budget.note_end(13.3, 50.0)
    budget.uncharge(13.3, 150.0, late.at, refund=False, late=50.0)
    budget.windows.forget(late)  # it was refused as well

    assert budget.limit == pytest.approx(WINDOW_SHARE * (20 * 100 + 10 * 50))


def test_of_a_sliding_minute_output_is_counted_when_its_call_ends_and_leaves_a_minute_after_that():
    budget = Budget(TOKENS, 1000.0, 0.0, 60.0)
    budget.field, budget.counts_output, budget.is_sliding = FIELDS[TOKENS], True, True
    grant = sent(budget, 1.0, Cost(1.0, 10.0, 1.0, 9.0, 9.0))
    assert budget.log.used(8.0) == 1.0

    budget.note_end(9.0, 9.0)
    budget.settle(9.0, -5.0, grant.at, 9.0)  # the answer was shorter

    assert budget.log.used(9.0) == 5.0
    assert budget.log.used(62.0) == 4.0
    assert budget.log.used(70.0) == 0.0


def tokens_a_minute(*, let_in_pending=0.0):
    """Return a learned fixed minute of 1,000 tokens that has just begun."""
    budget = Budget(TOKENS, None, 0.0, 60.0)
    budget.field, budget.counts_output = FIELDS[TOKENS], True
    budget.charged_when_empty, budget.pending_when_empty = 1000.0 / WINDOW_SHARE, let_in_pending
    budget.learn_rate(1.0)
    budget.windows.explain_opening(30.0, 0.0, opening(budget, 30.0), is_long=True)
    assert budget.is_window
    return budget


CALL = Cost(1.0, 150.0, 100.0, 50.0, 50.0)


def fits(budget, now):
    return budget.wait(now, CALL[budget.field], CALL[PENDING]) == 0.0


def test_a_fixed_minute_lets_in_what_it_has_room_for_whatever_calls_in_flight_come_to():
    budget = tokens_a_minute()

    for _ in range(10):
        assert fits(budget, 30.0)
        sent(budget, 30.0, CALL)

    assert not fits(budget, 30.0)
    assert budget.level == pytest.approx(0.0)


def test_of_a_fixed_minute_output_is_taken_when_its_call_ends():
    budget = tokens_a_minute()
    early = sent(budget, 30.0, CALL)
    budget.refill(90.2)
    assert budget.level == pytest.approx(1000.0)

    budget.note_end(91.0, CALL[PENDING])  # in the next one
    assert budget.level == pytest.approx(950.0)
    budget.settle(91.0, -30.0, early.at, CALL[PENDING])
    assert budget.level == pytest.approx(980.0)


def test_a_call_that_was_refused_takes_nothing_of_a_fixed_minute_when_it_ends():
    budget = tokens_a_minute()
    late = sent(budget, 31.0, CALL)
    budget.drain(31.1, 0.0)

    budget.note_end(31.2, CALL[PENDING])
    budget.uncharge(31.2, CALL[budget.field], late.at, refund=False, late=CALL[PENDING])

    assert budget.level == pytest.approx(0.0)
    assert budget.charged == pytest.approx(0.0)


def test_calls_that_come_slowly_are_let_in_as_those_were_that_came_fast():
    """Ten calls at once were let in with 500 tokens to come: they came to 1,500."""
    assert not fits_after(tokens_a_minute(), ended=1000.0)
    assert fits_after(tokens_a_minute(let_in_pending=500.0), ended=1000.0)
    assert not fits_after(tokens_a_minute(let_in_pending=500.0), ended=1400.0)


def fits_after(budget, *, ended):
    budget.charge(31.0, ended)
    return fits(budget, 40.0)


def test_a_minute_that_becomes_a_bucket_has_room_for_what_calls_in_flight_come_to():
    budget = window()
    budget.counts_output = True
    sent(budget, 9.0, Cost(100.0, pending=40.0))
    level = budget.level

    budget.windows.become_bucket()

    assert budget.level == level - 40.0


def test_a_refusal_that_one_limit_explains_lowers_no_other():
    lower, other = closed(), closed()
    for budget, let_in in ((lower, 95.0), (other, 98.0)):
        budget.refill(91.2)
        budget.charge(91.3, let_in)
    last = refused(other, 92.0)
    assert other.windows.explains(92.0)
    assert not lower.windows.explains(92.0)

    lower.windows.fit(92.0, last, is_explained=True)
    other.windows.fit(92.0, last, is_explained=True)

    assert lower.limit == 100.0
    assert other.limit == 98.0


def test_of_calls_that_were_sent_together_those_refused_later_do_not_count():
    budget = closed()
    budget.refill(91.2)
    budget.charge(91.3, 90.0)
    first, second = sent(budget, 91.4), sent(budget, 91.4)
    budget.uncharge(91.5, 1.0, first.at, refund=False)
    budget.windows.fit(91.5, first)
    assert budget.limit == 91.0

    budget.uncharge(91.6, 1.0, second.at, refund=False)
    budget.windows.forget(second)
    assert budget.limit == 90.0

    later = sent(budget, 93.0)
    budget.windows.forget(later)
    assert budget.limit == 90.0
