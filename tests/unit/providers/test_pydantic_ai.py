"""Real pydantic-ai agents, with its own test models instead of a provider."""

from __future__ import annotations

import pytest
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage

from batch_llm import LLMWorkItem
from fakes import processor

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """pydantic-ai uses worker threads, which virtual time does not wait for."""
    return "asyncio"


def spending_model(messages, info):
    return ModelResponse(
        parts=[TextPart("no good")], usage=RequestUsage(input_tokens=100, output_tokens=10)
    )


async def test_an_agent_answers_and_its_tokens_are_read():
    agent = Agent(TestModel(custom_output_text="Lima"))

    result = await processor().process(
        [LLMWorkItem(item_id="a", agent=agent, prompt="Capital of Peru?")]
    )

    one = result.results[0]
    assert (one.output, one.model) == ("Lima", "test")
    assert one.token_usage["input_tokens"] > 0
    assert one.token_usage["total_tokens"] == (
        one.token_usage["input_tokens"] + one.token_usage["output_tokens"]
    )


async def test_tokens_of_a_failed_run_are_counted():
    agent = Agent(FunctionModel(spending_model), retries=2)

    @agent.output_validator
    def never(output):
        raise ModelRetry("try again")

    built = processor()
    built.config.retry.max_attempts = 2
    result = await built.process([LLMWorkItem(item_id="a", agent=agent, prompt="hi")])

    one = result.results[0]
    assert one.error.startswith("UnexpectedModelBehavior: ")
    # Three requests per run (one and two retries), two attempts.
    assert one.token_usage["input_tokens"] == 600
    assert one.token_usage["output_tokens"] == 60


async def test_a_factory_can_change_the_temperature_per_attempt():
    seen = []

    def answer(messages, info):
        seen.append(info.model_settings["temperature"])
        if len(seen) < 3:
            raise ValueError("bad")
        return ModelResponse(parts=[TextPart("ok")])

    def factory(attempt):
        return Agent(
            FunctionModel(answer), model_settings={"temperature": [0.0, 0.25, 0.5][attempt - 1]}
        )

    result = await processor().process(
        [LLMWorkItem(item_id="a", agent_factory=factory, prompt="hi")]
    )

    assert result.succeeded == 1
    assert seen == [0.0, 0.25, 0.5]
