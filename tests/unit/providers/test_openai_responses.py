from __future__ import annotations

import json

import pytest

from batch_llm import (
    BadOutputError,
    ContentFilteredError,
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
from batch_llm.providers.openai_responses import RESPONSES

PLAIN = Request.of("openai:gpt-4.1", "hi", system="Be brief.", settings=Settings(max_tokens=9))
USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 15,
}


def message(*parts):
    return {"type": "message", "role": "assistant", "content": list(parts)}


def said(text):
    return message({"type": "output_text", "text": text, "annotations": []})


def answer(*output, status="completed", **more):
    body = {"id": "resp_1", "model": "gpt-4.1-x", "status": status, "error": None,
            "incomplete_details": None, "output": list(output), "usage": USAGE}  # fmt: skip
    return json.dumps(body | more).encode()


def decode(body, request=PLAIN, status=200, secret=""):
    return RESPONSES.decode(status, {}, body, request, secret=secret)


def encode(request, **more):
    return json.loads(RESPONSES.encode(request, **more))


def test_a_request_is_a_list_of_input_that_is_not_kept():
    assert encode(PLAIN) == {
        "model": "gpt-4.1",
        "input": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
        ],
        "store": False,
        "max_output_tokens": 9,
    }


def test_turns_and_parts_have_their_kinds():
    parts = (Text("a"), Image("https://x/y.png"), OtherPart({"type": "input_file"}))
    turns = (Message("user", parts), Message("assistant", (Text("b"),)), Message("developer", "c"))

    assert encode(Request("openai:m", turns))["input"] == [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "a"},
                {"type": "input_image", "image_url": "https://x/y.png", "detail": "auto"},
                {"type": "input_file"},
            ],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"role": "developer", "content": "c"},
    ]


def test_a_schema_is_the_format_of_the_text_beside_what_is_there():
    request = Request.of(
        "openai:m",
        "hi",
        output=OutputSchema.choices("a", "b"),
        settings=Settings(extra={"text": {"verbosity": "low"}}),
    )

    text = encode(request)["text"]

    assert text["verbosity"] == "low"
    assert (text["format"]["type"], text["format"]["strict"]) == ("json_schema", True)
    assert (text["format"]["name"], "schema" in text["format"]) == ("choice", True)


def test_feedback_is_the_answer_and_what_was_wrong_with_it():
    sent = encode(PLAIN, feedback=BadOutputError("{oops", "a: missing"))["input"]

    assert sent[2] == {"role": "assistant", "content": "{oops"}
    assert "a: missing" in sent[3]["content"]


def test_a_body_written_for_chat_keeps_its_limit():
    request = Request.of("openai:m", "hi", settings=Settings(extra={"max_tokens": 7, "user": "u"}))

    body = encode(request)

    assert (body["max_output_tokens"], body["user"]) == (7, "u")
    assert "max_tokens" not in body


@pytest.mark.parametrize(
    ("model", "extra", "is_sent"),
    [
        ("gpt-4.1", {}, True),
        ("gpt-5", {}, False),
        ("gpt-5-mini", {}, False),
        ("gpt-5-chat-latest", {}, True),
        ("gpt-5.1", {}, True),
        ("gpt-5.1", {"reasoning": {"effort": "low"}}, False),
        ("gpt-5.1-chat-latest", {}, False),
        ("gpt-5.1-codex", {}, False),
        ("gpt-5.4", {}, True),
        ("gpt-5.4-pro", {}, False),
        ("gpt-5.6-luna", {}, False),
        ("gpt-5.6-luna", {"reasoning": {"effort": "none"}}, True),
        ("gpt-6-luna", {}, False),
        ("gpt-6-luna", {"reasoning_effort": "none"}, True),
        ("o3-mini", {}, False),
        ("omni", {}, True),
    ],
)
def test_a_temperature_is_left_out_where_the_model_refuses_it(model, extra, is_sent):
    settings = Settings(temperature=0.5, top_p=0.9, extra=extra)

    body = encode(Request.of(f"openai:{model}", "hi", settings=settings))

    assert ("temperature" in body, "top_p" in body) == (is_sent, is_sent)


def test_chats_name_of_the_effort_is_put_in_its_place():
    extra = {"reasoning_effort": "low", "reasoning": {"summary": "auto"}, "metadata": {"a": "b"}}

    body = encode(Request.of("openai:m", "hi", settings=Settings(extra=extra)))

    assert body["reasoning"] == {"effort": "low", "summary": "auto"}
    assert (body["metadata"], "reasoning_effort" in body) == ({"a": "b"}, False)


@pytest.mark.parametrize(
    "request_",
    [
        Request.of("openai:m", "hi", settings=Settings(seed=1)),
        Request.of("openai:m", "hi", settings=Settings(stop=("END",))),
        Request("openai:m", (Message("tool", "sunny", {"tool_call_id": "1"}),)),
        Request("openai:m", (Message("assistant", None, {"tool_calls": [{"id": "1"}]}),)),
    ],
)
def test_what_has_no_place_is_refused_and_not_dropped(request_):
    with pytest.raises(UnsupportedRequestError):
        RESPONSES.encode(request_)


def test_an_answer_is_its_text_without_what_was_thought():
    outcome = decode(answer({"type": "reasoning", "summary": []}, said("Li"), said("ma")))

    assert (outcome.output, outcome.error, outcome.model) == ("Lima", None, "gpt-4.1-x")
    assert outcome.usage == {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "cache_read_tokens": 4,
        "cache_write_tokens": 3,
        "reasoning_tokens": 2,
    }


def test_an_answer_by_a_schema_is_its_value_or_says_what_is_wrong():
    request = Request.of("openai:m", "hi", output=OutputSchema.choices("a", "b"))

    assert decode(answer(said('{"choice": "b"}')), request).output == "b"
    bad = decode(answer(said("c")), request)
    assert isinstance(bad.error, BadOutputError)
    assert bad.usage["total_tokens"] == 15


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (answer(message({"type": "refusal", "refusal": "No."})), RefusedError),
        (
            answer(said("hal"), status="incomplete",
                   incomplete_details={"reason": "max_output_tokens"}),
            TruncatedError,
        ),
        (
            answer(status="incomplete", incomplete_details={"reason": "content_filter"}),
            ContentFilteredError,
        ),
        (answer(status="incomplete", incomplete_details={"reason": "?"}), MalformedResponseError),
        (answer(), MalformedResponseError),
        (b"{", MalformedResponseError),
        (b"[]", MalformedResponseError),
        (b"{}", MalformedResponseError),
    ],
)  # fmt: skip
def test_what_is_no_good_answer_is_told_apart(body, kind):
    assert type(decode(body).error) is kind


def test_a_cut_answer_keeps_its_text_and_its_limit():
    body = answer(
        said("half"), status="incomplete", incomplete_details={"reason": "max_output_tokens"}
    )

    error = decode(body).error

    assert (error.text, error.max_tokens) == ("half", 9)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("server_error", 500),
        ("rate_limit_exceeded", 429),
        ("invalid_prompt", 400),
        ("bio_policy", 400),
        ("invalid_image_url", 400),
        ("image_too_large", 400),
        ("vector_store_timeout", 504),
        ("something_new", 500),
    ],
)
def test_a_failure_inside_a_200_has_the_status_that_it_means(code, status):
    body = answer(status="failed", error={"code": code, "message": "boom"})

    outcome = decode(body)

    assert isinstance(outcome.error, StatusError)
    assert (outcome.error.status, outcome.error.code, outcome.error.message) == (
        status, code, "boom",
    )  # fmt: skip
    assert outcome.usage["total_tokens"] == 15


def test_tool_calls_are_an_answer():
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}

    assert decode(answer({"type": "reasoning"}, call)).output == [call]


@pytest.mark.parametrize(
    "more",
    [
        {"model": 7},
        {"usage": "many"},
        {"incomplete_details": "none"},
        {"output": [said("Lima"), 5]},
        {"output": [{"type": "reasoning", "content": "?"}, said("Lima")]},
        {"usage": USAGE | {"input_tokens": "ten"}},
    ],
)
def test_an_oddity_beside_the_answer_does_not_spoil_it(more):
    outcome = decode(answer(said("Lima"), **more))

    assert (outcome.output, outcome.error) == ("Lima", None)
