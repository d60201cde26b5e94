from __future__ import annotations

import json

import pytest

from batch_llm import (
    BadOutputError,
    ContextLengthError,
    Image,
    MalformedResponseError,
    Message,
    OtherPart,
    RefusedError,
    Request,
    Settings,
    StatusError,
    Text,
    TruncatedError,
    UnsupportedRequestError,
)
from batch_llm.core.schema import OutputSchema
from batch_llm.providers.anthropic import DEFAULT_LENGTH, LONGEST_UNSTREAMED, MESSAGES

MODEL = "anthropic:claude-sonnet-4-5"
PLAIN = Request.of(MODEL, "hi", system="Be brief.", settings=Settings(max_tokens=9))
OPEN = {"type": "object", "properties": {"n": {"type": "integer"}}}
#: As recorded from the service: input without that from and to caches.
USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 30,
    "cache_read_input_tokens": 60,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    "output_tokens": 7,
    "output_tokens_details": {"thinking_tokens": 3},
    "service_tier": "standard",
}


def answer(*content, stop="end_turn", **more):
    body = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x",
            "content": list(content), "stop_reason": stop, "usage": USAGE}  # fmt: skip
    return json.dumps(body | more).encode()


def said(text):
    return {"type": "text", "text": text}


def decode(body, request=PLAIN, status=200, secret=""):
    return MESSAGES.decode(status, {}, body, request, secret=secret)


def encode(request, **more):
    return json.loads(MESSAGES.encode(request, **more))


def asking(output, model=MODEL, **settings):
    return Request.of(model, "hi", output=output, settings=Settings(**settings))


def test_the_system_stands_beside_the_messages():
    assert encode(PLAIN) == {
        "model": "claude-sonnet-4-5",
        "max_tokens": 9,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_several_system_messages_and_their_parts_are_blocks():
    cached = {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}
    turns = (
        Message("system", (OtherPart(cached),)),
        Message("developer", "short"),
        Message("user", "hi"),
    )

    assert encode(Request(MODEL, turns))["system"] == [cached, said("short")]


def test_pictures_go_by_their_address_or_as_bytes():
    parts = (Text("a"), Image("https://x/y.png"), Image("data:image/png;base64,AAAA"))

    content = encode(Request(MODEL, (Message("user", parts),)))["messages"][0]["content"]

    assert content == [
        said("a"),
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
        },
    ]


@pytest.mark.parametrize(
    ("model", "extra", "length"),
    [
        ("claude-sonnet-4-5", {}, DEFAULT_LENGTH),
        ("claude-3-haiku-20240307", {}, 4096),
        ("claude-sonnet-4-5", {"thinking": {"type": "enabled", "budget_tokens": 16_000}}, 20_096),
        ("claude-sonnet-4-5", {"max_tokens": 5}, 5),
        ("claude-sonnet-4-5", {"max_completion_tokens": 5}, 5),
    ],
)
def test_a_length_is_always_asked_for(model, extra, length):
    request = Request.of(f"anthropic:{model}", "hi", settings=Settings(extra=extra))

    assert encode(request)["max_tokens"] == length


@pytest.mark.parametrize(
    ("length", "is_streamed"), [(LONGEST_UNSTREAMED, False), (LONGEST_UNSTREAMED + 1, True)]
)
def test_only_long_answers_are_streamed(length, is_streamed):
    request = Request.of(MODEL, "hi", settings=Settings(max_tokens=length))

    assert ("stream" in encode(request)) == is_streamed


@pytest.mark.parametrize(
    ("model", "extra", "is_sent"),
    [
        ("claude-sonnet-4-5", {}, True),
        ("claude-opus-4-7", {}, False),
        ("claude-sonnet-5-5", {}, False),
        ("claude-haiku-5-5", {}, False),
        ("claude-sonnet-4-5", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, False),
        ("claude-sonnet-4-5", {"thinking": {"type": "disabled"}}, True),
    ],
)
def test_a_temperature_is_left_out_where_it_is_refused(model, extra, is_sent):
    settings = Settings(temperature=0.5, top_p=0.9, extra=extra)

    body = encode(Request.of(f"anthropic:{model}", "hi", settings=settings))

    assert ("temperature" in body, "top_p" in body) == (is_sent, is_sent)


def test_stop_sequences_have_their_own_name():
    assert encode(asking(None, stop=("a", "b")))["stop_sequences"] == ["a", "b"]
    body = encode(asking(None, extra={"stop": "END"}))
    assert (body["stop_sequences"], "stop" in body) == (["END"], False)


def test_a_closed_schema_is_the_format_of_the_text_where_the_model_knows_that():
    body = encode(
        asking(OutputSchema.choices("a", "b"), extra={"output_config": {"effort": "low"}})
    )

    config = body["output_config"]
    assert (config["effort"], config["format"]["type"]) == ("low", "json_schema")
    assert "choice" in config["format"]["schema"]["properties"]
    assert "tools" not in body


@pytest.mark.parametrize(
    ("output", "model", "extra", "choice"),
    [
        (OutputSchema.json_schema(OPEN, "n"), "claude-sonnet-4-5", {}, "tool"),
        (OutputSchema.choices("a", "b"), "claude-3-7-sonnet-latest", {}, "tool"),
        (OutputSchema.json_schema(OPEN, "n"), "claude-opus-5-5", {}, "auto"),
        (
            OutputSchema.json_schema(OPEN, "n"),
            "claude-sonnet-4-5",
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            "auto",
        ),
    ],
)
def test_any_other_schema_is_the_input_of_a_tool(output, model, extra, choice):
    body = encode(asking(output, f"anthropic:{model}", extra=extra))

    (tool,) = body["tools"]
    assert (tool["name"], tool["input_schema"]) == (output.name, output.schema)
    assert body["tool_choice"]["type"] == choice
    assert ("name" in body["tool_choice"]) == (choice == "tool")


def test_feedback_is_the_answer_and_what_was_wrong_with_it():
    for text, shown in (("{oops \n", "{oops"), ("  ", "(nothing)")):
        sent = encode(PLAIN, feedback=BadOutputError(text, "a: missing"))["messages"]
        assert sent[1] == {"role": "assistant", "content": shown}
        assert "a: missing" in sent[2]["content"]


@pytest.mark.parametrize(
    "request_",
    [
        asking(None, seed=1),
        Request(MODEL, (Message("tool", "sunny", {"tool_call_id": "1"}),)),
        Request(MODEL, (Message("assistant", None, {"tool_calls": [{"id": "1"}]}),)),
    ],
)
def test_what_has_no_place_is_refused_and_not_dropped(request_):
    with pytest.raises(UnsupportedRequestError):
        MESSAGES.encode(request_)


def test_an_answer_is_its_text_and_its_input_is_told_with_that_of_the_caches():
    outcome = decode(answer({"type": "thinking", "thinking": "hm"}, said("Li"), said("ma")))

    assert (outcome.output, outcome.error, outcome.model) == ("Lima", None, "claude-x")
    assert outcome.usage == {
        "input_tokens": 100,
        "output_tokens": 7,
        "total_tokens": 107,
        "cache_read_tokens": 60,
        "cache_write_tokens": 30,
        "cache_write_1h_tokens": 20,
        "reasoning_tokens": 3,
    }


@pytest.mark.parametrize(
    "content",
    [
        [said('{"choice": "b"}')],
        [said("Here:"), {"type": "tool_use", "id": "t", "name": "choice",
                         "input": {"choice": "b"}}],
    ],
)  # fmt: skip
def test_an_answer_by_a_schema_is_text_or_a_call_of_the_tool(content):
    request = asking(OutputSchema.choices("a", "b"))

    assert decode(answer(*content, stop="tool_use"), request).output == "b"


def test_an_answer_that_does_not_fit_was_paid_for_all_the_same():
    call = {"type": "tool_use", "id": "t", "name": "choice", "input": {"choice": "c"}}

    outcome = decode(answer(call, stop="tool_use"), asking(OutputSchema.choices("a", "b")))

    assert isinstance(outcome.error, BadOutputError)
    assert outcome.usage["total_tokens"] == 107


def test_calls_of_the_requests_own_tools_are_an_answer():
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}

    assert decode(answer(call, stop="tool_use")).output == [call]


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (
            answer(stop="refusal", stop_details={"type": "refusal", "category": "bio",
                                                 "explanation": "too risky"}),
            RefusedError,
            "too risky",
        ),
        (answer(stop="refusal"), RefusedError, "no reason"),
        (answer(said("half"), stop="max_tokens"), TruncatedError, "9 tokens"),
        (answer(said("half"), stop="model_context_window_exceeded"), ContextLengthError, "full"),
        (answer(said("half"), stop="pause_turn"), MalformedResponseError, "paused"),
        (answer(stop=None), MalformedResponseError, "without content"),
        (answer(said("x"), stop=None), MalformedResponseError, "broke off"),
        (b"", MalformedResponseError, "not a message"),
        (b"[]", MalformedResponseError, "not a message"),
        (b'{"id": 1}', MalformedResponseError, "without content"),
    ],
)  # fmt: skip
def test_what_is_no_good_answer_is_told_apart(body, kind, words):
    error = decode(body).error

    assert type(error) is kind
    assert words in str(error)


def test_an_empty_answer_is_an_answer():
    assert decode(answer(stop="end_turn")).output == ""


def test_an_errors_most_telling_name_is_its_code():
    body = {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "message": "enough",
            "details": {"error_code": "enforced_spend_limit_reached"},
        },
        "request_id": "req_1",
    }

    error = decode(json.dumps(body).encode(), status=429).error

    assert (error.status, error.message) == (429, "enough")
    assert error.code == "enforced_spend_limit_reached"


def stream(*events):
    lines = []
    for event in events:
        lines += [f"event: {event['type']}", f"data: {json.dumps(event)}", ""]
    return "\n".join(lines).encode() + b"\n"


START = {
    "type": "message_start",
    "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x",
                "content": [], "stop_reason": None,
                "usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}},
}  # fmt: skip
PING = {"type": "ping"}
END = {
    "type": "message_delta",
    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
    "usage": {"output_tokens": 7},
}
STOP = {"type": "message_stop"}


def block(index, start, *deltas):
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


TEXT = block(
    0, said(""), {"type": "text_delta", "text": "Li"}, {"type": "text_delta", "text": "ma\u2028"}
)
TOOL = block(
    1,
    {"type": "tool_use", "id": "t", "name": "choice", "input": {}},
    {"type": "input_json_delta", "partial_json": '{"cho'},
    {"type": "input_json_delta", "partial_json": 'ice": "b"}'},
)


def test_a_stream_is_the_same_answer():
    outcome = decode(stream(START, PING, *TEXT, END, STOP))

    assert (outcome.output, outcome.model) == ("Lima\u2028", "claude-x")
    assert outcome.usage == {
        "input_tokens": 15, "output_tokens": 7, "total_tokens": 22, "cache_read_tokens": 5,
    }  # fmt: skip


def test_a_streams_tool_call_is_put_together():
    body = stream(START, *TEXT, *TOOL, END, STOP)

    assert decode(body, asking(OutputSchema.choices("a", "b"))).output == "b"


@pytest.mark.parametrize(
    ("kind", "status"),
    [("overloaded_error", 529), ("rate_limit_error", 429), ("api_error", 500), ("?", 500)],
)
def test_an_error_in_mid_stream_has_its_status_and_what_it_cost(kind, status):
    trouble = {"type": "error", "error": {"type": kind, "message": "Overloaded"}}

    outcome = decode(stream(START, *TEXT, trouble))

    assert isinstance(outcome.error, StatusError)
    assert (outcome.error.status, outcome.error.message) == (status, "Overloaded")
    assert outcome.usage["input_tokens"] == 15


def test_an_error_may_be_all_there_is_of_a_stream():
    trouble = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

    assert decode(stream(trouble)).error.status == 529


@pytest.mark.parametrize(
    "body",
    [
        stream(START, *TEXT),
        stream(START, *TEXT, END)[:-80],
        stream(PING),
        b"event: x\ndata: {\n",
        b"data: 5\n\n",
        b"data: []\n\ndata: {}\n",
        stream(*TEXT, {"type": "content_block_delta", "index": 9, "delta": 5}),
    ],
)
def test_a_stream_that_breaks_off_is_no_answer(body):
    assert isinstance(decode(body).error, MalformedResponseError)


@pytest.mark.parametrize(
    "more",
    [
        {"model": 7},
        {"usage": "many"},
        {"stop_details": "none"},
        {"content": [said("Lima"), 5]},
        {"usage": USAGE | {"output_tokens": "ten"}},
    ],
)
def test_an_oddity_beside_the_answer_does_not_spoil_it(more):
    outcome = decode(answer(said("Lima"), **more))

    assert (outcome.output, outcome.error) == ("Lima", None)
