"""Whatever a provider answers: no permit is lost, no told limit passed, nobody waits for ever."""

from __future__ import annotations

import math
import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from batch_llm import Limits
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import OUTPUT, REQUESTS, TOKENS

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
@example(seed=13964, per_minute=14.0, burst_seconds=13.0, seconds=43.0)  # a window comes in sight
@settings(max_examples=60)
def test_a_told_limit_is_never_passed_in_any_window(seed, per_minute, burst_seconds, seconds):
    """Of calls that were let in: a refused one takes nothing of a limit."""
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
        grant = one.start(now, Cost())
        if dice.random() < 0.1:
            one.refused(now, grant, latency=0.1)
        else:
            starts.append(now)
            more = {REQUESTS: LimitHeader(10 * per_minute, 9 * per_minute, 1.0)}
            one.accepted(now, grant, None, dice.choice([None, more]))

    rate = per_minute / 60
    capacity = max(rate * burst_seconds, 1.0)
    for first in range(0, len(starts), max(1, len(starts) // 50)):
        for last in range(first, len(starts), max(1, len(starts) // 50)):
            allowed = capacity + rate * (starts[last] - starts[first]) + 1e-6
            assert last - first + 1 <= allowed


def fixed_minute(now, limit):
    """A header of somebody who counts by the minute, and lets ten times as much in as was told."""
    return LimitHeader(10 * limit, 9 * limit + now % 7, 60.0 - now % 60)


@given(
    seed=st.integers(0, 2**32),
    requests=st.sampled_from([30.0, 600.0, 6000.0]),
    tokens=st.sampled_from([600.0, 6e4, 6e5]),
    burst_seconds=st.sampled_from([1.0, 10.0, 60.0]),
    is_counted_by_the_minute=st.booleans(),
    refused_share=st.sampled_from([0.0, 0.02, 0.2]),
)
@example(  # calls come that are larger than the bucket that a refusal showed
    seed=0,
    requests=30.0,
    tokens=600.0,
    burst_seconds=60.0,
    is_counted_by_the_minute=False,
    refused_share=0.2,
)
@settings(max_examples=60)
def test_told_tokens_are_never_passed_in_any_window_whatever_they_turn_out_to_be(
    seed, requests, tokens, burst_seconds, is_counted_by_the_minute, refused_share
):
    dice = random.Random(seed)
    told = {REQUESTS: requests, TOKENS: tokens}
    limits = Limits(requests_per_minute=requests, tokens_per_minute=tokens)
    one = Admission(0.0, limits, burst_seconds=burst_seconds, dice=dice)
    now, in_flight, starts, charges = 0.0, [], [], []

    def charge(cost, sign):
        charges.append((now, {REQUESTS: sign * cost.requests, TOKENS: sign * cost.tokens}))

    while now < 300 and len(starts) < 1200:
        in_flight.sort(key=lambda call: call[0])
        estimate = float(dice.choice([10, 100, 900]))
        cost = Cost(1.0, estimate, 10.0, estimate - 10, estimate - 10)
        wait = one.wait(now, cost)
        if in_flight and in_flight[0][0] <= now + wait:
            now, grant = max(now, in_flight[0][0]), in_flight.pop(0)[1]
            headers = None
            if is_counted_by_the_minute:
                headers = {name: fixed_minute(now, limit) for name, limit in told.items()}
            if dice.random() < refused_share:
                charge(grant.cost, -1)
                one.refused(now, grant, latency=0.1, headers=headers)
                continue
            got = grant.cost.tokens * dice.choice([0.1, 1.0, 3.0])
            used = Cost(1.0, got, 10.0, got - 10)
            charge(used, 1)
            charge(grant.cost, -1)
            one.accepted(now, grant, used, headers)
        elif wait <= 0:
            charge(cost, 1)
            starts.append((now, len(charges), cost))
            in_flight.append((now + dice.uniform(0.1, 5.0), one.start(now, cost)))
        else:
            now += wait

    for at, count, cost in starts[:: max(1, len(starts) // 60)]:
        for name, amount in ((REQUESTS, 1.0), (TOKENS, cost.tokens)):
            rate = told[name] / 60
            burst = max(rate * burst_seconds, amount)  # one that is larger waits for a full bucket
            charged = 0.0
            for then, amounts in reversed(charges[:count]):
                charged += amounts[name]
                assert charged <= burst + rate * (at - then) + 1e-3


@given(
    seed=st.integers(0, 2**32),
    per_minute=st.sampled_from([60.0, 600.0, 3000.0]),
    burst_seconds=st.sampled_from([20.0, 60.0]),
    held_seconds=st.floats(0.5, 10.0),
    rises_at=st.floats(0, 150),
    factor=st.sampled_from([1.2, 2.0, 100.0]),
)
@settings(max_examples=30)
def test_a_told_limit_is_passed_in_no_window_by_a_try_for_its_room(
    seed, per_minute, burst_seconds, held_seconds, rises_at, factor
):
    """A provider keeps a smaller bucket at first, and lets more in than was told later."""
    dice = random.Random(seed)
    limits = Limits(requests_per_minute=per_minute)
    one = Admission(0.0, limits, burst_seconds=burst_seconds, dice=dice)
    rate = per_minute / 60
    starts, now, level = [], 0.0, held_seconds * rate
    while now < 240:
        wait = one.wait(now, Cost())
        if wait > 0:
            now += wait
            times = factor if now >= rises_at else 1.0
            level = min(times * held_seconds * rate, level + wait * times * rate)
            continue
        grant = one.start(now, Cost())
        if level < 1 or dice.random() < 0.001:
            one.refused(now, grant, latency=0.1)
            continue
        level -= 1
        starts.append(now)
        one.accepted(now, grant)

    capacity = max(rate * burst_seconds, 1.0)
    step = max(1, len(starts) // 150)
    for first in range(0, len(starts), step):
        for last in range(first, len(starts), step):
            allowed = capacity + rate * (starts[last] - starts[first]) + 1e-6
            assert last - first + 1 <= allowed
