from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import Image, ItemError, Message, OtherPart, Request, Settings, Text
from batch_llm.core.schema import OutputSchema
from batch_llm.providers import openai
from batch_llm.providers.openai import ChatCodec

#: Writes what it is given, whatever the model's name says of temperatures.
CHAT = ChatCodec(thinks=False)

text = st.text(st.characters(codec="utf-8"), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


def other_fields(*taken):
    return st.dictionaries(text.filter(lambda name: name not in taken), json_values, max_size=3)


parts = st.one_of(
    st.builds(Text, text),
    st.builds(Image, text, st.sampled_from([None, "low", "high", "auto"])),
    st.builds(
        OtherPart,
        other_fields("type").map(lambda fields: fields | {"type": "input_audio"}),
    ),
)
messages = st.builds(
    Message,
    st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
    st.none() | text | st.lists(parts, max_size=3).map(tuple),
    other_fields("role", "content"),
)
schemas = st.sampled_from(
    [
        None,
        OutputSchema.choices("ham", "spam"),
        OutputSchema.of(list[int]),
        OutputSchema.json_schema({"type": "object", "title": "Größe"}),
        OutputSchema.json_schema({"type": "object"}, "a", is_strict=None),
        OutputSchema.json_schema({"type": "object"}, "a", is_strict=True),
    ]
)
MODELLED = (
    *("model", "messages", "temperature", "top_p", "seed", "stop", "response_format"),
    *("max_tokens", "max_completion_tokens"),
)
settings = st.builds(
    Settings,
    temperature=st.none() | st.floats(0, 2) | st.integers(0, 2),
    max_tokens=st.none() | st.integers(1, 10**6),
    top_p=st.none() | st.floats(0, 1),
    seed=st.none() | st.integers(-(2**31), 2**31),
    stop=st.none() | st.lists(text, max_size=3).map(tuple),
    extra=other_fields(*MODELLED),
)
requests = st.builds(
    Request,
    text.filter(bool).map(lambda name: f"openai-chat:{name}"),
    st.lists(messages, min_size=1, max_size=4).map(tuple),
    settings,
    schemas,
)

# Bodies as they are found in files: modelled fields have the odd values that users write.
bodies = st.fixed_dictionaries(
    {
        "model": text.filter(bool),
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": text},
                optional={
                    "content": st.none()
                    | text
                    | st.lists(
                        st.dictionaries(
                            st.sampled_from(["type", "text", "image_url", "cache_control"]),
                            st.sampled_from(["text", "image_url"])
                            | st.fixed_dictionaries({"url": text}, optional={"detail": json_values})
                            | json_values,
                        )
                    ),
                    "name": json_values,
                    "tool_calls": json_values,
                },
            ),
            min_size=1,
            max_size=3,
        ),
    },
    optional={
        **dict.fromkeys(("temperature", "top_p", "seed", "tools", "n"), json_values),
        **{name: json_values | st.integers() for name in ("max_tokens", "max_completion_tokens")},
        "stop": json_values | st.lists(text),
        "response_format": json_values
        | st.fixed_dictionaries(
            {
                "type": st.sampled_from(["json_schema", "text"]),
                "json_schema": st.fixed_dictionaries(
                    {"name": text | st.just("a"), "schema": json_values | st.just({})},
                    optional={"strict": st.none() | st.booleans(), "description": text},
                ),
            },
            optional={"more": json_values},
        ),
    },
)


def as_json(value):
    return json.dumps(value, sort_keys=True)


@given(requests)
def test_what_is_encoded_is_read_back_as_the_same_request(request):
    assert openai.read(CHAT.encode(request), "openai-chat") == request


@given(bodies)
def test_what_was_read_goes_out_as_it_came(body):
    sent = CHAT.encode(openai.read(body, "openai-chat"))

    # Compared as the wire has it: 1e22 and 10000000000000000000000 are the same number there.
    assert as_json(msgspec.json.decode(sent)) == as_json(
        msgspec.json.decode(msgspec.json.encode(body))
    )


REAL_BODIES = [
    {
        "model": "gpt-4.1",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hello!", "name": "ada"},
        ],
        "max_tokens": 1000,
        "metadata": {"run": "7"},
        "service_tier": "flex",
    },
    {
        "model": "gpt-5",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                    {"type": "input_audio", "input_audio": {"data": "AAA", "format": "wav"}},
                ],
            },
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "assistant", "content": None, "refusal": None},
            {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "auto",
        "temperature": 0,
        "max_completion_tokens": 50,
        "stop": "END",
        "seed": 7,
        "logprobs": True,
        "reasoning_effort": "low",
    },
    {
        "model": "gpt-5",
        "messages": [{"role": "user", "content": "x"}],
        "stop": ["a", "b"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "person",
                "strict": True,
                "schema": {
                    "type": "object",
                    "title": "Person",
                    "properties": {"name": {"type": "string"}},
                    "required": ["name"],
                    "additionalProperties": False,
                },
            },
        },
    },
    {
        "model": "gpt-5",
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_object"},
    },
    {
        "model": "gpt-5",
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "description": "An answer.", "schema": {"type": "object"}},
        },
    },
]


@pytest.mark.parametrize("body", REAL_BODIES)
def test_real_bodies_go_out_as_they_came(body):
    assert json.loads(CHAT.encode(openai.read(body, "openai-chat"))) == body


@given(
    st.integers(100, 599),
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {"choices": st.lists(st.fixed_dictionaries({"message": json_values})) | json_values},
        optional={
            "usage": json_values
            | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), json_values),
            "error": json_values,
        },
    ).map(lambda value: json.dumps(value).encode()),
)
def test_no_answer_breaks_the_codec(status, body):
    outcome = CHAT.decode(status, {}, body, Request.of("openai-chat:m", "hi"))

    assert isinstance(outcome.output, str) if outcome.error is None else True
    assert outcome.error is None or isinstance(outcome.error, ItemError)
    assert outcome.error is None or str(outcome.error)
