"""What Retry-After tells of an unknown limit's rate: no more than a cost over the time asked."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from admissions import admission
from batch_llm import Limits
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.retry_hints import Asked, RetryHints
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS
from virtual_lane import Bucket, ExactBucket, Lane


def noted(*asked, size=1.0, least=0.0, apart=0.0):
    one = RetryHints()
    one.begin()
    for number, retry_after in enumerate(asked):
        one.note(number * apart, retry_after, size, least)
    return one


@pytest.mark.parametrize(
    ("retry_after", "size", "most"),
    [(0.5, 1.0, 2.0), (0.5, 3.0, 6.0), (0.5, 0.2, 2.0), (3.0, 1.0, 0.5), (1.0, 1.0, math.inf)],
)
def test_the_rate_is_no_higher_than_the_cost_over_the_time_asked(retry_after, size, most):
    assert noted(retry_after, size=size).most == most


def test_without_time_asked_nothing_is_told():
    assert noted(0.0).most == math.inf
    assert noted(0.0).least == 0.0


def test_many_refusals_at_all_levels_tell_the_rate_closely():
    one = noted(*[0.02 * share / 20 for share in range(1, 20)])

    assert 0.85 * 50 < one.least <= 50 < one.most < 1.1 * 50


def test_refusals_that_ask_for_the_same_moment_are_one():
    one = noted(1.00, 0.99, 0.98, 0.97, apart=0.01)

    assert one.least < 0.25


def test_what_a_minutes_count_asks_for_is_no_bound():
    one = noted(40.0, 0.5, least=10.0)

    assert one.most == math.inf
    assert one.least == 0.0


def test_a_new_burst_is_judged_anew():
    one = noted(40.0, least=10.0)
    one.begin()
    one.note(60.0, 0.05, 1.0, 10.0)

    assert one.most == pytest.approx(20.0)


def test_calls_let_in_refute_the_most():
    one = noted(0.5)
    one.refute(2.1)
    assert one.most == 2.0

    one.refute(2.5)
    assert one.most == math.inf


def test_more_than_the_most_is_tried_soon_only_after_many_calls():
    one = noted(0.5)

    assert one.most_tried(0, 0.0) == 2.0
    assert one.most_tried(100, 10.0) == pytest.approx(4.0, rel=0.05)
    assert one.most_tried(100, 1.0) == pytest.approx(2.4, rel=0.05)


def test_more_than_the_most_is_tried_after_long_without_a_refusal_however_few_calls_that_were():
    one = noted(10.0)

    assert one.most_tried(2, 10.0) < 1.1 * one.most
    assert one.most_tried(10, 600.0) > 100 * one.most


@pytest.mark.parametrize("asked", [2.5, 5])
def test_a_limit_that_asks_for_the_same_long_pause_always_is_found(asked):
    bucket = ExactBucket(2.0, 20.0)

    def reply(now):
        found = bucket(now)
        return found._replace(retry_after=asked) if found.end == "refused" else found

    lane = Lane(admission(dimensions=(REQUESTS,)), reply).run(400.0)

    assert lane.count("taken", 150.0, 400.0) >= 0.85 * 2.0 * 250


def test_the_rate_starts_near_the_limit_where_retry_after_is_exact():
    one = admission(dimensions=(REQUESTS,))
    lane = Lane(one, ExactBucket(100.0, 200.0))
    while one._belief.is_first:
        lane.run(lane.now + 0.05)
    lane.run(lane.now + 3.0)

    assert lane.count("taken", lane.now - 2.5, lane.now) >= 0.7 * 2.5 * 100
    assert one.budgets[REQUESTS].rate < 2 * 100


@pytest.mark.parametrize("whole", [False, True])
def test_a_slow_limit_is_found_with_few_refused_calls(whole):
    refused, taken = [], []
    for seed in range(5):
        one = Admission(0.0, dimensions=(REQUESTS,), dice=random.Random(seed))
        lane = Lane(one, ExactBucket(0.4, 4.0, is_whole=whole)).run(400.0)
        refused.append(len(lane.ends["refused"]))
        taken.append(lane.count("taken", 60.0, 400.0))

    assert statistics.median(refused) <= (12 if whole else 10)
    assert statistics.median(taken) >= (0.8 if whole else 0.93) * 0.4 * 340


def test_where_the_limit_is_told_nothing_is_taken_from_retry_after():
    one = admission(limits=Limits(requests_per_minute=600))
    one.refused(0.1, one.start(0.0, Cost()), latency=0.1, retry_after=5.5)

    assert one._retry_after.hints.most == math.inf


def test_times_that_differ_by_seconds_were_worked_out():
    hints = RetryHints()
    for asked in (1.0, 1.0, 2.0):
        hints.note(0.0, asked, 1.0, 0.0)
    assert not hints.vary

    hints.begin()
    hints.note(0.0, 3.0, 1.0, 0.0)

    assert hints.vary


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_slow_bucket_that_asks_for_whole_seconds_is_not_taken_for_chance(seed):
    one = Admission(0.0, dice=random.Random(seed))
    lane = Lane(one, ExactBucket(20 / 60, 20, is_whole=True)).run(360.0)

    assert len(lane.ends["taken"]) >= 0.95 * (20 + 360 * 20 / 60)
    assert len(lane.ends["refused"]) < 0.3 * len(lane.ends["taken"])


def test_the_same_fraction_again_and_again_is_worked_out_from_nothing():
    one = Asked()
    for _ in range(3):
        assert one.is_worked_out(0.5)
        assert not one.is_whole(0.5)
        one.note(0.5)

    assert not one.is_worked_out(0.5)
    assert one.is_whole(0.5)
    assert one.is_worked_out(0.4)
    one.note(0.4)
    assert one.is_worked_out(0.5)


def test_whole_seconds_are_not_worked_out_and_nothing_is_neither():
    one = Asked()

    assert one.is_whole(3.0)
    assert not one.is_worked_out(3.0)
    assert not one.is_worked_out(None)
    assert not one.is_whole(None)


def test_refusals_at_random_that_ask_for_half_a_second_do_not_starve_a_run():
    limit = 50.0
    lanes = [
        Lane(
            Admission(0.0, dimensions=(REQUESTS,), dice=random.Random(seed)),
            Bucket(seed, rate=limit, burst=500.0, chance=0.03, retry_after=0.5),
        ).run(400.0)
        for seed in range(1, 6)
    ]

    shares = [lane.count("taken", 200.0, 400.0) / (200 * limit) for lane in lanes]
    assert statistics.median(shares) >= 0.5
