"""Tokens by model and kind, as the statistics tell them."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import (
    LLMWorkItem,
    MalformedResponseError,
    ParallelBatchProcessor,
    ProcessorConfig,
    Request,
    RetryConfig,
    StatusError,
    TransportError,
)
from batch_llm.core.request import Settings
from batch_llm.providers.base import LaneFacts, Outcome
from fakes import Classifier, PermanentError

FULL = {
    "input_tokens": 100,
    "output_tokens": 20,
    "total_tokens": 120,
    "cache_read_tokens": 30,
    "cache_write_tokens": 10,
    "reasoning_tokens": 5,
}


class Provider:
    """Answers with what it is told to, step by step; the last step for ever."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def lane(self, item, /):
        return item.request.model

    def facts(self, item, /):
        return LaneFacts(model=item.request.model, server="here")

    async def call(self, item, attempt, /):
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step


def item(name="a", model="x:m", **settings):
    return LLMWorkItem(name, request=Request.of(model, "Hi", settings=Settings(**settings)))


async def used(items, *steps, **options):
    config = ProcessorConfig(retry=RetryConfig(max_attempts=2, jitter=False))
    processor = ParallelBatchProcessor(config=config, requests=Provider(*steps), **options)
    await processor.process(items)
    return processor.statistics().usage


async def test_tokens_are_counted_by_kind_and_model():
    found = await used([item("a"), item("b"), item("c", "x:other")], Outcome("ok", FULL))

    assert [(one.model, one.server, one.calls) for one in found] == [
        ("x:m", "here", 2),
        ("x:other", "here", 1),
    ]
    assert found[0].input_tokens == 200
    assert found[0].cache_read_tokens == 60
    assert found[0].cache_write_tokens == 20
    assert found[0].reasoning_tokens == 10


async def test_failed_attempts_are_counted_too():
    found = await used([item()], Outcome(usage=FULL, error=ValueError("bad")), Outcome("ok", FULL))

    assert (found[0].calls, found[0].input_tokens) == (2, 200)


async def test_a_service_tier_is_counted_apart():
    items = [item("a", extra={"service_tier": "flex"}), item("b", extra={"service_tier": "auto"})]

    found = await used(items, Outcome("ok", FULL))

    assert [one.tier for one in found] == ["flex", "standard"]


async def test_long_calls_are_counted_apart():
    long = FULL | {"input_tokens": 250_000}

    found = await used([item("a"), item("b")], Outcome("ok", long), Outcome("ok", FULL))

    assert [one.context for one in found] == [5, 0]


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (TransportError("cut off in mid-body"), 2),
        (MalformedResponseError("half an answer"), 2),
        (TimeoutError(), 2),
        (TransportError("refused", was_never_sent=True), 0),
        (StatusError(500, "sorry"), 0),
        (StatusError(400, "no"), 0),
        (StatusError(401, "no"), 0),
    ],
)
async def test_calls_that_may_have_cost_are_counted_as_unmeasured(error, calls):
    found = await used([item()], error)

    assert sum(one.unmeasured_calls for one in found) == calls


async def test_a_call_that_was_abandoned_may_have_cost():
    class Slow(Provider):
        async def call(self, item, attempt, /):
            await asyncio.sleep(60)

    processor = ParallelBatchProcessor(requests=Slow(None))
    running = asyncio.create_task(processor.process([item()]))
    await asyncio.sleep(1)
    processor.stop(drain=False)
    await running

    assert processor.statistics().usage[0].unmeasured_calls == 1


async def test_an_agents_tokens_are_counted_under_its_models_name():
    class Model:
        model_name, system, base_url = "gpt-4o", "openai", "https://api.openai.com/v1/"

    class Agent:
        model = Model()

        async def run(self, prompt, **kwargs):
            raise PermanentError

    processor = ParallelBatchProcessor(error_classifier=Classifier())
    await processor.process([LLMWorkItem("a", agent=Agent(), prompt="Hi")])

    assert processor.statistics().usage == []  # a bad request costs nothing

    class Good(Agent):
        async def run(self, prompt, **kwargs):
            class Result:
                output, usage = "ok", FULL

            return Result()

    await processor.process([LLMWorkItem("a", agent=Good(), prompt="Hi")])

    (found,) = processor.statistics().usage
    assert (found.model, found.server) == ("openai:gpt-4o", "api.openai.com")


async def test_a_snapshot_does_not_change():
    processor = ParallelBatchProcessor(requests=Provider(Outcome("ok", FULL)))
    await processor.process([item()])

    before = processor.statistics().usage
    before[0].input_tokens = 0

    assert processor.statistics().usage[0].input_tokens == 100
