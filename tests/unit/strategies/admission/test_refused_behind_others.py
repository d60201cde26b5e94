"""A refusal right after the gate has opened, of a call behind others."""

from __future__ import annotations

import math

from admissions import ONE, admission
from batch_llm.strategies.dimensions import REQUESTS


def refused_behind_others():
    """Refuse the fifth of the calls sent after a pause, the others in doubt; return them."""
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE))
    one.refused(0.2, one.start(0.1, ONE), latency=0.1, retry_after=1.0)
    now = one.closed_until + 20.0
    one.accepted(now + 0.1, one.start(now, ONE))
    one._belief.is_searching = False
    one.budgets[REQUESTS].peak, one.budgets[REQUESTS].let_in_at_start = 100.0, math.inf
    one.budgets[REQUESTS].learn_rate(100.0)
    one.refused(now + 0.2, one.start(now + 0.1, ONE), latency=0.1, retry_after=1.0)
    now, before = one.closed_until, one.budgets[REQUESTS].rate
    calls = [one.start(now + 0.02 * n, ONE) for n in range(5)]
    one.refused(calls[4].at + 0.1, calls[4], latency=0.1, retry_after=1.0)
    return one, calls, before


def test_it_means_that_the_rate_was_too_high():
    one, _, before = refused_behind_others()

    assert one.budgets[REQUESTS].rate < 0.9 * before
    assert one._gate.closed_again == 0


def test_another_one_of_them_that_is_refused_changes_nothing():
    one, calls, _ = refused_behind_others()
    rate = one.budgets[REQUESTS].rate

    one.refused(calls[1].at + 0.2, calls[1], latency=0.2, retry_after=1.0)

    assert one.budgets[REQUESTS].rate == rate
    assert one._gate.closed_again == 0


def test_what_a_gate_saves_up_that_is_kept_closed_for_longer_does_not_come_in_one_burst():
    one, calls, _ = refused_behind_others()

    one.refused(calls[1].at + 0.5, calls[1], latency=0.5, retry_after=1.0)
    one._doubt.limit = 100
    sent = 0
    while one.wait(one.closed_until, ONE) <= 0:
        one.start(one.closed_until, ONE)
        sent += 1

    assert sent <= 1
