"""Whatever a provider does, admission keeps the told limits and its books, and starves nobody."""

from __future__ import annotations

import heapq
import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from batch_llm import Limits
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.budgets import LOWEST_RATE
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import CONCURRENCY, OUTPUT, REQUESTS, TOKENS

EPSILON = 1e-6
per_minute = st.sampled_from([1.0, 7.0, 60.0, 600.0, 6000.0])
outputs = st.sampled_from([0, 10, 100, 3000])
pauses = st.one_of(st.floats(0, 2), st.sampled_from([0.0, 1e-4, 5.0, 30.0, 60.0, 3600.0, 1e6]))
retry_afters = st.sampled_from([None, None, None, 0.0, 0.3, 5.0, 60.0])
numbers = st.sampled_from([-1.0, 0.0, 1.0, 5.0, 59.0, 60.0, 600.0, 1e5, math.inf, math.nan])
header_sets = st.one_of(
    st.none(),
    st.dictionaries(
        st.sampled_from([REQUESTS, TOKENS, OUTPUT, "tea"]),
        st.builds(
            LimitHeader, numbers, numbers, st.sampled_from([-5.0, 0.0, 0.1, 30.0, 60.0, math.nan])
        ),
    ),
)
named = st.sampled_from([None, None, None, REQUESTS, TOKENS, CONCURRENCY, "tea"])


def cost_of(output):
    return Cost(1.0, 50.0 + output, 50.0, float(output), float(output))


class AdmissionMachine(RuleBasedStateMachine):
    """Starts calls whenever they may start, and ends them in any order and way."""

    grants = Bundle("grants")

    @initialize(
        requests=st.one_of(st.none(), per_minute),
        tokens=st.one_of(st.none(), st.sampled_from([100.0, 6e3, 6e5])),
        burst_seconds=st.sampled_from([0.1, 1.0, 10.0, 60.0]),
        max_in_flight=st.sampled_from([1, 5, 1000]),
        seed=st.integers(0, 2**16),
    )
    def begin(self, requests, tokens, burst_seconds, max_in_flight, seed):
        told = {"requests_per_minute": requests, "tokens_per_minute": tokens}
        limits = Limits(**{name: limit for name, limit in told.items() if limit})
        self.now = 0.0
        self.told = {
            name: limit for name, limit in ((REQUESTS, requests), (TOKENS, tokens)) if limit
        }
        self.burst_seconds = burst_seconds
        self.max_in_flight = max_in_flight
        self.one = Admission(
            0.0,
            limits if self.told else None,
            dimensions=(REQUESTS, TOKENS, OUTPUT),
            burst_seconds=burst_seconds,
            max_in_flight=max_in_flight,
            dice=random.Random(seed),
        )
        self.open = {}
        #: When a call was charged and what, and when what was not used or counted was paid back.
        self.charges = []
        self.closed_until = 0.0

    @rule(target=grants, output=outputs)
    def start(self, output):
        """Start one call, if it may start now."""
        cost = cost_of(output)
        if self.one.wait(self.now, cost) > 0:
            return None
        assert self.now >= self.one.closed_until
        assert self.one.in_flight < self.max_in_flight
        grant = self.one.start(self.now, cost)
        self.open[grant.number] = grant
        self.charge(cost)
        self.never_more_than_a_told_limit_allows(cost)
        return grant

    @rule(target=grants, output=outputs)
    def wait_and_start(self, output):
        """Wait as told, once, and start a call if it may start then."""
        wait = self.one.wait(self.now, cost_of(output))
        if wait < math.inf:
            self.now += wait + EPSILON
        return self.start(output)

    @rule(pause=pauses)
    def time_passes(self, pause):
        self.now += pause

    @rule(grant=consumes(grants), used=st.one_of(st.none(), outputs), headers=header_sets)
    def answer(self, grant, used, headers):
        if self.close(grant):
            taken = None if used is None else cost_of(used)
            self.one.accepted(self.now, grant, taken, headers)
            if taken is not None:
                self.charge(taken)
                self.charge(grant.cost, -1)

    @rule(
        grant=consumes(grants),
        latency=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
        retry_after=retry_afters,
        headers=header_sets,
        dimension=named,
    )
    def refuse(self, grant, latency, retry_after, headers, dimension):
        if not self.close(grant):
            return
        self.charge(grant.cost, -1)
        rates = {name: budget.rate for name, budget in self.one.budgets.items()}
        refusal = self.one.refused(
            self.now,
            grant,
            latency=latency,
            retry_after=retry_after,
            headers=headers,
            dimension=dimension,
        )
        asked = retry_after or 0.0
        assert self.one.closed_until >= self.now + asked or refusal.wait_seconds >= asked
        if not refusal.is_news and not headers:
            assert all(self.one.budgets[name].rate >= rate for name, rate in rates.items())

    @rule(grant=consumes(grants), retry_after=retry_afters)
    def fail(self, grant, retry_after):
        if self.close(grant):
            self.charge(grant.cost, -1)
            self.one.failed(self.now, grant, retry_after=retry_after)

    @rule(grant=consumes(grants), was_sent=st.booleans())
    def cancel(self, grant, was_sent):
        if self.close(grant):
            if not was_sent:
                self.charge(grant.cost, -1)
            self.one.cancelled(self.now, grant, was_sent=was_sent)

    @precondition(lambda self: self.open)
    @rule(end=st.sampled_from(["accepted", "refused", "failed"]))
    def all_end_alike(self, end):
        for grant in list(self.open.values()):
            self.close(grant)
            if end == "accepted":
                self.one.accepted(self.now, grant)
            elif end == "refused":
                self.charge(grant.cost, -1)
                self.one.refused(self.now, grant, latency=0.1)
            else:
                self.charge(grant.cost, -1)
                self.one.failed(self.now, grant)

    def close(self, grant):
        """Take a grant off the open ones; return whether it was one."""
        return grant is not None and self.open.pop(grant.number, None) is not None

    def charge(self, cost, sign=1):
        fields = {REQUESTS: cost.requests, TOKENS: cost.tokens}
        self.charges.append((self.now, {name: sign * fields[name] for name in self.told}))

    def never_more_than_a_told_limit_allows(self, latest):
        """In no window that ends with this call was more let in than fills a bucket meanwhile.

        Whatever windows and headers make of it. One call that is larger than the bucket was let in
        when that was full, and is a debt.
        """
        fields = {REQUESTS: latest.requests, TOKENS: latest.tokens}
        for name, limit in self.told.items():
            rate = limit / 60
            burst = max(rate * self.burst_seconds, fields[name])
            charged = 0.0
            for at, amounts in reversed(self.charges):
                charged += amounts[name]
                assert charged <= burst + rate * (self.now - at) + 1e-3, name

    @invariant()
    def no_told_limit_is_passed_by_a_rate(self):
        for name, limit in self.told.items():
            assert self.one.budgets[name].rate <= limit / 60
            assert self.one.budgets[name].ceiling <= limit / 60

    @invariant()
    def permits_are_conserved(self):
        grants = self.open.values()
        assert self.one.in_flight == len(grants)
        assert self.one._doubt.calls == sum(grant.is_in_doubt for grant in grants)
        for name in self.one.budgets.keys() & {TOKENS, OUTPUT}:
            budget = self.one.budgets[name]
            # One that headers told of later knows nothing of the calls from before.
            known = [grant for grant in grants if budget.number < len(grant.pending_then)]
            pending = sum(grant.cost.pending for grant in known)
            assert abs(budget.pending - pending) < EPSILON

    @invariant()
    def a_closed_gate_opens_no_sooner_than_was_said(self):
        assert self.one.closed_until >= self.closed_until
        self.closed_until = self.one.closed_until
        wait = self.one.wait(self.now, cost_of(0))
        if self.now < self.closed_until:
            assert wait == self.closed_until - self.now

    @invariant()
    def a_wait_is_for_ever_only_while_calls_are_in_flight(self):
        wait = self.one.wait(self.now, cost_of(0))
        assert wait >= 0
        assert wait < math.inf or self.one.in_flight > 0

    @invariant()
    def every_budget_is_sane(self):
        for budget in self.one.budgets.values():
            assert LOWEST_RATE <= budget.rate <= budget.ceiling
            assert budget.level <= budget.capacity
            assert not math.isnan(budget.level)

    def teardown(self):
        """Once all have ended, whoever waits is let in after finitely many finite waits."""
        if not hasattr(self, "one"):
            return
        for grant in self.open.values():
            self.one.cancelled(self.now, grant, was_sent=False)
        assert self.one.in_flight == self.one._doubt.calls == 0
        assert all(abs(budget.pending) < EPSILON for budget in self.one.budgets.values())
        for _ in range(20):
            wait = self.one.wait(self.now, cost_of(100))
            if wait <= 0:
                return
            assert wait < math.inf
            self.now += wait + EPSILON
        raise AssertionError("starved")


AdmissionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60)
TestAdmissionMachine = AdmissionMachine.TestCase


def start_times(limits, burst_seconds, max_in_flight, calls, seed):
    """Send the same calls as fast as they may go, to somebody who refuses nothing."""
    dice = random.Random(seed)
    one = Admission(
        0.0,
        limits,
        burst_seconds=burst_seconds,
        max_in_flight=max_in_flight,
        dice=random.Random(seed),
    )
    now, in_flight, starts = 0.0, [], []
    while len(starts) < calls:
        cost, seconds = cost_of(dice.choice([0, 100, 3000])), dice.uniform(0.0, 5.0)
        while (wait := one.wait(now, cost)) > 0:
            if in_flight and in_flight[0][0] <= now + wait:
                now = max(now, in_flight[0][0])
                one.accepted(now, heapq.heappop(in_flight)[2])
            else:
                now += wait
        starts.append(now)
        heapq.heappush(in_flight, (now + seconds, len(starts), one.start(now, cost)))
    return starts


@given(
    requests=per_minute,
    tokens=st.one_of(st.none(), st.sampled_from([6e3, 6e4, 6e5])),
    factor=st.sampled_from([1.0, 1.5, 10.0, 1000.0]),
    is_tokens=st.booleans(),
    burst_seconds=st.sampled_from([0.1, 1.0, 10.0, 60.0]),
    max_in_flight=st.sampled_from([1, 5, 1000]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=100)
def test_a_higher_told_limit_lets_no_call_in_later(
    requests, tokens, factor, is_tokens, burst_seconds, max_in_flight, seed
):
    low = {"requests_per_minute": requests} | ({"tokens_per_minute": tokens} if tokens else {})
    raised = "tokens_per_minute" if is_tokens and tokens else "requests_per_minute"
    high = low | {raised: factor * low[raised]}

    lower, higher = (
        start_times(Limits(**told), burst_seconds, max_in_flight, 120, seed) for told in (low, high)
    )

    assert all(fast <= slow + 1e-3 for slow, fast in zip(lower, higher, strict=True))
