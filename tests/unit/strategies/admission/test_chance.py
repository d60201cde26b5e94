"""Whether refusals are chance is asked in one place, whatever tells it."""

from __future__ import annotations

import math
import random

import pytest

from admissions import ONE, admission, holding
from batch_llm import Limits
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.evidence import Evidence
from batch_llm.strategies.admission.fallen_rates import FallenRates
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS


def test_headers_leave_nothing_to_be_tried():
    one = Admission(0.0, dimensions=(REQUESTS,), dice=random.Random(1))
    one.accepted(0.1, one.start(0.0, Cost()), None, {REQUESTS: LimitHeader(60, 50, 10.0)})
    one.refused(0.2, one.start(0.1, Cost()), latency=0.1)
    one.accepted(9.0, one.start(8.9, Cost()))

    assert one._chance.bounds(None) == []
    assert math.isfinite(one.budgets[REQUESTS].rate)


def test_refusals_that_go_on_however_far_a_found_rate_falls_are_random(monkeypatch):
    """Although a bucket explains the last ones."""
    monkeypatch.setattr(Evidence, "unexplained", lambda _: 0)
    one = Admission(0.0, dimensions=(REQUESTS,), dice=random.Random(1))
    now, refusals = 0.1, 0
    one.refused(now, one.start(0.0, Cost()), latency=0.1, retry_after=1.0)
    one._belief.is_searching = False
    one.budgets[REQUESTS].learn_rate(100.0)  # too many for two calls to be tried
    for calls in (90, 60, 40, 27, 18, 12, 8):
        now = max(now, one.closed_until)
        for _ in range(calls):
            one.accepted(now, one.start(now, Cost()))
            now += 1.0 / calls
        one.refused(now + 0.05, one.start(now, Cost()), latency=0.05, retry_after=1.0)
        refusals += 1
        if one._chance_belief.is_believed:
            break

    assert refusals == 5


def test_refusals_that_go_on_however_far_a_told_rate_falls_are_random(monkeypatch):
    """Although what was let in between them tells nothing."""
    monkeypatch.setattr(FallenRates, "note", lambda *_, **__: 0.0)
    one = admission(limits=Limits(requests_per_minute=6000))
    now = 0.0
    while not one._chance_belief.is_believed and one.refusals < 20:
        for _ in range(10):
            now += max(one.wait(now, ONE), 0.01)
            one.accepted(now, one.start(now, ONE))
        now += max(one.wait(now, ONE), 0.01)
        one.refused(now, one.start(now, ONE), latency=0.01, retry_after=0.1)

    assert one.refusals < 12
    assert one.budgets[REQUESTS].rate == 100.0


@pytest.mark.parametrize(
    ("retry_after", "is_tried"),
    [(None, True), (1.0, True), (0.4, False)],
    ids=["none", "whole", "worked out"],
)
def test_two_calls_are_tried_unless_the_wait_was_worked_out_from_a_limit(retry_after, is_tried):
    assert bool(holding(2.0)._chance.bounds(retry_after)) == is_tried


@pytest.mark.parametrize(
    ("rate", "retry_after", "is_tried"),
    [(9.0, None, True), (11.0, None, False), (13.0, 1.0, True), (15.0, 1.0, False)],
)
def test_calls_are_tried_where_rates_are_low(rate, retry_after, is_tried):
    assert bool(holding(rate)._chance.bounds(retry_after)) == is_tried


def test_two_calls_are_tried_no_more_once_refusals_are_believed_to_be_chance():
    one = holding(2.0)
    one._chance_belief.believe(0.1)

    assert one._chance.bounds(1.0) == []


@pytest.mark.parametrize(("retry_after", "weight"), [(None, 1.0), (1.0, 2.0), (0.4, 0.5)])
def test_a_pause_speaks_twice_as_much_for_chance_and_one_that_was_worked_out_half(
    retry_after, weight, monkeypatch
):
    monkeypatch.setattr(Evidence, "unexplained", lambda _: 1)
    monkeypatch.setattr(Evidence, "last_calls", 100)
    one = admission(dimensions=(REQUESTS,))
    one.refused(0.1, one.start(0.0, ONE), latency=0.1)
    one._belief.is_searching = True

    assert not one._chance.explains(1.0, one.start(1.0, ONE), retry_after)
    assert one._chance_belief._weight == weight


def test_what_was_let_in_before_a_long_stretch_is_not_compared(monkeypatch):
    monkeypatch.setattr(Evidence, "unexplained", lambda _: 2)
    monkeypatch.setattr(Evidence, "last_calls", 100)
    monkeypatch.setattr(Evidence, "last_seconds", 61.0)
    one = admission(dimensions=(REQUESTS,))
    one.refused(0.1, one.start(0.0, ONE), latency=0.1)

    one._chance_belief.weigh(1.0, 100, (0.0, 0))
    assert one._chance_belief.is_suspected

    assert not one._chance.explains(90.0, one.start(90.0, ONE), 1.0)
    assert not one._chance_belief.is_suspected


def test_what_was_cut_for_chance_is_taken_back():
    one = holding(2.0)
    one.budgets[REQUESTS].peak = 30.0
    one._chance._believe(0.1)

    assert one._chance_belief.is_believed
    assert one.budgets[REQUESTS].rate == 30.0
