"""From one moment when the bucket has room again to the next: exactly the limit's rate."""

from __future__ import annotations

import random
import statistics

import pytest

from admissions import admission
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.ready_points import Measured, ReadyPoints
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS
from virtual_lane import ExactBucket, Lane, Reply


class Tokens:
    """A bucket of tokens that says exactly when it has room, for calls of many sizes."""

    def __init__(self, rate, burst):
        self.rate, self.burst, self.level, self.at = rate, burst, burst, 0.0
        self.dice, self.lane = random.Random(3), None

    def __call__(self, now):
        cost, tokens = self.lane.cost.tokens, float(self.dice.randrange(200, 2000))
        self.lane.cost = Cost(1.0, tokens, tokens)
        self.level = min(self.burst, self.level + self.rate * (now - self.at))
        self.at = now
        if self.level < cost:
            return Reply("refused", 0.1, (cost - self.level) / self.rate)
        self.level -= cost
        return Reply("taken", 0.3)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_slow_rate_that_was_measured_and_doubles_is_found_within_a_minute_or_so(rate):
    shares, measured = [], 0
    for seed in range(7):
        provider = ExactBucket(rate, 60 * rate)
        one = Admission(0.0, dimensions=(REQUESTS,), dice=random.Random(seed))
        lane, was_measured = Lane(one, provider), False
        while lane.now < 240.0 + 17 * seed:
            lane.run(lane.now + 1)
            was_measured = was_measured or one._retry_after.exact.is_known
        measured += was_measured
        provider.rate, provider.burst = 2 * rate, 120 * rate
        rose_at = lane.now
        lane.run(rose_at + 110)
        shares.append(lane.count("taken", rose_at + 70, rose_at + 110) / (2 * rate * 40))

    assert measured > 3
    assert statistics.median(shares) > 0.8


@pytest.mark.parametrize("rate", [0.5, 3.0, 40.0])
def test_the_rate_is_known_to_a_hundredth_after_few_refusals(rate):
    one = admission(dimensions=(REQUESTS, TOKENS))
    lane = Lane(one, ExactBucket(rate, 20 * rate), cost=Cost(1.0, 100.0, 100.0))
    while not one._retry_after.exact.is_known:
        lane.run(lane.now + 0.1)

    assert one._epoch.number <= 8
    assert one.budgets[REQUESTS].rate == pytest.approx(0.99 * rate, rel=0.015)
    assert not one._belief.is_searching


def test_the_dimension_that_refuses_is_the_one_that_is_measured():
    bucket = Tokens(8000.0, 100_000.0)
    one = admission(dimensions=(REQUESTS, TOKENS))
    bucket.lane = Lane(one, bucket, cost=Cost(1.0, 1000.0, 1000.0))
    bucket.lane.run(120.0)

    assert one._retry_after.exact.is_of(one.budgets[TOKENS])
    assert one.budgets[TOKENS].peak == pytest.approx(8000, rel=0.02)
    assert one.budgets[REQUESTS].rate > 1.1 * one.budgets[TOKENS].rate / 1100


def test_a_found_limit_is_held_without_refused_calls():
    lane = Lane(admission(dimensions=(REQUESTS,)), ExactBucket(20.0, 200.0)).run(200.0)

    assert lane.count("refused", 60.0, 200.0) <= 8
    assert lane.count("taken", 60.0, 200.0) >= 0.97 * 20 * 140


def test_a_limit_that_falls_is_measured_anew():
    bucket = ExactBucket(20.0, 200.0)
    one = admission(dimensions=(REQUESTS,))
    lane = Lane(one, bucket).run(60.0)
    bucket.rate = 10.0
    lane.run(150.0)

    assert one.budgets[REQUESTS].rate == pytest.approx(10.0, rel=0.15)
    assert lane.count("taken", 100.0, 150.0) >= 0.9 * 10 * 50


def test_a_bucket_that_runs_over_is_not_measured():
    one = admission(dimensions=(REQUESTS,))
    lane = Lane(one, ExactBucket(2.0, 1.0)).run(120.0)

    assert not one._retry_after.exact.is_known
    assert lane.count("taken", 30.0, 120.0) >= 0.75 * 2 * 90


def test_refusals_at_random_with_a_fraction_of_a_second_measure_nothing():
    dice = random.Random(5)

    def chance(now):
        return Reply("refused", 0.05, 0.7) if dice.random() < 0.05 else Reply("taken", 0.3)

    one = admission(dimensions=(REQUESTS,), max_in_flight=50)
    Lane(one, chance).run(60.0)

    assert not one._retry_after.exact.is_known


@pytest.mark.parametrize(("let_in", "is_tiny"), [(1, True), (5, False)])
def test_a_bucket_that_refuses_the_second_call_is_not_taken_to_hold_the_largest(let_in, is_tiny):
    one, cost = admission(dimensions=(REQUESTS, TOKENS)), Cost(1.0, 1400.0, 1400.0)
    for number in range(let_in):
        one.accepted(float(number), one.start(float(number), cost))
    one.refused(6.1, one.start(6.0, cost), latency=0.1, retry_after=0.9)

    tokens = one.budgets[TOKENS]
    tokens.learn_rate(100.0)
    assert tokens.capacity == (100 if is_tiny else 1400)


class NeverFull:
    """Tells that no bucket was ever full."""

    def was_never_full(self, _name, _rate):
        return True


@pytest.mark.parametrize(
    ("bursts_at", "measured"),
    [((0, 10, 20, 30), 2.0), ((0, 20, 25, 35, 45), None), ((0, 10, 30), None)],
)
def test_a_rate_that_was_the_same_twice_is_measured_where_it_is_steady(bursts_at, measured):
    one = admission(dimensions=(REQUESTS,))
    points, found = ReadyPoints(one.budgets), None
    for at in bursts_at:
        for _ in range(20):  # let in since the last burst
            one.accepted(at - 0.5, one.start(at - 0.5, Cost()))
        refused = one.start(float(at), Cost())
        points.begin(at + 0.1, refused, one.calls, is_first=False)
        points.note(refused, 0.25, is_whole=False)
        one.cancelled(at + 0.1, refused, was_sent=False)
        found = points.measure(NeverFull())

    assert found == (measured and Measured(REQUESTS, measured, measured))
