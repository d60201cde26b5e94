"""Only so many calls may be in doubt at a time."""

from __future__ import annotations

from admissions import ONE, admission, start_all
from batch_llm.strategies.dimensions import REQUESTS


def test_few_calls_are_in_doubt_at_the_start_and_silence_is_consent():
    one = admission()

    first = start_all(one, 0.0)
    later = start_all(one, 0.6)

    assert len(first) == 2
    assert len(later) > len(first)


def test_as_many_calls_are_in_doubt_as_a_high_rate_needs():
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE))
    one.refused(0.2, one.start(0.1, ONE), latency=0.1)
    one.budgets[REQUESTS].learn_rate(2000.0)
    for now in (5.0, 5.1):
        one.accepted(now, one.start(now, ONE))

    assert one._doubt.limit >= 2000 * one._doubt.seconds
