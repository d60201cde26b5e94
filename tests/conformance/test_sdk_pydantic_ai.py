"""pydantic-ai takes the simulator for each provider's service."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import anthropic
import groq
import httpx
import httpx2
import openai
import pytest
from google.genai import errors as google_errors
from mistralai.client.errors import SDKError
from pydantic import BaseModel, Field
from pydantic_ai import (
    Agent,
    BinaryContent,
    NativeOutput,
    PromptedOutput,
    RunUsage,
)
from pydantic_ai import exceptions as failures
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

from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator

#: Model class, provider class, whose base URL, the model's name (priced by genai-prices).
KINDS = {
    "chat": (OpenAIChatModel, OpenAIProvider, "openai", "gpt-4o"),
    "responses": (OpenAIResponsesModel, OpenAIProvider, "openai", "gpt-4o"),
    "anthropic": (AnthropicModel, AnthropicProvider, "anthropic", "claude-sonnet-4-6"),
    "google": (GoogleModel, GoogleProvider, "google", "gemini-2.5-flash"),
    "mistral": (MistralModel, MistralProvider, "mistral", "mistral-large-latest"),
    "groq": (GroqModel, GroqProvider, "groq", "llama-3.3-70b-versatile"),
}
ALL = pytest.mark.parametrize("kind", KINDS)
#: The SDKs' own retries are off; Anthropic's model streams unless it is told a limit.
SETTINGS = {"max_retries": 0}


class City(BaseModel):
    name: str
    people: int
    districts: list[str]


class Essay(BaseModel):
    text: str = Field(min_length=400)


@asynccontextmanager
async def opened(running, kind, *, key="any", name=None, settings=SETTINGS):
    model_class, provider_class, where, usual = KINDS[kind]
    # Certificates take their time to be read, and are of no use here. Only Groq's is the old httpx.
    library = httpx if kind == "groq" else httpx2
    async with library.AsyncClient(verify=False, timeout=10) as client:
        url = running.sdk_url(where)
        provider = provider_class(base_url=url, api_key=key, http_client=client)
        yield model_class(name or usual, provider=provider, settings=settings)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@ALL
async def test_an_agent_answers_and_goes_on(server, kind):
    async with opened(server, kind) as model:
        agent = Agent(model, instructions="Be short.")
        first = await agent.run("Capital of Peru?")
        again = await agent.run("And of Chile?", message_history=first.all_messages())

    assert first.output.startswith(f"Answer {answer_digest('Capital of Peru?')}: ")
    assert again.output.startswith(f"Answer {answer_digest('And of Chile?')}: ")
    assert first.response.finish_reason == "stop"
    assert first.response.provider_response_id
    assert again.usage.input_tokens > first.usage.input_tokens > 0
    assert first.usage.output_tokens > 0


@ALL
async def test_usage_is_normalised_and_priced(kind):
    with Simulator("fast?latency=0&cached=0.5&reasoning=1") as running:
        async with opened(running, kind) as model:
            result = await Agent(model).run("word " * 80)
        stats = running.stats()

    usage = result.usage
    assert (usage.requests, usage.input_tokens) == (1, stats.input_tokens)
    assert usage.cache_read_tokens == stats.cached_tokens > 0
    assert usage.output_tokens == stats.output_tokens
    if kind != "mistral":  # which does not tell of thought
        assert usage.output_reasoning_tokens == stats.reasoning_tokens > 0
    assert usage.cost > 0


async def test_anthropics_writes_to_the_cache_are_counted():
    with Simulator("fast?latency=0&cached=0.5&cache_writes=0.2") as running:
        async with opened(running, "anthropic") as model:
            usage = (await Agent(model).run("word " * 78)).usage

    assert (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens) == (100, 50, 10)
    assert usage.details["input_tokens"] == 40


@ALL
async def test_output_comes_as_the_call_of_a_function(server, kind):
    async with opened(server, kind) as model:
        result = await Agent(model, output_type=City).run("A city")

    assert isinstance(result.output, City)


@pytest.mark.parametrize("kind", ["chat", "responses", "anthropic", "google"])
async def test_output_comes_in_the_providers_own_way(server, kind):
    async with opened(server, kind) as model:
        result = await Agent(model, output_type=NativeOutput(City)).run("A city")

    assert isinstance(result.output, City)


@ALL
async def test_output_comes_as_text(server, kind):
    prompt = '<<echo>>{"name": "Lima", "people": 10, "districts": []}'
    async with opened(server, kind) as model:
        result = await Agent(model, output_type=PromptedOutput(City)).run(prompt)

    assert result.output.name == "Lima"


@ALL
async def test_functions_are_called_before_the_answer(server, kind):
    asked = []
    async with opened(server, kind) as model:
        agent = Agent(model, output_type=City)

        @agent.tool_plain
        def get_weather(city: str) -> str:
            asked.append(city)
            return "21 degrees"

        result = await agent.run("A city")

    assert len(asked) == 1
    assert isinstance(result.output, City)
    assert result.usage.requests == 2


@ALL
async def test_images_are_taken(server, kind, image):
    prompt = ["What is it?", BinaryContent(image, media_type="image/png")]
    async with opened(server, kind) as model:
        result = await Agent(model).run(prompt)

    assert result.output.startswith(f"Answer {answer_digest('What is it?')}: ")
    assert result.usage.input_tokens > 80


@ALL
async def test_streams_are_read(server, kind):
    async with opened(server, kind) as model:
        agent = Agent(model)
        whole = await agent.run("Capital of Peru?")
        async with agent.run_stream("Capital of Peru?") as stream:
            texts = [text async for text in stream.stream_text(debounce_by=None)]
        structured = Agent(model, output_type=City)
        async with structured.run_stream("A city") as stream:
            output = await stream.get_output()

    assert texts[-1] == whole.output
    assert len(texts) > 5
    assert isinstance(output, City)


async def test_anthropics_model_streams_unless_it_is_told_a_limit(server):
    async with opened(server, "anthropic") as model:
        agent = Agent(model)
        streamed = await agent.run("hi")
        whole = await agent.run("hi", model_settings={"max_tokens": 500})

    assert streamed.output == whole.output


SDK_ERRORS = {
    "chat": openai.APIStatusError,
    "responses": openai.APIStatusError,
    "anthropic": anthropic.APIStatusError,
    "google": google_errors.APIError,
    "mistral": SDKError,
    "groq": groq.APIStatusError,
}
UNAVAILABLE = failures.ModelUnavailableError
OVERLOADED = failures.ModelOverloadedError
LIMITED = failures.ModelRateLimitError
QUOTA = failures.ModelQuotaExceededError
PLAIN = failures.ModelHTTPError
#: By fault, then by model where it differs: class and status.
CATEGORIES = {
    "p408": {"all": (PLAIN, 408)},
    "p429": {"all": (LIMITED, 429)},
    "p500": {"all": (failures.ModelServerError, 500)},
    "p502": {"all": (failures.ModelServerError, 502)},
    "p503": {
        "all": (OVERLOADED, 503),
        # Nothing in these words says "overloaded".
        "anthropic": (UNAVAILABLE, 503),
        "mistral": (UNAVAILABLE, 503),
        "groq": (UNAVAILABLE, 503),
    },
    "p504": {"all": (failures.ModelServerError, 504)},
    "p529": {
        "all": (OVERLOADED, 529),
        "google": (LIMITED, 503),
        "mistral": (LIMITED, 429),
        "groq": (PLAIN, 498),
    },
    "pquota": {
        "all": (QUOTA, 429),
        "anthropic": (QUOTA, 400),
        "mistral": (QUOTA, 402),
        # They look like any other limit: only the body tells.
        "google": (LIMITED, 429),
        "groq": (LIMITED, 429),
    },
}


def body_of(error, kind):
    """Return the inner error of a body, whose shape depends on the provider."""
    if kind in {"chat", "responses"}:
        return error.body
    return json.loads(error.body) if kind == "mistral" else error.body["error"]


@ALL
async def test_errors_have_their_categories(server, kind):
    async with opened(server, kind) as model:
        for fault, categories in CATEGORIES.items():
            category, status = categories.get(kind, categories["all"])
            with pytest.raises(category) as caught:
                await Agent(model).run(f"<<{fault}>> hi")

            error = caught.value
            assert isinstance(error, PLAIN)
            assert error.status_code == status
            assert error.in_stream is False
            assert isinstance(error.__cause__, SDK_ERRORS[kind])
            assert error.headers["content-type"] in {"application/json", "text/html"}
            if fault != "p502":
                assert body_of(error, kind)["message"]
            if category is PLAIN:
                assert type(error) is PLAIN
            if fault == "p429":
                # Google tells it in the body, where nobody looks for it; Mistral does not tell it.
                waits = None if kind in {"google", "mistral"} else 1
                assert error.retry_after == waits


async def test_a_fraction_of_a_second_is_told_and_not_understood():
    with Simulator("fast?latency=0&retry_after=decimal") as running:
        async with opened(running, "chat") as model:
            with pytest.raises(LIMITED) as caught:
                await Agent(model).run("<<p429>> hi")

    assert caught.value.headers["retry-after"] == "0.300"
    assert caught.value.retry_after is None


@pytest.mark.parametrize("code", ["contract_spend_limit_reached", "enforced_spend_limit_reached"])
async def test_anthropics_spend_limits_pass_for_rate_limits(server, code):
    async with opened(server, "anthropic") as model:
        with pytest.raises(LIMITED) as caught:
            await Agent(model).run(f"<<pquota:{code}>> hi")

    error = caught.value
    assert error.provider_error_code is None
    assert error.body["error"]["details"]["error_code"] == code
    assert error.__cause__.error_code == code


async def test_groqs_too_large_call_is_no_rate_limit():
    with Simulator("fast?latency=0&tpm=100") as running:
        async with opened(running, "groq") as model:
            with pytest.raises(PLAIN) as caught:
                await Agent(model).run("hi", model_settings={"max_tokens": 200})

    error = caught.value
    assert type(error) is PLAIN
    assert (error.status_code, error.provider_error_code) == (413, "rate_limit_exceeded")


@ALL
async def test_keys_models_and_lengths_are_told_apart(server, kind):
    async with opened(server, kind, key="invalid") as model:
        with pytest.raises(failures.ModelAuthenticationError):
            await Agent(model).run("hi")
    async with opened(server, kind, name="missing-1") as model:
        # Mistral calls it an invalid request.
        missing = failures.ModelNotFoundError
        expected = failures.ModelRequestRejectedError if kind == "mistral" else missing
        with pytest.raises(expected):
            await Agent(model).run("hi")
    with Simulator("fast?latency=0&context=10") as running:
        async with opened(running, kind) as model:
            with pytest.raises(failures.ModelContextWindowExceededError):
                await Agent(model).run("word " * 40)


@ALL
async def test_transport_errors_say_their_phase(server, kind):
    async with opened(server, kind) as model:
        with pytest.raises(failures.ModelConnectionError) as reset:
            await Agent(model).run("<<preset>> hi")
        with pytest.raises(failures.ModelTimeoutError) as late:
            await Agent(model).run("<<ptimeout>> hi", model_settings={"timeout": 0.2})
        with pytest.raises(failures.ModelAPIError, match=r"JSON|validation") as broken:
            await Agent(model).run("<<pgarbage>> hi", model_settings={"max_tokens": 500})

    assert (reset.value.phase, late.value.phase) == ("read", "read")
    assert type(broken.value) is failures.ModelAPIError


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("chat", "prefuse"), ("chat", "pfilter"),
        ("responses", "prefuse"), ("responses", "pfilter"),
        ("anthropic", "pfilter"),
        ("google", "prefuse"), ("google", "pfilter"),
    ],
)  # fmt: skip
async def test_withheld_answers_are_content_filter_errors(server, kind, fault):
    async with opened(server, kind) as model:
        with pytest.raises(failures.ContentFilterError):
            await Agent(model).run(f"<<{fault}>> hi")


@pytest.mark.parametrize("kind", ["anthropic", "mistral", "groq"])
async def test_a_refusal_in_words_is_an_answer(server, kind):
    async with opened(server, kind) as model:
        result = await Agent(model).run("<<prefuse>> hi")

    assert "cannot assist" in result.output


@ALL
async def test_spoilt_output_uses_up_the_retries_and_is_paid_for(kind):
    usage = RunUsage()
    with Simulator("fast?latency=0") as running:
        async with opened(running, kind) as model:
            agent = Agent(model, output_type=City)
            with pytest.raises(failures.UnexpectedModelBehavior, match="output retries"):
                await agent.run("<<pschema>> hi", usage=usage)
        stats = running.stats()

    assert (usage.requests, stats.answers) == (2, 2)
    assert (usage.input_tokens, usage.output_tokens) == (stats.input_tokens, stats.output_tokens)


@ALL
async def test_output_that_was_cut_off_says_so(server, kind):
    async with opened(server, kind) as model:
        agent = Agent(model, output_type=Essay, model_settings={"max_tokens": 16})
        with pytest.raises(failures.UnexpectedModelBehavior) as caught:
            await agent.run("An essay")

    # Of Anthropic's functions, arguments that were cut off look like none at all.
    words = "output retries" if kind == "anthropic" else "token limit (16) exceeded"
    assert words in str(caught.value)


async def test_an_error_in_mid_stream_is_told_as_one(server):
    async with opened(server, "anthropic") as model:
        with pytest.raises(OVERLOADED) as caught:
            await Agent(model).run("<<pmidway>> hi")

    assert (caught.value.status_code, caught.value.in_stream) == (529, True)


async def test_a_failed_response_is_a_server_error_without_a_status(server):
    async with opened(server, "responses") as model:
        with pytest.raises(failures.ModelServerError, match="server_error") as caught:
            await Agent(model).run("<<pmidway>> hi")

    assert not isinstance(caught.value, PLAIN)


async def test_a_refused_connection_says_so():
    with Simulator("fast") as gone:
        pass
    async with opened(gone, "chat") as model:
        with pytest.raises(failures.ModelConnectionError) as caught:
            await Agent(model).run("hi")

    assert caught.value.phase == "connect"
    assert isinstance(caught.value.__cause__.__cause__, httpx2.ConnectError)


@pytest.mark.parametrize(
    ("kind", "calls"),
    [("chat", 3), ("responses", 3), ("anthropic", 3), ("groq", 3), ("google", 1), ("mistral", 1)],
)
async def test_the_sdks_repeat_unless_the_settings_say_no(kind, calls):
    with Simulator("fast?latency=0&retry_after=ms") as running:
        async with opened(running, kind, settings=None) as model:
            with pytest.raises(LIMITED):
                await Agent(model).run("<<p429>> hi")
            eager = running.stats()
            running.reset()
            with pytest.raises(LIMITED):
                await Agent(model).run("<<p429>> hi", model_settings=SETTINGS)
            strict = running.stats()

    assert (eager.calls, eager.sdk_retries) == (calls, calls - 1)
    assert (strict.calls, strict.sdk_retries) == (1, 0)
