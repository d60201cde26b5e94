from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.simulator.limits import Bucket, FixedWindow, SlidingWindow, make_limit


@given(
    st.floats(1, 1e5),
    st.floats(0.5, 120),
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 50)), max_size=60),
)
def test_no_more_passes_than_the_bucket_and_its_refill(per_minute, burst, steps):
    bucket, now, passed = Bucket(per_minute, burst, 0.0), 0.0, 0.0
    largest = 0.0
    for gap, amount in steps:
        now += gap
        if bucket.wait_for(amount, now) == 0:
            bucket.take(amount, now)
            passed, largest = passed + amount, max(largest, amount)

    size = max(1.0, per_minute / 60 * burst)
    assert passed <= size + now * per_minute / 60 + largest + 1e-6


@given(st.floats(1, 1e5), st.floats(0.5, 120), st.floats(0.1, 1e4))
def test_after_the_announced_wait_a_call_passes(per_minute, burst, amount):
    bucket = Bucket(per_minute, burst, 0.0)
    bucket.take(amount, 0.0)

    wait = bucket.wait_for(amount, 0.0)

    assert bucket.wait_for(amount, wait) == pytest.approx(0.0, abs=1e-6)


def test_a_bucket_refills_continuously():
    bucket = Bucket(60, 2.0, 0.0)
    bucket.take(2, 0.0)

    assert bucket.wait_for(1, 0.25) == 0.75
    assert bucket.wait_for(1, 1.0) == 0.0
    assert (bucket.remaining(), bucket.reset_seconds()) == (1, 1.0)


def test_a_call_larger_than_the_bucket_passes_when_it_is_full_and_leaves_a_debt():
    bucket = Bucket(60, 10.0, 0.0)

    assert bucket.wait_for(30, 0.0) == 0.0
    bucket.take(30, 0.0)
    assert bucket.wait_for(1, 0.0) == 21.0


def test_refused_calls_can_empty_a_bucket_but_leave_no_debt():
    bucket = Bucket(60, 2.0, 0.0)
    bucket.charge(50, 0.0)

    assert bucket.wait_for(1, 0.0) == 1.0


def test_a_fixed_window_starts_anew_each_minute():
    window = FixedWindow(2, 0.0)
    window.take(2, 10.0)

    assert window.wait_for(1, 50.0) == 10.0
    assert (window.remaining(), window.reset_seconds()) == (0, 10.0)
    assert window.wait_for(1, 60.0) == 0.0


def test_windows_keep_their_rhythm_over_idle_minutes():
    window = FixedWindow(1, 0.0)
    window.take(1, 190.0)

    assert window.wait_for(1, 200.0) == 40.0


def test_no_limit_is_none():
    assert make_limit(0, "bucket", 60, 0.0) is None
    assert isinstance(make_limit(1, "fixed", 60, 0.0), FixedWindow)
    assert isinstance(make_limit(1, "sliding", 60, 0.0), SlidingWindow)
    assert isinstance(make_limit(1, "bucket", 60, 0.0), Bucket)


def passed_by(limit, until, step):
    """Return when calls passed of a client that tries every ``step`` seconds."""
    times = []
    for number in range(round(until / step)):
        now = number * step
        if limit.wait_for(1, now) == 0:
            limit.take(1, now)
            times.append(now)
    return times


@pytest.mark.parametrize("kind", ["fixed", "sliding"])
def test_a_window_may_be_shorter_than_a_minute(kind):
    limit = make_limit(600, kind, 2.0, 0.0)

    assert len(passed_by(limit, 6.0, 0.01)) == 60
    assert limit.limit == 600


@pytest.mark.parametrize("kind", ["fixed", "sliding"])
def test_a_window_is_long_enough_for_one(kind):
    assert passed_by(make_limit(10, kind, 0.0, 0.0), 18.0, 1.0) == [0.0, 6.0, 12.0]


@given(
    st.floats(1, 600),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 20)), max_size=60),
)
def test_no_more_passes_in_any_window_than_a_sliding_limit(per_minute, steps):
    limit, now, passed = SlidingWindow(per_minute, 10.0), 0.0, []
    for gap, amount in steps:
        now += gap
        if limit.wait_for(amount, now) == 0:
            limit.take(amount, now)
            passed.append((now, amount))
        lately = [size for at, size in passed if at > now - 10.0 + 1e-6]
        assert sum(lately) <= max(per_minute / 6, *lately, 0) + 1e-6


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 15))
def test_a_sliding_limit_announces_the_first_moment_that_suffices(amounts, wanted):
    limit = SlidingWindow(60, 10.0)
    for number, amount in enumerate(amounts):
        limit.charge(amount, float(number) / 10)
    now = len(amounts) / 10

    wait = limit.wait_for(wanted, now)

    if wait > 0:
        assert limit.wait_for(wanted, now + wait - 0.001) > 0
    assert limit.wait_for(wanted, now + wait) == 0


def test_a_sliding_window_forgets_each_call_after_its_length():
    window = SlidingWindow(2)
    window.take(1, 0.0)
    window.take(1, 10.0)

    assert window.wait_for(1, 20.0) == 40.0
    assert (window.remaining(), window.reset_seconds()) == (0, 50.0)
    assert window.wait_for(1, 60.0) == 0.0
    assert (window.remaining(), window.reset_seconds()) == (1, 10.0)
    assert window.wait_for(2, 70.0) == 0.0
    assert window.reset_seconds() == 0.0


def test_a_call_larger_than_a_window_passes_when_nothing_else_did():
    window = SlidingWindow(2)

    assert window.wait_for(5, 0.0) == 0.0
    window.take(1, 0.0)
    assert window.wait_for(5, 1.0) == 59.0


def test_a_bucket_that_shrinks_loses_what_no_longer_fits():
    bucket = Bucket(600, 2.0, 0.0)
    bucket.take(20, 0.0)

    bucket.change(300, 1.0)  # 10 have come back; 10 is also what it holds now

    assert (bucket.limit, bucket.remaining()) == (300, 10)
    bucket.take(10, 1.0)
    assert bucket.wait_for(1, 1.0) == pytest.approx(0.2)


def test_a_bucket_that_grows_fills_up_at_its_new_rate():
    bucket = Bucket(60, 10.0, 0.0)

    bucket.change(120, 5.0)

    assert (bucket.remaining(), bucket.reset_seconds()) == (10, 5.0)


@pytest.mark.parametrize("kind", ["fixed", "sliding"])
def test_what_has_passed_counts_against_a_changed_window(kind):
    limit = make_limit(60, kind, 10.0, 0.0)
    limit.take(8, 0.0)

    limit.change(30, 1.0)

    assert (limit.limit, limit.remaining(), limit.wait_for(1, 1.0)) == (30, 0, 9.0)
    assert limit.wait_for(5, 10.0) == 0.0
    limit.take(5, 10.0)
    assert limit.wait_for(1, 10.0) == 10.0


LIMITS = {
    "bucket": lambda: Bucket(600, 60.0, 0.0),
    "fixed": lambda: FixedWindow(600, 0.0),
    "sliding": lambda: SlidingWindow(600),
}


@pytest.mark.parametrize("kind", LIMITS)
def test_what_was_not_needed_is_given_back(kind):
    limit = LIMITS[kind]()
    limit.take(500, 2.0)
    limit.take(50, 2.0)

    limit.give(400, 2.0, 2.0)

    assert limit.remaining() == 450
    assert limit.wait_for(450, 2.0) == 0
    assert limit.most == 600


@pytest.mark.parametrize("kind", LIMITS)
def test_nothing_is_given_back_twice(kind):
    limit = LIMITS[kind]()
    limit.take(500, 1.0)

    # More than a minute later all of it is there again.
    limit.give(500, 1.0, 70.0)
    assert limit.remaining() == 600
    limit.take(500, 70.0)
    limit.give(100, 1.0, 71.0)

    expected = {"bucket": 210, "fixed": 100, "sliding": 100}
    assert limit.remaining() == expected[kind]


@given(
    st.sampled_from(sorted(LIMITS)),
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(1, 200), st.floats(0, 1), st.floats(0, 40)),
        max_size=30,
    ),
)
def test_what_is_given_back_never_makes_more_than_the_limit(kind, steps):
    limit, now = LIMITS[kind](), 0.0
    for gap, amount, share, later in steps:
        now += gap
        limit.take(amount, now)
        limit.give(amount * share, now, now + later)
        now += later
        assert 0 <= limit.remaining() <= 600


@pytest.mark.parametrize("kind", LIMITS)
def test_a_limit_can_be_brought_up_to_the_moment(kind):
    limit = LIMITS[kind]()
    limit.take(600, 0.0)
    limit.refresh(61.0)

    assert limit.remaining() == 600
