"""Failures that are no refusals: fewer calls at a time, and probes while nothing gets through."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from batch_llm.strategies.admission import Admission, overload
from batch_llm.strategies.admission.overload import Overload
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS
from virtual_lane import Lane, Reply


class Outage:
    """A hundred calls a second, but for the time when none gets through."""

    def __init__(self, seed, start=30.0, stop=60.0):
        self.dice = random.Random(seed)
        self.start, self.stop = start, stop
        self.level, self.at = 100.0, 0.0

    def __call__(self, now):
        if self.start <= now < self.stop:
            return Reply("failed", 0.05)
        self.level = min(100.0, self.level + 100.0 * (now - self.at))
        self.at = now
        if self.level < 1:
            return Reply("refused", 0.1)
        self.level -= 1
        return Reply("taken", self.dice.uniform(0.5, 1.5))


class Crowded:
    """Fails every call above so many at a time."""

    def __init__(self, most):
        self.most = most
        self.busy_until = []

    def __call__(self, now):
        self.busy_until = [until for until in self.busy_until if until > now]
        if len(self.busy_until) >= self.most:
            return Reply("failed", 0.05)
        self.busy_until.append(now + 1.0)
        return Reply("taken", 1.0)


def fresh():
    return Overload(0.0, random.Random(1))


def opened(now=0.0):
    """Return one whose breaker is open."""
    one = fresh()
    for _ in range(10):
        one.start()
        one.note_failure(now, 0, is_probe=False)
    assert one.since == now
    return one


def probed_out(one, now):
    """Let probes fail until the time; return when they were let in."""
    probes = []
    at = one.since
    while at < now:
        wait = one.wait(at)
        if wait > 0:
            at += wait
            continue
        probes.append(at)
        assert one.start()
        one.note_failure(at, 0, is_probe=True)
    return probes


@pytest.mark.parametrize("seed", range(4))
def test_an_outage_costs_few_calls_and_the_rate_is_back_soon_after_it(seed):
    one = Admission(0.0, dice=random.Random(seed))
    lane = Lane(one, Outage(seed)).run(80)
    before = lane.count("taken", 25, 30) / 5
    first = min(at for at in lane.ends["taken"] if at > 62)

    assert before > 80
    assert sum(31 <= at < 60 for at in lane.starts) <= 30
    assert first < 60 + 4 + 2  # the probe comes within a tenth of the outage, and takes a moment
    assert lane.count("taken", first + 4, first + 6) > before  # half of it, in 2 s
    assert lane.count("taken", 70, 80) > 0.8 * 10 * before


def test_what_an_outage_fails_says_nothing_of_a_rate():
    one = Admission(0.0, dice=random.Random(1))
    Lane(one, Outage(1, start=0.0, stop=20.0)).run(15)

    assert one.known_limits() == []
    assert one.budgets[REQUESTS].spent == pytest.approx(0.0)


def test_calls_above_what_a_crowded_provider_takes_become_few():
    one = Admission(0.0, max_in_flight=200, dice=random.Random(1))
    lane = Lane(one, Crowded(20)).run(120)

    calls = [at for at in lane.starts if at > 60]
    assert lane.count("taken", 60, 120) > 0.5 * 60 * 20
    assert lane.count("failed", 60, 120) < 0.7 * len(calls)
    assert one._overload.concurrency < 100


def test_while_more_than_half_get_through_nothing_is_restricted():
    one = fresh()
    for n in range(300):
        one.start()
        if n % 5 < 2:
            one.note_failure(n / 10, 0, is_probe=False)
        else:
            one.note_answer(n / 10, is_probe=False)

    assert one.concurrency == math.inf


def test_when_fewer_get_through_fewer_are_made_at_a_time_once_a_second():
    one, seen = fresh(), []
    for _ in range(40):
        one.start()
    for n in range(9):
        one.note_failure(n / 4, 10, is_probe=False)
        seen.append(one.concurrency)

    lowered = 11 * overload.SHRINK
    assert seen[:4] == [pytest.approx(lowered)] * 4
    assert seen[4:8] == [pytest.approx(lowered * overload.SHRINK)] * 4
    assert seen[8] == pytest.approx(lowered * overload.SHRINK**2)


def test_one_at_a_time_is_always_left():
    one, now = fresh(), 0.0
    for n in range(200):
        now += 1.0
        one.start()
        if n % 8 == 0 and one.concurrency <= 1:
            one.note_answer(now - 1.0, is_probe=False)
            one._failures = 0
        one._failures = min(one._failures, 5)  # the breaker is not what is tested
        one.note_failure(now, 0, is_probe=False)

        assert one.concurrency >= 1.0


def test_calls_in_flight_count_as_getting_through():
    one = fresh()
    for _ in range(40):
        one.start()

    one.note_failure(0.0, 39, is_probe=False)

    assert one.concurrency == math.inf


def test_what_happened_long_ago_does_not_count():
    one = fresh()
    for _ in range(1000):
        one.start()
        one.note_answer(0.0, is_probe=False)
    now = 200.0
    for _ in range(9):
        one.start()
        one.note_failure(now, 0, is_probe=False)

    assert one.concurrency < math.inf


def test_answers_bring_the_number_back_until_nothing_is_restricted():
    one, now = fresh(), 0.0
    one.concurrency, seen = 4.0, []
    while one.concurrency < math.inf:
        now += 0.5
        one.note_answer(now, is_probe=False)
        seen.append(one.concurrency)

    assert seen == sorted(seen)
    assert seen[:4] == [6.0, 6.0, 8.5, 8.5]  # once a second
    assert max(seen[:-1]) <= overload.UNRESTRICTED


def test_ten_failures_in_a_row_open_the_breaker_and_an_answer_between_them_does_not():
    one = fresh()
    for n in range(18):
        if n == 9:
            one.note_answer(0.0, is_probe=False)
        one.note_failure(0.0, 0, is_probe=False)
    assert one.since is None

    one.note_failure(0.0, 0, is_probe=False)
    assert one.since == 0.0


def test_while_the_breaker_is_open_one_probe_at_a_time_is_let_in():
    one = opened()

    assert one.wait(0.0) == pytest.approx(0.5)
    assert one.wait(0.5) == 0.0
    assert one.start()
    assert one.wait(100.0) == math.inf


def test_probes_come_ever_more_rarely_within_bounds():
    one = opened()

    probes = probed_out(one, 1000.0)

    gaps = [later - sooner for sooner, later in itertools.pairwise(probes)]
    assert gaps[0] == pytest.approx(0.5)
    assert gaps[-1] == pytest.approx(15.0)
    assert max(gaps) <= 15.0 + 1e-9
    assert all(
        max(0.5, 0.08 * at) - 1e-9 <= gap <= max(0.5, 0.12 * at) + 1e-9
        for at, gap in zip(probes, gaps, strict=False)
        if at < 100
    )


def test_a_probe_that_gets_through_closes_the_breaker_for_a_few_at_a_time():
    one = opened()
    assert one.wait(1.0) == 0.0
    one.start()

    one.note_answer(1.5, is_probe=True)

    assert one.wait(1.5) == 0.0
    assert not one.start()
    assert one.concurrency == 8


def test_after_an_outage_the_number_doubles_each_second_until_the_provider_is_too_busy():
    one = opened()
    one.start()
    one.note_answer(1.0, is_probe=True)
    seen = []
    for now in (1.5, 2.0, 3.0):
        one.note_answer(now, is_probe=False)
        seen.append(one.concurrency)
    assert seen == [8, 17, 35]

    for _ in range(100):
        one.start()
    one.note_failure(4.0, 3, is_probe=False)
    shrunk = one.concurrency
    one.note_answer(5.0, is_probe=False)
    assert one.concurrency == pytest.approx(1.25 * shrunk + 1)


def test_an_answer_to_a_call_from_before_does_not_close_the_breaker():
    one = opened()

    one.note_answer(0.1, is_probe=False)

    assert one.since == 0.0
    assert one.wait(0.2) > 0
    assert one.concurrency < 8


def test_a_failure_of_a_call_from_before_does_not_delay_the_probe():
    one = opened()
    before = one.wait(0.2)

    one.note_failure(0.2, 5, is_probe=False)

    assert one.wait(0.2) == before


def test_a_probe_that_was_given_up_is_followed_by_another_at_once():
    one = opened()
    one.start()

    one.note_cancelled(is_probe=True)

    assert one.wait(3.0) == 0.0


def test_a_call_given_up_while_a_probe_is_out_lets_no_second_one_in():
    one = opened()
    one.start()

    one.note_cancelled(is_probe=False)

    assert one.wait(3.0) == math.inf


def test_a_refusal_shows_that_the_provider_is_there():
    one = Admission(0.0, dice=random.Random(1))
    now = 0.0
    for _ in range(10):
        now += 1.0
        one.failed(now, one.start(now, Cost()))
    assert one._overload.since == now

    now += one.wait(now, Cost())
    one.refused(now + 0.1, one.start(now, Cost()), latency=0.1)

    assert one._overload.since is None


def test_a_call_that_was_let_in_before_the_outage_is_no_probe():
    one = Admission(0.0, dice=random.Random(1))
    early = one.start(0.0, Cost())
    for _ in range(10):
        one.failed(1.0, one.start(1.0, Cost()))
    one.accepted(1.1, early)

    assert not early.is_probe
    assert one.wait(1.1, Cost()) > 0


def test_failures_in_a_row_that_ask_to_wait_are_waited_for_exactly():
    one = Admission(0.0, dice=random.Random(1))

    for seconds in (9.0, 5.0, 7.0):
        one.failed(1.0, one.start(0.0, Cost()), retry_after=seconds)

    assert one.wait(1.0, Cost()) == 9.0
    assert one.wait(9.9, Cost()) == pytest.approx(0.1)
    assert one.wait(10.0, Cost()) == 0.0


def test_one_failure_that_asks_to_wait_holds_nobody_else_up():
    one = Admission(0.0, dice=random.Random(1))

    for now in range(10):
        one.failed(now, one.start(now, Cost()), retry_after=60.0)
        one.accepted(now, one.start(now, Cost()))

    assert one.wait(10.0, Cost()) == 0.0


@pytest.mark.parametrize("is_probe", [True, False])
def test_in_an_outage_whoever_asks_to_wait_puts_the_next_probe_off(is_probe):
    one = opened()
    if is_probe:
        one.start()

    one.note_failure(1.0, 0, is_probe=is_probe, retry_after=100.0)

    assert one.wait(1.0) == 100.0


def test_what_failed_in_an_outage_does_not_count_after_it():
    one = opened()
    one.calls = 1000.0
    one.start()
    one.note_answer(1.0, is_probe=True)
    for _ in range(8):
        one.start()
        one.note_answer(1.5, is_probe=False)

    one.note_failure(3.0, 0, is_probe=False)

    assert one.concurrency == 8


def test_calls_that_were_given_up_do_not_count_as_calls_that_failed():
    one = Overload(0.0, random.Random(1))
    for _ in range(30):
        one.start()
        one.note_cancelled(is_probe=False)

    assert one.calls == 0.0
