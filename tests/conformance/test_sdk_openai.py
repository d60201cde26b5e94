"""The official OpenAI SDK takes the simulator for the service: chat completions and responses."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
TOOL = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}


class City(BaseModel):
    name: str
    people: int
    districts: list[str]


def client(running, *, key="any", **options):
    options = {"max_retries": 0, "timeout": 10.0} | options
    return OpenAI(base_url=running.sdk_url("openai"), api_key=key, **options)


def ask_chat(api, prompt="Capital of Peru?", *, model="gpt-x", **options):
    messages = [{"role": "user", "content": prompt}]
    return api.chat.completions.create(model=model, messages=messages, **options)


def ask_response(api, prompt="Capital of Peru?", *, model="gpt-x", **options):
    return api.responses.create(model=model, input=prompt, **options)


BOTH = pytest.mark.parametrize("ask", [ask_chat, ask_response], ids=["chat", "responses"])


@pytest.fixture(scope="module")
def api(server):
    with client(server) as opened:
        yield opened


def test_a_response_has_all_that_the_sdk_reads(api):
    answer = ask_response(api, instructions="Be short.")

    assert answer.output_text.startswith(f"Answer {answer_digest('Capital of Peru?')}: ")
    assert (answer.object, answer.status, answer.model) == ("response", "completed", "gpt-x")
    assert (answer.error, answer.incomplete_details) == (None, None)
    assert answer.instructions == "Be short."
    assert answer.id.startswith("resp_")
    assert answer._request_id.startswith("req_")
    (message,) = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens == 0
    assert usage.output_tokens_details.reasoning_tokens == 0


def test_a_conversation_goes_on(api):
    first = ask_response(api)
    again = api.responses.create(
        model="gpt-x",
        input=[
            {"role": "user", "content": "Capital of Peru?"},
            *[item.model_dump() for item in first.output],
            {"role": "user", "content": [{"type": "input_text", "text": "And of Chile?"}]},
        ],
    )
    chat = api.chat.completions.create(
        model="gpt-x",
        messages=[
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Capital of Peru?"},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "And of Chile?"},
        ],
    )

    digest = answer_digest("And of Chile?")
    assert again.output_text.startswith(f"Answer {digest}: ")
    assert chat.choices[0].message.content.startswith(f"Answer {digest}: ")
    assert again.usage.input_tokens > first.usage.input_tokens


def test_images_are_taken_and_counted(api, image_base64):
    url = f"data:image/png;base64,{image_base64}"
    chat = ask_chat(
        api,
        [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": url}},
        ],
    )
    content = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": url},
    ]
    response = ask_response(api, [{"role": "user", "content": content}])

    text_only = ask_response(api, "What is it?").usage.input_tokens
    assert response.usage.input_tokens == chat.usage.prompt_tokens == text_only + 85
    assert response.output_text.startswith(f"Answer {answer_digest('What is it?')}: ")


def test_structured_answers_fit_their_schema(api):
    response = api.responses.parse(model="gpt-x", input="A city", text_format=City)
    chat = api.chat.completions.parse(
        model="gpt-x", messages=[{"role": "user", "content": "A city"}], response_format=City
    )
    loose = ask_response(api, text={"format": {"type": "json_object"}})

    assert isinstance(response.output_parsed, City)
    assert isinstance(chat.choices[0].message.parsed, City)
    assert isinstance(json.loads(loose.output_text), dict)


def test_functions_are_called(api):
    response = ask_response(api, tools=[TOOL], tool_choice="required")
    chat = ask_chat(api, "use get_weather", tools=[CHAT_TOOL])
    called = response.output[0]
    follow_up = [
        {"role": "user", "content": "use get_weather"},
        {
            "type": "function_call",
            "name": called.name,
            "call_id": called.call_id,
            "arguments": called.arguments,
        },
        {"type": "function_call_output", "call_id": called.call_id, "output": "21 degrees"},
    ]
    answer = ask_response(api, follow_up, tools=[TOOL])

    assert (called.type, called.name) == ("function_call", "get_weather")
    assert set(json.loads(called.arguments)) == {"city"}
    (call,) = chat.choices[0].message.tool_calls
    assert (call.function.name, chat.choices[0].finish_reason) == ("get_weather", "tool_calls")
    assert set(json.loads(call.function.arguments)) == {"city"}
    # What was called once is not called again for the same words.
    assert answer.output_text


def test_a_stream_of_a_response_is_read_by_the_sdks_helper(api):
    whole = ask_response(api)
    with api.responses.stream(model="gpt-x", input="Capital of Peru?") as stream:
        events = list(stream)
        final = stream.get_final_response()

    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == final.output_text
    assert final.usage == whole.usage
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_stream_of_a_chat_is_read_by_the_sdks_helper(api):
    messages = [{"role": "user", "content": "Capital of Peru?"}]
    with api.chat.completions.stream(model="gpt-x", messages=messages) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    assert {"chunk", "content.delta", "content.done"} <= kinds
    whole = ask_chat(api)
    assert final.choices[0].message.content == whole.choices[0].message.content


def test_streams_give_structured_answers_and_calls_of_functions(api):
    with api.responses.stream(model="gpt-x", input="A city", text_format=City) as stream:
        parsed = stream.get_final_response().output_parsed
    with api.responses.stream(
        model="gpt-x", input="hi", tools=[TOOL], tool_choice="required"
    ) as stream:
        called = stream.get_final_response().output[0]
    with api.chat.completions.stream(
        model="gpt-x",
        messages=[{"role": "user", "content": "hi"}],
        tools=[CHAT_TOOL | {"function": CHAT_TOOL["function"] | {"strict": True}}],
        tool_choice="required",
    ) as stream:
        call = stream.get_final_completion().choices[0].message.tool_calls[0]

    assert isinstance(parsed, City)
    assert set(json.loads(called.arguments)) == {"city"}
    assert set(json.loads(call.function.arguments)) == {"city"}


async def test_the_async_client_works_too(server):
    async with AsyncOpenAI(
        base_url=server.sdk_url("openai"), api_key="any", max_retries=0
    ) as opened:
        answer = await opened.responses.create(model="gpt-x", input="Capital of Peru?")
        stream = await opened.responses.create(model="gpt-x", input="Capital of Peru?", stream=True)
        kinds = [event.type async for event in stream]

    assert answer.output_text
    assert kinds[-1] == "response.completed"


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_models_are_listed_and_tokens_counted(api):
    assert [model.id for model in api.models.list()] == ["fast", "flaky", "slow"]
    assert api.models.retrieve("fast").object == "model"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("missing-1")
    counted = api.responses.input_tokens.count(model="gpt-x", input="Capital of Peru?")
    assert counted.input_tokens == ask_response(api).usage.input_tokens


@BOTH
@pytest.mark.parametrize(
    ("fault", "kind", "status", "type_", "code"),
    [
        ("p408", openai.APIStatusError, 408, "timeout", None),
        ("p429", openai.RateLimitError, 429, "requests", "rate_limit_exceeded"),
        ("p500", openai.InternalServerError, 500, "server_error", None),
        ("p503", openai.InternalServerError, 503, "service_unavailable", "server_is_overloaded"),
        ("p504", openai.InternalServerError, 504, "server_error", None),
        ("p529", openai.InternalServerError, 529, "overloaded", "overloaded"),
    ],
)
def test_errors_are_the_sdks_own(api, ask, fault, kind, status, type_, code):
    with pytest.raises(kind) as caught:
        ask(api, f"<<{fault}>> hi")

    error = caught.value
    assert type(error) is kind
    assert (error.status_code, error.type, error.code, error.param) == (status, type_, code, None)
    assert error.request_id == error.response.headers["x-request-id"]
    assert error.request_id.startswith("req_")
    assert isinstance(error.response, httpx2.Response)
    # The inner object, and nothing of it but the message in the text.
    assert error.body == {"message": error.body["message"], "type": type_, "param": None,
                          "code": code}  # fmt: skip
    assert str(error) == f"Error code: {status} - {error.body['message']}"
    assert error.__cause__ is None
    told = "retry-after" in error.response.headers
    assert told == (fault == "p429")


@BOTH
@pytest.mark.parametrize(
    "code",
    [
        "insufficient_quota",
        "billing_hard_limit_reached",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    ],
)
def test_used_up_credit_looks_like_a_rate_limit_but_for_its_code(api, ask, code):
    with pytest.raises(openai.RateLimitError) as caught:
        ask(api, f"<<pquota:{code}>>")

    error = caught.value
    assert (error.status_code, error.code, error.type) == (429, code, code)
    assert not [name for name in error.response.headers if name.startswith("retry")]


@BOTH
def test_a_gateways_page_is_text_to_the_sdk(api, ask):
    with pytest.raises(openai.InternalServerError) as caught:
        ask(api, "<<p502>> hi")

    assert caught.value.status_code == 502
    assert caught.value.body.startswith("<html>")


@BOTH
@pytest.mark.parametrize(
    ("key", "kind", "status", "code"),
    [
        ("invalid", openai.AuthenticationError, 401, "invalid_api_key"),
        ("forbidden", openai.PermissionDeniedError, 403, "unsupported_country_region_territory"),
    ],
)
def test_keys_are_checked(server, ask, key, kind, status, code):
    with client(server, key=key) as api, pytest.raises(kind) as caught:
        ask(api)

    assert (caught.value.status_code, caught.value.code) == (status, code)


@pytest.mark.parametrize(
    ("ask", "kind", "status"),
    [(ask_chat, openai.NotFoundError, 404), (ask_response, openai.BadRequestError, 400)],
    ids=["chat", "responses"],
)
def test_a_missing_model_has_another_status_on_each_endpoint(api, ask, kind, status):
    with pytest.raises(kind) as caught:
        ask(api, model="missing-1")

    assert (caught.value.status_code, caught.value.code) == (status, "model_not_found")


@pytest.mark.parametrize(
    ("arguments", "param", "code"),
    [
        ({"input": 7}, "input", "invalid_type"),
        ({"input": [{"role": "robot", "content": "hi"}]}, "input[0].role", "invalid_value"),
        ({"max_output_tokens": 15}, "max_output_tokens", "integer_below_min_value"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema",
         "missing_required_parameter"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "pasta"}}}},
         "text.format.schema", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_responses_calls_are_refused(api, arguments, param, code):
    with pytest.raises(openai.BadRequestError) as caught:
        api.responses.create(**({"model": "gpt-x", "input": "hi"} | arguments))

    error = caught.value
    assert (error.type, error.code, error.param) == ("invalid_request_error", code, param)


@BOTH
def test_a_prompt_that_is_too_long_is_named(ask):
    with (
        Simulator("fast?latency=0&context=10") as running,
        client(running) as api,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        ask(api, "word " * 40)

    assert caught.value.code == "context_length_exceeded"


def test_a_call_that_is_too_large_is_refused():
    with (
        Simulator("fast?latency=0&largest=1000") as running,
        client(running) as api,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        ask_chat(api, "word " * 400)

    assert caught.value.status_code == 413


@BOTH
def test_transport_errors_are_the_sdks_own(server, api, ask):
    with pytest.raises(openai.APIConnectionError) as caught:
        ask(api, "<<preset>> hi")
    assert isinstance(caught.value.__cause__, httpx2.ReadError)

    with client(server, timeout=0.2) as hasty, pytest.raises(openai.APITimeoutError) as caught:
        ask(hasty, "<<ptimeout>> hi")
    assert isinstance(caught.value, openai.APIConnectionError)
    assert isinstance(caught.value.__cause__, httpx2.ReadTimeout)

    with pytest.raises(json.JSONDecodeError):
        ask(api, "<<pgarbage>> hi")


def test_what_went_wrong_with_an_answer_is_told_by_the_chat(api):
    refused = ask_chat(api, "<<prefuse>> hi").choices[0]
    withheld = ask_chat(api, "<<pfilter>> hi").choices[0]
    cut = ask_chat(api, "<<ptruncate>> hi").choices[0]
    failed = ask_chat(api, "<<pmidway>> hi")

    assert (refused.finish_reason, refused.message.content) == ("stop", None)
    assert "cannot assist" in refused.message.refusal
    assert withheld.finish_reason == "content_filter"
    assert cut.finish_reason == "length"
    # As OpenRouter does.
    assert (failed.choices, failed.error["code"]) == (None, 502)


def test_what_went_wrong_with_an_answer_is_told_by_the_response(api):
    refused = ask_response(api, "<<prefuse>> hi")
    withheld = ask_response(api, "<<pfilter>> hi")
    cut = ask_response(api, "<<echo>>" + "word " * 40, max_output_tokens=16)
    failed = ask_response(api, "<<pmidway>> hi")

    (part,) = refused.output[0].content
    assert (refused.status, part.type) == ("completed", "refusal")
    assert (withheld.status, withheld.output) == ("incomplete", [])
    assert withheld.incomplete_details.reason == "content_filter"
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.usage.output_tokens == 16
    assert (failed.status, failed.error.code) == ("failed", "server_error")


def test_an_error_in_mid_stream_is_raised_by_the_chat(api):
    stream = ask_chat(api, "<<pmidway>> hi", stream=True)
    with stream, pytest.raises(openai.APIError, match="server had an error") as caught:
        list(stream)

    assert caught.value.type == "server_error"


def test_an_error_in_mid_stream_is_an_event_of_the_response(api):
    *_, last = ask_response(api, "<<pmidway>> hi", stream=True)

    assert (last.type, last.code) == ("error", "server_error")


def test_the_parts_of_the_usage_are_told():
    profile = "fast?latency=0&cached=0.5&reasoning=2"
    with Simulator(profile) as running, client(running) as api:
        chat = ask_chat(api, "word " * 40).usage
        response = ask_response(api, "word " * 40)
        starved = ask_response(api, "word " * 40, max_output_tokens=20)
        stats = running.stats()

    usage = response.usage
    assert chat.prompt_tokens_details.cached_tokens == chat.prompt_tokens // 2 > 0
    assert usage.input_tokens_details.cached_tokens == usage.input_tokens // 2
    thought = usage.output_tokens_details.reasoning_tokens
    assert usage.output_tokens == thought + thought // 2
    assert chat.completion_tokens_details.reasoning_tokens == thought
    assert [item.type for item in response.output] == ["reasoning", "message"]
    # Thought comes first: here it used up all that was allowed.
    assert (starved.status, starved.output_text) == ("incomplete", "")
    assert starved.usage.output_tokens_details.reasoning_tokens == 20
    assert stats.cached_tokens == 3 * (usage.input_tokens // 2)
    assert stats.reasoning_tokens == 2 * thought + 20


@BOTH
def test_limits_are_told_and_kept(ask):
    cap = "max_tokens" if ask is ask_chat else "max_output_tokens"
    with Simulator("fast?latency=0&rpm=10&tpm=100") as running, client(running) as api:
        raw_api = api.with_raw_response
        raw = ask(raw_api, **{cap: 80})
        with pytest.raises(openai.RateLimitError) as caught:
            ask(raw_api, **{cap: 30})
        stats = running.stats()

    assert raw.parse().usage
    headers = raw.headers
    assert headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-remaining-requests"] == "9"
    assert headers["x-ratelimit-reset-requests"] == "6s"
    assert headers["x-ratelimit-limit-tokens"] == "100"
    # The longest answer is what counts, whatever came of it.
    assert headers["x-ratelimit-remaining-tokens"] == "20"
    assert headers["x-ratelimit-reset-tokens"] == "48s"
    error = caught.value
    assert (error.type, error.code) == ("tokens", "rate_limit_exceeded")
    assert "on tokens per min (TPM): Limit 100, Used 8" in error.message
    assert 1 <= int(error.response.headers["retry-after"]) <= 6
    assert (stats.refused, stats.successes) == (1, 1)


def test_the_sdk_repeats_by_itself_unless_it_is_told_not_to(server, stats):
    with client(server, max_retries=2) as api, pytest.raises(openai.InternalServerError):
        ask_chat(api, "<<p500>> hi")
    assert (stats()["calls"], stats()["sdk_retries"]) == (3, 2)

    with client(server, max_retries=0) as api, pytest.raises(openai.InternalServerError):
        ask_chat(api, "<<p500>> hi")
    assert (stats()["calls"], stats()["sdk_retries"]) == (4, 2)


def test_the_server_can_tell_the_sdk_not_to_repeat():
    with (
        Simulator("fast?latency=0&should_retry=false") as running,
        client(running, max_retries=2) as api,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            ask_chat(api, "<<p503>> hi")
        stats = running.stats()

    assert caught.value.response.headers["x-should-retry"] == "false"
    assert stats.calls == 1
