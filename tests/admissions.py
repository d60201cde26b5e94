"""Admissions in the states that tests begin with."""

from __future__ import annotations

import random

from batch_llm.strategies.admission import Admission
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS

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


def holding(rate):
    """Return an admission whose unknown limit was searched, found and cut to ``rate`` a second."""
    one = admission(dimensions=(REQUESTS,))
    one.refused(0.1, one.start(0.0, ONE), latency=0.1)
    one._belief.is_searching = False
    budget = one.budgets[REQUESTS]
    budget.peak = rate / 0.87
    budget.learn_rate(rate)
    return one
