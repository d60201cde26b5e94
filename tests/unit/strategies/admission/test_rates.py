"""Rates grow again after a cut."""

from __future__ import annotations

import pytest

from admissions import ONE, admission, holding, past_the_first_refusal, start_all
from batch_llm import Limits
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS


def test_a_told_limit_is_a_ceiling_for_what_grows_too():
    one, now = admission(limits=Limits(requests_per_minute=600), burst_seconds=1), 0.0
    one.refused(0.1, one.start(0.0, ONE), latency=0.1)
    fastest = 0.0
    while now < 100:
        now += 0.05
        for grant in start_all(one, now):
            one.accepted(now, grant)
        fastest = max(fastest, one.budgets[REQUESTS].rate)

    assert fastest == 10.0


def test_a_dimension_that_is_not_used_up_does_not_grow():
    one = admission(limits=Limits(requests_per_minute=600, tokens_per_minute=60_000))
    now = past_the_first_refusal(one, Cost(1.0, 10.0)) + 6.0
    one.refused(now + 0.1, one.start(now, Cost(1.0, 10.0)), latency=0.1)
    one.budgets[TOKENS].level = one.budgets[TOKENS].capacity
    requests, tokens = one.budgets[REQUESTS].rate, one.budgets[TOKENS].rate
    now = ends = now + 1.0
    while now < ends + 20.0:  # all requests that there may be, and few tokens
        now += 0.05
        for grant in start_all(one, now, Cost(1.0, 1.0)):
            one.accepted(now, grant)

    assert one.budgets[REQUESTS].rate > requests
    assert one.budgets[TOKENS].rate == tokens


def test_what_grew_under_a_limit_in_flight_is_no_rate_once_that_is_refuted():
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE))
    one.refused(0.2, one.start(0.1, ONE), latency=0.1)
    requests = one.budgets[REQUESTS]
    one._slots.most = one._slots.tried = 50
    requests.peak, requests.rate = 7.0, 1e6

    for now in (20.0, 21.0, 22.0):  # refused far below it, which is no limit in flight then
        one.refused(now, one.start(now, ONE), latency=0.1)

    assert not one._slots.is_known
    assert requests.rate <= 7.0


def seconds_until(one, rate):
    """Return how many seconds without a refusal after the gate has opened the rate is that high."""
    now = began = max(one.closed_until, one._rates.grown_at)
    while one.budgets[REQUESTS].rate < rate:
        now += 0.01
        for grant in start_all(one, now):
            one.accepted(now, grant)
        assert now < 1000
    return now - began


@pytest.mark.parametrize(("rate", "least", "most"), [(40, 5, 8), (10, 10, 15), (4, 8, 15)])
def test_an_unknown_rate_is_back_where_it_was_after_so_many_calls_but_not_within_moments(
    rate, least, most
):
    assert least < seconds_until(holding(rate), 0.999 * rate / 0.87) < most


def test_an_unknown_limit_that_is_not_where_it_was_found_is_searched_on():
    one = holding(20.0)

    seconds_until(one, 1.14 * 20 / 0.87)
    assert not one._belief.is_searching
    seconds_until(one, 1.2 * 20 / 0.87)
    assert one._belief.is_searching
    assert seconds_until(one, 60) < 25
