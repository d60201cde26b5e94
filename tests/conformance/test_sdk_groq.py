"""The official Groq SDK takes the simulator for the service."""

from __future__ import annotations

import json
import re

import groq
import httpx
import pytest
from groq import AsyncGroq, Groq
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


SHAPE = {
    "type": "json_schema",
    "json_schema": {"name": "City", "schema": City.model_json_schema()},
}


def client(running, *, key="any", **options):
    options = {"max_retries": 0, "timeout": 10.0} | options
    return Groq(base_url=running.sdk_url("groq"), api_key=key, **options)


def arguments(prompt="Capital of Peru?", *, model="llama-x", **options):
    return {"model": model, "messages": [{"role": "user", "content": prompt}]} | options


def ask(api, *prompt, **options):
    return api.chat.completions.create(**arguments(*prompt, **options))


@pytest.fixture(scope="module")
def api(server):
    with client(server) as opened:
        yield opened


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_an_answer_has_all_that_the_sdk_reads(api):
    raw = api.chat.completions.with_raw_response.create(**arguments())
    answer = raw.parse()

    (choice,) = answer.choices
    assert choice.message.content.startswith(f"Answer {answer_digest('Capital of Peru?')}: ")
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert (answer.object, answer.model) == ("chat.completion", "llama-x")
    assert answer.service_tier == "on_demand"
    assert answer.x_groq.id == raw.headers["x-request-id"]
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.total_time > 0
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_a_conversation_goes_on(api):
    first = ask(api)
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Capital of Peru?"},
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And of Chile?"},
    ]
    again = api.chat.completions.create(model="llama-x", messages=messages)

    digest = answer_digest("And of Chile?")
    assert again.choices[0].message.content.startswith(f"Answer {digest}: ")
    assert again.usage.prompt_tokens > first.usage.prompt_tokens


def test_images_are_taken_and_counted(api, image_base64):
    url = f"data:image/png;base64,{image_base64}"
    answer = ask(
        api,
        [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": url}},
        ],
    )

    text = answer.choices[0].message.content
    assert text.startswith(f"Answer {answer_digest('What is it?')}: ")
    assert answer.usage.prompt_tokens == ask(api, "What is it?").usage.prompt_tokens + 85


def test_structured_answers_fit_their_schema(api):
    City.model_validate_json(ask(api, response_format=SHAPE).choices[0].message.content)
    loose = ask(api, response_format={"type": "json_object"}).choices[0].message.content

    assert isinstance(json.loads(loose), dict)


def test_functions_are_called(api):
    answer = ask(api, tools=[TOOL], tool_choice="required").choices[0]
    (call,) = answer.message.tool_calls
    messages = [
        {"role": "user", "content": "use get_weather"},
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "content": "21 degrees", "tool_call_id": call.id},
    ]
    later = api.chat.completions.create(model="llama-x", messages=messages, tools=[TOOL])

    assert (answer.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert later.choices[0].finish_reason == "stop"


def test_a_stream_gives_the_same_answer_in_pieces(api):
    whole = ask(api)
    with ask(api, stream=True) as stream:
        chunks = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[0].x_groq.id == chunks[-1].x_groq.id
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].x_groq.usage.total_tokens == whole.usage.total_tokens


def test_a_stream_can_call_a_function(api):
    with ask(api, stream=True, tools=[TOOL], tool_choice="required") as stream:
        chunks = list(stream)

    (call,) = chunks[0].choices[0].delta.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_the_async_client_works_too(server):
    async with AsyncGroq(base_url=server.sdk_url("groq"), api_key="any", max_retries=0) as opened:
        answer = await opened.chat.completions.create(**arguments())
        stream = await opened.chat.completions.create(**arguments(stream=True))
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert answer.choices[0].message.content == text


def test_models_are_listed(api):
    assert [model.id for model in api.models.list().data] == ["fast", "flaky", "slow"]
    assert api.models.retrieve("fast").id == "fast"


@pytest.mark.parametrize(
    ("fault", "kind", "status", "error"),
    [
        ("p408", groq.APIStatusError, 408, {"type": "timeout"}),
        ("p429", groq.RateLimitError, 429, {"type": "requests", "code": "rate_limit_exceeded"}),
        ("pquota", groq.RateLimitError, 429, {"type": "tokens", "code": "rate_limit_exceeded"}),
        ("p500", groq.InternalServerError, 500, {"type": "internal_server_error"}),
        ("p503", groq.InternalServerError, 503, {"type": "internal_server_error"}),
        ("p504", groq.InternalServerError, 504, {"type": "internal_server_error"}),
        ("p529", groq.APIStatusError, 498, {"type": "tokens", "code": "capacity_exceeded"}),
    ],
)
def test_errors_are_the_sdks_own(api, fault, kind, status, error):
    with pytest.raises(kind) as caught:
        ask(api, f"<<{fault}>> hi")

    found = caught.value
    assert type(found) is kind
    assert found.status_code == status
    # The whole body, unlike with OpenAI's SDK.
    message = found.body["error"]["message"]
    assert found.body == {"error": {"message": message} | error}
    for absent in ("code", "type", "request_id"):
        assert not hasattr(found, absent)
    assert isinstance(found.response, httpx.Response)
    assert str(found) == f"Error code: {status} - {found.body}"
    assert found.response.headers["x-request-id"].startswith("req_")
    assert ("retry-after" in found.response.headers) == (status == 429)


def test_the_message_names_the_limit_and_the_wait(api):
    with pytest.raises(groq.RateLimitError) as caught:
        ask(api, "<<pquota>> hi")

    message = caught.value.body["error"]["message"]
    assert "Rate limit reached for model `llama-x` in organization `org_simulator`" in message
    assert "on tokens per day (TPD): Limit 100000, Used 99000, Requested 2000" in message
    assert "Please try again in 14m24s." in message
    assert caught.value.response.headers["retry-after"] == "864"


@pytest.mark.parametrize(
    ("options", "kind", "status", "code"),
    [
        ({"key": "invalid"}, groq.AuthenticationError, 401, "invalid_api_key"),
        ({"key": "forbidden"}, groq.PermissionDeniedError, 403, None),
        ({"model": "missing-1"}, groq.NotFoundError, 404, "model_not_found"),
        ({"messages": []}, groq.BadRequestError, 400, None),
        ({"max_completion_tokens": 0}, groq.BadRequestError, 400, None),
    ],
    ids=["key", "forbidden", "model", "messages", "max"],
)
def test_bad_calls_are_refused(server, options, kind, status, code):
    options = dict(options)
    with client(server, key=options.pop("key", "any")) as api, pytest.raises(kind) as caught:
        ask(api, **options)

    error = caught.value.body["error"]
    assert (caught.value.status_code, error.get("code")) == (status, code)
    assert error["type"] == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_named():
    with (
        Simulator("fast?latency=0&context=10") as running,
        client(running) as api,
        pytest.raises(groq.BadRequestError) as caught,
    ):
        ask(api, "word " * 40)

    error = caught.value.body["error"]
    assert error["code"] == "context_length_exceeded"
    assert "reduce the length of the messages" in error["message"]


def test_transport_errors_are_the_sdks_own(server, api):
    with pytest.raises(groq.APIConnectionError) as caught:
        ask(api, "<<preset>> hi")
    assert isinstance(caught.value.__cause__, httpx.ReadError)

    with client(server, timeout=0.2) as hasty, pytest.raises(groq.APITimeoutError):
        ask(hasty, "<<ptimeout>> hi")
    with pytest.raises(json.JSONDecodeError):
        ask(api, "<<pgarbage>> hi")
    with pytest.raises(groq.InternalServerError) as caught:
        ask(api, "<<p502>> hi")
    assert caught.value.body.startswith("<html>")


def test_what_went_wrong_with_an_answer_is_told(api):
    refused = ask(api, "<<prefuse>> hi").choices[0]
    cut = ask(api, "<<ptruncate>> hi").choices[0]

    # Nothing but the words tells of a refusal.
    assert (refused.finish_reason, "cannot assist" in refused.message.content) == ("stop", True)
    assert cut.finish_reason == "length"


def test_an_error_in_mid_stream_is_raised(api):
    with (
        ask(api, "<<pmidway>> hi", stream=True) as stream,
        pytest.raises(groq.APIError, match="Internal Server Error"),
    ):
        list(stream)


def go_seconds(text):
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:(\d+)ms)?", text).groups()
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in parts)
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def test_requests_are_told_per_day_and_tokens_per_minute():
    with Simulator("fast?latency=0&rpd=1440&tpm=6000") as running, client(running) as api:
        raw = api.chat.completions.with_raw_response.create(**arguments(max_tokens=1000))
        with pytest.raises(groq.InternalServerError) as caught:
            ask(api, "<<p500>> hi")

    used = raw.parse().usage.total_tokens
    headers = raw.headers
    assert headers["x-ratelimit-limit-requests"] == "1440"
    assert headers["x-ratelimit-remaining-requests"] == "1439"
    # A day has a minute for each request.
    assert 55 < go_seconds(headers["x-ratelimit-reset-requests"]) <= 60
    assert headers["x-ratelimit-limit-tokens"] == "6000"
    # What was reserved and not used is given back with the answer.
    remaining = int(headers["x-ratelimit-remaining-tokens"])
    assert 6000 - used - 1 <= remaining <= 6000
    assert go_seconds(headers["x-ratelimit-reset-tokens"]) <= used / 100
    assert "retry-after" not in headers
    # Failed calls tell of the limits too.
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "1438"


def test_prompt_and_longest_answer_are_reserved_together():
    with Simulator("fast?latency=0&tpm=6000") as running, client(running) as api:
        with pytest.raises(groq.APIStatusError) as caught:
            ask(api, max_tokens=5994)
        stats = running.stats()

    error = caught.value
    assert type(error) is groq.APIStatusError
    # Larger than the whole limit: no wait will heal it, whatever the headers say.
    assert (error.status_code, error.body["error"]["code"]) == (413, "rate_limit_exceeded")
    assert "Limit 6000, Used 0, Requested 6001" in error.body["error"]["message"]
    assert "retry-after" in error.response.headers
    assert (stats.refused, stats.answers) == (1, 0)


def test_a_used_up_day_says_so():
    with Simulator("fast?latency=0&rpd=1") as running, client(running) as api:
        ask(api)
        with pytest.raises(groq.RateLimitError) as caught:
            ask(api)

    message = caught.value.body["error"]["message"]
    assert "on requests per day (RPD): Limit 1, Used 1, Requested 1" in message
    assert int(caught.value.response.headers["retry-after"]) > 86_000


def test_the_parts_of_the_usage_are_told():
    with Simulator("fast?latency=0&cached=0.5&reasoning=1") as running, client(running) as api:
        usage = ask(api, "word " * 78).usage

    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (100, 50)
    thought = usage.completion_tokens_details.reasoning_tokens
    assert usage.completion_tokens == 2 * thought


def test_the_sdk_repeats_by_itself_unless_it_is_told_not_to():
    with (
        Simulator("fast?latency=0&retry_after=ms") as running,
        client(running, max_retries=2) as api,
    ):
        with pytest.raises(groq.RateLimitError):
            ask(api, "<<p429>> hi")
        stats = running.stats()

    assert (stats.calls, stats.sdk_retries) == (3, 2)
