"""What holds for all wire formats."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.simulator.anthropic_messages import ANTHROPIC
from batch_llm.simulator.calls import Tool, pick_tool
from batch_llm.simulator.completions import Shares
from batch_llm.simulator.gemini import GEMINI, GEMINI_ARRAY, GEMINI_STREAM
from batch_llm.simulator.groq import GROQ
from batch_llm.simulator.mistral import MISTRAL
from batch_llm.simulator.openai_chat import OPENAI_CHAT
from batch_llm.simulator.openai_responses import OPENAI_RESPONSES
from batch_llm.simulator.profile import FAULTS
from batch_llm.simulator.refusals import Excess, Flaw, Refusal
from batch_llm.simulator.rules import QUOTAS, RULES

FORMATS = {
    "chat": OPENAI_CHAT,
    "responses": OPENAI_RESPONSES,
    "anthropic": ANTHROPIC,
    "gemini": GEMINI,
    "mistral": MISTRAL,
    "groq": GROQ,
}
ALL = pytest.mark.parametrize("kind", FORMATS)
CHAT_LIKE = {"chat", "mistral", "groq"}
CAPS = {"responses": "max_output_tokens", "gemini": "maxOutputTokens"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def fields_for(kind, prompt="Capital of Peru?", cap=None, schema=None):
    """Return the body of a call, in the way of a format."""
    capped = {} if cap is None else {CAPS.get(kind, "max_tokens"): cap}
    if kind == "gemini":
        settings = capped
        if schema is not None:
            settings |= {"responseMimeType": "application/json", "responseJsonSchema": schema}
        contents = [{"role": "user", "parts": [{"text": prompt}]}]
        return {"contents": contents, "generationConfig": settings}
    if kind == "responses":
        shape = {"type": "json_schema", "name": "x", "schema": schema}
        text = {} if schema is None else {"text": {"format": shape}}
        return {"model": "m", "input": prompt} | capped | text
    fields = {"model": "m", "messages": [{"role": "user", "content": prompt}]} | capped
    if kind == "anthropic":
        shape = {"format": {"type": "json_schema", "schema": schema}}
        return {"max_tokens": 4000} | fields | ({} if schema is None else {"output_config": shape})
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return fields | ({} if schema is None else {"response_format": shape})


def call(kind, *arguments, streams=False, **options):
    fields = fields_for(kind, *arguments, **options)
    if kind == "gemini":
        wire = GEMINI_STREAM if streams else GEMINI
        return wire.read(json.dumps(fields).encode(), "m")
    if streams:
        fields["stream"] = True
    return FORMATS[kind].read(json.dumps(fields).encode(), "")


def text_of(kind, body):
    """Return an answer's text."""
    if kind == "responses":
        return "".join(
            part["text"] for item in body["output"] if item["type"] == "message"
            for part in item["content"]
        )  # fmt: skip
    if kind == "anthropic":
        return "".join(block["text"] for block in body["content"])
    if kind == "gemini":
        parts = body["candidates"][0].get("content", {}).get("parts", [])
        return "".join(part["text"] for part in parts)
    return body["choices"][0]["message"]["content"]


def tokens_of(kind, body):
    """Return what is billed: input in all, of it cached, output in all, of it thought."""
    if kind == "gemini":
        usage = body["usageMetadata"]
        thought = usage.get("thoughtsTokenCount", 0)
        written = usage.get("candidatesTokenCount", 0) + thought
        assert usage["totalTokenCount"] == usage["promptTokenCount"] + written
        cached = usage.get("cachedContentTokenCount", 0)
        return usage["promptTokenCount"], cached, written, thought
    usage = body["usage"]
    if kind == "anthropic":
        cached = usage["cache_read_input_tokens"]
        given_ = usage["input_tokens"] + cached + usage["cache_creation_input_tokens"]
        thought = usage["output_tokens_details"]["thinking_tokens"]
        return given_, cached, usage["output_tokens"], thought
    if kind == "responses":
        names = ("input_tokens", "output_tokens")
    else:
        names = ("prompt_tokens", "completion_tokens")
    given_, written = (usage[name] for name in names)
    assert usage["total_tokens"] == given_ + written
    cached = usage.get(f"{names[0]}_details", {}).get("cached_tokens", 0)
    thought = usage.get(f"{names[1]}_details", {}).get("reasoning_tokens", 0)
    return given_, cached, written, thought


@ALL
@given(st.binary())
def test_any_bytes_are_a_call_or_a_refusal(kind, body):
    with contextlib.suppress(Refusal):
        FORMATS[kind].read(body, "m")


NAMES = [
    "role", "content", "type", "text", "source", "name", "schema", "function", "parameters",
    "parts", "inlineData", "functionCall", "functionDeclarations", "input_schema", "format",
    "json_schema", "mode", "functionCallingConfig", "allowedFunctionNames", "thinking",
]  # fmt: skip
WORDS = [
    "user", "assistant", "model", "tool", "image", "tool_use", "tool_result", "message",
    "function_call", "function_call_output", "json_schema", "json_object", "function", "auto",
    "any", "required", "none", "application/json", "OBJECT", "STRING",
]  # fmt: skip
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = [
    "model", "messages", "n", "max_tokens", "max_output_tokens", "stream", "stream_options",
    "response_format", "input", "instructions", "text", "tools", "tool_choice", "system",
    "output_config", "output_format", "thinking", "contents", "systemInstruction",
    "generationConfig", "toolConfig", "generateContentRequest",
]  # fmt: skip


@ALL
@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=4))
def test_any_fields_are_a_call_with_an_answer_or_a_refusal(kind, fields):
    wire = FORMATS[kind]
    body = json.dumps(fields_for(kind) | fields).encode()
    with contextlib.suppress(Refusal):
        asked = wire.read(body, "m")
        with contextlib.suppress(Flaw):
            answer = wire.complete(asked, None, 0.0)
            json.loads(answer.body())
            assert list(answer.events())


@ALL
def test_the_same_question_has_the_same_answer_everywhere(kind):
    body = json.loads(FORMATS[kind].complete(call(kind), None, 0.0).body())
    other = json.loads(OPENAI_CHAT.complete(call("chat"), None, 0.0).body())

    assert text_of(kind, body) == text_of("chat", other)


@ALL
@given(
    st.integers(16, 60),
    st.sampled_from([None, "ptruncate"]),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_tokens_add_up_and_stay_within_what_was_allowed(kind, cap, fault, reasoning, cached):
    asked = call(kind, "word " * 50, cap=cap)
    asked.cached_tokens = int(asked.input_tokens * cached)
    shares = Shares(cached, 0.5, reasoning)
    answer = FORMATS[kind].complete(asked, fault, 0.0, shares)
    body = json.loads(answer.body())

    given_, from_cache, written, thought = tokens_of(kind, body)
    assert (given_, written) == (answer.input_tokens, answer.output_tokens)
    assert from_cache == answer.cached_tokens
    assert thought == (0 if kind == "mistral" else answer.reasoning_tokens)
    assert answer.reasoning_tokens <= answer.output_tokens <= cap
    assert len(text_of(kind, body)) // 4 <= cap - answer.reasoning_tokens


def data_of(event):
    return json.loads(event.partition(b"data: ")[2])


def streamed_text(kind, events):
    """Return the text of a stream's pieces."""
    if kind in CHAT_LIKE:
        chunks = [data_of(event) for event in events if b"[DONE]" not in event]
        deltas = [part["delta"] for chunk in chunks for part in chunk["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)
    pieces = [data_of(event) for event in events]
    if kind == "responses":
        return "".join(
            piece["delta"] for piece in pieces if piece["type"] == "response.output_text.delta"
        )
    if kind == "anthropic":
        deltas = [piece["delta"] for piece in pieces if piece["type"] == "content_block_delta"]
        return "".join(delta["text"] for delta in deltas)
    return "".join(text_of("gemini", piece) for piece in pieces)


@ALL
@pytest.mark.parametrize("fault", [None, "ptruncate", "pfilter"])
def test_the_pieces_of_a_stream_are_the_whole_answer(kind, fault):
    wire = FORMATS[kind]
    answer = wire.complete(call(kind, streams=True), fault, 0.0)

    assert streamed_text(kind, list(answer.events())) == text_of(kind, json.loads(answer.body()))


def test_the_pieces_of_an_array_are_a_json_array():
    answer = GEMINI_ARRAY.complete(call("gemini"), None, 0.0)
    answer.is_sse = False

    chunks = json.loads(b"".join(answer.events()))
    assert "".join(text_of("gemini", chunk) for chunk in chunks) == text_of(
        "gemini", json.loads(answer.body())
    )


@ALL
def test_each_format_has_words_for_each_trouble(kind):
    wire = FORMATS[kind]
    facts = {"model": "m{0}", "tokens": 9, "most": 5, "method": "PUT", "path": "/{x}"}
    needed = {
        "no_key", "bad_key", "forbidden", "missing_model", "wrong_method", "no_path", "context",
        "too_large", "busy", "p408", "p500", "p502", "p503", "p504", "p529",
    }  # fmt: skip
    for name in needed:
        refusal = wire.trouble(name, **facts)
        assert 400 <= refusal.status < 600
        if name != "p502":
            assert json.loads(refusal.body)
    for name in FAULTS:  # by all others, answers are spoilt or held back
        assert name in {*needed, "p429", "pquota", "ptimeout", "preset", "pgarbage", "pmidway",
                        "pschema", "ptruncate", "prefuse", "pfilter"}  # fmt: skip


@ALL
@pytest.mark.parametrize("word", ["usual", *QUOTAS])
def test_each_format_can_be_out_of_credit_in_any_words(kind, word):
    refusal = FORMATS[kind].out_of_quota(word, "m")

    assert refusal.status in {400, 402, 429}
    assert json.loads(refusal.body)


@ALL
@pytest.mark.parametrize(
    "limit", ["requests", "tokens", "input_tokens", "output_tokens", "requests_a_day"]
)
def test_each_format_has_words_for_each_limit(kind, limit):
    refusal = FORMATS[kind].limited(Excess(limit, "m", 500, 499, 2, 1.5, "header", 0.0))

    assert refusal.status == 429
    assert json.loads(refusal.body)
    waits = {name: value for name, value in refusal.headers.items() if "retry" in name}
    assert waits == ({} if kind == "gemini" else {"retry-after": "2"})


@pytest.mark.parametrize("kind", sorted(set(FORMATS) - {"gemini"}))
@pytest.mark.parametrize(
    ("how", "headers"),
    [
        ("header", {"retry-after": "2"}),
        ("decimal", {"retry-after": "1.250"}),
        ("ms", {"retry-after-ms": "1250"}),
        ("date", {"retry-after": "Thu, 01 Jan 1970 00:01:42 GMT"}),
        ("none", {}),
    ],
)
def test_a_wait_is_told_as_the_profile_says(kind, how, headers):
    refusal = FORMATS[kind].limited(Excess("requests", "m", 500, 500, 1, 1.25, how, 100.0))

    assert refusal.headers == headers


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.3, "0.300s"), (35.0, "35s"), (0.0001, "0.001s"), (600.5, "600.500s")]
)
def test_gemini_tells_a_wait_in_the_body(seconds, told):
    refusal = GEMINI.limited(Excess("requests", "m", 5, 5, 1, seconds, "header", 0.0))
    silent = GEMINI.limited(Excess("requests", "m", 5, 5, 1, seconds, "none", 0.0))

    (wait,) = [one for one in json.loads(refusal.body)["error"]["details"] if "retryDelay" in one]
    assert wait["retryDelay"] == told
    assert b"retryDelay" not in silent.body


@ALL
def test_a_format_has_rules_to_count_by(kind):
    assert FORMATS[kind].provider in RULES


@ALL
def test_schemas_are_kept_and_broken_on_purpose(kind):
    wire = FORMATS[kind]
    good = text_of(kind, json.loads(wire.complete(call(kind, schema=SCHEMA), None, 0.0).body()))
    bad = text_of(kind, json.loads(wire.complete(call(kind, schema=SCHEMA), "pschema", 0.0).body()))

    assert isinstance(json.loads(good)["n"], int)
    value = json.loads(bad)
    is_instance = isinstance(value, dict) and isinstance(value.get("n"), int)
    assert not is_instance or set(value) - {"n"}


A, B = Tool("look_up", {}), Tool("final_result", {})


@pytest.mark.parametrize(
    ("tools", "called", "prompt", "is_due", "picked"),
    [
        ([A, B], [], "hi", True, A),
        ([A, B], ["look_up"], "hi", True, B),
        ([A, B], ["look_up", "final_result"], "hi", True, B),
        ([], [], "hi", True, None),
        ([A, B], [], "hi", False, None),
        ([A, B], [], "please look_up", False, A),
        ([A, B], ["look_up"], "please look_up", False, None),
    ],
)
def test_functions_are_called_one_after_another(tools, called, prompt, is_due, picked):
    assert pick_tool(tools, called, prompt, is_due=is_due) == picked
