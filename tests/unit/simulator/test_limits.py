from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.simulator.limits import Bucket, FixedWindow, make_limit


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
    assert isinstance(make_limit(1, "bucket", 60, 0.0), Bucket)
