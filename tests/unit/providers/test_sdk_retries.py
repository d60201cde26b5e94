from __future__ import annotations

import logging
from types import SimpleNamespace

import openai
import pytest
from pydantic_ai import Agent
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.openai import OpenAIProvider

from batch_llm import LLMWorkItem, ParallelBatchProcessor
from batch_llm.providers.sdk_retries import SdkRetries, sdk_retries


def openai_model(retries=2, **settings):
    client = openai.AsyncOpenAI(api_key="any", max_retries=retries)
    provider = OpenAIProvider(openai_client=client)
    return OpenAIChatModel("gpt-4.1", provider=provider, settings=settings or None)


OFF = {"max_retries": 0}


@pytest.mark.parametrize(
    ("agent", "retries"),
    [
        (Agent(openai_model()), 2),
        (Agent(openai_model(5)), 5),
        (Agent(openai_model(0)), 0),
        (Agent(openai_model(), model_settings=OFF), 0),
        (Agent(openai_model(**OFF)), 0),
        (Agent(openai_model(), model_settings={"temperature": 0}), 2),
        (Agent(WrapperModel(openai_model())), 2),
        (Agent(FallbackModel(openai_model(0), openai_model(3))), 3),
        (Agent(TestModel()), 0),
        (Agent("openai:gpt-4.1", defer_model_check=True), 2),
        (Agent("google:gemini-2.5-pro", defer_model_check=True), 0),
        (SimpleNamespace(model=None), 0),
        (object(), 0),
    ],
)
def test_retries_of_an_sdk_are_seen_where_they_can_be(agent, retries):
    assert sdk_retries(agent) == retries


def test_it_is_said_once_with_what_to_do(caplog):
    looker = SdkRetries()

    with caplog.at_level(logging.WARNING, "batch_llm.agents"):
        for agent in (Agent(TestModel()), Agent(openai_model()), Agent(openai_model(3))):
            looker.look_at(agent)

    (record,) = caplog.records
    assert "'gpt-4.1'" in record.getMessage()
    assert "up to 2 times" in record.getMessage()
    assert "model_settings={'max_retries': 0}" in record.getMessage()


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_a_run_of_such_agents_says_it(caplog):
    agent = Agent(openai_model(), defer_model_check=True)

    async def run(prompt, **_more):
        return SimpleNamespace(output=prompt, usage=None)

    agent.run = run
    with caplog.at_level(logging.WARNING, "batch_llm.agents"):
        results = await ParallelBatchProcessor().process(
            [LLMWorkItem(str(n), agent=agent, prompt="hi") for n in range(5)]
        )

    assert results.succeeded == 5
    assert len(caplog.records) == 1
