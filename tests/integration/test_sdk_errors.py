"""What the official SDKs and pydantic-ai raise means the same as the raw answer, over sockets."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager

import anthropic
import groq
import httpx
import httpx2
import openai
import pytest
from google import genai
from mistralai.client import Mistral
from pydantic_ai import Agent, exceptions
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.groq import GroqModel
from pydantic_ai.models.mistral import MistralModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.groq import GroqProvider
from pydantic_ai.providers.mistral import MistralProvider
from pydantic_ai.providers.openai import OpenAIProvider

from batch_llm.classifiers import DefaultErrorClassifier
from batch_llm.providers.sdk_retries import sdk_retries
from batch_llm.simulator.server import Simulator
from batch_llm.strategies.errors import code_of

# With aiohttp there, google-genai stands on it, in a way that aiohttp warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession")
classify = DefaultErrorClassifier().classify


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def simulator():
    with Simulator("fast?hang=600&retry_after=header") as running:
        yield running


def seconds_for(prompt):
    """Only a call that is never answered has little time."""
    return 0.5 if "<<ptimeout>>" in prompt else 60.0


def asking(prompt):
    return [{"role": "user", "content": prompt}]


async def with_openai(url, prompt, model, key):
    seconds = seconds_for(prompt)
    async with openai.AsyncOpenAI(
        base_url=url, api_key=key, max_retries=0, timeout=seconds
    ) as client:
        await client.responses.create(model=model, input=prompt)


async def with_openai_chat(url, prompt, model, key):
    seconds = seconds_for(prompt)
    async with openai.AsyncOpenAI(
        base_url=url, api_key=key, max_retries=0, timeout=seconds
    ) as client:
        await client.chat.completions.create(model=model, messages=asking(prompt))


async def with_anthropic(url, prompt, model, key):
    async with anthropic.AsyncAnthropic(
        base_url=url, api_key=key, max_retries=0, timeout=seconds_for(prompt)
    ) as client:
        await client.messages.create(model=model, max_tokens=50, messages=asking(prompt))


async def with_google(url, prompt, model, key):
    options = {"base_url": url, "timeout": int(1000 * seconds_for(prompt))}
    client = genai.Client(api_key=key, http_options=options)
    try:
        await client.aio.models.generate_content(model=model, contents=prompt)
    finally:
        await client.aio.aclose()
        client.close()


async def with_mistral(url, prompt, model, key):
    milliseconds = int(1000 * seconds_for(prompt))
    async with Mistral(api_key=key, server_url=url, timeout_ms=milliseconds) as client:
        await client.chat.complete_async(model=model, messages=asking(prompt))


async def with_groq(url, prompt, model, key):
    seconds = seconds_for(prompt)
    async with groq.AsyncGroq(base_url=url, api_key=key, max_retries=0, timeout=seconds) as client:
        await client.chat.completions.create(model=model, messages=asking(prompt))


SDKS = {
    "openai": with_openai,
    "openai-chat": with_openai_chat,
    "anthropic": with_anthropic,
    "google": with_google,
    "mistral": with_mistral,
    "groq": with_groq,
}


async def raised(simulator, provider, prompt="hi", model="m", key="any"):
    url = simulator.sdk_url(provider.removesuffix("-chat"))
    try:
        await SDKS[provider](url, prompt, model, key)
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        return error
    return None


def meaning(error):
    return None if error is None else code_of(classify(error).error_category).value


FAULTS = {
    "p429": "rate_limited",
    "p408": "timeout",
    "p500": "server_error",
    "p502": "server_error",
    "p503": "overloaded",
    "p504": "timeout",
    "p529": "overloaded",
    "pquota": "quota",
    "preset": "connection",
    "ptimeout": "timeout",
}
#: Where a provider says it otherwise; see ``test_providers``.
OTHERWISE = {
    ("google", "p529"): "rate_limited",
    ("mistral", "p529"): "rate_limited",
    ("groq", "p529"): "server_error",
    ("groq", "pquota"): "rate_limited",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("provider", SDKS)
async def test_each_failure_means_the_same_from_every_sdk(simulator, provider, fault):
    error = await raised(simulator, provider, f"<<{fault}>>")

    assert error is not None
    assert meaning(error) == OTHERWISE.get((provider, fault), FAULTS[fault]), repr(error)


@pytest.mark.parametrize("provider", SDKS)
async def test_an_unknown_model_and_a_bad_key_are_told_apart(simulator, provider):
    assert meaning(await raised(simulator, provider, model="missing-1")) == "not_found"
    assert meaning(await raised(simulator, provider, key="invalid")) == "auth"
    assert meaning(await raised(simulator, provider, key="forbidden")) == "auth"


@pytest.mark.parametrize("provider", ["openai-chat", "anthropic", "google", "groq"])
async def test_the_wait_that_a_provider_asks_for_is_found_in_its_sdks_exception(provider):
    with Simulator("fast?rpm=1&window=bucket") as running:
        await raised(running, provider)
        error = await raised(running, provider)

    assert classify(error).is_rate_limit
    assert 50 < classify(error).suggested_wait <= 61


@pytest.mark.parametrize("provider", SDKS)
async def test_a_server_that_is_not_there_is_a_connection_that_failed(provider):
    gone = Simulator("fast")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listened on: connections are refused
        gone.base_url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"

        assert meaning(await raised(gone, provider)) == "connection"


@pytest.mark.parametrize(
    "code",
    [
        *("insufficient_quota", "billing_hard_limit_reached", "credit_balance_exhausted"),
        *("organization_spend_limit_exceeded", "project_spend_limit_exceeded"),
        "organization_usage_limit_exceeded",
    ],
)
@pytest.mark.parametrize("provider", ["openai", "openai-chat"])
async def test_openais_six_quotas_are_no_rate_limits(simulator, provider, code):
    assert meaning(await raised(simulator, provider, f"<<pquota:{code}>>")) == "quota"


@pytest.mark.parametrize(
    "way",
    ["credit", "billing_error", "contract_spend_limit_reached", "enforced_spend_limit_reached"],
)
async def test_anthropics_ways_of_being_out_of_credit_are_no_rate_limits(simulator, way):
    assert meaning(await raised(simulator, "anthropic", f"<<pquota:{way}>>")) == "quota"


@asynccontextmanager
async def open_ai_model(simulator, provider):
    """Give pydantic-ai's model of a provider, with a client that is closed again."""
    url = simulator.sdk_url(provider.removesuffix("-chat"))
    library = httpx if provider == "groq" else httpx2
    async with library.AsyncClient(timeout=60) as client:
        settings = {"base_url": url, "api_key": "any", "http_client": client}
        if provider == "openai":
            yield OpenAIResponsesModel("m", provider=OpenAIProvider(**settings))
        elif provider == "openai-chat":
            yield OpenAIChatModel("m", provider=OpenAIProvider(**settings))
        elif provider == "anthropic":
            yield AnthropicModel("m", provider=AnthropicProvider(**settings))
        elif provider == "google":
            yield GoogleModel("m", provider=GoogleProvider(**settings))
        elif provider == "mistral":
            yield MistralModel("m", provider=MistralProvider(**settings))
        else:
            yield GroqModel("m", provider=GroqProvider(**settings))


AI_FAULTS = {name: code for name, code in FAULTS.items() if name not in {"preset", "ptimeout"}} | {
    "pfilter": "content_filter",
    "ptruncate": "truncated",
}
#: A cut answer that has text is an answer to pydantic-ai. Of answers that these two leave empty it
#: does not say why.
AI_OTHERWISE = OTHERWISE | {
    **{(provider, "ptruncate"): None for provider in SDKS},
    ("groq", "pfilter"): "bad_output",
    ("mistral", "pfilter"): "bad_output",
}


@pytest.mark.parametrize("fault", AI_FAULTS)
@pytest.mark.parametrize("provider", SDKS)
async def test_each_failure_means_the_same_from_pydantic_ai(simulator, provider, fault):
    async with open_ai_model(simulator, provider) as model:
        agent = Agent(model, model_settings={"max_retries": 0, "max_tokens": 50})
        try:
            await agent.run(f"<<{fault}>> Say so.")
        except exceptions.AgentRunError as error:
            found = meaning(error)
        else:
            found = None

    assert found == AI_OTHERWISE.get((provider, fault), AI_FAULTS[fault])


@pytest.mark.parametrize("provider", ["openai", "openai-chat", "anthropic", "groq"])
@pytest.mark.parametrize(("settings", "repeats"), [({"max_retries": 0}, 0), ({}, 2)])
async def test_what_turns_the_retries_of_an_sdk_off(provider, settings, repeats):
    with Simulator("fast") as running:
        async with open_ai_model(running, provider) as model:
            agent = Agent(model, model_settings={"max_tokens": 50} | settings)
            with pytest.raises(exceptions.AgentRunError):
                await agent.run("<<p500>>")
        stats = running.stats()

    assert (stats.calls, stats.sdk_retries) == (1 + repeats, repeats)
    assert sdk_retries(agent) == repeats
