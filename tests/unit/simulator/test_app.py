from __future__ import annotations

import statistics

from batch_llm.simulator import Profile
from batch_llm.simulator.app import SimulatorApp


def latencies(profile, count=2000):
    app = SimulatorApp(profile)
    return [app._draw_latency() for _ in range(count)]


def test_without_a_tail_every_answer_takes_the_same_time():
    assert set(latencies(Profile(latency=0.2))) == {0.2}


def test_a_tail_spreads_the_latency_around_its_median():
    drawn = latencies(Profile(latency=0.2, tail=1.0))

    assert 0.18 < statistics.median(drawn) < 0.22
    assert max(drawn) > 2.0


def test_the_same_seed_draws_the_same_latencies():
    assert latencies(Profile(tail=1, seed=1)) == latencies(Profile(tail=1, seed=1))
    assert latencies(Profile(tail=1, seed=1)) != latencies(Profile(tail=1, seed=2))
