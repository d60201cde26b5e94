"""Refusals at random do not slow a run down, and are not confused with those of a limit."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from batch_llm.strategies.admission import Admission, chance_belief
from batch_llm.strategies.admission.chance_belief import ChanceBelief
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS
from virtual_lane import Bucket, Lane


def believing(chance=0.05):
    """Return a ``ChanceBelief`` that has come to believe in refusals at random."""
    one = ChanceBelief()
    one.believe(chance)
    return one


def test_refusals_at_random_do_not_keep_a_run_without_a_limit_slow():
    """A hundred at a time, a second each: a hundred a second at the best."""
    early, late = [], []
    for seed in range(8):
        one = Admission(0.0, max_in_flight=100, dice=random.Random(seed))
        lane = Lane(one, Bucket(seed, chance=0.03)).run(160)
        early.append(lane.count("taken", 50, 60) / 10)
        late.append(lane.count("taken", 100, 160) / 60)

    assert statistics.median(early) > 80
    assert sorted(late)[1] > 80
    assert min(late) > 30  # one was slow for a hundred seconds


def test_a_limit_is_not_taken_for_refusals_at_random():
    one = Admission(0.0, dice=random.Random(1))
    lane = Lane(one, Bucket(1, rate=20, burst=20))
    for until in range(1, 200):
        lane.run(until)
        assert not one._chance_belief.is_believed

    assert lane.count("taken", 100, 200) == pytest.approx(2000, rel=0.05)
    assert lane.count("refused", 100, 200) < 40


def test_a_limit_is_kept_among_refusals_at_random():
    """Fifty a second, and however slowly the limit is reached it is told from chance."""
    rates, shares = [], []
    for seed in (1, 2, 3, 4):
        one = Admission(0.0, dice=random.Random(seed))
        lane = Lane(one, Bucket(seed, rate=50, burst=50, chance=0.03)).run(200)
        taken, refused = lane.count("taken", 100, 200), lane.count("refused", 100, 200)
        rates.append(taken / 100)
        shares.append(refused / (taken + refused))

    assert min(rates) > 0.85 * 50
    assert sorted(rates)[1] > 0.9 * 50
    assert statistics.median(shares) < 0.12


def test_one_refusal_at_random_waits_for_itself_only():
    one = Admission(0.0, dice=random.Random(1))
    one._chance_belief.believe(0.05)
    grant = one.start(0.0, Cost())

    refusal = one.refused(0.1, grant, latency=0.1)
    asked = one.refused(0.1, one.start(0.1, Cost()), latency=0.1, retry_after=3.0)

    assert not refusal.is_news
    assert 0.1 < refusal.wait_seconds < 0.4
    assert asked.wait_seconds == 3.0
    assert one.closed_until == 0.0
    assert one.known_limits() == []


def test_the_rates_from_before_the_cuts_are_back_once_they_were_for_nothing():
    one = Admission(0.0, dimensions=(REQUESTS, TOKENS), dice=random.Random(1))
    lane = Lane(one, Bucket(4, chance=0.03), cost=Cost(1.0, 100.0))
    while not one._chance_belief.is_believed:
        slowest, best = one.budgets[REQUESTS].rate, one._evidence.best_rate()
        lane.run(lane.now + 0.05)

    assert one.budgets[REQUESTS].rate >= best > 0
    assert one.budgets[REQUESTS].rate >= slowest
    assert one.budgets[TOKENS].rate >= 99 * best


def refusals_until_believed(one, unexplained=2, calls=20, followers=(0.0, 0)):
    """Return how many such refusals it takes, up to twenty."""
    for number in range(1, 21):
        if one.weigh(unexplained, calls, followers):
            return number
    return math.inf


def test_refusals_that_no_bucket_explains_are_believed_to_be_random():
    one = ChanceBelief()

    assert refusals_until_believed(one) == 2
    assert one.share == pytest.approx(1 / 21)


def test_what_more_tolerance_explains_weighs_less():
    assert refusals_until_believed(ChanceBelief(), unexplained=1) == 4


def test_few_calls_since_the_last_refusal_weigh_less():
    assert refusals_until_believed(ChanceBelief(), calls=0) == 8
    assert refusals_until_believed(ChanceBelief(), calls=chance_belief.FEW_CALLS - 2) == 2


def test_one_that_a_bucket_explains_takes_weight_off():
    one = ChanceBelief()
    one.weigh(2, 20, (0.0, 0))
    one.weigh(0, 20, (0.0, 0))

    assert not one.is_suspected
    assert refusals_until_believed(one) == 2


def test_calls_under_way_behind_a_refused_one_speak_for_chance_when_they_are_let_in():
    assert refusals_until_believed(ChanceBelief(), unexplained=1, followers=(10.0, 0)) == 2
    assert refusals_until_believed(ChanceBelief(), followers=(5.0, 5)) == math.inf


def test_calls_let_in_behind_an_explained_refusal_make_nobody_suspicious():
    one = ChanceBelief()

    assert refusals_until_believed(one, unexplained=0, followers=(50.0, 0)) == math.inf
    assert not one.is_suspected


def test_the_share_that_is_believed_to_be_random_is_bounded():
    one = believing(0.1)
    for n in range(1000):
        one.note_refused()
        one.note_accepted()
        assert one.share <= chance_belief.LARGEST_SHARE, n


def test_the_share_that_is_believed_to_be_random_never_rises_above_twice_the_first():
    one = believing(0.03)
    for _ in range(500):
        for _ in range(6):
            one.note_accepted()
        one.note_refused()
        assert one.share <= 2 * 1 / 33 + 1e-9


def test_as_many_refusals_as_before_ring_no_alarm():
    one, dice = believing(0.05), random.Random(1)
    for _ in range(5000):
        if dice.random() < 0.05:
            assert not one.note_refused()
        else:
            one.note_accepted()

    assert 0.01 < one.share < 0.12


def calls_until_alarm(one):
    """Return how many calls it takes to notice that every second one is refused."""
    for calls in range(1, 200, 2):
        one.note_accepted()
        if one.note_refused():
            return calls + 1
    raise AssertionError("unreachable")


def test_many_more_refusals_than_before_are_noticed_within_thirty_calls():
    one = believing(0.05)
    for n in range(500):
        one.note_refused() if n % 20 == 0 else one.note_accepted()
    before = one.share

    calls = calls_until_alarm(one)

    assert calls <= 30
    assert one.share == pytest.approx(before, rel=0.25)  # they say nothing about the random ones


def test_too_many_soon_after_it_was_believed_refute_it_and_it_takes_twice_as_many_then():
    one = believing(0.05)
    calls_until_alarm(one)

    assert not one.is_believed
    assert refusals_until_believed(one) == 4


@pytest.mark.parametrize("chance", [0.1, 0.05, 0.01])
def test_random_refusals_that_do_not_come_any_more_are_no_longer_believed_in(chance):
    one, calls = believing(chance), 0
    while one.is_believed:
        calls += 1
        one.note_accepted()

    assert calls == pytest.approx(chance_belief.MISSING / chance, abs=2)


def test_one_refusal_now_and_then_is_not_missing():
    one = believing(0.05)
    for _ in range(50):
        for _ in range(30):
            one.note_accepted()
        one.note_refused()

    assert one.is_believed


def test_the_believed_share_falls_while_fewer_are_refused():
    one = believing(0.1)
    for _ in range(20):
        for _ in range(49):
            one.note_accepted()
        one.note_refused()

    assert one.share < 0.04


def seconds_for(calls, seed, chance):
    """Return how long so many calls take where each refusal asks for a whole second."""
    one = Admission(0.0, dimensions=(REQUESTS,), dice=random.Random(seed))
    provider = Bucket(seed, chance=chance, retry_after=1.0, seconds=(0.03, 0.07))
    lane = Lane(one, provider)
    while len(lane.ends["taken"]) < calls:
        lane.run(lane.now + 0.5)
    return lane.ends["taken"][calls - 1]


@pytest.mark.parametrize(
    ("calls", "chance", "usual", "most"),
    [(200, 0.01, 6, 20), (200, 0.03, 14, 40), (2000, 0.03, 40, 60), (200, 0.1, 60, 180)],
)
def test_refusals_at_random_cost_little_more_than_the_pauses_they_ask_for(
    calls, chance, usual, most
):
    seconds = sorted(seconds_for(calls, seed, chance) for seed in range(9))

    assert seconds[4] < usual
    assert seconds[-1] < most
