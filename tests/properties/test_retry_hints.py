"""Whatever an exact bucket refuses, Retry-After never bounds its rate too low."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.retry_hints import RetryHints
from batch_llm.strategies.dimensions import REQUESTS
from virtual_lane import ExactBucket, Lane

rates, bursts = st.floats(0.05, 200), st.floats(1, 60)


@given(
    rate=rates,
    seconds=bursts,
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=200),
    is_whole=st.booleans(),
)
@settings(max_examples=200)
def test_the_bound_is_never_below_the_rate(rate, seconds, pauses, is_whole):
    bucket, hints, now, let_in = (
        ExactBucket(rate, max(1.0, rate * seconds), is_whole=is_whole),
        RetryHints(),
        0.0,
        0,
    )
    hints.begin()
    for pause in pauses:
        now += pause / rate
        reply = bucket(now)
        if reply.end == "refused":
            hints.note(now, reply.retry_after, 1.0, let_in / (60 + now))
        else:
            let_in += 1

    assert hints.most >= rate * (1 - 1e-6)
    assert hints.least <= hints.most


@given(seed=st.integers(0, 2**32), rate=st.floats(0.2, 50), seconds=bursts)
@settings(max_examples=30, deadline=None)
def test_the_controller_believes_the_bound_too(seed, rate, seconds):
    one = Admission(0.0, dimensions=(REQUESTS,), dice=random.Random(seed))
    Lane(one, ExactBucket(rate, max(1.0, rate * seconds))).run(min(120.0, 400 / rate))

    assert one._retry_after.hints.most >= rate * (1 - 1e-6)
