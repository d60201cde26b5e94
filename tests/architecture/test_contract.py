"""What users' code calls by name, by place and by default: each is promised, and stays."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect

import pytest

import batch_llm as bl
from batch_llm.testing.mocks import MockUsage

NEEDED = inspect.Parameter.empty

#: In the order in which they can be given without names.
PROMISED = {
    bl.LLMWorkItem: {
        "item_id": NEEDED, "agent": None, "prompt": "", "context": None, "agent_factory": None,
        "direct_call": None, "input_data": None,
    },
    bl.ParallelBatchProcessor: dict.fromkeys([
        "max_workers", "batch_size", "post_processor", "timeout_per_item", "rate_limit_cooldown",
        "config", "error_classifier", "rate_limit_strategy", "middlewares", "observers",
    ]),
    bl.RetryConfig: {
        "max_attempts": 3, "initial_wait": 1.0, "max_wait": 60.0, "exponential_base": 2.0,
        "jitter": True,
    },
    bl.RateLimitConfig: {
        "cooldown_seconds": 300.0, "slow_start_items": 50, "slow_start_initial_delay": 2.0,
        "slow_start_final_delay": 0.1, "backoff_multiplier": 1.5,
    },
    bl.ErrorInfo: {
        "is_retryable": NEEDED, "is_rate_limit": NEEDED, "is_timeout": NEEDED,
        "error_category": NEEDED, "suggested_wait": None,
    },
    bl.ExponentialBackoffStrategy: {
        "initial_cooldown": 60, "max_cooldown": 600, "backoff_multiplier": 2,
        "slow_start_items": 50, "slow_start_initial_delay": 2.0, "slow_start_final_delay": 0.1,
    },
    bl.FixedDelayStrategy: {"cooldown": 300, "delay_between_requests": 1.0},
    bl.MockAgent: {
        "response_factory": None, "latency": 0.1, "failure_rate": 0.0,
        "rate_limit_on_call": None, "timeout_on_call": None,
    },
    bl.MockResult: {"output": NEEDED, "usage_info": None},
    MockUsage: {"request_tokens": 100, "response_tokens": 50},
}  # fmt: skip
#: By name only.
NAMED = {
    bl.ProcessorConfig: {
        "max_workers": 5, "timeout_per_item": 120.0, "progress_interval": 10,
        "enable_detailed_logging": False, "max_queue_size": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("made", PROMISED)
def test_arguments_keep_their_order_and_defaults(made):
    expected = PROMISED[made]

    first = list(inspect.signature(made).parameters.values())[: len(expected)]

    assert {one.name: one.default for one in first} == expected
    assert [one.name for one in first] == list(expected)
    assert all(one.kind is one.POSITIONAL_OR_KEYWORD for one in first)


@pytest.mark.parametrize("made", NAMED)
def test_settings_keep_their_defaults(made):
    settings = made()

    assert {name: getattr(settings, name) for name in NAMED[made]} == NAMED[made]
    assert settings.retry == bl.RetryConfig()
    assert settings.rate_limit == bl.RateLimitConfig()


def test_a_result_has_its_fields_in_order():
    names = [field.name for field in dataclasses.fields(bl.WorkItemResult)]

    assert names[:7] == [
        "item_id",
        "success",
        "output",
        "error",
        "context",
        "token_usage",
        "gemini_safety_ratings",
    ]
    assert dataclasses.is_dataclass(bl.LLMWorkItem)


def test_events_are_called_by_the_lower_case_of_their_names():
    promised = [
        "WORKER_STARTED",
        "WORKER_STOPPED",
        "ITEM_STARTED",
        "ITEM_COMPLETED",
        "ITEM_FAILED",
        "RATE_LIMIT_HIT",
        "COOLDOWN_STARTED",
        "COOLDOWN_ENDED",
        "BATCH_STARTED",
        "BATCH_COMPLETED",
    ]

    assert {event.name: event.value for event in bl.ProcessingEvent} == {
        name: name.lower() for name in promised
    }


def test_what_users_inherit_from_and_call_is_there():
    assert issubclass(bl.ParallelBatchProcessor, bl.BatchProcessor)
    assert inspect.isabstract(bl.BatchProcessor)
    for name in ("add_work", "process_all", "get_stats"):
        assert inspect.iscoroutinefunction(getattr(bl.ParallelBatchProcessor, name))
    for name in ("before_process", "after_process", "on_error"):
        assert inspect.iscoroutinefunction(getattr(bl.BaseMiddleware, name))
    assert inspect.iscoroutinefunction(bl.BaseObserver.on_event)
    assert inspect.iscoroutinefunction(bl.MetricsObserver.get_metrics)


@pytest.mark.parametrize("workers", [1, 4])
async def test_a_batch_size_is_accepted_and_changes_nothing(workers):
    async def seconds(**arguments):
        async def call(attempt, timeout):
            await asyncio.sleep(1)
            return attempt, {}

        processor = bl.ParallelBatchProcessor(max_workers=workers, **arguments)
        for number in range(10):
            await processor.add_work(bl.LLMWorkItem(str(number), direct_call=call))
        began = asyncio.get_running_loop().time()
        assert (await processor.process_all()).succeeded == 10
        return asyncio.get_running_loop().time() - began

    assert await seconds(batch_size=1) == await seconds(batch_size=7) == await seconds()


async def test_a_mock_says_what_its_factory_says():
    agent = bl.MockAgent(lambda prompt: f"<{prompt}>", latency=0.5)
    processor = bl.ParallelBatchProcessor()
    await processor.add_work(bl.LLMWorkItem("a", agent, "x"))

    (result,) = (await processor.process_all()).results

    assert (result.output, agent.call_count) == ("<x>", 1)
    assert result.token_usage["input_tokens"] == 100
    assert result.token_usage["output_tokens"] == 50
