"""Two calls that are let in right after a refusal show that no bucket refused it."""

from __future__ import annotations

import random
import statistics

import pytest

from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.budgets import Budget
from batch_llm.strategies.admission.grants import Grant
from batch_llm.strategies.admission.second_calls import SecondCalls, bounds_of
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS
from virtual_lane import Bucket, Lane


def learned(name=REQUESTS, rate=2.0):
    budget = Budget(name, None, 0.0, 60.0)
    budget.learn_rate(rate)
    budget.field = 0 if name == REQUESTS else 1
    return budget


def grant(at, others=1, tokens=0.0):
    return Grant(at, 0, Cost(1.0, tokens), 1, others)


def trial(*, refused=None, calls=None, budgets=None, until=0.1, most=2):
    """Have calls tried; return whether a trial was begun, and whether it was a proof."""
    one = SecondCalls()
    begun = one.begin(until, refused or grant(0.0), bounds_of(budgets or [learned()]), most)
    judged = [one.note_accepted(call) for call in calls or [grant(0.1)] * max(2, begun)]
    return begun > 0, judged[-1] > 0


def test_two_calls_that_an_empty_bucket_cannot_have_held_are_a_proof():
    assert trial() == (True, True)


def test_two_calls_that_came_back_meanwhile_are_none():
    begun, is_proof = trial(calls=[grant(0.1), grant(0.6)])

    assert begun
    assert not is_proof


def test_two_small_calls_that_fit_into_what_a_large_one_did_not_are_none():
    calls = [grant(0.1, tokens=400.0), grant(0.1, tokens=500.0)]
    tokens = learned(TOKENS, 1000.0)

    assert trial(refused=grant(0.0, tokens=1000.0), calls=calls, budgets=[tokens]) == (True, False)


def test_fewer_in_flight_than_beside_the_refused_call_are_none():
    assert trial(refused=grant(0.0, others=5)) == (True, False)


def test_what_comes_back_until_the_next_call_may_be_too_much_to_tell():
    assert trial(until=0.4) == (False, False)


def test_after_a_pause_as_many_are_tried_as_come_back_in_it_and_two_more():
    budget = learned(rate=5.0)
    budget.drain(0.0, 0.0)
    one = SecondCalls()

    calls = one.begin(1.0, grant(0.0), bounds_of([budget]), 20)

    assert calls == 5 + 2
    assert budget.level >= calls
    assert [one.note_accepted(grant(1.0)) for _ in range(calls)] == [0] * (calls - 1) + [1]


def test_calls_after_a_pause_that_came_back_in_it_are_no_proof():
    calls = [grant(1.0)] * 6 + [grant(1.3)]

    assert trial(until=1.0, budgets=[learned(rate=5.0)], most=20, calls=calls) == (True, False)


@pytest.mark.parametrize(("most", "is_tried"), [(6, False), (7, True)])
def test_no_more_are_tried_after_a_pause_than_may_be(most, is_tried):
    assert trial(until=1.0, budgets=[learned(rate=5.0)], most=most)[0] == is_tried


def test_there_is_room_for_two_calls_while_they_are_tried():
    budget = learned()
    budget.drain(0.0, 0.0)

    trial(budgets=[budget])

    assert budget.level >= 2


def test_after_each_trial_that_was_refused_twice_as_many_refusals_are_passed_over():
    one, bounds = SecondCalls(), bounds_of([learned()])

    begun = [one.begin(n + 0.1, grant(float(n)), bounds) for n in range(8)]

    assert begun == [2, 0, 2, 0, 0, 2, 0, 0]


def test_a_refused_trial_takes_the_proofs_before_it_back():
    one = SecondCalls()
    bounds = bounds_of([learned()])
    one.begin(0.1, grant(0.0), bounds)
    one.note_accepted(grant(0.1))
    assert one.note_accepted(grant(0.1)) == 1
    one.begin(1.1, grant(1.0), bounds)
    one.begin(2.1, grant(2.0), bounds)  # passed over
    one.begin(3.1, grant(3.0), bounds)
    one.note_accepted(grant(3.1))

    assert one.note_accepted(grant(3.1)) == 1


def test_limits_that_are_known_or_counted_by_the_minute_are_not_tried():
    told, window = Budget(REQUESTS, 60.0, 0.0, 60.0), learned()
    window.limit = 100.0

    assert bounds_of([told]) == bounds_of([window]) == bounds_of([Budget(TOKENS, None, 0, 0)]) == []


@pytest.mark.parametrize(
    ("rate", "burst", "asked"),
    [(2.0, 10, {}), (5.0, 10, {}), (20.0, 10, {})]
    + [(rate, 2 * rate, {"retry_after": 1.0}) for rate in (2.0, 5.0, 15.0)],
)
def test_a_limit_is_never_taken_for_chance_by_it(rate, burst, asked):
    seed = 2 if asked else 1
    one = Admission(0.0, dice=random.Random(seed))
    lane = Lane(one, Bucket(seed, rate=rate, burst=burst, **asked))
    for until in range(1, 200):
        lane.run(until)
        assert not one._chance_belief.is_believed

    assert lane.count("refused", 50, 200) < 0.05 * lane.count("taken", 50, 200)


def test_one_in_ten_refused_at_random_slows_a_run_down_for_no_more_than_half_a_minute():
    speeds = []
    for seed in range(300, 308):
        one = Admission(0.0, max_in_flight=100, dice=random.Random(seed))
        lane = Lane(one, Bucket(seed, chance=0.1)).run(60)
        speeds.append(lane.count("taken", 30, 60) / 30)

    assert sorted(speeds)[1] > 70


def test_a_run_does_not_stay_slow_where_one_in_fifty_is_refused_at_random_for_a_second():
    """A rate of a few calls a second is no longer taken for a limit after some refusals."""
    seconds = []
    for seed in range(700, 724):
        one = Admission(0.0, max_in_flight=500, dice=random.Random(seed))
        lane = Lane(one, Bucket(seed, chance=0.02, retry_after=1.0, seconds=(0.45, 0.55)))
        while not one._chance_belief.is_believed and lane.now < 300:
            lane.run(lane.now + 1.0)
        seconds.append(lane.now)

    assert statistics.median(seconds) < 20
    assert max(seconds) < 150
