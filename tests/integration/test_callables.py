"""SDKs and agents as they are used: what they are told of limits reaches admission."""

from __future__ import annotations

import openai
import pytest
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from batch_llm import Limits, LLMWorkItem, ParallelBatchProcessor, ProcessorConfig
from batch_llm.testing.simulator import simulator

__all__ = ["simulator"]
pytestmark = pytest.mark.anyio
LIMITED = pytest.mark.parametrize("simulator", ["fast?rpm=600&burst=1"], indirect=True)


@pytest.fixture
async def client(simulator):
    async with openai.AsyncOpenAI(
        base_url=simulator.base_url, api_key="any", max_retries=0
    ) as opened:
        yield opened


def direct(client):
    async def call(attempt, timeout):
        answer = await client.chat.completions.create(
            model="fast", messages=[{"role": "user", "content": "hi"}]
        )
        return answer.choices[0].message.content, answer.usage.model_dump()

    return {"direct_call": call}


def agent(client):
    model = OpenAIChatModel("fast", provider=OpenAIProvider(openai_client=client))
    return {"agent": Agent(model), "prompt": "hi"}


def factory(client):
    return {"agent_factory": lambda _: agent(client)["agent"], "prompt": "hi"}


@LIMITED
@pytest.mark.parametrize("mode", [direct, agent, factory])
async def test_a_refusal_tells_the_limit_whatever_wraps_it(client, mode):
    how = mode(client)
    built = ParallelBatchProcessor(config=ProcessorConfig(progress_interval=0))

    result = await built.process([LLMWorkItem(str(n), **how) for n in range(40)])

    assert result.succeeded == 40
    (known,) = [one for one in built.statistics().limits if one.dimension == "requests"]
    assert (known.limit, known.source) == (600.0, "header")
    assert known.lane.startswith("openai:fast 127.0.0.1" if mode is agent else "")


@LIMITED
async def test_without_a_refusal_an_agents_limits_are_not_seen(client):
    """Neither SDK hands the headers of a good answer on: docs/keys-and-lanes.md says so."""
    how = agent(client)
    built = ParallelBatchProcessor(config=ProcessorConfig(progress_interval=0))

    await built.process([LLMWorkItem(str(n), **how) for n in range(3)])

    assert built.statistics().limits == []


@pytest.mark.parametrize("simulator", ["fast?tpm=60k&burst=1"], indirect=True)
async def test_told_sizes_and_limits_of_callables_are_kept(client):
    """A hundred calls of 100 tokens at once are ten times the bucket of one second."""
    how = direct(client)
    sizes = {"estimated_input_tokens": 100, "estimated_output_tokens": 0}
    config = ProcessorConfig(
        progress_interval=0, limits=Limits(tokens_per_minute=60_000, burst_seconds=0.9)
    )
    built = ParallelBatchProcessor(config=config)

    result = await built.process([LLMWorkItem(str(n), **how, **sizes) for n in range(100)])

    assert result.succeeded == 100
    assert built.statistics().rate_limit_count == 0
