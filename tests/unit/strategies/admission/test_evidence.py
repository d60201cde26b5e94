"""What the refusals so far tell of an unknown limit: which buckets explain all of them."""

from __future__ import annotations

import random

import pytest

from admissions import ONE, admission, start_all
from batch_llm.strategies.admission.evidence import Evidence
from batch_llm.strategies.dimensions import REQUESTS


class Sender:
    """Sends one call after another to a bucket, and ends a stretch with each refusal."""

    def __init__(self, rate, burst):
        self.rate, self.burst, self.level, self.at = rate, burst, burst, 0.0
        self.one = admission(dimensions=(REQUESTS,))
        self.evidence = Evidence(self.one.budgets, 0.0)
        self.now = 0.0

    def stretch(self, per_second, closed, is_refused=None):
        """Send evenly after a pause until one is refused; ``is_refused`` decides for the bucket."""
        self.now += closed
        number = 0
        while True:
            self.level = min(self.burst, self.level + self.rate * (self.now - self.at))
            self.at = self.now
            number += 1
            grant = self.one.start(self.now, ONE)
            refused = self.level < 1 if is_refused is None else is_refused(number)
            if refused:
                self.one.budgets[REQUESTS].spent -= 1
                self.evidence.end(self.now, grant, grant.number)
                return self
            self.level -= 1
            self.evidence.note(self.now)
            self.now += 1 / per_second


@pytest.mark.parametrize("burst", [10.0, 100.0])
@pytest.mark.parametrize("closed", [0.1, 1.0])
def test_the_rate_of_a_bucket_is_among_those_that_explain_its_refusals(burst, closed):
    one = Sender(20.0, burst).stretch(50, 0.0)
    for per_second in (30, 60, 25):
        one.stretch(per_second, closed)
        found = one.evidence.calls_explained()
        assert 0.9 * found.least <= 20 <= 1.1 * found.most
        assert one.evidence.unexplained() == 0

    assert found.most < 2 * found.least


def test_the_first_refusal_alone_tells_next_to_nothing():
    found = Sender(20.0, 10.0).stretch(50, 0.0).evidence.calls_explained()

    assert found.least < 0.1
    assert found.most > 20


def test_how_the_calls_before_the_first_refusal_were_sent_tells_the_buckets_size():
    """Of a bucket of 20 a second and 30 calls: it is full until more are sent than it fills by."""
    one = admission(dimensions=(REQUESTS,))
    at = [0.2 * n for n in range(50)] + [10 + 0.01 * n for n in range(37)]
    grants = [one.begin(now) for now in at]
    for grant in grants:  # while nothing is limited, calls are charged late
        one.charge(grant, ONE)
    one.refused(10.5, one.start(10.37, ONE), latency=0.1)
    first = one._evidence._first[REQUESTS]

    largest, at_end, was_full = first.sizes(20.0, 1.0)
    assert was_full
    assert 25 < at_end <= largest < 35


def test_refusals_after_ever_other_numbers_of_calls_are_explained_by_no_bucket():
    one = Sender(1e9, 1e9)
    for calls in (30, 4, 60):
        one.stretch(50, 1.0, lambda number, calls=calls: number > calls)

    assert one.evidence.unexplained() > 0


def test_refusals_at_random_are_unexplained_more_often_than_those_of_a_limit():
    def unexplained(sender, is_refused, dice):
        sender.stretch(50, 0.0, is_refused)
        count = 0
        for _ in range(60):
            sender.stretch(dice.uniform(30, 100), 1.0, is_refused)
            count += sender.evidence.unexplained() > 0
        return count

    dice = random.Random(1)
    by_chance = unexplained(Sender(1e9, 1e9), lambda _: dice.random() < 0.05, dice)
    by_limit = unexplained(Sender(20.0, 20.0), None, dice)

    assert by_limit == 0
    assert by_chance >= 15


def test_a_call_refused_late_is_taken_back_from_what_was_let_in():
    one = admission(dimensions=(REQUESTS,))
    grants = [one.start(n / 10, ONE) for n in range(10)]
    for grant in grants[:5]:
        one.accepted(1.0, grant)
    one.refused(1.0, grants[8], latency=0.2)
    before = one._evidence.last_calls
    one.refused(1.1, grants[6], latency=0.5)

    assert before == 8
    assert one._evidence.last_calls == 7
    assert one._evidence.is_corrected


def test_calls_behind_a_refused_one_are_counted_by_what_became_of_them():
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE))
    grants = start_all(one, 0.1) + start_all(one, 0.7)
    assert len(grants) >= 4
    one.refused(0.8, grants[0], latency=0.1)
    behind = len(grants) - 1
    assert one._evidence.followers == (behind, 0)

    one.refused(0.9, grants[2], latency=0.2)

    assert one._evidence.followers == (behind - 1, 1)


@pytest.mark.parametrize("burst", [2.0, 20.0, 200.0])
def test_how_long_a_bucket_takes_to_fill_is_known_from_its_first_burst(burst):
    one = Sender(20.0, burst).stretch(80, 0.0)
    for per_second in (25, 22):
        one.stretch(per_second, 1.0)

    assert one.evidence.fills_in(REQUESTS, 20.0) == pytest.approx(burst / 20, rel=0.15, abs=0.1)


def test_a_bucket_is_not_taken_for_larger_because_its_rate_was_believed_to_be_lower():
    one = Sender(20.0, 20.0).stretch(80, 0.0).stretch(21, 0.5)

    assert one.evidence.fills_in(REQUESTS, 5.0) <= 1.2


def test_calls_refused_right_after_the_gate_opened_were_sent_since_then():
    """A call refused, ten let in a second later within a tenth of one: 100 a second were too many.

    Nothing was noted of the calls, because none of them is known to be let in.
    """
    one = Sender(20.0, 10.0).stretch(50, 0.0)
    before = one.evidence._began_at
    one.now += 1.0
    one.evidence.note_reopened(one.now)
    for _ in range(10):
        one.one.start(one.now, ONE)
        one.now += 0.01
    one.evidence.end(one.now, one.one.start(one.now, ONE), 99)

    stretch = one.evidence._stretches[-1][REQUESTS]
    assert stretch.seconds[-1] == pytest.approx(one.now - before)
    assert stretch.most() > 90
