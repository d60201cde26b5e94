"""Hooks in the HTTP clients of agents' models, found whatever the SDK."""

from __future__ import annotations

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.groq import GroqModel
from pydantic_ai.models.mistral import MistralModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.groq import GroqProvider
from pydantic_ai.providers.mistral import MistralProvider
from pydantic_ai.providers.openai import OpenAIProvider

from batch_llm import ConfigError, agents
from batch_llm.exceptions import MissingKeyError, UnknownModelError
from batch_llm.providers.observed import _clients, _note, can_observe, observe

KEY = "any-key-will-do"
MODELS = {
    "openai": lambda: OpenAIResponsesModel("m", provider=OpenAIProvider(api_key=KEY)),
    "openai-chat": lambda: OpenAIChatModel("m", provider=OpenAIProvider(api_key=KEY)),
    "anthropic": lambda: AnthropicModel("m", provider=AnthropicProvider(api_key=KEY)),
    "google": lambda: GoogleModel("m", provider=GoogleProvider(api_key=KEY)),
    "groq": lambda: GroqModel("m", provider=GroqProvider(api_key=KEY)),
    "mistral": lambda: MistralModel("m", provider=MistralProvider(api_key=KEY)),
}


def hooks(agent):
    return [client.event_hooks["response"].count(_note) for client in _clients(agent)]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_each_models_client_gets_one_hook_however_often_it_is_observed(make):
    agent = Agent(make())

    assert can_observe(agent)
    assert observe(agent) is agent
    observe(agent.model)
    assert hooks(agent) == [1]


def test_models_within_models_are_observed():
    both = FallbackModel(MODELS["openai"](), MODELS["anthropic"]())

    observe(Agent(WrapperModel(both)))

    assert hooks(both) == [1, 1]


@pytest.mark.parametrize("agent", [Agent(TestModel()), Agent(), object()])
def test_what_has_no_http_client_cannot_be_observed(agent):
    assert not can_observe(agent)
    with pytest.raises(ConfigError, match="observe must be an agent or model over httpx"):
        observe(agent)


@pytest.mark.parametrize("prefix", MODELS)
def test_models_that_are_made_here_are_observed_and_do_not_retry(prefix):
    url = "http://127.0.0.1:1"

    made = agents.model(f"{prefix}:m", base_url=url, api_key=KEY)

    assert (made.model_name, hooks(made)) == ("m", [1])
    assert type(made) is type(MODELS[prefix]())
    assert url in made.base_url
    assert getattr(made.client, "max_retries", 0) == 0


def test_a_model_that_cannot_be_made_says_why(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    with pytest.raises(MissingKeyError, match="OPENAI_API_KEY"):
        agents.model("openai:m")
    with pytest.raises(UnknownModelError, match="opnai"):
        agents.model("opnai:m")
    with pytest.raises(ConfigError, match="base_url"):
        agents.model("bedrock:m", base_url="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("prefix", "url", "base"),
    [
        ("openai", "http://h/v1/responses", "http://h/v1"),
        ("openai-chat", "http://h/v1/chat/completions?a=b", "http://h/v1"),
        ("anthropic", "http://h/v1/messages", "http://h"),
        ("google", "http://h/v1beta/models/m:generateContent", "http://h"),
        ("groq", "http://h/openai/v1/chat/completions", "http://h"),
        ("mistral", "http://h/mistral/v1/chat/completions", "http://h/mistral"),
        ("vllm", "http://h/v1/chat/completions", "http://h/v1"),
    ],
)
def test_an_sdk_is_given_the_address_that_it_wants(prefix, url, base):
    assert agents.sdk_base_url(prefix, url) == base
