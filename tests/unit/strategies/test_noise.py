"""Refusals at random do not slow a run down, and are not confused with those of a limit."""

from __future__ import annotations

import random
import statistics

import pytest

from batch_llm.strategies import noise
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS
from batch_llm.strategies.noise import Noise
from virtual_lane import Lane, Reply

FAST, SLOW = {REQUESTS: 100.0}, {REQUESTS: 50.0}


def slower(falls, of=100.0):
    """Return the rates that are let in after so many cuts."""
    return {REQUESTS: of * 0.9**falls}


class Bucket:
    """Lets in a rate and a burst, and refuses a share of all calls at random."""

    def __init__(self, seed, *, rate=1e9, burst=1e9, chance=0.0):
        self.dice = random.Random(seed)
        self.rate, self.burst, self.level, self.at = rate, burst, burst, 0.0
        self.chance = chance

    def __call__(self, now):
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.dice.random() < self.chance or self.level < 1:
            return Reply("refused", 0.1)
        self.level -= 1
        return Reply("taken", self.dice.uniform(0.5, 1.5))


def believing(chance=0.05):
    """Return a ``Noise`` that has come to believe in refusals at random."""
    one = Noise()
    calls = round(1 / chance) - 1
    one.note_episode(0.0, FAST, calls)
    believed = [one.note_episode(float(n), slower(n), calls) for n in range(1, 5)]
    assert believed == [False, False, False, True]
    return one


def test_refusals_at_random_do_not_keep_a_run_without_a_limit_slow():
    """A hundred at a time, a second each: a hundred a second at the best."""
    early, late = [], []
    for seed in range(8):
        one = Admission(0.0, max_in_flight=100, dice=random.Random(seed))
        lane = Lane(one, Bucket(seed, chance=0.03)).run(160)
        early.append(lane.count("taken", 50, 60) / 10)
        late.append(lane.count("taken", 100, 160) / 60)

    assert statistics.median(early) > 50
    assert sorted(late)[1] > 70  # one that is refused at random among its very first calls is not


def test_a_limit_is_not_taken_for_refusals_at_random():
    one = Admission(0.0, dice=random.Random(1))
    lane = Lane(one, Bucket(1, rate=20, burst=20))
    for until in range(1, 200):
        lane.run(until)
        assert not one._noise.is_believed

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

    assert sorted(rates)[1] > 0.9 * 50
    assert statistics.median(shares) < 0.12


def test_one_refusal_at_random_waits_for_itself_only():
    one = Admission(0.0, dice=random.Random(1))
    one._noise = believing()
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
    while not one._noise.is_believed:
        slowest = one.budgets[REQUESTS].rate
        lane.run(lane.now + 0.05)

    best = one._noise.best_rate(REQUESTS)
    assert one.budgets[REQUESTS].rate >= best > slowest
    assert one.budgets[TOKENS].rate >= 99 * best


def test_the_fourth_refusal_that_no_limit_explains_is_believed_to_be_random():
    assert believing(0.05).chance == pytest.approx(0.05)


def test_refusals_near_the_rate_that_was_let_in_are_a_limit_s():
    one = Noise()
    one.note_episode(0.0, FAST, 20)

    assert not any(one.note_episode(float(n), {REQUESTS: 95.0}, 20) for n in range(1, 20))


def test_one_that_a_limit_explains_begins_the_row_anew():
    one = Noise()
    one.note_episode(0.0, FAST, 20)
    for n in (1, 2, 3):
        one.note_episode(float(n), slower(n), 20)

    assert not one.note_episode(4.0, FAST, 20)
    assert not one.note_episode(5.0, slower(4), 20)


@pytest.mark.parametrize("lower", [SLOW, slower(1)], ids=["half", "a tenth lower"])
def test_a_limit_that_has_fallen_explains_all_refusals_at_its_new_rate(lower):
    one = Noise()
    one.note_episode(0.0, FAST, 20)

    assert not any(one.note_episode(float(n), lower, 20) for n in range(1, 40))
    assert not one.is_believed


def test_refusals_that_follow_the_rate_down_however_low_it_gets_are_random():
    one = Noise()
    one.note_episode(0.0, FAST, 20)
    one.note_episode(1.0, SLOW, 20)  # this may have been a limit that fell

    believed = [one.note_episode(1.0 + n, slower(n, of=50.0), 20) for n in (1, 2, 3)]

    assert believed == [False, False, True]


def test_any_dimension_that_is_used_as_much_as_ever_explains_a_refusal():
    one = Noise()
    one.note_episode(0.0, {REQUESTS: 100.0, TOKENS: 1000.0}, 20)

    rates = {REQUESTS: 50.0, TOKENS: 1000.0}
    assert not any(one.note_episode(float(n), rates, 20) for n in range(1, 20))


def test_a_dimension_that_nothing_is_taken_of_explains_no_refusal():
    one = Noise()
    one.note_episode(0.0, {REQUESTS: 100.0, TOKENS: 0.0}, 20)

    rates = [{**slower(n), TOKENS: 0.0} for n in range(1, 5)]
    assert any(one.note_episode(float(n), rate, 20) for n, rate in enumerate(rates))


def test_few_calls_between_refusals_prove_nothing():
    one = Noise()
    one.note_episode(0.0, FAST, 20)
    few = [one.note_episode(float(n), slower(n), noise.FEWEST_CALLS - 1) for n in (1, 2, 3, 4)]
    one.note_episode(10.0, FAST, 20)
    enough = [one.note_episode(10.0 + n, slower(n), noise.FEWEST_CALLS) for n in (1, 2, 3, 4)]

    assert not any(few)
    assert enough == [False, False, False, True]


def test_what_was_let_in_is_forgotten_after_two_minutes_but_for_the_last_three():
    recent, old, very_old = Noise(), Noise(), Noise()
    for one, seconds, between in ((recent, 29.0, 3), (old, 31.0, 3), (very_old, 1000.0, 0)):
        one.note_episode(0.0, FAST, 20)
        for n in range(between):
            one.note_episode(seconds, slower(n + 1), 20)
        one.note_episode(4 * seconds, {REQUESTS: 88.0}, 20)

    assert recent._in_a_row == 3
    assert old._in_a_row == 0
    assert very_old._in_a_row == 1


def test_the_share_that_is_believed_to_be_random_is_bounded():
    one = believing(0.1)
    for n in range(1000):
        one.note_refused()
        one.note_accepted()
        assert one.chance <= noise.LARGEST_CHANCE, n


def test_the_share_that_is_believed_to_be_random_never_rises_above_twice_the_first():
    one = believing(0.03)
    for _ in range(500):
        for _ in range(6):
            one.note_accepted()
        one.note_refused()
        assert one.chance <= 2 * 1 / 33 + 1e-9


def test_as_many_refusals_as_before_ring_no_alarm():
    one, dice = believing(0.05), random.Random(1)
    for _ in range(5000):
        if dice.random() < 0.05:
            assert not one.note_refused()
        else:
            one.note_accepted()

    assert 0.01 < one.chance < 0.12


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
    before = one.chance

    calls = calls_until_alarm(one)

    assert calls <= 30
    assert one.chance == pytest.approx(before, rel=0.25)  # they say nothing about the random ones


def test_too_many_soon_after_it_was_believed_refute_it_and_it_takes_twice_as_many_then():
    one = believing(0.05)
    calls_until_alarm(one)

    assert not one.is_believed
    one.note_episode(10.0, FAST, 20)
    believed = [one.note_episode(10.0 + n, slower(n), 20) for n in range(1, 9)]
    assert believed == [False] * 7 + [True]


def test_few_calls_between_refusals_do_not_begin_the_row_anew_either():
    one = Noise()
    one.note_episode(0.0, FAST, 20)

    believed = [one.note_episode(float(n), slower(n), 20 if n % 2 else 2) for n in range(1, 8)]

    assert believed == [False] * 6 + [True]


@pytest.mark.parametrize("chance", [0.1, 0.05, 0.01])
def test_random_refusals_that_do_not_come_any_more_are_no_longer_believed_in(chance):
    one, calls = believing(chance), 0
    while one.is_believed:
        calls += 1
        one.note_accepted()

    assert calls == pytest.approx(noise.MISSING / chance, abs=2)


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

    assert one.chance < 0.04
