"""The number of calls that gets most done is found, held, and found again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.strategies.knee import COLLAPSE_SAMPLE, FIRST_CALLS, Knee, work_of
from virtual_server import SharedServer, seconds_for

CALLS = 3000


def saturating(in_work, _in_house):
    """256 slots are worth having: from 128 on it is a fifth more."""
    return 6000 * in_work / (in_work + 60)


def thrashing(in_work, in_house):
    return saturating(in_work, in_house) * (0.6 if in_house > 300 else 1.0)


def four_slots(in_work, _in_house):
    return 160 * in_work / (in_work + 2)


def hold(knee, seconds, now=0.0, *, count=200, work=100.0):
    """Let calls that fill what is allowed end, all with one latency; return the time."""
    for _ in range(count):
        now += seconds / knee.concurrency
        knee.note_end(now, now - seconds, knee.concurrency - 1, work)
    return now


@pytest.mark.parametrize(("first", "at_most"), [(8, 1.12), (16, 1.09), (64, 1.05)])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_large_server_is_filled(first, at_most, seed):
    best = seconds_for(SharedServer(256, saturating, seed=seed), CALLS, fixed=256)
    knee = Knee(0.0, first, 1000)
    took = seconds_for(SharedServer(256, saturating, seed=seed), CALLS, knee=knee)

    assert took < at_most * best
    assert 190 <= knee.known <= 400


@pytest.mark.parametrize("seed", [1, 2])
def test_a_server_that_thrashes_is_left_where_it_does_not(seed):
    best = seconds_for(SharedServer(256, thrashing, seed=seed), CALLS, fixed=256)
    knee = Knee(0.0, FIRST_CALLS, 1000)
    took = seconds_for(SharedServer(256, thrashing, seed=seed), CALLS, knee=knee)
    unlimited = seconds_for(SharedServer(256, thrashing, seed=seed), CALLS, fixed=1000)

    assert took < 1.15 * best < 0.8 * unlimited
    assert knee.known <= 300


@pytest.mark.parametrize(("first", "last"), [(4, 12), (16, 24), (64, 80)])
def test_a_small_server_stays_busy_and_its_queue_does_not_grow(first, last):
    best = seconds_for(SharedServer(4, four_slots), CALLS, fixed=4)
    knee = Knee(0.0, first, 1000)
    took = seconds_for(SharedServer(4, four_slots), CALLS, knee=knee)

    assert took < 1.03 * best
    assert 3 <= knee.known <= last


@pytest.mark.parametrize("seed", range(4))
def test_latencies_that_vary_for_other_reasons_do_not_mislead_it(seed):
    best = seconds_for(SharedServer(256, saturating, seed=seed), CALLS, fixed=256)
    knee = Knee(0.0, FIRST_CALLS, 1000)
    noisy = SharedServer(256, saturating, seed=seed, noise=0.3)

    assert seconds_for(noisy, CALLS, knee=knee) < 1.25 * best


def test_nothing_is_learned_while_something_else_holds_the_calls_back():
    knee = Knee(0.0, 16, 1000)
    for n in range(1000):
        knee.note_end(float(n), n - 1.0, 14, 100.0)

    assert (knee.concurrency, knee.known) == (16, None)


def test_calls_from_before_a_change_say_nothing_of_it():
    knee = Knee(10.0, 16, 1000)
    for n in range(1000):
        knee.note_end(10.0 + n, 9.0, 15, 100.0)

    assert (knee.concurrency, knee.known) == (16, None)


def test_a_number_that_is_near_is_not_doubled():
    near, far = Knee(0.0, 100, 1000, is_near=True), Knee(0.0, 100, 1000)
    for knee in (near, far):
        hold(knee, 1.0, count=140)  # the first 100 were started before

    assert (near.concurrency, far.concurrency) == (100, 200)


def test_it_never_goes_beyond_the_most():
    knee = Knee(0.0, 16, 50)
    seen = set()
    now = 0.0
    for _ in range(100):
        now = hold(knee, 1.0, now, count=20)  # more is always better
        seen.add(knee.concurrency)

    assert max(seen) == 50
    assert Knee(0.0, 16, 5).concurrency == 5


def test_calls_that_come_to_nothing_are_no_goodput():
    knee = Knee(0.0, 16, 1000)
    now = hold(knee, 1.0, count=22)
    assert knee.concurrency == 32
    hold(knee, 1.0, now, count=60, work=0.0)  # as fast as before, and all of them time out

    assert (knee.concurrency, knee.known) == (16, 16)


def test_a_server_that_collapses_under_more_is_relieved_early():
    knee = Knee(0.0, 256, 1000, is_near=True)
    sizes, now = [], 0.0
    while knee.concurrency <= 256:
        seconds = 40.0 if knee.concurrency == 256 else 45.0
        now = hold(knee, seconds, now, count=1)
    assert knee.concurrency == 320
    for _ in range(320):
        now += 80.0 / 320  # what comes out is less than half; the new calls are not back
        knee.note_end(now, now - 80.0, 255, 100.0)
        sizes.append(knee.concurrency)

    assert COLLAPSE_SAMPLE <= sizes.index(256) <= 70


def test_trials_that_change_nothing_become_rare():
    knee = Knee(0.0, 100, 1000, is_near=True)
    now, trials, was = 0.0, [], 100
    for _ in range(20_000):  # any other number gets less done
        seconds = 1.0 if knee.concurrency == 100 else 1.5
        now = hold(knee, seconds, now, count=1)
        if knee.concurrency not in {100, was}:
            trials.append(now)
        was = knee.concurrency

    assert len(trials) < 20
    assert trials[-1] - trials[-2] > 4 * (trials[2] - trials[1])


def test_a_server_that_became_faster_gets_more():
    knee = Knee(0.0, 100, 1000, is_near=True)
    now = hold(knee, 1.0, count=150)
    for _ in range(40_000):  # twice as many are as good each
        now = hold(knee, max(1.0, knee.concurrency / 200), now, count=1)

    assert 180 <= knee.known <= 250


@given(
    first=st.integers(1, 500),
    most=st.integers(1, 500),
    is_near=st.booleans(),
    ends=st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 1000), st.integers(0, 600), st.floats(0, 1e9)),
        max_size=300,
    ),
)
def test_whatever_ends_the_number_stays_within_its_bounds(first, most, is_near, ends):
    knee, now = Knee(0.0, first, most, is_near=is_near), 0.0
    for elapsed, latency, others, work in ends:
        now += elapsed
        knee.note_end(now, now - latency, others, work)
        assert 1 <= knee.concurrency <= most
        assert knee.known is None or 1 <= knee.known <= most


def test_reading_is_less_work_than_writing():
    assert work_of(100, 0) < work_of(0, 100)
    assert work_of(0, 0) == 1.0


def test_a_start_that_is_too_high_is_halved():
    knee, now, seen = Knee(0.0, 64, 1000), 0.0, []
    for _ in range(4000):  # 10 slots: all others wait
        now = hold(knee, max(1.0, knee.concurrency / 10), now, count=1)
        if not seen or seen[-1] != knee.concurrency:
            seen.append(knee.concurrency)

    assert seen[:5] == [64, 128, 32, 16, 8]
    assert 10 <= knee.known <= 16


def test_where_nothing_gets_done_fewer_calls_are_tried():
    knee, now = Knee(0.0, 16, 1000), 0.0
    for _ in range(2000):
        now = hold(knee, 120.0, now, count=1, work=0.0 if knee.concurrency > 4 else 100.0)
        assert knee.concurrency <= 16

    assert 3 <= knee.known <= 5


def test_calls_that_end_at_the_same_moment_are_no_collapse():
    knee = Knee(0.0, 80, is_near=True)
    for second in range(8):
        concurrency = knee.concurrency
        for _ in range(concurrency):
            knee.note_end(second + 1.0, second, concurrency - 1, 1.0)

    assert knee.known > 80
