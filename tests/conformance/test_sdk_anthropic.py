"""The official Anthropic SDK takes the simulator for the service."""

from __future__ import annotations

import json
import urllib.request
from datetime import UTC, datetime, timedelta

import anthropic
import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator

TOOL = {
    "name": "get_weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


class City(BaseModel):
    name: str
    people: int
    districts: list[str]


def client(running, *, key="any", **options):
    options = {"max_retries": 0, "timeout": 10.0} | options
    return Anthropic(base_url=running.sdk_url("anthropic"), api_key=key, **options)


def arguments(prompt="Capital of Peru?", *, model="claude-x", max_tokens=500, **options):
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "max_tokens": max_tokens, "messages": messages} | options


def ask(api, *prompt, **options):
    return api.messages.create(**arguments(*prompt, **options))


@pytest.fixture(scope="module")
def api(server):
    with client(server) as opened:
        yield opened


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_a_message_has_all_that_the_sdk_reads(api):
    answer = ask(api, system="Be short.")

    (block,) = answer.content
    assert block.text.startswith(f"Answer {answer_digest('Capital of Peru?')}: ")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "claude-x")
    assert (answer.stop_reason, answer.stop_sequence, answer.stop_details) == (
        "end_turn", None, None,
    )  # fmt: skip
    assert answer.id.startswith("msg_")
    assert answer._request_id.startswith("req_")
    usage = answer.usage
    assert usage.input_tokens > 0
    assert usage.output_tokens > 0
    assert (usage.cache_creation_input_tokens, usage.cache_read_input_tokens) == (0, 0)
    assert usage.service_tier == "standard"


def test_a_conversation_goes_on_with_blocks(api):
    first = ask(api)
    again = api.messages.create(
        model="claude-x",
        max_tokens=500,
        system=[{"type": "text", "text": "Be short."}],
        messages=[
            {"role": "user", "content": "Capital of Peru?"},
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [{"type": "text", "text": "And of Chile?"}]},
        ],
    )

    assert again.content[0].text.startswith(f"Answer {answer_digest('And of Chile?')}: ")
    assert again.usage.input_tokens > first.usage.input_tokens


def test_images_are_taken_and_counted(api, image_base64):
    source = {"type": "base64", "media_type": "image/png", "data": image_base64}
    answer = ask(
        api,
        [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}],
    )

    assert answer.content[0].text.startswith(f"Answer {answer_digest('What is it?')}: ")
    assert answer.usage.input_tokens == ask(api, "What is it?").usage.input_tokens + 1600


def test_structured_answers_fit_their_schema(api):
    parsed = api.messages.parse(**arguments("A city"), output_format=City)

    assert isinstance(parsed.parsed_output, City)


def test_functions_are_called(api):
    answer = ask(api, tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"})
    (call,) = answer.content
    later = api.messages.create(
        model="claude-x",
        max_tokens=500,
        tools=[TOOL],
        messages=[
            {"role": "user", "content": "use get_weather"},
            {"role": "assistant", "content": answer.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "21"}],
            },
        ],
    )

    assert (answer.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "get_weather")
    assert set(call.input) == {"city"}
    assert later.stop_reason == "end_turn"
    assert ask(api, "use get_weather", tools=[TOOL]).stop_reason == "tool_use"
    assert ask(api, "hi", tools=[TOOL]).stop_reason == "end_turn"


def test_a_stream_is_read_by_the_sdks_helper(api):
    whole = ask(api)
    with api.messages.stream(**arguments()) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens == whole.usage.input_tokens


def test_the_events_of_a_stream_are_the_services(api):
    with ask(api, stream=True) as stream:
        events = list(stream)

    kinds = [event.type for event in events]
    assert kinds[:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0].message.stop_reason is None
    assert events[-2].delta.stop_reason == "end_turn"
    with urllib.request.urlopen(raw_request(api, stream=True)) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = answer.read().decode()
    assert text.startswith("event: message_start\ndata: {")
    assert 'event: ping\ndata: {"type":"ping"}\n\n' in text


def raw_request(api, headers=None, **options):
    body = json.dumps(arguments(**options)).encode()
    return urllib.request.Request(
        f"{str(api.base_url).rstrip('/')}/v1/messages",
        data=body,
        headers=headers or {"authorization": "Bearer any"},
    )


def test_older_sdks_send_their_key_in_a_header_of_its_own(api):
    with urllib.request.urlopen(raw_request(api, {"x-api-key": "any"})) as answer:
        assert json.loads(answer.read())["type"] == "message"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(raw_request(api, {"x-api-key": "invalid"}))
    with caught.value as refused:
        assert (refused.code, json.loads(refused.read())["error"]["type"]) == (
            401, "authentication_error",
        )  # fmt: skip


def test_streams_give_structured_answers_and_calls_of_functions(api):
    with api.messages.stream(**arguments("A city"), output_format=City) as stream:
        parsed = stream.get_final_message().parsed_output
    with api.messages.stream(**arguments(), tools=[TOOL], tool_choice={"type": "any"}) as stream:
        (call,) = stream.get_final_message().content

    assert isinstance(parsed, City)
    assert set(call.input) == {"city"}


def test_thought_comes_first_where_it_is_asked_for():
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with Simulator("fast?latency=0&reasoning=1") as running, client(running) as api:
        silent = ask(api)
        loud = ask(api, thinking=thinking)
        with api.messages.stream(**arguments(thinking=thinking)) as stream:
            streamed = stream.get_final_message()
        starved = ask(api, max_tokens=10)

    assert [block.type for block in silent.content] == ["text"]
    assert [block.type for block in loud.content] == ["thinking", "text"]
    assert [block.type for block in streamed.content] == ["thinking", "text"]
    assert streamed.content[0].signature == loud.content[0].signature
    usage = loud.usage
    assert usage.output_tokens == 2 * usage.output_tokens_details.thinking_tokens
    assert (starved.stop_reason, starved.content) == ("max_tokens", [])


async def test_the_async_client_works_too(server):
    async with AsyncAnthropic(
        base_url=server.sdk_url("anthropic"), api_key="any", max_retries=0
    ) as opened:
        answer = await opened.messages.create(**arguments())
        async with opened.messages.stream(**arguments()) as stream:
            text = await stream.get_final_text()

    assert answer.content[0].text == text


def test_models_are_listed_and_tokens_counted(api):
    assert [model.id for model in api.models.list()] == ["fast", "flaky", "slow"]
    assert api.models.retrieve("fast").display_name == "fast"
    with pytest.raises(anthropic.NotFoundError):
        api.models.retrieve("missing-1")
    messages = [{"role": "user", "content": "Capital of Peru?"}]
    counted = api.messages.count_tokens(model="claude-x", messages=messages)
    assert counted.input_tokens == ask(api).usage.input_tokens


@pytest.mark.parametrize(
    ("fault", "kind", "status", "type_"),
    [
        ("p408", anthropic.RequestTimeoutError, 408, "timeout_error"),
        ("p429", anthropic.RateLimitError, 429, "rate_limit_error"),
        ("p500", anthropic.InternalServerError, 500, "api_error"),
        ("p503", anthropic.ServiceUnavailableError, 503, "api_error"),
        ("p504", anthropic.GatewayTimeoutError, 504, "timeout_error"),
        ("p529", anthropic.OverloadedError, 529, "overloaded_error"),
        ("pquota", anthropic.BadRequestError, 400, "invalid_request_error"),
    ],
)
def test_errors_are_the_sdks_own(api, fault, kind, status, type_):
    with pytest.raises(kind) as caught:
        ask(api, f"<<{fault}>> hi")

    error = caught.value
    assert type(error) is kind
    assert (error.status_code, error.type, error.error_code) == (status, type_, None)
    assert error.request_id == error.response.headers["request-id"]
    assert isinstance(error.response, httpx2.Response)
    # The whole body, which repeats the request's id.
    assert error.body == {
        "type": "error",
        "error": {"type": type_, "message": error.api_message},
        "request_id": error.request_id,
    }
    assert str(error) == f"Error code: {status} - {error.body}"
    assert not hasattr(error, "code")
    assert ("retry-after" in error.response.headers) == (fault == "p429")
    assert error.response.headers["anthropic-organization-id"]


@pytest.mark.parametrize(
    ("word", "kind", "status"),
    [
        ("contract_spend_limit_reached", anthropic.ContractSpendLimitReachedError, 429),
        ("enforced_spend_limit_reached", anthropic.EnforcedSpendLimitReachedError, 429),
        ("ramp_limit_exceeded", anthropic.RampLimitExceededError, 429),
        ("linked_organization_spend_limit_reached", anthropic.PaymentRequiredError, 402),
        ("linked_organization_billing_unavailable", anthropic.PaymentRequiredError, 402),
    ],
)
def test_a_used_up_budget_has_a_class_of_its_own(api, word, kind, status):
    with pytest.raises(kind) as caught:
        ask(api, f"<<pquota:{word}>>")

    error = caught.value
    assert (error.status_code, error.error_code) == (status, word)
    assert error.body["error"]["details"] == {"error_code": word}
    assert isinstance(error, anthropic.RateLimitError) == (status == 429)
    assert ("retry-after" in error.response.headers) == (word == "ramp_limit_exceeded")


def test_other_troubles_with_money_are_told_by_status_or_by_words_alone(api):
    with pytest.raises(anthropic.PaymentRequiredError) as unpaid:
        ask(api, "<<pquota:billing_error>>")
    with pytest.raises(anthropic.BadRequestError) as empty:
        ask(api, "<<pquota>>")

    assert unpaid.value.type == "billing_error"
    assert "Your credit balance is too low to access the Anthropic API" in empty.value.api_message


@pytest.mark.parametrize(
    ("options", "kind", "status", "type_"),
    [
        ({"key": "invalid"}, anthropic.AuthenticationError, 401, "authentication_error"),
        ({"key": "forbidden"}, anthropic.PermissionDeniedError, 403, "permission_error"),
        ({"model": "missing-1"}, anthropic.NotFoundError, 404, "not_found_error"),
    ],
    ids=["key", "forbidden", "model"],
)
def test_keys_and_models_are_checked(server, options, kind, status, type_):
    key = options.pop("key", "any")
    with client(server, key=key) as api, pytest.raises(kind) as caught:
        ask(api, **options)

    assert (caught.value.status_code, caught.value.type) == (status, type_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": [{"role": "robot", "content": "hi"}]},
         "messages.0.role: Input should be 'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
         "messages.0.content.0: text content blocks must be non-empty"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "pasta"}}}},
         "output_config.format.schema: Invalid schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}},
         "Tool 'x' not found in provided tools"),
    ],
    ids=["max_tokens", "messages", "role", "text", "schema", "tool"],
)  # fmt: skip
def test_bad_calls_are_refused(api, options, message):
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(api, **options)

    assert caught.value.type == "invalid_request_error"
    assert caught.value.api_message.startswith(message)


def test_a_prompt_that_is_too_long_is_named():
    with (
        Simulator("fast?latency=0&context=10") as running,
        client(running) as api,
        pytest.raises(anthropic.BadRequestError) as caught,
    ):
        ask(api, "word " * 40)

    assert caught.value.api_message == "prompt is too long: 53 tokens > 10 maximum"


def test_a_call_that_is_too_large_is_refused():
    with (
        Simulator("fast?latency=0&largest=1000") as running,
        client(running) as api,
        pytest.raises(anthropic.RequestTooLargeError) as caught,
    ):
        ask(api, "word " * 400)

    assert (caught.value.status_code, caught.value.type) == (413, "request_too_large")


def test_transport_errors_are_the_sdks_own(server, api):
    with pytest.raises(anthropic.APIConnectionError) as caught:
        ask(api, "<<preset>> hi")
    assert isinstance(caught.value.__cause__, httpx2.ReadError)

    with client(server, timeout=0.2) as hasty, pytest.raises(anthropic.APITimeoutError):
        ask(hasty, "<<ptimeout>> hi")
    with pytest.raises(json.JSONDecodeError):
        ask(api, "<<pgarbage>> hi")
    with pytest.raises(anthropic.InternalServerError) as caught:
        ask(api, "<<p502>> hi")
    assert caught.value.body.startswith("<html>")


def test_what_went_wrong_with_an_answer_is_told(api):
    refused = ask(api, "<<prefuse>> hi")
    withheld = ask(api, "<<pfilter>> hi")
    cut = ask(api, "<<ptruncate>> hi")

    assert (refused.stop_reason, len(refused.content)) == ("refusal", 1)
    assert (withheld.stop_reason, withheld.content) == ("refusal", [])
    assert withheld.stop_details.category == "general_harms"
    assert cut.stop_reason == "max_tokens"
    assert ask(api, max_tokens=3).usage.output_tokens == 3


def test_an_error_in_mid_stream_is_raised(api):
    with (
        api.messages.stream(**arguments("<<pmidway>> hi")) as stream,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        stream.until_done()

    error = caught.value
    # The status was sent long before.
    assert (error.status_code, error.type) == (200, "overloaded_error")
    assert error.body["request_id"] == error.request_id


def test_the_parts_of_the_usage_are_told():
    profile = "fast?latency=0&cached=0.5&cache_writes=0.2"
    with Simulator(profile) as running, client(running) as api:
        usage = ask(api, "word " * 78).usage
        counted = api.messages.count_tokens(
            model="claude-x", messages=[{"role": "user", "content": "word " * 78}]
        )
        stats = running.stats()

    # 100 in all: half of it was cached, a fifth of the rest is written.
    assert counted.input_tokens == 100
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (50, 10)
    assert usage.input_tokens == 40
    assert usage.cache_creation.ephemeral_5m_input_tokens == 10
    assert (stats.input_tokens, stats.cached_tokens, stats.written_tokens) == (100, 50, 10)


def reset_of(headers, kind):
    return datetime.fromisoformat(headers[f"anthropic-ratelimit-{kind}-reset"])


def test_input_and_output_tokens_are_limited_each():
    with Simulator("fast?latency=0&rpm=60&itpm=60k&otpm=12k&cached=0.5") as running:
        with client(running) as api:
            raw = api.messages.with_raw_response.create(**arguments("<<echo>>" + "x" * 24_000))
            with pytest.raises(anthropic.RateLimitError) as caught:
                ask(api, "x" * 480_000)
        stats = running.stats()

    headers = raw.headers
    usage = raw.parse().usage
    assert usage.output_tokens == 500
    prefix = "anthropic-ratelimit"
    told = {
        kind: (
            int(headers[f"{prefix}-{kind}-limit"]),
            int(headers[f"{prefix}-{kind}-remaining"]),
        )
        for kind in ("requests", "input-tokens", "output-tokens", "tokens")
    }
    assert told == {
        "requests": (60, 59),
        # What was read from the cache does not count; remaining tokens are told in thousands.
        "input-tokens": (60_000, 57_000),
        # What was written counts, not what was allowed.
        "output-tokens": (12_000, 12_000),
        "tokens": (60_000, 57_000),
    }
    now = datetime.now(UTC)
    assert now - timedelta(seconds=2) < reset_of(headers, "requests") < now + timedelta(seconds=3)
    assert reset_of(headers, "input-tokens") < now + timedelta(seconds=5)
    assert headers[f"{prefix}-requests-reset"].endswith("Z")
    error = caught.value
    assert "rate limit of 60000 input tokens per minute" in error.api_message
    assert 1 <= int(error.response.headers["retry-after"]) <= 60
    assert error.response.headers[f"{prefix}-input-tokens-limit"] == "60000"
    assert (stats.refused, stats.successes) == (1, 1)


def test_output_is_counted_when_it_is_there():
    with Simulator("fast?latency=0&otpm=60&burst=60") as running, client(running) as api:
        ask(api, "<<echo>>" + "x" * 400, max_tokens=100)  # more than there was
        with pytest.raises(anthropic.RateLimitError, match="60 output tokens per minute") as caught:
            ask(api, max_tokens=1)

    # 40 too many, and one must be left: 41 seconds at one a second.
    assert 40 <= int(caught.value.response.headers["retry-after"]) <= 41


def test_the_server_can_tell_the_sdk_not_to_repeat():
    with (
        Simulator("fast?latency=0&should_retry=false") as running,
        client(running, max_retries=2) as api,
    ):
        with pytest.raises(anthropic.OverloadedError):
            ask(api, "<<p529>> hi")
        stats = running.stats()

    assert (stats.calls, stats.sdk_retries) == (1, 0)


def test_the_sdk_repeats_by_itself_unless_it_is_told_not_to():
    with (
        Simulator("fast?latency=0&retry_after=ms") as running,
        client(running, max_retries=2) as api,
    ):
        with pytest.raises(anthropic.RateLimitError):
            ask(api, "<<p429>> hi")
        stats = running.stats()

    assert (stats.calls, stats.sdk_retries) == (3, 2)
