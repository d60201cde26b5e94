"""The official Mistral SDK takes the simulator for the service."""

from __future__ import annotations

import json
from contextlib import ExitStack

import httpx2
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import HTTPValidationError, ResponseValidationError, SDKError
from mistralai.client.utils import BackoffStrategy, RetryConfig
from pydantic import BaseModel

from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}


class City(BaseModel):
    name: str
    people: int
    districts: list[str]


def new_client(running, *, key="any", **options):
    options = {"timeout_ms": 10_000} | options
    return Mistral(server_url=running.sdk_url("mistral"), api_key=key, **options)


@pytest.fixture
def client():
    """Return a function that opens clients, which are closed after the test."""
    with ExitStack() as stack:
        yield lambda *where, **options: stack.enter_context(new_client(*where, **options))


def arguments(prompt="Capital of Peru?", *, model="mistral-x", **options):
    return {"model": model, "messages": [{"role": "user", "content": prompt}]} | options


def ask(api, *prompt, **options):
    return api.chat.complete(**arguments(*prompt, **options))


@pytest.fixture(scope="module")
def api(server):
    with new_client(server) as opened:
        yield opened


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_an_answer_has_all_that_the_sdk_reads(api):
    answer = ask(api)

    (choice,) = answer.choices
    assert choice.message.content.startswith(f"Answer {answer_digest('Capital of Peru?')}: ")
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert (answer.object, answer.model) == ("chat.completion", "mistral-x")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_conversation_goes_on(api):
    first = ask(api)
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Capital of Peru?"},
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And of Chile?"},
    ]
    again = api.chat.complete(model="mistral-x", messages=messages)

    digest = answer_digest("And of Chile?")
    assert again.choices[0].message.content.startswith(f"Answer {digest}: ")
    assert again.usage.prompt_tokens > first.usage.prompt_tokens


def test_images_are_taken_and_counted(api, image_base64):
    answer = ask(
        api,
        [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": f"data:image/png;base64,{image_base64}"},
        ],
    )

    text = answer.choices[0].message.content
    assert text.startswith(f"Answer {answer_digest('What is it?')}: ")
    assert answer.usage.prompt_tokens == ask(api, "What is it?").usage.prompt_tokens + 85


def test_structured_answers_fit_their_schema(api):
    parsed = api.chat.parse(City, **arguments("A city")).choices[0].message.parsed
    loose = ask(api, response_format={"type": "json_object"}).choices[0].message.content

    assert isinstance(parsed, City)
    assert isinstance(json.loads(loose), dict)


@pytest.mark.parametrize("choice", ["any", "required", {"function": {"name": "get_weather"}}])
def test_functions_are_called(api, choice):
    answer = ask(api, tools=[TOOL], tool_choice=choice).choices[0]
    (call,) = answer.message.tool_calls
    messages = [
        {"role": "user", "content": "use get_weather"},
        {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]},
        {"role": "tool", "content": "21 degrees", "tool_call_id": call.id, "name": "get_weather"},
    ]
    later = api.chat.complete(model="mistral-x", messages=messages, tools=[TOOL]).choices[0]

    assert (answer.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert len(call.id) == 9
    assert later.finish_reason == "stop"


def test_a_stream_gives_the_same_answer_in_pieces(api):
    whole = ask(api)
    with api.chat.stream(**arguments()) as stream:
        chunks = [event.data for event in stream]

    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_stream_can_call_a_function(api):
    with api.chat.stream(**arguments(tools=[TOOL], tool_choice="any")) as stream:
        *_, last = stream

    (call,) = last.data.choices[0].delta.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city"}


async def test_the_async_client_works_too(server):
    async with new_client(server) as opened:
        answer = await opened.chat.complete_async(**arguments())
        async with await opened.chat.stream_async(**arguments()) as stream:
            text = "".join([event.data.choices[0].delta.content async for event in stream])

    assert answer.choices[0].message.content == text


def test_models_are_listed(api):
    assert [model.id for model in api.models.list().data] == ["fast", "flaky", "slow"]
    assert api.models.retrieve(model_id="fast").capabilities.completion_chat


@pytest.mark.parametrize(
    ("fault", "status", "type_", "code"),
    [
        ("p408", 408, "timeout", None),
        ("p429", 429, "rate_limited", "1300"),
        ("pquota", 402, "payment_required", None),
        ("p500", 500, "internal_server_error", "1000"),
        ("p503", 503, "unreachable_backend", "1100"),
        ("p504", 504, "unreachable_backend", "1100"),
        ("p529", 429, "service_tier_capacity_exceeded", "3505"),
    ],
)
def test_errors_are_the_sdks_own(api, fault, status, type_, code):
    with pytest.raises(SDKError) as caught:
        ask(api, f"<<{fault}>> hi")

    error = caught.value
    assert error.status_code == status
    # Raw text, and flat.
    assert isinstance(error.body, str)
    told = json.loads(error.body)
    assert told == {"object": "error", "message": told["message"], "type": type_, "param": None,
                    "code": code}  # fmt: skip
    assert isinstance(error.headers, httpx2.Headers)
    assert isinstance(error.raw_response, httpx2.Response)
    assert str(error) == f"API error occurred: Status {status}. Body: {error.body}"
    assert not hasattr(error, "code")
    assert not hasattr(error, "response")
    # Not even a 429 says when to come back.
    assert not [name for name in error.headers if name.startswith("retry")]


@pytest.mark.parametrize(
    ("options", "status", "body"),
    [
        ({"key": "invalid"}, 401, {"detail": "Unauthorized"}),
        ({"key": "forbidden"}, 403, {"message": "Forbidden"}),
        ({"model": "missing-1"}, 400, {
            "object": "error", "message": "Invalid model: missing-1", "type": "invalid_model",
            "param": None, "code": "1500"}),
    ],
    ids=["key", "forbidden", "model"],
)  # fmt: skip
def test_keys_and_models_are_checked(server, client, options, status, body):
    options = dict(options)
    with pytest.raises(SDKError) as caught:
        ask(client(server, key=options.pop("key", "any")), **options)

    assert (caught.value.status_code, json.loads(caught.value.body)) == (status, body)


@pytest.mark.parametrize(
    ("options", "place", "type_"),
    [
        ({"max_tokens": 0}, ["body", "max_tokens"], "greater_than_equal"),
        ({"messages": []}, ["body", "messages"], "too_short"),
        ({"n": 200}, ["body", "n"], "less_than_equal"),
    ],
    ids=["max_tokens", "messages", "n"],
)
def test_bad_calls_are_told_field_by_field(api, options, place, type_):
    with pytest.raises(HTTPValidationError) as caught:
        ask(api, **options)

    error = caught.value
    (detail,) = error.data.detail
    assert (error.status_code, list(detail.loc), detail.type) == (422, place, type_)


def test_a_bad_schema_is_a_bad_request(api):
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "pasta"}}}
    with pytest.raises(SDKError, match="Invalid json schema") as caught:
        ask(api, response_format=shape)

    assert caught.value.status_code == 400


def test_a_prompt_that_is_too_long_is_named(client):
    with (
        Simulator("fast?latency=0&context=10") as running,
        pytest.raises(SDKError, match="too large for model with 10 maximum context") as caught,
    ):
        ask(client(running), "word " * 40)

    assert (caught.value.status_code, json.loads(caught.value.body)["code"]) == (400, "3051")


def test_transport_errors_are_not_wrapped(server, api, client):
    with pytest.raises(httpx2.ReadError):
        ask(api, "<<preset>> hi")
    with pytest.raises(httpx2.ReadTimeout):
        ask(client(server, timeout_ms=200), "<<ptimeout>> hi")
    with pytest.raises(ResponseValidationError) as caught:
        ask(api, "<<pgarbage>> hi")
    assert caught.value.status_code == 200
    with pytest.raises(SDKError) as caught:
        ask(api, "<<p502>> hi")
    assert (caught.value.status_code, caught.value.body[:6]) == (502, "<html>")


def test_what_went_wrong_with_an_answer_is_told(api):
    refused = ask(api, "<<prefuse>> hi").choices[0]
    withheld = ask(api, "<<pfilter>> hi").choices[0]
    cut = ask(api, "<<ptruncate>> hi").choices[0]

    # Nothing but the words tells of a refusal.
    assert refused.finish_reason == "stop"
    assert "cannot assist" in refused.message.content
    assert (withheld.finish_reason, withheld.message.content) == ("error", "")
    assert cut.finish_reason == "length"


def headers_of(running, use):
    """Return the headers of an answer, which the SDK keeps to itself."""
    seen = []
    raw = httpx2.Client(event_hooks={"response": [lambda response: seen.append(response.headers)]})
    with raw, new_client(running, client=raw) as opened:
        use(opened)
    return seen[0]


def stream_all(api):
    with api.chat.stream(**arguments()) as stream:
        return list(stream)


def test_limits_are_told_and_kept_in_fixed_minutes(client):
    with Simulator("fast?latency=0&rpm=2&tpm=10k") as running:
        api = client(running)
        headers = headers_of(running, ask)
        used = ask(api).usage
        with pytest.raises(SDKError, match="Requests rate limit exceeded") as caught:
            ask(api)
        stats = running.stats()

    told = {name: value for name, value in headers.items() if "ratelimit" in name}
    assert told == {
        "x-ratelimit-limit-req-minute": "2",
        "x-ratelimit-remaining-req-minute": "1",
        "x-ratelimit-limit-tokens-minute": "10000",
        # The answer counts as well.
        "x-ratelimit-remaining-tokens-minute": str(10_000 - used.total_tokens),
        "x-ratelimit-tokens-query-cost": str(used.total_tokens),
    }
    assert caught.value.status_code == 429
    assert caught.value.headers["x-ratelimit-remaining-req-minute"] == "0"
    assert "retry-after" not in caught.value.headers
    assert (stats.refused, stats.successes) == (1, 2)


def test_streams_tell_nothing_of_the_limits():
    with Simulator("fast?latency=0&rpm=9&tpm=10k") as running:
        headers = headers_of(running, stream_all)

    assert not [name for name in headers if "ratelimit" in name]


def test_cached_tokens_are_told():
    with Simulator("fast?latency=0&cached=0.5") as running, new_client(running) as api:
        usage = ask(api, "word " * 78).usage

    assert usage.prompt_tokens == 100
    assert usage.model_dump()["prompt_tokens_details"] == {"cached_tokens": 50}


def test_the_sdk_repeats_nothing_unless_it_is_told_to(server, api, client, stats):
    with pytest.raises(SDKError):
        ask(api, "<<p503>> hi")
    assert stats()["calls"] == 1

    eager = client(
        server, retry_config=RetryConfig("backoff", BackoffStrategy(1, 10, 1.5, 100), False)
    )
    with pytest.raises(SDKError):
        ask(eager, "<<p503>> hi")
    assert stats()["calls"] > 2
