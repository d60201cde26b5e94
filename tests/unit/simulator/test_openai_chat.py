from __future__ import annotations

import contextlib
import json

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.simulator.openai_chat import OPENAI_CHAT, go_duration
from batch_llm.simulator.refusals import Flaw, Refusal

QUESTION = {"role": "user", "content": "Capital of Peru?"}


def call(**fields):
    body = json.dumps({"model": "gpt-x", "messages": [QUESTION]} | fields).encode()
    return OPENAI_CHAT.read(body, "")


def answered(asked, fault=None):
    return OPENAI_CHAT.complete(asked, fault, 0.0)


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        ({"model": None}, None, None, "you must provide a model parameter"),
        ({"model": 7}, "model", "invalid_type", "expected a string, but got an integer"),
        ({"messages": None}, "messages", "missing_required_parameter", "'messages'"),
        ({"messages": "hi"}, "messages", "invalid_type", "expected an array of objects"),
        ({"messages": []}, "messages", "empty_array", "empty array"),
        ({"messages": [7]}, "messages[0]", "invalid_type", "expected an object"),
        ({"messages": [{}]}, "messages[0].role", "missing_required_parameter", "role"),
        ({"messages": [{"role": "x"}]}, "messages[0].role", "invalid_value", "'x'"),
        ({"messages": [{"role": []}]}, "messages[0].role", "invalid_value", "Supported values"),
        ({"messages": [QUESTION, {"role": "user"}]}, "messages[1].content", "invalid_type", "null"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content", "invalid_type",
         "expected an array of objects"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value", ">= 1, but got 0"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_type", "an integer"),
        ({"n": 129}, "n", "integer_above_max_value", "<= 128"),
        ({"n": True}, "n", "invalid_type", "got a boolean"),
        ({"stream": "yes"}, "stream", "invalid_type", "expected a boolean"),
        ({"stream": []}, "stream", "invalid_type", "expected a boolean"),
        ({"stream_options": {}}, "stream_options", None, "only allowed when 'stream'"),
        ({"stream": True, "stream_options": 1}, "stream_options", "invalid_type", "an object"),
        ({"response_format": 1}, "response_format", "invalid_type", "an object"),
        ({"response_format": {}}, "response_format.type", "invalid_value", "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema",
         "missing_required_parameter", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}},
         "response_format.json_schema.name", "missing_required_parameter", "name"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_field_is_named(fields, param, code, message):
    with pytest.raises(Refusal) as caught:
        call(**fields)

    error = json.loads(caught.value.body)["error"]
    assert (caught.value.status, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)
    assert message in error["message"]


@given(st.binary())
def test_any_bytes_are_a_call_or_a_refusal(body):
    with contextlib.suppress(Refusal):
        OPENAI_CHAT.read(body, "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner)
    ),
    max_leaves=6,
)
FIELDS = ["model", "messages", "n", "max_tokens", "stream", "stream_options", "response_format"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_any_fields_are_a_call_or_a_refusal(fields):
    with contextlib.suppress(Refusal):
        call(**fields)


@pytest.mark.parametrize("key", [b"", b"Basic x", b"Bearer", b"Bearer ", b"Bearer invalid"])
def test_a_call_needs_a_key(key):
    with pytest.raises(Refusal) as caught:
        OPENAI_CHAT.check_key([(b"authorization", key)], b"")

    assert caught.value.status == 401


def test_the_larger_of_cap_and_prompt_is_reserved():
    assert call(max_tokens=500).reserved_tokens == 500
    assert call(max_tokens=1).reserved_tokens == call().input_tokens == 4 + 3


def test_a_conversation_is_its_model_system_and_first_question():
    system = {"role": "system", "content": "Be short."}
    later = [system, QUESTION, {"role": "assistant", "content": "Lima"}, QUESTION]

    assert call(messages=later).conversation == call(messages=[system, QUESTION]).conversation
    assert call(messages=[QUESTION]).conversation != call(messages=later).conversation
    assert call(model="gpt-y").conversation != call().conversation


@given(st.integers(1, 60), st.sampled_from([None, "ptruncate"]))
def test_an_answer_is_never_longer_than_allowed(cap, fault):
    completion = answered(call(max_tokens=cap), fault)
    choice = json.loads(completion.body())["choices"][0]

    assert completion.output_tokens <= cap
    assert len(choice["message"]["content"]) // 4 <= cap
    whole = json.loads(answered(call(), None).body())["choices"][0]
    is_cut = choice["message"]["content"] != whole["message"]["content"]
    assert (choice["finish_reason"] == "length") == is_cut


def test_a_truncated_answer_is_cut_even_when_it_is_short():
    prompt = [{"role": "user", "content": "<<echo>>abc"}]
    body = json.loads(answered(call(messages=prompt), "ptruncate").body())

    assert body["choices"][0]["message"]["content"] == "a"
    assert body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("schema", [{}, True, {"type": "object"}, {"type": "integer"}])
def test_a_wrong_answer_violates_any_schema(schema):
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = json.loads(answered(call(response_format=shape), "pschema").body())
    text = body["choices"][0]["message"]["content"]

    if schema in ({}, True):
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(text)
    else:
        assert not jsonschema_rs.is_valid(schema, json.loads(text))


def test_an_impossible_schema_is_a_bad_request():
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "pasta"}}}

    with pytest.raises(Flaw) as caught:
        answered(call(response_format=shape))

    refusal = OPENAI_CHAT.flawed(caught.value)
    assert refusal.status == 400
    assert b"Invalid schema for response_format: " in refusal.body


@pytest.mark.parametrize("fault", [None, "prefuse", "pfilter", "ptruncate"])
@pytest.mark.parametrize("usage", [True, False])
def test_the_pieces_of_a_stream_are_the_whole_answer(fault, usage):
    options = {"stream": True, "stream_options": {"include_usage": usage}, "n": 2}
    completion = answered(call(**options), fault)
    whole = json.loads(completion.body())

    *events, end = completion.events()
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert end == b"data: [DONE]\n\n"
    for choice in whole["choices"]:
        deltas = [
            part
            for chunk in chunks
            for part in chunk["choices"]
            if part["index"] == choice["index"]
        ]
        text = "".join(part["delta"].get("content") or "" for part in deltas)
        refusal = "".join(part["delta"].get("refusal") or "" for part in deltas)
        message = choice["message"]
        assert (text, refusal) == (message["content"] or "", message["refusal"] or "")
        assert deltas[-1]["finish_reason"] == choice["finish_reason"]
    assert [chunk.get("usage") for chunk in chunks if chunk.get("usage")] == (
        [whole["usage"]] if usage else []
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (-1, "0s"), (0.02, "20ms"), (0.9996, "1s"), (7.66, "7.66s"), (33.023, "33.023s"),
        (59.9999, "1m0s"), (83, "1m23s"), (360, "6m0s"), (3602, "1h0m2s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_go_does(seconds, text):
    assert go_duration(seconds) == text
