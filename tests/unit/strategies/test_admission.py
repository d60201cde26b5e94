from __future__ import annotations

import math
import random

import pytest

from batch_llm import Limits
from batch_llm.strategies.admission import REQUESTS, TOKENS, Admission, Cost
from batch_llm.strategies.budgets import LimitHeader

ONE = Cost()


def admission(**arguments):
    return Admission(0.0, dice=random.Random(1), **arguments)


def start_all(one, now, cost=ONE):
    """Start calls until one has to wait; return their grants."""
    grants = []
    while one.wait(now, cost) <= 0:
        grants.append(one.start(now, cost))
    return grants


def test_few_calls_are_in_doubt_at_the_start_and_silence_is_consent():
    one = admission()

    first = start_all(one, 0.0)
    later = start_all(one, 0.6)

    assert len(first) == 2
    assert len(later) > len(first)


def test_a_told_limit_is_used_up_at_once_and_then_kept():
    one = admission(limits=Limits(requests_per_minute=60), burst_seconds=10)
    started, now = 0, 0.0
    while now < 60:
        for grant in start_all(one, now):
            one.accepted(now, grant)
            started += 1
        now += 0.1

    assert started == pytest.approx(10 + 60, abs=2)


def test_a_call_larger_than_the_bucket_waits_for_a_full_one_and_leaves_a_debt():
    one = admission(limits=Limits(tokens_per_minute=600), burst_seconds=10)
    large = Cost(1.0, 250.0)

    one.start(0.0, large)  # the bucket holds 100, and they are there

    assert one.wait(0.0, large) == pytest.approx(25.0)  # back from -150 to 100, at 10 a second


def test_retry_after_closes_the_gate_for_exactly_that_long():
    one = admission()
    grant = one.start(0.0, ONE)

    assert one.refused(0.1, grant, latency=0.1, retry_after=7.0)

    assert one.wait(0.1, ONE) == pytest.approx(7.0, abs=0.03)
    assert one.wait(7.2, ONE) < 1


def test_refusals_of_one_burst_are_one_cut():
    one = admission(limits=Limits(requests_per_minute=6000))
    grants = start_all(one, 0.0)
    before = one.budgets[REQUESTS].rate

    news = [one.refused(0.2, grant, latency=0.2).is_news for grant in grants]

    assert news == [True] + [False] * (len(grants) - 1)
    assert one.budgets[REQUESTS].rate == pytest.approx(before * 0.87)


def test_a_refusal_after_an_honoured_retry_after_is_waited_for_longer():
    one, now, waits = admission(), 0.0, []
    for _ in range(4):
        grant = one.start(now, ONE)
        one.refused(now, grant, latency=0.1, retry_after=1.0)
        waits.append(one.closed_until - now)
        now = one.closed_until + 0.01

    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(1.0, abs=0.03)
    assert waits[-1] > 1.5


def test_headers_are_believed_over_what_was_learned():
    one = admission()
    grant = one.start(0.0, ONE)

    one.accepted(0.5, grant, None, {REQUESTS: LimitHeader(600, 9, 0.1)})

    assert one.known_limits() == [(REQUESTS, 10.0, "header")]
    assert one.budgets[REQUESTS].capacity == pytest.approx(10.0)  # 9 left, 0.1 s from full


@pytest.mark.parametrize(
    "header",
    [
        LimitHeader(0, 5, 1),
        LimitHeader(-1, -1, 0),
        LimitHeader(60, -1, 0),
        LimitHeader(60, 5, -1),
        LimitHeader(math.inf, 5, 1),
    ],
)
def test_nonsense_in_headers_is_ignored(header):
    one = admission()
    grant = one.start(0.0, ONE)

    one.accepted(0.5, grant, None, {REQUESTS: header})

    assert one.known_limits() == []


def test_what_others_use_of_the_key_is_noticed():
    one = admission()
    one.accepted(0.1, one.start(0.0, ONE), None, {REQUESTS: LimitHeader(600, 599, 0.1)})
    assert one.budgets[REQUESTS].level > 590

    for _ in range(6):
        one.accepted(0.2, one.start(0.2, ONE), None, {REQUESTS: LimitHeader(600, 20, 58.0)})

    assert one.budgets[REQUESTS].level < 50


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


def test_the_dimension_that_is_used_up_is_the_one_that_is_cut():
    one = admission()
    headers = {REQUESTS: LimitHeader(600, 100, 1.0), TOKENS: LimitHeader(6000, 0, 1.0)}
    one.accepted(0.2, one.start(0.0, Cost(1.0, 50.0)), None, headers)
    grant = one.start(0.3, Cost(1.0, 50.0))
    rate = one.budgets[REQUESTS].rate

    one.refused(0.4, grant, latency=0.1, headers=headers)

    assert one.budgets[REQUESTS].rate == rate
    assert one.budgets[TOKENS].rate < 100


def test_an_estimate_is_settled_with_what_was_used():
    one = admission(limits=Limits(tokens_per_minute=6000), burst_seconds=60)
    level = one.budgets[TOKENS].level
    for used in (20.0, 500.0):
        grant = one.start(0.0, Cost(1.0, 100.0))
        one.accepted(0.0, grant, Cost(1.0, used))
        level -= used

    assert one.budgets[TOKENS].level == pytest.approx(level)


def test_a_call_that_was_never_sent_costs_nothing():
    one = admission(limits=Limits(requests_per_minute=60))
    level = one.budgets[REQUESTS].level

    one.cancelled(0.0, one.start(0.0, ONE), was_sent=False)

    assert one.budgets[REQUESTS].level == level
    assert one.in_flight == 0


def test_an_overloaded_provider_gets_fewer_calls_at_a_time_and_more_again_later():
    one, now = admission(), 0.0
    for _ in range(200):
        now += 0.5
        for grant in start_all(one, now)[:20]:
            one.failed(now + 0.1, grant)
    assert one._overload.concurrency < 20

    while one._overload.concurrency < math.inf and now < 1000:
        now += 1.0
        for grant in start_all(one, now):
            one.accepted(now, grant)
    assert one._overload.concurrency == math.inf


def test_headers_that_always_show_a_full_bucket_let_in_no_more_than_the_told_limit():
    one, started = admission(limits=Limits(requests_per_minute=600), burst_seconds=1), 0
    for tenth in range(100):
        now = tenth / 10
        for grant in start_all(one, now):
            started += 1
            one.accepted(now, grant, None, {REQUESTS: LimitHeader(600, 600, 0.0)})

    assert started <= 10 + 10 * 10


def test_a_smaller_bucket_in_headers_is_believed_at_once():
    one = admission(limits=Limits(requests_per_minute=600))

    one.accepted(0.1, one.start(0.0, ONE), None, {REQUESTS: LimitHeader(600, 9, 0.1)})

    assert one.budgets[REQUESTS].level <= one.budgets[REQUESTS].capacity == pytest.approx(10.0)


@pytest.mark.parametrize(
    "headers",
    [{REQUESTS: LimitHeader(-1, -1, 0)}, {"tea": LimitHeader(60, 0, 1)}],
    ids=["counts nothing", "unknown dimension"],
)
def test_nonsense_in_a_refusal_s_headers_spares_no_dimension_the_cut(headers):
    one = admission(limits=Limits(requests_per_minute=600, tokens_per_minute=6000))
    grant = one.start(0.0, Cost(1.0, 10.0))

    one.refused(0.1, grant, latency=0.1, headers=headers)

    assert one.budgets[TOKENS].rate == pytest.approx(0.87 * 100)
    assert one.budgets[REQUESTS].rate == pytest.approx(0.87 * 10)
