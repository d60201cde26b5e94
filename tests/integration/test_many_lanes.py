"""Two models at two servers in one run, over sockets."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, RetryConfig
from batch_llm.core.request import Request
from batch_llm.providers.registry import resolve, resolve_pool
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import HttpTransport
from batch_llm.simulator.server import Simulator

pytestmark = pytest.mark.anyio


def interleaved(count):
    for n in range(count):
        model = "ab"[n % 2]
        yield LLMWorkItem(f"{model} {n}", request=Request.of(f"openai-chat:{model}", f"hi {n}"))


@pytest.mark.parametrize("config", [{}, {"max_workers": 4}])
async def test_a_model_whose_day_is_used_up_does_not_hold_up_the_other(config):
    with Simulator("fast?rpd=5&day=3600") as used_up, Simulator("fast") as free:
        urls = {"a": used_up.base_url, "b": free.base_url}
        transport = HttpTransport()
        environ = {"OPENAI_API_KEY": "any"}
        caller = RequestCaller(
            lambda model: resolve(model, base_url=urls[model[-1]], environ=environ), transport
        )
        processor = ParallelBatchProcessor(
            config=ProcessorConfig(progress_interval=0, **config), requests=caller
        )
        answered = set()
        # A lane that holds the other up would do so for an hour.
        async with (
            asyncio.timeout(60),
            contextlib.aclosing(processor.stream(interleaved(400))) as results,
        ):
            async for one in results:
                if one.success:
                    answered.add(one.item_id)
                if sum(name.startswith("b") for name in answered) == 200:
                    pauses = processor.statistics().pauses
                    break
        await transport.aclose()

    assert sum(name.startswith("b") for name in answered) == 200
    assert sum(name.startswith("a") for name in answered) <= 5
    assert [pause.lane for pause in pauses] == ["openai-chat:a"]


async def test_two_models_and_three_keys_in_one_run_do_not_hold_each_other_up():
    """Of the one two keys are refused; the other's day is used up, with each of its keys."""
    keys = {"FIRST_KEY": "good", "SECOND_KEY": "invalid", "THIRD_KEY": "forbidden"}
    with Simulator("fast?rpd=6&day=3600") as used_up, Simulator("fast") as free:
        urls = {"a": used_up.base_url, "b": free.base_url}
        transport = HttpTransport()
        caller = RequestCaller(
            lambda model: resolve_pool(
                model, base_urls=urls[model[-1]], keys=tuple(keys), environ=keys
            ),
            transport,
        )
        processor = ParallelBatchProcessor(
            config=ProcessorConfig(progress_interval=0, retry=RetryConfig(max_attempts=1)),
            requests=caller,
        )
        answered, failed = set(), []
        async with (
            asyncio.timeout(60),
            contextlib.aclosing(processor.stream(interleaved(400))) as results,
        ):
            async for one in results:
                (answered.add if one.success else failed.append)(one.item_id)
                if sum(name.startswith("b") for name in answered) == 200:
                    break
        await transport.aclose()

    assert sum(name.startswith("a") for name in answered) <= 6
    assert failed == []  # a key that is refused costs no attempt
