"""Defects that are known and not mended yet. Each test says what should hold.

``strict`` makes a test fail when its defect is gone: then it moves to the tests of its module.
"""

from __future__ import annotations

import pytest

from batch_llm.strategies.admission import Admission, Cost, Known
from batch_llm.strategies.budgets import Budget, LimitHeader


def defect(reason):
    return pytest.mark.xfail(strict=True, reason=reason)


@defect("Budget.refill and Budget.sync set a window's level without regard to the told bucket")
def test_in_fixed_windows_wrong_headers_do_not_pass_a_told_limit():
    """A told 60 a minute, at once at the most; headers that promise a new window each second."""
    budget = Budget("requests", 60.0, 0.0, 60.0)
    for at in (0.0, 2.0, 4.0, 6.0):  # a reset that stands still makes it a window
        header = LimitHeader(60.0, 60.0 - 5 * at, 10.0 - at)
        budget.sync(at, at, budget.spent, 0.0, header)
    assert budget.is_window

    now, seconds = 10.0, 300.0
    while now < 10.0 + seconds:
        while budget.wait(now, 1.0) == 0:
            budget.charge(now, 1.0)
        now += 0.5
        budget.sync(now, now, budget.spent, 0.0, LimitHeader(60.0, 60.0, 1.0))

    assert budget.spent <= 60 + 60 * (10.0 + seconds) / 60


@pytest.mark.parametrize("how", ["settled with less", "never sent"])
@defect("Budget.charge and Budget.uncharge give back what the bucket has refilled since")
def test_a_late_refund_gives_back_no_more_than_is_missing_still(how):
    """The charge of 30 was refilled by 30 s; then the bucket of 60 was emptied by others."""
    budget = Budget("requests", 60.0, 0.0, 60.0)
    budget.charge(0.0, 30.0)
    budget.charge(30.0, 60.0)
    assert budget.level == pytest.approx(0.0)

    if how == "never sent":
        budget.uncharge(30.0, 30.0, refund=True)
    else:
        budget.charge(30.0, -30.0)

    assert budget.level == pytest.approx(0.0)


@defect("Admission._cut lowers all rates when the limit that is named is not one of its budgets")
def test_a_refusal_for_the_day_says_nothing_of_the_minutes_rate():
    admission = Admission(0.0)
    for n in range(20):
        grant = admission.start(0.1 * n, Cost())
        admission.accepted(0.1 * n + 0.05, grant)
    refused = admission.start(3.0, Cost())

    admission.refused(3.1, refused, latency=0.1, retry_after=3600.0, dimension="requests_per_day")

    assert admission.closed_until >= 3603.0
    assert admission.budgets["requests"].rate == float("inf")


@defect("Budget.recall takes a remembered limit for a ceiling; only a header lifts it")
def test_a_remembered_limit_that_no_answer_repeats_is_no_ceiling():
    """Ten a second remembered; the provider takes all, and tells no limits any more."""
    admission = Admission(0.0)
    admission.recall({"requests": Known(600.0, 10.0, 10.0)}, share=0.9)

    now, started = 0.0, []
    while now < 120.0:
        while (wait := admission.wait(now, Cost())) <= 0:
            started.append(now)
            admission.accepted(now, admission.start(now, Cost()))
        now += max(wait, 0.01)

    assert sum(at > 60 for at in started) > 2 * 60 * 10


@defect("what is remembered freshly is kept to, and grows slowly: WELL_KNOWN_SHARE")
def test_a_remembered_rate_that_is_far_too_low_is_corrected_within_a_minute():
    """Ten a second remembered; the provider takes all, and never told a limit."""
    admission = Admission(0.0)
    admission.recall({"requests": Known(None, 10.0, 10.0)}, share=0.9)

    now, started = 0.0, []
    while now < 70.0:
        while (wait := admission.wait(now, Cost())) <= 0:
            started.append(now)
            admission.accepted(now, admission.start(now, Cost()))
        now += max(wait, 0.01)

    assert sum(at > 60 for at in started) > 50 * 10
