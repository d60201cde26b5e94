"""What a told ceiling has beyond the provider's bucket is tried now and then."""

from __future__ import annotations

import math

import pytest

from admissions import ONE, admission
from batch_llm import Limits
from batch_llm.strategies.admission.belief import Belief
from batch_llm.strategies.admission.budgets import Budget
from batch_llm.strategies.admission.ceiling_room import (
    MOST_OWED_SECONDS,
    PATIENCE_SECONDS,
    STEP_CALLS,
    STEP_SECONDS,
    WORTH_CALLS,
    CeilingRoom,
)
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.dimensions import REQUESTS, TOKENS

LIMITS = Limits(requests_per_minute=600)


class Bucket:
    """A provider of 10 calls a second, of which it holds 100; from ``rises_at`` on twice as many.

    It answers at once.
    """

    def __init__(self, one, rises_at=math.inf, retry_after=None):
        self.one, self.rises_at, self.retry_after = one, rises_at, retry_after
        self.now, self.level = 0.0, 100.0
        self.let_in, self.refused = [], []

    def call(self):
        """Send the next call as soon as the admission lets it."""
        while (wait := self.one.wait(self.now, ONE)) > 0:
            self.pass_time(wait)
        grant = self.one.start(self.now, ONE)
        if self.level < 1:
            self.refused.append(self.now)
            self.one.refused(self.now, grant, latency=0.0, retry_after=self.retry_after)
            return
        self.level -= 1
        self.let_in.append(self.now)
        self.one.accepted(self.now, grant)

    def pass_time(self, seconds):
        factor = 2 if self.now >= self.rises_at else 1
        self.now += seconds
        self.level = min(100.0 * factor, self.level + 10.0 * factor * seconds)

    def run(self, until):
        while self.now < until:
            self.call()
        return self

    def episodes(self):
        """Return when refusals began that are no continuation of others."""
        before = -math.inf
        for at in self.refused:
            if at > before + 5:
                yield at
            before = at


def test_a_limit_that_rises_below_the_ceiling_is_used_up_to_the_ceiling():
    provider = Bucket(admission(limits=LIMITS), rises_at=100.0).run(300.0)

    # The ceiling's bucket is 600 calls and fills by 10 a second; its last two are not tried.
    assert 600 + 10 * 300 - 8 <= len(provider.let_in) <= 600 + 10 * 300 + 1


def test_the_ceiling_is_passed_in_no_window():
    let_in = Bucket(admission(limits=LIMITS), rises_at=100.0).run(300.0).let_in

    for first in range(0, len(let_in), 50):
        for last in range(first, len(let_in), 25):
            seconds = let_in[last] - let_in[first]
            assert last - first + 1 <= 600 + 10 * seconds + 1e-6


def test_a_refused_trial_lowers_no_rate_and_the_next_one_comes_after_twice_the_time():
    provider = Bucket(admission(limits=LIMITS))
    rates = []
    while provider.now < 600:
        provider.call()
        rates.append(provider.one.budgets[REQUESTS].rate)
    first, *trials = provider.episodes()

    assert min(rates) == max(rates) == 10.0
    assert len(trials) == 3
    assert trials[0] - first > 60
    assert trials[1] - trials[0] > 120
    assert trials[2] - trials[1] > 240
    assert len(provider.refused) <= 10


def test_a_refused_trial_gives_back_what_it_took():
    provider = Bucket(admission(limits=LIMITS)).run(50.0)
    provider.level += 6
    spare = provider.level
    provider.run(120.0)

    assert len(list(provider.episodes())) == 2
    assert provider.level == pytest.approx(spare, abs=3)


def test_a_long_pause_puts_a_trial_off():
    provider = Bucket(admission(limits=LIMITS), retry_after=2.0).run(190.0)

    assert len(list(provider.episodes())) == 1


def test_nothing_is_tried_before_a_told_limit_has_refused_a_call():
    one = admission(limits=LIMITS)
    provider = Bucket(one)
    provider.level = math.inf
    provider.run(200.0)

    assert one.budgets[REQUESTS].extra_rate == 0
    assert one._ceiling_room.due == math.inf


def test_nothing_is_tried_where_the_rate_is_still_below_the_limit():
    one = admission(limits=LIMITS)
    provider = Bucket(one).run(50.0)
    one.budgets[REQUESTS].learn_rate(9.0)
    one._rates.grown_at = math.inf  # growth is not what is tested
    provider.run(130.0)

    assert len(list(provider.episodes())) == 1


def test_nothing_is_tried_where_headers_tell_what_is_left():
    provider = Bucket(admission(limits=LIMITS)).run(50.0)
    provider.one.accepted(
        50.0, provider.one.start(50.0, ONE), None, {REQUESTS: LimitHeader(6000.0, 3000.0, 30.0)}
    )
    provider.run(300.0)

    assert len(list(provider.episodes())) == 1


def test_a_refusal_soon_after_a_trial_is_no_second_one_within_moments():
    one = admission(limits=LIMITS)
    provider = Bucket(one).run(50.0)
    while not one._ceiling_room.was_refused:
        provider.call()
    provider.pass_time(2.0)
    for _ in range(14):
        provider.level = 100.0
        provider.call()
    provider.level = 0.0
    provider.call()

    assert one.budgets[REQUESTS].rate == pytest.approx(8.7)


def refused(*budgets):
    """Return the room of told limits that refused a call a while ago; a step is due now."""
    room = CeilingRoom(Belief(is_told=True))
    room.note_refused(0.0, budgets, None)
    assert room.due == PATIENCE_SECONDS
    return room


def told(name=REQUESTS, *, level=0.0, allowed=600.0):
    """Return a limit of 10 a second, believed to have less left than its ceiling allows."""
    budget = Budget(name, 600.0, PATIENCE_SECONDS, 60.0)
    budget.level, budget.allowed = level, allowed
    return budget


def test_a_refused_trial_gives_back_a_second_of_the_rate_at_the_most():
    budget = told()
    room = refused(budget)
    room.step(PATIENCE_SECONDS, [budget], 10.0)

    assert room.note_refused(PATIENCE_SECONDS + 100.0, [budget], None)

    assert room.owed(budget) == MOST_OWED_SECONDS * budget.ceiling


@pytest.mark.parametrize(("calls", "is_tried"), [(WORTH_CALLS - 1, False), (WORTH_CALLS, True)])
def test_room_for_a_few_large_calls_is_not_tried(calls, is_tried):
    budget = told(TOKENS)
    budget.largest = 50.0
    budget.allowed = calls * budget.largest

    refused(budget).step(PATIENCE_SECONDS, [budget], 10.0)

    assert (budget.extra_rate > 0) == is_tried


@pytest.mark.parametrize(
    ("per_second", "seconds"), [(10.0, STEP_SECONDS), (0.1, STEP_CALLS / 0.1)], ids=["fast", "slow"]
)
def test_a_step_lasts_for_the_time_of_some_calls(per_second, seconds):
    budget = told()
    room = refused(budget)

    room.step(PATIENCE_SECONDS, [budget], per_second)

    assert room.due == PATIENCE_SECONDS + seconds


def test_a_limit_that_hides_nothing_keeps_no_other_from_being_tried():
    hiding, full = told(), told(TOKENS, level=600.0)

    refused(hiding, full).step(PATIENCE_SECONDS, [hiding, full], 10.0)

    assert (hiding.extra_rate > 0, full.extra_rate) == (True, 0.0)
