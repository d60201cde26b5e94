from __future__ import annotations

import pytest

from batch_llm import ConfigError, ParallelBatchProcessor, ProcessorConfig
from batch_llm.core import RateLimitConfig, RetryConfig


def test_defaults_are_those_of_the_contract():
    config = ProcessorConfig()

    assert (config.max_workers, config.timeout_per_item) == (5, 120.0)
    assert (config.progress_interval, config.enable_detailed_logging) == (10, False)
    assert config.max_queue_size == 0
    assert config.retry == RetryConfig(3, 1.0, 60.0, 2.0, jitter=True)
    assert config.rate_limit == RateLimitConfig(300.0, 50, 2.0, 0.1, 1.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ProcessorConfig(max_workers=0), "max_workers must be >= 1, got 0"),
        (ProcessorConfig(max_queue_size=-1), r"max_queue_size must be >= 0 \(0 = unlimited\)"),
        (ProcessorConfig(timeout_per_item=0), "timeout_per_item must be > 0"),
        (ProcessorConfig(progress_interval=-1), "progress_interval must be >= 0"),
        (ProcessorConfig(max_workers="5"), "max_workers must be >= 1, got '5'"),
        (ProcessorConfig(max_workers=2.5), "max_workers must be >= 1, got 2.5"),
        (ProcessorConfig(max_workers=None), "max_workers must be >= 1, got None"),
        (ProcessorConfig(timeout_per_item="1"), "timeout_per_item must be > 0"),
        (ProcessorConfig(hedge="drain"), "hedge must be True or False, got 'drain'"),
        (ProcessorConfig(limits=500), r"limits must be Limits\(...\), or None, got 500"),
        (RateLimitConfig(cooldown_seconds=None), "cooldown_seconds must be >= 0"),
        (RetryConfig(max_attempts=0), "max_attempts must be >= 1"),
        (RetryConfig(initial_wait=-1), "initial_wait must be >= 0"),
        (RetryConfig(initial_wait=2, max_wait=1), r"max_wait must be >= initial_wait \(2\)"),
        (RetryConfig(exponential_base=0.5), "exponential_base must be >= 1"),
        (RetryConfig(max_rate_limits=-1), "max_rate_limits must be >= 0"),
        (RateLimitConfig(cooldown_seconds=-1), "cooldown_seconds must be >= 0"),
        (RateLimitConfig(slow_start_items=-1), "slow_start_items must be >= 0"),
        (RateLimitConfig(slow_start_initial_delay=-1), "slow_start_initial_delay must be >= 0"),
        (RateLimitConfig(slow_start_final_delay=-1), "slow_start_final_delay must be >= 0"),
        (RateLimitConfig(backoff_multiplier=float("nan")), "backoff_multiplier must be >= 1"),
    ],
)
def test_an_impossible_value_is_named_with_its_bound(config, message):
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_the_processor_validates_nested_settings():
    config = ProcessorConfig(retry=RetryConfig(max_attempts=0))

    with pytest.raises(ConfigError, match="max_attempts"):
        ParallelBatchProcessor(config=config)


def test_plain_arguments_override_without_changing_the_callers_config():
    config = ProcessorConfig()

    processor = ParallelBatchProcessor(
        max_workers=7, timeout_per_item=3.0, rate_limit_cooldown=4.0, config=config
    )

    assert config == ProcessorConfig()
    assert processor.config.max_workers == 7
    assert processor.config.timeout_per_item == 3.0
    assert processor.config.rate_limit.cooldown_seconds == 4.0
