"""Whatever a provider answers: no permit is lost, no told limit passed, nobody waits for ever."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from batch_llm import Limits
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import OUTPUT, REQUESTS, TOKENS
from batch_llm.strategies.header_belief import LimitHeader

ends = st.sampled_from(["ok", "ok", "ok", "refused", "refused soon", "busy", "cancelled", "unsent"])


@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(st.tuples(ends, st.floats(0, 5)), max_size=120),
    limit=st.one_of(st.none(), st.floats(1, 1e5)),
)
@settings(max_examples=200)
def test_permits_are_conserved(seed, steps, limit):
    dice = random.Random(seed)
    limits = None if limit is None else Limits(requests_per_minute=limit)
    one = Admission(0.0, limits, dimensions=(REQUESTS, TOKENS, OUTPUT), dice=dice)
    open_grants, now = [], 0.0
    for end, pause in steps:
        now += pause
        got = dice.randrange(500)
        cost = Cost(1.0, 100.0 + got, 100.0, float(got), float(got))
        if one.wait(now, cost) <= 0:
            open_grants.append(one.start(now, cost))
        if not open_grants:
            continue
        grant = open_grants.pop(dice.randrange(len(open_grants)))
        headers = {REQUESTS: LimitHeader(dice.choice([0, 60, 600]), dice.randrange(-1, 60), 1.0)}
        if end == "ok":
            one.accepted(now, grant, Cost(1.0, 90.0, 60.0, 30.0), dice.choice([None, headers]))
        elif end.startswith("refused"):
            after = 0.5 if end == "refused soon" else None
            one.refused(now, grant, latency=0.1, retry_after=after)
        elif end == "busy":
            one.failed(now, grant)
        else:
            one.cancelled(now, grant, was_sent=end == "cancelled")

    assert one.in_flight == len(open_grants)
    for grant in open_grants:
        one.cancelled(now, grant, was_sent=False)
    assert one.in_flight == 0
    assert one._doubt.calls == 0
    assert all(abs(budget.pending) < 1e-6 for budget in one.budgets.values())
    wait, cost = 0.0, Cost(1.0, 100.0, 100.0)
    for _ in range(50):  # everybody is let in sooner or later, without anybody's help
        wait = one.wait(now, cost)
        if wait <= 0:
            break
        assert wait < math.inf
        now += wait + 1e-6
    assert wait <= 0


@given(
    seed=st.integers(0, 2**32),
    per_minute=st.floats(5, 5000),
    burst_seconds=st.floats(1, 60),
    seconds=st.floats(1, 200),
)
@settings(max_examples=60)
def test_a_told_limit_is_never_passed_in_any_window(seed, per_minute, burst_seconds, seconds):
    dice = random.Random(seed)
    one = Admission(
        0.0, Limits(requests_per_minute=per_minute), burst_seconds=burst_seconds, dice=dice
    )
    starts, now = [], 0.0
    while now < seconds and len(starts) < 3000:
        wait = one.wait(now, Cost())
        if wait > 0:
            now += wait
            continue
        starts.append(now)
        grant = one.start(now, Cost())
        if dice.random() < 0.1:
            one.refused(now, grant, latency=0.1)
        else:
            more = {REQUESTS: LimitHeader(10 * per_minute, 9 * per_minute, 1.0)}
            one.accepted(now, grant, None, dice.choice([None, more]))

    rate = per_minute / 60
    capacity = max(rate * burst_seconds, 1.0)
    for first in range(0, len(starts), max(1, len(starts) // 50)):
        for last in range(first, len(starts), max(1, len(starts) // 50)):
            allowed = capacity + rate * (starts[last] - starts[first]) + 1e-6
            assert last - first + 1 <= allowed + 1
