"""Admissions in the states that tests begin with."""

from __future__ import annotations

import random

from batch_llm.strategies.admission import Admission
from batch_llm.strategies.costs import Cost

ONE = Cost()


def admission(**arguments):
    return Admission(0.0, dice=random.Random(1), **arguments)


def start_all(one, now, cost=ONE):
    """Start calls until one has to wait; return their grants."""
    grants = []
    while one.wait(now, cost) <= 0:
        grants.append(one.start(now, cost))
    return grants


def past_the_first_refusal(one, cost=ONE):
    """Refuse one call, which shows a told limit's bucket; return the time when one was let in."""
    one.refused(0.1, one.start(0.0, cost), latency=0.1)
    now = one.closed_until + 20.0
    one.accepted(now, one.start(now, cost))
    return now
