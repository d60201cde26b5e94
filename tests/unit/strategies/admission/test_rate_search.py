"""An unknown limit's rate is searched upwards, and enclosed."""

from __future__ import annotations

import math

import pytest

from admissions import ONE, admission
from batch_llm import Limits
from batch_llm.strategies.admission.evidence import Evidence
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.admission.known_limits import Known
from batch_llm.strategies.admission.stretches import Explained
from batch_llm.strategies.dimensions import REQUESTS
from virtual_lane import ExactBucket, Lane, Reply


class Refilled:
    """A bucket of a hundred calls, refilled by twenty a second."""

    def __init__(self, retry_after):
        self.level, self.at, self.retry_after = 100.0, 0.0, retry_after

    def __call__(self, now):
        self.level = min(100.0, self.level + 20 * (now - self.at))
        self.at = now
        if self.level < 1:
            return Reply("refused", 0.1, self.retry_after)
        self.level -= 1
        return Reply("taken", 0.3)


@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_the_search_ends_near_the_limit_after_few_refusals(retry_after):
    one = admission(dimensions=(REQUESTS,))
    lane = Lane(one, Refilled(retry_after))
    while one._belief.is_first or one._belief.is_searching:
        lane.run(lane.now + 0.1)

    assert one._epoch.number <= 5
    assert lane.now < 30
    assert one.budgets[REQUESTS].rate == pytest.approx(0.87 * 20, rel=0.2)


class Halved:
    """Lets a hundred calls a second in, and half as many from the sixth second on."""

    def __init__(self, burst_seconds, retry_after):
        self.burst_seconds, self.retry_after = burst_seconds, retry_after
        self.level, self.at = 100.0 * burst_seconds, 0.0

    def __call__(self, now):
        rate = 50.0 if now >= 5 else 100.0
        self.level = min(rate * self.burst_seconds, self.level + rate * (now - self.at))
        self.at = now
        if self.level < 1:
            return Reply("refused", 0.03, self.retry_after)
        self.level -= 1
        return Reply("taken", 0.05)


@pytest.mark.parametrize("burst_seconds", [0.1, 1.0])
@pytest.mark.parametrize("retry_after", [1.0, None], ids=["whole second", "no word"])
def test_a_limit_that_falls_while_it_is_searched_is_followed_within_eight_seconds(
    burst_seconds, retry_after
):
    lane = Lane(admission(dimensions=(REQUESTS,)), Halved(burst_seconds, retry_after)).run(16.0)

    for second in (13, 14, 15):
        assert 42 < lane.count("taken", second, second + 1) < 58
    assert lane.count("refused", 13, 16) < 0.05 * 150


@pytest.mark.parametrize("seconds", [0.1, 0.3])
def test_a_small_bucket_that_asks_for_whole_seconds_is_found_after_few_pauses(seconds):
    lane = Lane(admission(dimensions=(REQUESTS,)), ExactBucket(100.0, 100 * seconds, is_whole=True))
    while len(lane.ends["taken"]) < 1000:
        lane.run(lane.now + 0.1)

    assert lane.now < 18  # ten at the best


def test_a_refusal_that_may_have_been_chance_slows_the_search_down_by_nothing():
    one = admission(dimensions=(REQUESTS,))
    one._belief.is_first, one._belief.is_searching = False, True
    cuts = []
    for is_fast in (False, False, True):
        cuts.append(one._search.judge(is_fast=is_fast, is_whole=False))
        one._search.note_cut(cuts[-1])

    assert cuts == [1, 2, 1]


@pytest.mark.parametrize(
    ("calls", "is_whole", "cuts"), [(10, True, 1), (40, True, 6), (10, False, 6)]
)
def test_after_few_calls_and_a_whole_second_the_search_goes_on(calls, is_whole, cuts, monkeypatch):
    monkeypatch.setattr(Evidence, "last_calls", calls)
    one = admission(dimensions=(REQUESTS,))
    one._belief.is_first, one._belief.is_searching = False, True
    one._search.note_cut(5)

    assert one._search.judge(is_fast=False, is_whole=is_whole) == cuts
    assert one._search.goes_on == (cuts == 1)


def test_until_the_second_refusal_some_times_what_was_let_in_is_tried_at_the_most():
    one = admission(dimensions=(REQUESTS,))

    assert one._search.most_tried(40.0, 5.0) == 28.0
    assert one._search.most_tried(20.0, 5.0) == math.inf  # so few calls may be chance

    one._search.note_cut(1)

    assert one._search.most_tried(40.0, 5.0) == math.inf


def test_the_first_search_overshoots_by_no_more_than_it_tries():
    one = admission(dimensions=(REQUESTS,))
    lane = Lane(one, Refilled(None))
    while one._epoch.number < 1:
        lane.run(lane.now + 0.01)
    rates = []
    while one._epoch.number < 2:
        lane.run(lane.now + 0.01)
        rates.append(one.budgets[REQUESTS].rate)

    assert max(rates[:-1]) < 3.8 * 20
    assert lane.now < 15


def test_a_burst_that_was_let_in_makes_the_search_go_on_no_faster_than_twice_the_rest(monkeypatch):
    """A hundred at once could have been any rate; forty in two seconds were twenty a second."""
    monkeypatch.setattr(Evidence, "calls_explained", lambda _: Explained(10.0, 70_000.0))
    monkeypatch.setattr(Evidence, "calls_let_in", lambda _: 20.0)
    monkeypatch.setattr(Evidence, "per_call", lambda *_: 1.0)
    monkeypatch.setattr(Evidence, "last_calls", 40)
    one = admission(dimensions=(REQUESTS,))
    one._belief.is_first, one._belief.is_searching = False, True
    requests = one.budgets[REQUESTS]
    requests.learn_rate(20.0)
    one._search.note_cut(one._search.judge(is_fast=False, is_whole=False))

    one._search.cut(requests)

    assert requests.peak == pytest.approx(40.0)

    monkeypatch.setattr(Evidence, "last_calls", 4)  # too few to say anything
    one._search.cut(requests)

    assert requests.peak == pytest.approx((10.0 * 70_000.0) ** 0.5)


def test_a_known_limit_is_not_searched():
    one = admission(limits=Limits(requests_per_minute=600))
    one.refused(0.1, one.start(0.0, ONE), latency=0.1)
    assert not one._belief.is_searching

    unknown = admission()
    unknown.accepted(0.1, unknown.start(0.0, ONE))
    unknown.refused(0.2, unknown.start(0.1, ONE), latency=0.1)
    assert unknown._belief.is_searching
    headers = {REQUESTS: LimitHeader(600, 9, 0.1)}
    unknown.accepted(5.0, unknown.start(4.0, ONE), None, headers)
    assert not unknown._belief.is_searching


@pytest.mark.parametrize("limit", [600.0, None], ids=["told by headers then", "learned then"])
def test_what_is_remembered_far_too_low_is_corrected_within_a_minute(limit):
    """Ten a second are remembered; the provider takes a hundred, and says nothing of limits."""
    one = admission(dimensions=(REQUESTS,))
    one.recall({REQUESTS: Known(limit, 10.0, 10.0)}, share=0.9)
    bucket, filled_at = 100.0, 0.0

    def reply(now):
        nonlocal bucket, filled_at
        bucket, filled_at = min(100.0, bucket + 100 * (now - filled_at)), now
        if bucket < 1:
            return Reply("refused", 0.1)
        bucket -= 1
        return Reply("taken", 0.3)

    lane = Lane(one, reply).run(70.0)

    assert lane.count("taken", 0.0, 15.0) <= 160  # it is kept to at first
    assert lane.count("taken", 60.0, 70.0) > 700
    assert len(lane.ends["refused"]) < 0.03 * len(lane.ends["taken"])
