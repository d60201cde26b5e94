"""Whose tokens an agent's requests are."""

from __future__ import annotations

import pytest
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage

from batch_llm import LLMWorkItem
from batch_llm.core.usage import equal_parts
from fakes import processor

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """pydantic-ai uses worker threads, which virtual time does not wait for."""
    return "asyncio"


def spending(sent, name):
    def answer(messages, info):
        usage = RequestUsage(input_tokens=sent, output_tokens=10)
        return ModelResponse(parts=[TextPart("answer")], usage=usage)

    return FunctionModel(answer, model_name=name)


async def used(agent):
    built = processor()
    built.config.retry.max_attempts = 1
    result = await built.process([LLMWorkItem("a", agent=agent, prompt="hi")])
    found = built.statistics().usage
    total = result.results[0].token_usage
    assert sum(one.input_tokens for one in found) == total["input_tokens"]
    assert sum(one.output_tokens for one in found) == total["output_tokens"]
    return found


def picky(agent, bad):
    seen = []

    @agent.output_validator
    def check(output):
        seen.append(output)
        if len(seen) <= bad:
            raise ModelRetry("again")
        return output

    return agent


async def test_a_sum_of_short_requests_is_not_priced_as_a_long_one():
    """Two requests of 20,000 tokens are below the first step; their sum is not."""
    (one,) = await used(picky(Agent(spending(20_000, "m"), retries=3), bad=1))

    assert (one.model, one.calls, one.context) == ("function:m", 2, 0)


async def test_so_it_is_when_the_run_fails():
    (one,) = await used(picky(Agent(spending(20_000, "m"), retries=1), bad=9))

    assert (one.calls, one.context, one.input_tokens) == (2, 0, 40_000)


async def test_requests_to_a_model_within_another_are_counted_under_its_name():
    def broken(messages, info):
        raise ModelRetry("never")

    model = FallbackModel(
        FunctionModel(broken, model_name="first"),
        spending(10, "second"),
        fallback_on=(ModelRetry,),
    )

    (one,) = await used(Agent(model))

    assert one.model.endswith(":second")


async def test_a_factory_s_tokens_are_those_of_the_model_that_it_chose():
    def factory(attempt):
        return Agent(spending(attempt, f"m{attempt}"), output_type=int, retries=0)

    built = processor()
    built.config.retry.max_attempts = 2
    await built.process([LLMWorkItem("a", agent_factory=factory, prompt="hi")])

    usage = {one.model: one.input_tokens for one in built.statistics().usage}
    assert usage == {"function:m1": 1, "function:m2": 2}


def test_equal_parts_keep_the_sum_and_what_is_contained_in_what():
    class Spent:
        requests = 3
        input_tokens, output_tokens, cache_read_tokens = 11, 2, 10

    parts = [usage for _, usage in equal_parts(Spent())]

    assert [one["input_tokens"] for one in parts] == [4, 4, 3]
    assert [one["cache_read_tokens"] for one in parts] == [4, 3, 3]
    assert sum(one["total_tokens"] for one in parts) == 13
