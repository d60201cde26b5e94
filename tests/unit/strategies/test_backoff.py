from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from batch_llm import RetryConfig
from batch_llm.strategies.backoff import wait_before_retry

seconds = st.floats(min_value=0.0, max_value=1e6)
configs = st.builds(
    lambda initial, extra, base, jitter: RetryConfig(
        initial_wait=initial, max_wait=initial + extra, exponential_base=base, jitter=jitter
    ),
    seconds,
    seconds,
    st.floats(min_value=1.0, max_value=1e6),
    st.booleans(),
)


def highest(_low, high):
    return high


@given(configs, st.integers(min_value=1, max_value=10_000))
def test_the_wait_stays_within_its_bounds(config, failures):
    wait = wait_before_retry(failures, config, uniform=random.uniform)

    assert 0.0 <= wait <= config.max_wait


@given(configs, st.integers(min_value=1, max_value=10_000))
def test_the_longest_wait_never_shrinks(config, failures):
    now = wait_before_retry(failures, config, uniform=highest)

    assert wait_before_retry(failures + 1, config, uniform=highest) >= now


@given(configs, st.integers(min_value=1), st.floats(min_value=-10, max_value=1e9))
def test_the_provider_has_the_last_word(config, failures, suggested):
    wait = wait_before_retry(failures, config, uniform=random.uniform, suggested=suggested)

    assert wait == max(0.0, suggested)


def test_waits_grow_by_the_base_up_to_the_cap():
    config = RetryConfig(initial_wait=1.0, max_wait=10.0, exponential_base=3.0, jitter=False)

    waits = [wait_before_retry(n, config, uniform=highest) for n in (1, 2, 3, 4)]

    assert waits == [1.0, 3.0, 9.0, 10.0]
