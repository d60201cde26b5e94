"""Two programs on one key: hardly a refused call, and to each its part; alone nothing changes."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from admissions import ONE, admission, start_all
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.doubt import DOUBT_SHARED, Doubt
from batch_llm.strategies.admission.header_belief import (
    SILENT_SECONDS,
    TAKEN_SHARE,
    LimitHeader,
)
from batch_llm.strategies.admission.others import (
    LEAST_PACE,
    MISSING_CALLS,
    MOST_PACE,
    TAKEN_SECONDS,
    WARY_AGAIN_SECONDS,
    WARY_SECONDS,
    Others,
)
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS
from virtual_lane import Lane, Reply

RATE = 100.0


class SharedBucket:
    """Lets 100 a second in, holds so many seconds of them, and tells what is left.

    Args:
        holds_seconds: How many seconds.
        name: What it counts: requests, or tokens, of which each call takes one.
    """

    def __init__(self, holds_seconds, name=REQUESTS):
        self.name = name
        self.holds = self.left = RATE * holds_seconds
        self.at = 0.0
        self.dice = random.Random(1)

    def __call__(self, now):
        now = max(now, self.at)
        self.left, self.at = min(self.holds, self.left + (now - self.at) * RATE), now
        is_in = self.left >= 1
        self.left -= is_in
        reset = (self.holds - self.left) / RATE
        headers = {self.name: LimitHeader(60 * RATE, int(self.left), reset)}
        if is_in:
            return Reply("taken", self.dice.uniform(0.4, 0.6), None, None, headers)
        return Reply("refused", 0.02, 1.0, None, headers)


def race(programs, holds_seconds, seconds, run=0, name=REQUESTS):
    """Run programs side by side, each with an admission of its own."""
    provider = SharedBucket(holds_seconds, name)
    lanes = [
        Lane(
            Admission(0.0, None, dimensions=(name,), dice=random.Random(seed)),
            provider,
            cost=Cost(1.0, 1.0, 1.0),
        )
        for seed in range(100 * run, 100 * run + programs)
    ]
    for step in range(1, int(100 * seconds) + 1):
        for lane in lanes:
            lane.run(step / 100)
    return lanes


@pytest.mark.parametrize("holds_seconds", [1, 10])
@pytest.mark.parametrize(("programs", "fewest"), [(2, 0.8), (4, 0.7)])
def test_programs_on_one_key_use_it_up_with_few_refused_calls_and_each_gets_its_part(
    programs, fewest, holds_seconds
):
    used, refused, shares = [], [], []
    for run in range(5):
        lanes = race(programs, holds_seconds, 60, run)
        taken = [len(lane.ends["taken"]) for lane in lanes]
        used.append(sum(taken) / (RATE * (60 + holds_seconds)))
        refused.append(sum(len(lane.ends["refused"]) for lane in lanes) / sum(taken))
        shares.append(min(taken) / max(taken))

    assert statistics.median(used) > 0.9
    assert min(used) > 0.85
    assert statistics.median(refused) < 0.03
    assert max(refused) < 0.06
    assert statistics.median(shares) > fewest


def test_programs_share_a_limit_of_tokens_alike():
    shares, refused = [], []
    for run in range(3):
        lanes = race(3, 10, 60, run, TOKENS)
        taken = [len(lane.ends["taken"]) for lane in lanes]
        refused.append(sum(len(lane.ends["refused"]) for lane in lanes) / sum(taken))
        shares.append(min(taken) / max(taken))

    assert statistics.median(refused) < 0.03
    assert statistics.median(shares) > 0.7


def test_who_comes_later_gets_its_part_too():
    shares = []
    for run in range(5):
        provider = SharedBucket(2)
        lanes = [
            Lane(Admission(0.0, None, dimensions=(REQUESTS,), dice=random.Random(seed)), provider)
            for seed in range(100 * run, 100 * run + 3)
        ]
        for step in range(1, 6001):
            for lane in lanes[: 2 if step < 2000 else 3]:
                lane.run(step / 100)
        shares.append(lanes[2].count("taken", 25, 60) / (35 * RATE / 3))

    assert statistics.median(shares) > 0.8


def test_when_the_other_program_is_gone_all_of_the_limit_is_used():
    provider = SharedBucket(10)
    one, other = (
        Lane(Admission(0.0, None, dimensions=(REQUESTS,), dice=random.Random(seed)), provider)
        for seed in range(2)
    )
    for step in range(1, 9001):
        one.run(step / 100)
        if step < 3000:
            other.run(step / 100)

    assert one.count("taken", 50, 90) > 0.95 * 40 * RATE


def test_a_minutes_limit_that_is_kept_by_windows_of_seconds_refuses_less_than_a_fifth():
    """Headers tell the minute's limit, of which a twelfth may be sent in five seconds."""
    dice, windows = random.Random(1), {}

    def reply(now):
        window = int(now // 5)
        windows[window] = windows.get(window, 0) + 1
        left, reset = max(0, 500 - windows[window]), 5 - now % 5
        headers = {REQUESTS: LimitHeader(60 * RATE, left, reset)}
        if windows[window] <= 500:
            return Reply("taken", dice.uniform(0.4, 0.6), None, None, headers)
        return Reply("refused", 0.02, float(math.ceil(reset)), None, headers)

    one = Admission(0.0, None, dimensions=(REQUESTS,), dice=random.Random(1))
    lane = Lane(one, reply).run(60)

    assert len(lane.ends["taken"]) > 0.9 * 60 * RATE
    assert len(lane.ends["refused"]) < 0.2 * 60 * RATE


def others_beside(ours, theirs, holds=1000.0, seconds=4.0):
    """Return what is known of others after so much was taken a second, by us and by them."""
    others, left, spent, steps = Others(), holds, 0.0, 10
    others.note_answer(0.5)
    for number in range(int(seconds * steps)):
        left = min(holds, left + RATE / steps) - (ours + theirs) / steps
        spent += ours / steps
        others.note(number / steps, left, spent, holds, RATE)
    return others


@pytest.mark.parametrize("theirs", [0.0, 20.0, 150.0])
def test_what_others_take_is_what_is_missing(theirs):
    others = others_beside(120.0, theirs, seconds=3)

    assert others.rate == pytest.approx(theirs)
    assert others.are_there(TAKEN_SHARE * RATE, 1.0) == (theirs > 0)


def test_a_full_bucket_is_no_sign_of_others():
    others = others_beside(ours=10.0, theirs=0.0)

    assert others.rate == 0
    assert not others.are_there(TAKEN_SHARE * RATE, 1.0)


def test_a_few_calls_that_are_missing_are_no_sign_of_others():
    assert not others_beside(120.0, theirs=0.5).are_there(TAKEN_SHARE * RATE, 1.0)


def test_what_others_took_fades():
    others = others_beside(40.0, 150.0)
    assert others.are_there(TAKEN_SHARE * RATE, 1.0)

    left, spent = others._left, others._spent
    for number in range(1, 121):  # from now on only we take what comes back
        others.note(others.seen_at + 0.1, left, spent + number * RATE / 10, 1000.0, RATE)

    assert 3 * TAKEN_SECONDS < 12.0
    assert not others.are_there(TAKEN_SHARE * RATE, 1.0)


def test_the_pace_falls_with_what_is_left_and_is_the_same_for_all_who_see_it():
    def pace(left, taken):
        others = Others()
        others.note_answer(0.5)
        others.note(0.0, left, taken, 1000.0, RATE)
        return others.pace(0.0, taken, 1000.0, RATE, 1.0)

    paces = [pace(left, 0.0) for left in (0, 30, 75, 149, 1000)]

    assert paces == sorted(paces)
    assert LEAST_PACE == paces[0] <= 0.1  # a tenth of the limit for each of ten
    assert paces[-2] == pytest.approx(1.0, abs=0.05)
    assert paces[-1] == MOST_PACE
    assert pace(75, 0.0) == pace(75, 500.0)


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 1e6])
@pytest.mark.parametrize("holds", [1.0, 1e12])
def test_whatever_answers_take_and_buckets_hold_there_is_a_pace(seconds, holds):
    others = Others()
    others.note_answer(seconds)
    for at in (0.0, 1e-9, 1.0):
        others.note(at, holds, 0.0, holds, RATE)

        assert LEAST_PACE <= others.pace(at, 0.0, holds, RATE, 1e-9) <= MOST_PACE


def test_what_others_take_until_now_is_counted_when_a_header_is_old():
    others = others_beside(100.0, 100.0, holds=500.0)
    now, spent = others.seen_at, others._spent

    assert others.pace(now + 1, spent, 500, RATE, 1.0) == pytest.approx(
        others.pace(now, spent, 500, RATE, 1.0)
    )
    assert others.pace(now, spent + 50, 500, RATE, 1.0) < others.pace(now, spent, 500, RATE, 1.0)


def test_headers_say_too_little_of_a_bucket_that_is_full_again_before_they_arrive():
    small, large = others_beside(60.0, 60.0, holds=10.0), others_beside(60.0, 60.0, holds=100.0)
    for others, holds in ((small, 10.0), (large, 100.0)):
        others.pace(4.0, others._spent, holds, RATE, 1.0)

    assert small.is_small
    assert not large.is_small


def test_a_refusal_is_theirs_where_there_seemed_to_be_room():
    mine, theirs = Others(), Others()
    mine.note_refused(0.0, 1.0, MISSING_CALLS, 100.0)
    theirs.note_refused(0.0, 1.0, 50.0, 100.0)

    assert not mine.is_wary(0.5)
    assert theirs.is_wary(0.9 + WARY_SECONDS)
    assert not theirs.is_wary(1.1 + WARY_SECONDS)


def test_further_refusals_are_theirs_too_for_a_while():
    soon, late = Others(), Others()
    for others in (soon, late):
        others.note_refused(0.0, 0.0, 50.0, 100.0)
    soon.note_refused(WARY_AGAIN_SECONDS, WARY_AGAIN_SECONDS, 0.0, 100.0)
    after = WARY_SECONDS + WARY_AGAIN_SECONDS + 1
    late.note_refused(after, after, 0.0, 100.0)

    assert soon.is_wary(WARY_AGAIN_SECONDS + 1)
    assert not late.is_wary(after + 1)


@pytest.mark.parametrize("left", [0, 30])
def test_refusals_whose_headers_show_that_nothing_is_left_are_no_limit_on_calls_in_flight(left):
    """Where headers show enough left, refusals beside the same number in flight are one."""
    one, now = admission(dimensions=(REQUESTS,), max_in_flight=8), 0.0
    for number in range(8):
        now += 10.0
        grants = start_all(one, now)
        headers = {REQUESTS: LimitHeader(60 * RATE, 30, 1.0)}
        for grant in grants[:-1]:
            one.accepted(now + 0.1, grant, None, headers)
        headers = {REQUESTS: LimitHeader(60 * RATE, left, 1.0)}
        if number >= 3:
            one.refused(now + 0.2, grants[-1], latency=0.1, retry_after=1.0, headers=headers)
        else:
            one.accepted(now + 0.2, grants[-1], None, headers)

    assert one._slots.is_known == (left > 0)


def test_what_is_left_of_a_shared_limit_is_not_sent_for_at_once():
    doubt = Doubt(0.0, is_told=False)
    doubt.limit = 500.0

    doubt.keep_to(100.0, 1000.0)
    assert doubt.limit == 250
    doubt.keep_to(100.0, 0.0)
    assert doubt.limit == pytest.approx(1.2 * 100 * doubt.seconds)
    doubt.keep_to(0.1, 0.0)
    assert doubt.limit == DOUBT_SHARED


def test_what_a_closed_gate_saves_up_is_not_sent_in_one_burst_with_headers_either():
    one = admission(dimensions=(REQUESTS,))
    header = LimitHeader(6000, 50, 0.5)  # holds a second's calls
    for _ in range(2):
        one.accepted(0.1, one.start(0.0, ONE), None, {REQUESTS: header})
    for at in (1.0, 2.0):  # the first refusal may be that of calls sent before the headers
        grant = one.start(at, ONE)
        one.refused(at, grant, latency=0.0, retry_after=1.0, headers={REQUESTS: header})
        one.accepted(at, one.start(at, ONE))

    assert one.closed_until >= 3.0
    one.budgets[REQUESTS].refill(one.closed_until)
    assert one.budgets[REQUESTS].level <= 1


def sent_at_once(others_per_second):
    """Return the calls sent at once after four seconds with ten calls a second of ours."""
    one = admission(dimensions=(REQUESTS,))
    one._doubt.limit = 400.0
    left = 1000.0
    for number in range(40):
        now = 0.1 * number
        grant = one.start(now, ONE)
        left = min(1000.0, left + 0.1 * RATE) - 1 - 0.1 * others_per_second
        header = LimitHeader(60 * RATE, left, (1000 - left) / RATE)
        one.accepted(now + 0.01, grant, None, {REQUESTS: header})
    return len(start_all(one, now + 0.01))


def test_where_others_take_their_part_what_is_left_is_not_sent_for_at_once():
    assert sent_at_once(others_per_second=0) >= 400
    assert sent_at_once(others_per_second=190) <= 160  # a quarter of some 600 that are left


class Told:
    """A bucket of calls; what is told of it, is told by ``tells``, unless that is None."""

    def __init__(self, rate, holds, tells):
        self.rate, self.holds, self.tells = rate, holds, tells
        self.left, self.at = holds, 0.0

    def __call__(self, now):
        self.left, self.at = min(self.holds, self.left + (now - self.at) * self.rate), now
        is_in = self.left >= 1
        self.left -= is_in
        headers = self.tells(self, is_refused=not is_in)
        return Reply("taken" if is_in else "refused", 0.02, None, None, headers)


def header(limit, left, reset):
    return {REQUESTS: LimitHeader(limit, left, reset)}


def test_a_tiny_bucket_whose_reset_is_told_in_whole_seconds_shows_no_others():
    def tells(bucket, *, is_refused):
        reset = math.ceil((bucket.holds - bucket.left) / bucket.rate)
        return None if is_refused else header(60 * bucket.rate, int(bucket.left), reset)

    lane = Lane(admission(max_in_flight=1), Told(25.0, 1.0, tells)).run(60.0)

    assert len(lane.ends["taken"]) > 0.9 * 60 * 25
    assert len(lane.ends["refused"]) < 0.02 * len(lane.ends["taken"])


def test_headers_of_refusals_alone_show_no_others():
    def tells(bucket, *, is_refused):
        reset = (bucket.holds - bucket.left) / bucket.rate
        return header(60 * bucket.rate, int(bucket.left), reset) if is_refused else None

    one = admission(max_in_flight=200)
    for at in (0.0, 5.0, 10.0):
        grants = [one.start(at + number / 100, ONE) for number in range(20)]
        reply = header(600.0, 0.0, 60.0)
        one.refused(at + 0.3, grants.pop(), latency=0.1, retry_after=1.0, headers=reply)
        for grant in grants:
            one.accepted(at + 1.0, grant)
    assert not one.budgets[REQUESTS].headers.is_shared

    lane = Lane(admission(), Told(2.0, 250.0, tells)).run(600.0)
    assert lane.count("taken", 300.0, 600.0) > 0.9 * 300 * 2


def test_refusals_that_show_plenty_left_cut_the_rate_where_others_seem_to_be_too():
    def tells(bucket, *, is_refused):  # of another unit: each call seems to take a thousand
        reset = (bucket.holds - bucket.left) / bucket.rate
        return header(60_000 * bucket.rate, 1000 * bucket.left, reset)

    lane = Lane(admission(max_in_flight=4), Told(0.75, 45.0, tells)).run(2000.0)

    assert lane.count("taken", 1000.0, 2000.0) > 0.9 * 1000 * 0.75
    assert lane.count("refused", 1000.0, 2000.0) < 0.2 * 1000 * 0.75


def test_when_answers_tell_nothing_any_more_others_are_forgotten():
    one = admission()
    belief = one.budgets[REQUESTS].headers
    for number in range(50):  # each time as many again are missing
        now, left = number / 10, 1000.0 - 10 * number
        grant = one.start(now, ONE)
        one.accepted(now + 0.05, grant, headers=header(6000.0, left, (6000.0 - left) / 100))
    assert belief.is_shared

    one.accepted(5.5, one.start(5.4, ONE))
    assert belief.is_shared

    one.accepted(5.5 + SILENT_SECONDS, one.start(5.5 + SILENT_SECONDS, ONE))
    assert not belief.is_shared
    assert one.budgets[REQUESTS].pace == 1.0


def test_a_bucket_of_one_call_that_is_slower_than_told_shows_no_others():
    def tells(bucket, *, is_refused):
        return header(60.0, int(bucket.left), (bucket.holds - bucket.left) / bucket.rate)

    lane = Lane(admission(), Told(0.6, 1.0, tells)).run(2000.0)

    assert lane.count("taken", 1000.0, 2000.0) > 0.5 * 1000 * 0.6
    assert not lane.admission.budgets[REQUESTS].headers.is_shared
