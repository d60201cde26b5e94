"""Rates are cut once for each belief, to what was let in where that tells the limit."""

from __future__ import annotations

import math

import pytest

from admissions import ONE, admission, holding, past_the_first_refusal
from batch_llm import Limits
from batch_llm.strategies.admission.enclosure import Round
from batch_llm.strategies.admission.evidence import Evidence
from batch_llm.strategies.dimensions import REQUESTS
from virtual_lane import Bucket, Lane


def test_refusals_of_one_burst_are_one_cut():
    one = admission(limits=Limits(requests_per_minute=6000))
    now = past_the_first_refusal(one) + 6.0
    grants = [one.start(now, ONE) for _ in range(5)]
    before = one.budgets[REQUESTS].rate

    news = [one.refused(now + 0.2, grant, latency=0.2).is_news for grant in grants]

    assert news == [True] + [False] * (len(grants) - 1)
    assert one.budgets[REQUESTS].rate == pytest.approx(before * 0.87)


@pytest.mark.parametrize(("let_in", "share"), [(3, 0.87), (14, 9 / 8.7 * 0.7), (40, 0.87)])
def test_a_second_cut_within_moments_leaves_what_was_let_in_between(let_in, share):
    one = admission(limits=Limits(requests_per_minute=600))
    now = past_the_first_refusal(one) + 6.0
    one.refused(now, one.start(now, ONE), latency=0.0)
    before = one.budgets[REQUESTS].rate
    one._rates.grown_at = math.inf  # growth is not what is tested
    for n in range(let_in):
        one.accepted(now + 1.0, one.start(now + 0.5 + 0.01 * n, ONE))

    one.refused(now + 2.0, one.start(now + 2.0, ONE), latency=0.0)

    assert one.budgets[REQUESTS].rate / before == pytest.approx(share)


@pytest.mark.parametrize(
    ("pause", "rate"), [(1.0, 0.9 * 100 / 1.75), (None, 0.87 * 1000 / 175**0.5)]
)
def test_where_a_refusal_costs_a_long_pause_what_was_let_in_since_the_last_is_the_rate(pause, rate):
    """A second's burst of 100; refused at 10 and, after a pause of a second, at 11.75."""
    one = admission(limits=Limits(requests_per_minute=6000), burst_seconds=1)
    budget = one.budgets[REQUESTS]
    one._belief.is_first = False
    one.accepted(9.0, one.start(9.0, ONE))
    one.refused(10.0, one.start(10.0, ONE), latency=0.0, retry_after=pause)
    budget.rate = budget.peak = 100.0
    last = 0.0
    for n in range(100):
        last = 11.0 + 0.75 * n / 100
        one.accepted(last, one.start(last, ONE))
    budget.rate = budget.peak = 100.0

    one.refused(11.75, one.start(11.75, ONE), latency=0.0, retry_after=pause)

    assert budget.rate == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(
    ("tried", "calls", "seconds", "peak", "rate"),
    [
        (60.0, 250, 5.0, 65.0, 250 / 6),
        (60.0, 250, 5.0, 60.0, 0.87 * 60),
        (20.0, 90, 5.0, 22.0, 0.87 * 20),
        (60.0, 800, 15.0, 65.0, 0.87 * 60),
    ],
    ids=["below", "back where it was", "few calls", "long ago"],
)
def test_a_limit_that_refuses_sooner_than_before_is_what_was_let_in_since(
    tried, calls, seconds, peak, rate
):
    """A pause of a second, and then so many calls in so many seconds."""
    one = holding(tried)
    budget = one.budgets[REQUESTS]
    one.accepted(9.0, one.start(9.0, ONE))
    one.refused(10.0, one.start(10.0, ONE), latency=0.0, retry_after=1.0)
    one._rates.grown_at = math.inf  # growth is not what is tested
    for n in range(calls):
        last = 11.0 + seconds * n / calls
        one.accepted(last, one.start(last, ONE))
        one._rates.grown_at = math.inf
    budget.rate, budget.peak = tried, peak

    one.refused(11.0 + seconds, one.start(11.0 + seconds, ONE), latency=0.0, retry_after=1.0)

    assert budget.rate == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("burst_seconds", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_limit_that_has_fallen_is_measured_in_a_few_pauses(burst_seconds, seed):
    """A hundred calls a second, and after half a minute half of that; whole seconds are asked."""
    one, at = admission(dimensions=(REQUESTS,)), 30.0
    bucket = Bucket(
        seed, rate=100.0, burst=100 * burst_seconds, retry_after=1.0, seconds=(0.04, 0.06)
    )
    lane = Lane(one, bucket).run(at)

    bucket.rate, bucket.burst = 50.0, 50 * burst_seconds
    lane.run(at + 20.0)

    assert lane.count("refused", at, at + 20.0) <= 25
    assert lane.count("taken", at + 8.0, at + 20.0) >= 0.7 * 50 * 12


@pytest.mark.parametrize(
    ("calls", "rate"), [(12, 0.65 * 80), (40, 0.5 * 80)], ids=["few calls", "many calls"]
)
def test_a_limit_that_has_fallen_far_is_not_cut_to_nothing(calls, rate, monkeypatch):
    """A bucket holds all that comes back in a pause of six seconds, and next to nothing did."""
    monkeypatch.setattr(Evidence, "unexplained", lambda _: 0)
    one = fallen(80.0, calls, pause=6.0)

    assert one.budgets[REQUESTS].rate == pytest.approx(rate)


def test_what_was_let_in_under_the_limit_before_it_fell_explains_nothing(monkeypatch):
    monkeypatch.setattr(Evidence, "unexplained", lambda _: 0)
    assert len(fallen(80.0, 40, pause=6.0)._evidence._stretches) == 1
    assert len(fallen(80.0, 40, pause=0.2)._evidence._stretches) > 1


def fallen(rate, calls, *, pause):
    """Return an admission refused twice: after a burst of 800 calls, and so many after a pause."""
    one = holding(rate)
    now = one.closed_until + 20.0
    for let_in, per_second, retry_after in ((800, 800, pause), (calls, rate, pause)):
        for n in range(let_in):
            one.accepted(now + n / per_second, one.start(now + n / per_second, ONE))
            one._rates.grown_at = math.inf  # growth is not what is tested
        now += let_in / per_second
        one.budgets[REQUESTS].peak = one.budgets[REQUESTS].rate = rate
        one.refused(now, one.start(now, ONE), latency=0.0, retry_after=retry_after)
        now = one.closed_until
    return one


def test_a_bucket_that_may_have_run_over_in_a_pause_tells_little():
    """Twenty calls in a second, after two in which the gate was closed."""
    one = holding(20.0)
    budget = one.budgets[REQUESTS]
    budget.peak = 20.0
    left = one._cuts._share_left(budget, Round(20.0, 3.0, 1.0), was_below=False)

    assert left == pytest.approx(0.87 * (20 / 3 / 20) ** 0.5)
