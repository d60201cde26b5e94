"""Calls start at full speed under limits that are told, shown or unknown."""

from __future__ import annotations

import math

import pytest

from admissions import ONE, admission, past_the_first_refusal, start_all
from batch_llm import Limits
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.admission.known_limits import Known
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS
from virtual_lane import Lane, Reply


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


def test_headers_are_believed_over_what_was_learned():
    one = admission()
    grant = one.start(0.0, ONE)

    one.accepted(0.5, grant, None, {REQUESTS: LimitHeader(600, 9, 0.1)})

    assert one.known_limits() == [(REQUESTS, 600.0, "header")]
    # 9 left, 0.1 s from full: 10, of which two are held back.
    assert one.budgets[REQUESTS].capacity == pytest.approx(8.0)


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


def test_the_dimension_that_is_used_up_is_the_one_that_is_cut():
    one = admission()
    headers = {REQUESTS: LimitHeader(600, 100, 1.0), TOKENS: LimitHeader(6000, 0, 1.0)}
    now = past_the_first_refusal(one, Cost(1.0, 50.0)) + 6.0
    one.accepted(now + 0.2, one.start(now, Cost(1.0, 50.0)), None, headers)
    grant = one.start(now + 0.3, Cost(1.0, 50.0))
    rate = one.budgets[REQUESTS].rate

    one.refused(now + 0.4, grant, latency=0.1, headers=headers)

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

    assert one.budgets[REQUESTS].level <= one.budgets[REQUESTS].capacity == pytest.approx(8.0)


@pytest.mark.parametrize(
    "headers",
    [{REQUESTS: LimitHeader(-1, -1, 0)}, {"tea": LimitHeader(60, 0, 1)}],
    ids=["counts nothing", "unknown dimension"],
)
def test_nonsense_in_a_refusal_s_headers_spares_no_dimension_the_cut(headers):
    one = admission(limits=Limits(requests_per_minute=600, tokens_per_minute=6000))
    now = past_the_first_refusal(one, Cost(1.0, 3000.0)) + 6.0
    grant = one.start(now, Cost(1.0, 3000.0))

    one.refused(now + 0.1, grant, latency=0.1, headers=headers)

    assert one.budgets[TOKENS].rate == pytest.approx(0.87 * 100)
    assert one.budgets[REQUESTS].rate == pytest.approx(0.87 * 10)


def test_who_tells_limits_tells_them_all():
    one = admission(dimensions=(REQUESTS, TOKENS))
    one.accepted(0.1, one.start(0.0, Cost(1.0, 100.0)))
    one.refused(0.2, one.start(0.1, Cost(1.0, 100.0)), latency=0.1)
    assert one.budgets[TOKENS].is_limited

    grant = one.start(3.0, Cost(1.0, 100.0))
    one.accepted(3.1, grant, None, {REQUESTS: LimitHeader(600, 9, 0.1)})

    assert not one.budgets[TOKENS].is_limited


def test_a_probe_that_is_given_up_is_followed_by_another():
    one, now = admission(), 0.0
    for _ in range(10):
        now += 1.0
        one.failed(now, one.start(now, ONE))
    now += one.wait(now, ONE)
    probe = one.start(now, ONE)
    assert one.wait(now, ONE) == math.inf

    one.cancelled(now + 1.0, probe, was_sent=True)

    assert one.wait(now + 1.0, ONE) == 0.0


def test_a_limit_that_headers_tell_is_kept_beside_one_that_was_told():
    one = admission(limits=Limits(requests_per_minute=6000))
    cost = Cost(1.0, 100.0)

    one.accepted(0.1, one.start(0.0, cost), None, {TOKENS: LimitHeader(6000, 0.0, 60.0)})
    one.accepted(0.2, one.start(0.1, cost), None, {TOKENS: LimitHeader(6000, 0.0, 60.0)})

    assert one.wait(0.2, cost) > 0.5


def test_what_another_version_remembered_of_an_unknown_dimension_is_passed_over():
    one = admission()

    one.recall({"tea": Known(None, 1.0, 1.0), REQUESTS: Known(None, 5.0, 5.0)}, share=0.9)

    assert one.budgets[REQUESTS].rate == pytest.approx(4.5)


def test_fixed_minutes_that_are_told_by_late_answers_only_do_not_close_the_gate_for_ever():
    one, now, under_way = admission(dimensions=(REQUESTS,)), 0.0, []
    while now < 900.0:
        while under_way and under_way[0][0] <= now:
            at, grant, left = under_way.pop(0)
            header = LimitHeader(60, left, 60 - grant.at % 60)
            one.accepted(at, grant, None, {REQUESTS: header})
        if one.wait(now, ONE) <= 0:
            used = sum(grant.at // 60 == now // 60 for _, grant, _ in under_way)
            under_way.append((now + 70.0, one.start(now, ONE), max(0, 59 - used)))
        now += 0.5

    assert under_way  # it goes on to the end
    assert under_way[-1][0] > 900.0


def test_what_is_charged_before_any_limit_is_known_counts_in_the_window_that_turns_out():
    one = Admission(0.0)
    budget = one.budgets["requests"]

    grants = [one.start(0.1 * n, ONE) for n in range(5)]
    one.cancelled(0.6, grants[0], was_sent=False)

    assert budget.log.used(0.7) == budget.spent == 4


class FixedMinutes:
    """Lets in so many calls in each minute of its own clock: one number after the other."""

    def __init__(self, *limits):
        self.limits, self.used, self.minute = limits, 0, 0

    def __call__(self, now):
        minute = int((now + 30) // 60)
        if minute != self.minute:
            self.minute, self.used = minute, 0
        if self.used >= self.limits[min(minute, len(self.limits) - 1)]:
            return Reply("refused", 0.1, 60 - (now + 30) % 60)
        self.used += 1
        return Reply("taken", 5.0)


@pytest.mark.parametrize(("limits", "least"), [((200, 300), 290), ((20, 30), 20)])
def test_a_learned_window_is_tried_on_where_a_refusal_is_a_small_part_of_it(limits, least):
    one = admission(dimensions=(REQUESTS,))
    lane = Lane(one, FixedMinutes(*limits)).run(89.0)

    assert one.budgets[REQUESTS].is_window
    assert sum(30 <= at < 90 for at in lane.starts) >= least
    assert sum(at > 30 for at in lane.ends["refused"]) <= max(0.02 * limits[1], 1)


def test_a_call_that_is_only_silent_shows_nobody_who_answers():
    one = admission()
    grant = one.start(0.0, ONE)
    one.wait(10.0, ONE)
    silent = one.has_answered
    one.accepted(11.0, grant)

    assert not silent
    assert one.has_answered


def test_limits_that_nobody_told_are_learned_side_by_side_whichever_a_refusal_names():
    one = admission()
    now = 0.1
    for _ in range(2):
        one.accepted(now, one.start(now, Cost(1.0, 100.0)))

    one.refused(0.3, one.start(0.2, Cost(1.0, 100.0)), latency=0.1, dimension=TOKENS)

    assert one.budgets[TOKENS].rate < math.inf
    assert one.budgets[REQUESTS].rate < math.inf


def test_output_counts_in_a_sliding_minute_from_the_end_of_its_call_on():
    one = admission(dimensions=(TOKENS,))
    tokens = one.budgets[TOKENS]
    tokens.is_sliding = True

    grant = one.start(0.0, Cost(1.0, 150.0, 100.0, 50.0, 50.0))
    one.accepted(10.0, grant, Cost(1.0, 160.0, 100.0, 60.0))

    assert tokens.log.used(60.0) == 160.0
    assert tokens.log.used(61.0) == 60.0
    assert tokens.log.used(71.0) == 0.0


@pytest.mark.parametrize("seconds", [10.0, 70.0])
def test_output_that_was_not_needed_counts_nowhere_in_a_sliding_minute(seconds):
    one = admission(dimensions=(TOKENS,))
    tokens = one.budgets[TOKENS]
    tokens.is_sliding = True

    grant = one.start(0.0, Cost(1.0, 1100.0, 100.0, 1000.0, 1000.0))
    one.accepted(seconds, grant, Cost(1.0, 120.0, 100.0, 20.0))

    assert tokens.log.used(60.0 if seconds < 60 else seconds) == pytest.approx(
        120.0 if seconds < 60 else 20.0
    )
    assert tokens.log.used(seconds + 55.0) == 20.0
    assert tokens.log.used(seconds + 61.0) == 0.0
