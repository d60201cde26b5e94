"""The gate stays closed for as long as was asked, and longer when that was too short."""

from __future__ import annotations

import math
import random

import pytest

from admissions import ONE, admission, past_the_first_refusal, start_all
from batch_llm import Limits
from batch_llm.strategies.admission.closed_gate import ClosedGate
from batch_llm.strategies.dimensions import REQUESTS


def test_retry_after_closes_the_gate_for_exactly_that_long():
    one = admission()
    grant = one.start(0.0, ONE)

    assert one.refused(0.1, grant, latency=0.1, retry_after=7.0)

    assert one.wait(0.1, ONE) == pytest.approx(7.0, abs=0.03)
    assert one.wait(7.2, ONE) < 1


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


def test_a_retry_after_of_no_time_is_no_hint():
    def waits(retry_after):
        one, now, found = admission(limits=Limits(requests_per_minute=4)), 0.0, []
        for _ in range(6):
            one.refused(now, one.start(now, ONE), latency=0.1, retry_after=retry_after)
            found.append(one.closed_until - now)
            now = one.closed_until + 0.01
        return found

    assert waits(0.0) == waits(None)
    assert waits(0.0)[-1] > 5


def test_what_a_closed_gate_saves_up_is_not_sent_in_one_burst():
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE))
    one.refused(0.2, one.start(0.1, ONE), latency=0.1, retry_after=30.0)
    one.budgets[REQUESTS].let_in_at_start = one._doubt.limit = 1000.0

    assert len(start_all(one, one.closed_until + 1e-3)) == 1


def test_while_the_gate_proves_closed_again_one_call_at_a_time_is_tried():
    one = admission(limits=Limits(requests_per_minute=6000))
    for _ in range(2):
        now = one.closed_until + 0.01
        one.refused(now, one.start(now, ONE), latency=0.1)

    assert len(start_all(one, one.closed_until + 0.01)) == 1


def test_a_late_refusal_of_the_same_burst_may_keep_the_gate_closed_longer():
    one = admission()
    first, second = one.start(0.0, ONE), one.start(0.0, ONE)
    one.refused(0.1, first, latency=0.1)

    one.refused(0.2, second, latency=0.2, retry_after=9.0)

    assert one.wait(0.2, ONE) == pytest.approx(9.0)


def test_a_refusal_for_the_day_says_nothing_of_the_minutes_rate():
    one = admission()
    for n in range(20):
        one.accepted(0.1 * n + 0.05, one.start(0.1 * n, ONE))

    grant = one.start(3.0, ONE)
    one.refused(3.1, grant, latency=0.1, retry_after=3600.0, dimension="requests_per_day")

    assert one.closed_until >= 3603.0
    assert one.budgets[REQUESTS].rate == math.inf


def test_a_day_s_limit_that_is_refused_without_a_time_is_tried_ever_more_rarely():
    one, now, refused = admission(), 0.0, 0
    while now < 600.0:
        wait = one.wait(now, ONE)
        if wait > 0:
            now += wait
            continue
        one.refused(now + 0.1, one.start(now, ONE), latency=0.1, dimension="requests_per_day")
        refused += 1

    assert refused < 200


def test_a_guessed_rate_is_no_reason_to_wait_longer_between_probes():
    guessed, known = ClosedGate(random.Random(1)), ClosedGate(random.Random(1))
    guessed.closed_again = known.closed_again = 1

    guessed.close(0.0, None, 0.05, is_guess=True)
    known.close(0.0, None, 0.05, is_guess=False)

    assert guessed.closed_until == pytest.approx(0.5, rel=0.2)
    assert known.closed_until == pytest.approx(20.0, rel=0.2)


def test_a_gate_is_never_opened_by_a_shorter_wait():
    gate = ClosedGate(random.Random(1))

    gate.keep_closed(9.0)
    gate.close(0.0, 1.0, 10.0, is_guess=False)

    assert gate.closed_until == 9.0


def test_calls_that_were_silent_for_long_enough_show_that_the_gate_is_open_when_one_is_refused():
    one = admission(limits=Limits(requests_per_minute=6000))
    now = past_the_first_refusal(one) + 6.0
    one.refused(now, one.start(now, ONE), latency=0.1, retry_after=1.0)
    silent = [one.start(now + 1.1, ONE) for _ in range(3)]
    later = one.start(now + 3.0, ONE)
    one.refused(now + 3.1, later, latency=0.1, retry_after=1.0)

    assert not any(grant.is_in_doubt for grant in silent)
    assert one.closed_until <= now + 3.1 + 1.0 + 0.02


def test_where_a_minute_may_be_counted_one_probe_comes_when_it_opens_at_the_latest():
    gate = ClosedGate(random.Random(1))
    gate.closed_again = 10

    gate.close(58.0, None, 10.0, is_guess=False, minute_at=60.0)
    assert gate.closed_until == pytest.approx(60.05)

    gate.close(60.2, None, 10.0, is_guess=False, minute_at=60.0)
    assert gate.closed_until == pytest.approx(61.2)

    gate.close(66.0, None, 10.0, is_guess=False, minute_at=60.0)
    assert gate.closed_until > 72.0


def test_after_many_calls_a_closed_gate_is_probed_more_often():
    gate = ClosedGate(random.Random(1))
    gate.closed_again = 10

    gate.close(0.0, None, 10.0, is_guess=False, accepted=2000)
    assert gate.closed_until == pytest.approx(2.0, rel=0.2)

    gate.close(0.0, None, 10.0, is_guess=False, accepted=500)
    assert gate.closed_until == pytest.approx(8.0, rel=0.2)
