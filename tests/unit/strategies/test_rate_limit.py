from __future__ import annotations

from batch_llm import ExponentialBackoffStrategy, FixedDelayStrategy


async def test_cooldowns_grow_exponentially_to_their_cap():
    strategy = ExponentialBackoffStrategy(
        initial_cooldown=10, max_cooldown=50, backoff_multiplier=2
    )

    assert [await strategy.on_rate_limit(0, count) for count in (1, 2, 3, 4, 9999)] == [
        10,
        20,
        40,
        50,
        50,
    ]


def test_the_ramp_goes_from_the_first_delay_towards_the_last():
    strategy = ExponentialBackoffStrategy(
        slow_start_items=4, slow_start_initial_delay=2.0, slow_start_final_delay=1.0
    )

    ramp = [strategy.should_apply_slow_start(item) for item in range(5)]

    assert ramp == [(True, 2.0), (True, 1.75), (True, 1.5), (True, 1.25), (False, 0.0)]


def test_no_ramp_when_it_has_no_items():
    strategy = ExponentialBackoffStrategy(slow_start_items=0)

    assert strategy.should_apply_slow_start(0) == (False, 0.0)


async def test_the_fixed_strategy_never_changes():
    strategy = FixedDelayStrategy(cooldown=7, delay_between_requests=0.5)

    assert [await strategy.on_rate_limit(0, count) for count in (1, 9)] == [7, 7]
    assert strategy.should_apply_slow_start(10_000) == (True, 0.5)
