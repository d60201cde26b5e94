"""Of several limits that nobody told, the one that refuses is told from the others."""

from __future__ import annotations

import random

import pytest

from admissions import admission
from batch_llm.strategies.admission.budgets import Budget
from batch_llm.strategies.admission.grants import Grant
from batch_llm.strategies.admission.scarce import Scarce
from batch_llm.strategies.costs import FIELDS, Cost
from batch_llm.strategies.dimensions import INPUT, OUTPUT, REQUESTS
from virtual_lane import Reply


class Refusals:
    """Refusals of a limit of 1,000 tokens a second, after more and fewer calls."""

    def __init__(self, rate=1000.0, dimensions=(REQUESTS, INPUT)):
        self.budgets = {}
        for number, name in enumerate(dimensions):
            budget = self.budgets[name] = Budget(name, None, 0.0, 60.0)
            budget.field, budget.number = FIELDS[name], number
            budget.learn_rate(100.0)
        self.scarce = Scarce(self.budgets)
        self.now, self.number, self.rate, self.left = 0.0, 0, rate, 0.0

    def refuse(self, calls, seconds=10.0, retry_after=None, *, output=0.0, size=0.0, left=0.0):
        """Let in so many calls within so long, all together what comes back in it; refuse one.

        Output is by the second; the refused call has a size, and so much is left in the bucket.
        """
        let_in = self.rate * seconds + self.left - left
        apart, self.left = seconds / calls, left
        each = let_in / calls, output * seconds / calls
        grants = [self._start(self.now + place * apart, *each) for place in range(calls)]
        self.now += seconds
        refused = self._start(self.now, size)
        for budget in self.budgets.values():
            budget.uncharge(self.now, refused.cost[budget.field], self.now, refund=True)
        self.scarce.note(refused, retry_after)
        return grants

    def _start(self, now, size, output=0.0):
        self.number += 1
        grant = Grant(now, 0, Cost(1.0, size + output, size, output), self.number, 0)
        grant.spent_then = [b.charge(now, grant.cost[b.field]) for b in self.budgets.values()]
        grant.pending_then = [0.0] * len(self.budgets)
        return grant

    @property
    def spared(self):
        return [name for name, budget in self.budgets.items() if self.scarce.is_spared(budget)]


CALLS = (80, 120, 60, 150, 100, 90, 140, 70)


def after_refusals():
    """Refuse after each number of calls, all at the same rate."""
    refusals = Refusals()
    for calls in CALLS:
        refusals.refuse(calls)
    return refusals


def test_what_was_let_in_as_fast_each_time_is_what_refuses():
    refusals = after_refusals()

    assert refusals.spared == [REQUESTS]
    assert refusals.scarce.rate(refusals.budgets[INPUT]) == pytest.approx(1000, rel=0.01)


def test_where_all_were_let_in_as_fast_each_time_any_may_refuse():
    refusals = Refusals()
    for _ in CALLS:
        refusals.refuse(100)

    assert not refusals.scarce.is_found


def test_few_refusals_tell_nothing():
    refusals = Refusals()
    for calls in CALLS[:5]:
        refusals.refuse(calls)

    assert not refusals.scarce.is_found


def test_now_and_then_another_dimension_may_refuse_too():
    refusals = Refusals()
    for calls, rate in zip(CALLS, (1000, 1000, 1200, 1000, 900, 1000, 1000, 1000), strict=True):
        refusals.rate = rate
        refusals.refuse(calls)

    assert refusals.spared == [REQUESTS]
    assert refusals.scarce.rate(refusals.budgets[INPUT]) == pytest.approx(1000, rel=0.01)


def test_all_but_the_one_that_refuses_are_spared():
    refusals = Refusals(dimensions=(REQUESTS, INPUT, OUTPUT))
    for place, calls in enumerate(CALLS):
        refusals.rate = 1000.0 + 15 * (place % 2)
        refusals.refuse(calls, output=200.0 + 6 * (place % 2))

    assert refusals.spared == [REQUESTS, OUTPUT]


@pytest.mark.parametrize("retry_after", [None, 0.5])
def test_a_bucket_held_half_of_what_it_refused_or_what_retry_after_shows(retry_after):
    """Were it something else, what was let in until then would be another rate each time."""
    refusals = Refusals()
    for place, calls in enumerate(CALLS):
        size = 2000.0 if place % 2 else 1000.0
        left = size / 2 if retry_after is None else size - retry_after * refusals.rate
        refusals.refuse(calls, 10.0, retry_after, size=size, left=left)

    assert refusals.spared == [REQUESTS]
    assert refusals.scarce.rate(refusals.budgets[INPUT]) == pytest.approx(1000, rel=0.001)


@pytest.mark.parametrize("rate", [500.0, 2000.0])
def test_a_refusal_after_another_rate_is_another_dimension_s(rate):
    refusals = after_refusals()

    refusals.rate = rate
    refusals.refuse(100)

    assert not refusals.scarce.is_found

    refusals.rate = 1000.0
    refusals.refuse(100)

    assert refusals.spared == [REQUESTS]


@pytest.mark.parametrize("rate", [500.0, 2000.0])
def test_a_limit_that_changes_is_another_one(rate):
    refusals = after_refusals()

    refusals.rate = rate
    refusals.refuse(100)
    refusals.refuse(100)
    refusals.rate = 1000.0
    refusals.refuse(100)

    assert not refusals.scarce.is_found


def test_refusals_a_moment_after_each_other_are_another_limit_s():
    refusals = after_refusals()

    for _ in range(3):
        assert refusals.scarce.is_found
        refusals.refuse(4, seconds=0.5)

    assert not refusals.scarce.is_found


def test_what_calls_really_took_is_known_when_they_have_ended():
    """The estimates are wrong by chance, by which no rate would be the same twice."""
    refusals, dice = Refusals(), random.Random(1)
    refusals.refuse(CALLS[0])
    for calls in CALLS[1:]:
        for grant in refusals.refuse(calls):
            wrong, size = dice.uniform(-0.5, 0.5), grant.cost[FIELDS[INPUT]]
            for point in list(refusals.scarce._points)[-1:]:
                point.charged[INPUT] += wrong * size  # as it was estimated
            estimated = Grant(grant.at, 0, Cost(1.0, 0.0, (1 + wrong) * size), grant.number, 0)
            refusals.scarce.correct(estimated, grant.cost)
    refusals.refuse(100)

    assert refusals.spared == [REQUESTS]
    assert refusals.scarce.rate(refusals.budgets[INPUT]) == pytest.approx(1000, rel=0.01)


def test_a_call_that_was_refused_after_all_was_not_let_in():
    refusals = Refusals()
    for calls in CALLS:
        grants = refusals.refuse(calls)
    before = refusals.scarce._points[-1].charged[INPUT]

    refusals.scarce.forget(grants[-1])

    assert refusals.scarce._points[-1].charged[INPUT] == pytest.approx(
        before - grants[-1].cost[FIELDS[INPUT]]
    )


def test_output_that_is_still_to_come_is_owed_by_what_refuses_and_a_quarter_where_it_is_not_known():
    refusals = Refusals()
    output = refusals.budgets[OUTPUT] = Budget(OUTPUT, None, 0.0, 60.0)
    output.number, output.pending = 2, 400.0

    assert refusals.scarce.owed(output) == 400.0  # of no limit

    output.learn_rate(100.0)
    refusals.refuse(10)

    assert refusals.scarce.owed(output) == 100.0

    refusals.scarce._spared = frozenset({REQUESTS})

    assert refusals.scarce.owed(output) == 400.0

    refusals.scarce._spared = frozenset({OUTPUT})

    assert refusals.scarce.owed(output) == 0.0


class TokenBucket:
    """Lets in 10,000 tokens a second and two seconds' worth at once, and counts no calls."""

    def __init__(self):
        self.level, self.at, self.size = 20_000.0, 0.0, 0.0
        self.dice = random.Random(9)

    def __call__(self, now):
        self.level = min(20_000.0, self.level + 10_000 * (now - self.at))
        self.at = now
        if self.level < self.size:
            return Reply("refused", 0.1)
        self.level -= self.size
        return Reply("taken", self.dice.lognormvariate(-1.2, 0.3))


def test_in_a_long_run_only_tokens_are_held_where_only_tokens_are_counted():
    """In virtual time: half an hour of calls of which one in four is six times as long."""
    dice, bucket = random.Random(5), TokenBucket()
    one = admission(dimensions=(REQUESTS, INPUT))
    now, ends, let_in, refused = 0.0, [], 0.0, 0
    size = 400.0
    while now < 1800.0:
        cost = Cost(1.0, size, size)
        wait = one.wait(now, cost)
        if wait > 0:
            now = min([now + max(wait, 1e-3), *(at for at, _, _ in ends)])
        else:
            bucket.size = size
            reply = bucket(now)
            ends.append((now + reply.seconds, one.start(now, cost), reply))
            if reply.end == "taken":
                let_in += size
                size = 2400.0 if dice.random() < 0.25 else 400.0
            else:
                refused += 1
        for end in [end for end in ends if end[0] <= now]:
            ends.remove(end)
            if end[2].end == "taken":
                one.accepted(now, end[1])
            else:
                one.refused(now, end[1], latency=0.1)

    assert one._scarce.is_spared(one.budgets[REQUESTS])
    assert let_in > 0.95 * 10_000 * 1800
    assert refused < 0.01 * let_in / 900
    assert one.calls_per_second == pytest.approx(10_000 / 900, rel=0.15)


def test_where_no_rate_is_the_same_any_more_any_may_refuse():
    refusals = after_refusals()
    assert refusals.scarce.is_found

    for calls, rate in zip(2 * CALLS, 4 * (800.0, 900.0, 950.0, 1100.0), strict=True):
        refusals.rate = rate
        refusals.refuse(calls)

    assert not refusals.scarce.is_found
