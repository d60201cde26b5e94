"""A limit on calls in flight is told from a rate limit, found, and kept."""

from __future__ import annotations

import math
import random

import pytest

from admissions import ONE, admission
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.admission.slots import LONGEST_TRIAL_SECONDS, TRIAL_SECONDS, Slots
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import CONCURRENCY, INPUT, REQUESTS
from virtual_lane import Lane, Reply


class Slotted:
    """Refuses a call when so many others are in work; an answer is a moment on its way back."""

    def __init__(self, slots, seed=1, *, names_it=False, seconds=(1.0, 3.0)):
        self.slots = slots
        self.seconds = seconds
        self.dice = random.Random(seed)
        self.dimension = CONCURRENCY if names_it else None
        self.busy_until = []

    def __call__(self, now):
        self.busy_until = [until for until in self.busy_until if until > now]
        if len(self.busy_until) >= self.slots:
            return Reply("refused", 0.1, dimension=self.dimension)
        seconds = self.dice.uniform(*self.seconds)
        self.busy_until.append(now + seconds)
        return Reply("taken", seconds + 0.02)


def learned(most=16):
    """Return ``Slots`` that have learned a limit."""
    one = Slots()
    assert [one.explains(most, is_first=True) for _ in range(4)] == [False, False, False, True]
    assert one.most == one.tried == most
    return one


def hold(one, others, *, since, seconds):
    """Let calls in beside so many others for so long; return the time of the last."""
    for tenth in range(round(10 * seconds) + 1):
        one.note_accepted(since + tenth / 10, others)
    return since + seconds


@pytest.mark.parametrize("seed", range(4))
def test_a_limit_on_calls_in_flight_is_found_and_kept(seed):
    one = Admission(0.0, dice=random.Random(seed))
    lane = Lane(one, Slotted(16, seed)).run(300)

    assert one._slots.most == 16
    assert lane.count("taken", 100, 300) > 0.93 * 200 * 16 / 2.0
    assert lane.count("refused", 100, 300) <= 10
    assert one.calls_per_second > 8.0  # it says nothing of a rate


def test_a_limit_that_a_refusal_names_is_believed_at_once_and_cuts_no_rate():
    one = Admission(0.0, dice=random.Random(1))
    lane = Lane(one, Slotted(8, names_it=True)).run(30)

    assert one._slots.most == 8
    assert len(lane.ends["refused"]) < 20
    assert one.known_limits() == [("concurrency", 8, "learned")]
    assert one.closed_until == 0.0


def test_a_limit_that_rises_is_followed_one_by_one():
    server = Slotted(8)
    one = Admission(0.0, dice=random.Random(1))
    lane = Lane(one, server).run(100)
    server.slots = 12
    lane.run(900)

    assert one._slots.most == 12


def test_a_limit_that_rises_is_followed_though_all_answers_take_the_same_time():
    server = Slotted(8, seconds=(2.0, 2.0))
    one = Admission(0.0, dice=random.Random(1))
    lane = Lane(one, server).run(100)
    assert one._slots.most == 8
    server.slots = 12
    lane.run(900)

    assert one._slots.most == 12


def test_a_limit_of_a_rate_with_few_calls_in_flight_is_used_though_taken_for_one_in_flight():
    """A bucket of tokens, calls of two sizes, and all answers after the same time."""
    dice, level, at, size, let_in = random.Random(5), 20_000.0, 0.0, 400.0, 0.0
    one = Admission(0.0, dimensions=(REQUESTS, INPUT), dice=random.Random(1))
    was_taken_for_one, now, under_way = False, 0.0, []
    while now < 600.0:
        cost = Cost(1.0, size, size)
        if (wait := one.wait(now, cost)) > 0:
            now = min([now + max(wait, 1e-3), *(end for end, _, _ in under_way)])
        else:
            level, at = min(20_000.0, level + 10_000.0 * (now - at)), now
            is_let_in = level >= size
            under_way.append((now + (0.3 if is_let_in else 0.1), one.start(now, cost), is_let_in))
            if is_let_in:
                level, let_in = level - size, let_in + size * (now >= 200.0)
                size = 2400.0 if dice.random() < 0.25 else 400.0
        for end in [end for end in under_way if end[0] <= now]:
            under_way.remove(end)
            if end[2]:
                one.accepted(now, end[1])
            else:
                one.refused(now, end[1], latency=0.1)
        was_taken_for_one = was_taken_for_one or one._slots.is_known

    assert was_taken_for_one
    assert let_in > 0.95 * 10_000.0 * 400.0


def test_a_limit_that_sinks_is_followed_within_a_few_refusals():
    server = Slotted(16)
    one = Admission(0.0, dice=random.Random(1))
    lane = Lane(one, server).run(100)
    server.slots = 14
    lane.run(200)

    assert one._slots.most in {13, 14}
    assert lane.count("refused", 110, 200) <= 5


def test_a_rate_limit_is_not_taken_for_one_on_calls_in_flight():
    level, at, dice = 20.0, 0.0, random.Random(1)

    def bucket(now):
        nonlocal level, at
        level, at = min(20.0, level + 20.0 * (now - at)), now
        if level < 1:
            return Reply("refused", 0.1)
        level -= 1
        return Reply("taken", dice.uniform(0.2, 3.0))

    one = Admission(0.0, dice=random.Random(1))
    lane = Lane(one, bucket).run(200)

    assert not one._slots.is_known
    assert lane.count("taken", 100, 200) == pytest.approx(2000, rel=0.05)


def test_nobody_starts_above_the_limit_until_a_call_ends():
    one = Admission(0.0, dice=random.Random(1))
    grants = [one.start(0.0, Cost()) for _ in range(3)]
    one.refused(0.1, grants.pop(), latency=0.1, dimension=CONCURRENCY)

    assert one.wait(1.0, Cost()) == math.inf
    one.accepted(1.0, grants.pop())
    assert one.wait(1.0, Cost()) == 0.0


def test_a_refusal_that_it_explains_cuts_no_rate_and_waits_for_itself_only():
    one = Admission(0.0, dice=random.Random(1))
    one._slots.told(1)
    first, second = one.start(0.0, Cost()), one.start(0.0, Cost())

    news = one.refused(0.1, second, latency=0.1, retry_after=2.0)

    assert news == (False, 2.0)
    assert one.budgets[REQUESTS].rate == math.inf
    assert one.closed_until == 0.0
    assert first.is_open


def test_refusals_at_about_the_same_number_in_flight_are_its_sign():
    one = Slots()

    assert [one.explains(n, is_first=True) for n in (17, 16, 18, 17)] == [False] * 3 + [True]
    assert one.most == 16


def test_refusals_at_different_numbers_in_flight_are_none():
    one = Slots()

    assert not any(one.explains(others, is_first=True) for others in (16, 20, 24, 16, 12, 20))


def test_after_a_different_number_the_count_begins_anew_there():
    one = Slots()

    assert [one.explains(n, is_first=True) for n in (16, 20, 20, 20, 20)] == [False] * 4 + [True]
    assert one.most == 20


def test_large_numbers_may_be_a_tenth_apart():
    one = Slots()

    assert [one.explains(n, is_first=True) for n in (100, 91, 95, 99)] == [False] * 3 + [True]


def test_a_call_let_in_above_those_numbers_speaks_against_it():
    within, above = Slots(), Slots()
    for one, others in ((within, 17), (above, 18)):
        for _ in range(3):
            one.explains(16, is_first=True)
        one.note_accepted(0.0, others)
        one.explains(16, is_first=True)

    assert within.is_known
    assert not above.is_known


def test_only_the_first_refusal_of_an_episode_counts():
    one = Slots()

    assert not any(one.explains(16, is_first=False) for _ in range(20))
    assert not any(one.explains(16, is_first=True) for _ in range(3))


def test_a_few_calls_in_flight_are_no_sign_whatever_their_number():
    one = Slots()

    assert not any(one.explains(3, is_first=True) for _ in range(20))
    assert [one.explains(4, is_first=True) for _ in range(4)][-1]


def test_a_named_limit_below_one_is_somebody_else_s():
    one = Slots()

    assert not one.told(0)
    assert not one.is_known
    assert one.told(1)
    assert one.most == 1


def test_a_named_limit_only_lowers_what_is_known():
    one = learned(16)

    assert one.told(20)
    assert one.most == 16
    assert one.told(12)
    assert one.most == one.tried == 12


def test_a_limit_held_long_enough_is_tried_one_higher_and_raised_when_that_works():
    one = learned(16)

    now = hold(one, 15, since=0.0, seconds=TRIAL_SECONDS)
    assert one.tried == 16
    hold(one, 15, since=now, seconds=0.2)
    assert (one.most, one.tried) == (16, 17)
    one.note_accepted(now, 16)
    assert one.most == one.tried == 17


def test_a_limit_that_is_not_used_up_is_not_tried():
    one = learned(16)
    now = hold(one, 15, since=0.0, seconds=15.0)
    now = hold(one, 14, since=now, seconds=1.6)

    hold(one, 15, since=now, seconds=15.0)

    assert one.tried == 16


def test_a_limit_is_used_up_though_calls_that_start_together_find_few_in_flight():
    one = learned(4)
    for volley in range(60):
        for others in range(4):
            one.note_accepted(0.4 * volley, others)

    assert one.tried == 5


def test_an_earlier_call_that_the_one_more_overtook_lowers_no_limit():
    one = learned()
    hold(one, 15, since=100.0, seconds=TRIAL_SECONDS + 0.2)
    assert one.tried == 17

    assert one.explains(15, is_first=True)

    assert one.most == one.tried == 16


def test_each_failed_trial_doubles_the_time_to_the_next_up_to_ten_minutes():
    one, now, times = learned(16), 0.0, []
    for _ in range(8):
        begun = now
        while one.tried == 16:
            now += 1.0
            one.note_accepted(now, 15)
        times.append(now - begun - 2)  # the first call begins the time, the last is past it
        assert one.explains(16, is_first=True)
        assert one.tried == one.most == 16

    assert times == [min(LONGEST_TRIAL_SECONDS, TRIAL_SECONDS * 2**n) for n in range(8)]


def test_a_refusal_just_below_the_limit_lowers_it():
    one = learned(16)

    assert one.explains(13, is_first=True)
    assert one.most == one.tried == 13


def test_a_refusal_far_below_the_limit_is_not_explained():
    one = learned(16)

    assert not one.explains(12, is_first=True)
    assert one.most == 16


def test_refusals_in_a_row_below_the_limit_refute_it_and_it_takes_twice_as_many_then():
    one = learned(16)
    for _ in range(3):
        assert not one.explains(5, is_first=True)

    assert not one.is_known
    found = [one.explains(16, is_first=True) for _ in range(8)]
    assert found == [False] * 7 + [True]


def test_refusals_below_the_limit_with_many_calls_between_them_do_not():
    one = learned(16)
    for _ in range(10):
        one.explains(5, is_first=True)
        for _ in range(101):
            one.note_accepted(0.0, 3)

    assert one.is_known


def test_refusals_below_the_limit_with_few_calls_between_each_refute_it():
    one = learned(16)
    for _ in range(3):
        for _ in range(60):
            one.note_accepted(0.0, 3)
        one.explains(5, is_first=True)

    assert not one.is_known


def test_the_rates_that_were_cut_because_of_it_are_back_when_it_is_found():
    one = Admission(0.0, dimensions=(REQUESTS,), dice=random.Random(1))
    for n in range(20):
        one.accepted(0.1 * n, one.start(0.1 * n, Cost()))
    one.refused(2.0, one.start(2.0, Cost()), latency=0.0)
    one.budgets[REQUESTS].peak = 10.0
    low = one.budgets[REQUESTS].rate
    first, second = one.start(9.0, Cost()), one.start(9.0, Cost())

    one.refused(9.1, second, latency=0.1, dimension=CONCURRENCY)

    assert first.is_open
    assert one.budgets[REQUESTS].rate == 10.0 > low


def test_finding_it_lowers_no_rate_that_the_search_has_raised():
    one = Admission(0.0, dimensions=(REQUESTS,), dice=random.Random(1))
    for n in range(20):
        one.accepted(0.1 * n, one.start(0.1 * n, Cost()))
    one.refused(2.0, one.start(2.0, Cost()), latency=0.0)
    one.budgets[REQUESTS].learn_rate(50.0)
    first, second = one.start(9.0, Cost()), one.start(9.0, Cost())

    one.refused(9.1, second, latency=0.1, dimension=CONCURRENCY)

    assert first.is_open
    assert one.budgets[REQUESTS].rate == 50.0


def test_while_fewer_calls_get_through_than_did_it_is_tried_all_the_time():
    """Twenty a second at 0.8 s in flight; then each takes twice as long."""
    one, now = learned(16), 0.0
    while now < 19.0:
        now += 0.05
        one.note_accepted(now, 15)
    assert one.tried == one.most == 16

    while now < 45.0 and one.most < 24:
        now += 1.6 / one.most
        one.note_accepted(now, int(one.tried) - 1)

    assert one.most == 24


def test_late_refusals_of_the_burst_that_showed_the_limit_are_no_failed_trials():
    one = learned(16)
    for _ in range(6):
        one.explains(17, is_first=False)

    now = 0.0
    while one.tried == 16:
        now += 1.0
        one.note_accepted(now, 15)
    assert now < TRIAL_SECONDS + 5


def test_a_named_limit_is_not_tried_at_once_after_each_refusal():
    one = learned(16)
    now = 0.0
    while one.tried == 16:
        now += 1.0
        one.note_accepted(now, 15)
    assert one.told(16)

    one.note_accepted(now + 1.0, 15)

    assert one.tried == one.most == 16


def test_a_named_limit_is_believed_though_headers_show_that_nothing_is_left():
    one = admission()
    grants = [one.start(0.0, ONE) for _ in range(6)]
    headers = {REQUESTS: LimitHeader(600.0, 0.0, 1.0)}
    refused = one.refused(0.1, grants[-1], latency=0.1, headers=headers, dimension=CONCURRENCY)

    assert not refused.is_news
    assert (CONCURRENCY, float(len(grants) - 1), "learned") in one.known_limits()


def test_a_limit_that_is_named_is_not_given_up_for_refusals_that_do_not_name_it():
    one = Slots()
    assert one.told(50)

    explained = [one.explains(beside, is_first=True) for beside in (49, 48, 3, 10, 20, 30)]

    assert explained == [False] * 6
    assert one.most == one.tried == 50
    assert one.told(40)
    assert one.most == 40
