"""What holds for every codec, whatever a server says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import (
    BadOutputError,
    Image,
    ItemError,
    Message,
    Request,
    Settings,
    Text,
    UnsupportedRequestError,
)
from batch_llm.core.schema import OutputSchema
from batch_llm.providers.table import PROVIDERS

CODECS = sorted({provider.codec for provider in PROVIDERS.values()}, key=repr)

text = st.text(st.characters(codec="utf-8"), max_size=12)
#: Names and words that the formats know, among them ones in odd places.
words = st.sampled_from(
    ["choices", "message", "content", "finish_reason", "error", "code", "type", "text", "usage",
     "output", "status", "failed", "incomplete", "incomplete_details", "reason", "output_text",
     "tool_use", "input", "stop_reason", "refusal", "max_tokens", "stop_details", "candidates",
     "parts", "finishReason", "SAFETY", "STOP", "promptFeedback", "blockReason", "thought",
     "safetyRatings", "usageMetadata", "functionCall", "end_turn", "length", "tool_calls"]
)  # fmt: skip
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | text, inner, max_size=4),
    max_leaves=12,
)
counts = st.integers(0, 10**9)
odd_counts = counts | st.integers(-5, 5) | st.none() | text | st.floats(0, 10)
USAGE_NAMES = (
    *("prompt_tokens", "completion_tokens", "total_tokens", "prompt_cache_hit_tokens"),
    *("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
    *("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount"),
    *("cachedContentTokenCount", "toolUsePromptTokenCount", "totalTokenCount"),
)
DETAILS = {
    "prompt_tokens_details": ("cached_tokens", "cache_write_tokens"),
    "completion_tokens_details": ("reasoning_tokens",),
    "input_tokens_details": ("cached_tokens", "cache_write_tokens"),
    "output_tokens_details": ("reasoning_tokens", "thinking_tokens"),
    "cache_creation": ("ephemeral_1h_input_tokens",),
}


def usages(number):
    return st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(USAGE_NAMES, number),
            **{
                name: st.none() | st.dictionaries(st.sampled_from(inner), number)
                for name, inner in DETAILS.items()
            },
        },
    )


def good_answers(usage):
    """Bodies that are a good answer in all of the formats at once."""
    said = {"type": "output_text", "text": "Lima"}
    return {
        "choices": [{"message": {"content": "Lima"}, "finish_reason": "stop"}],
        "status": "completed",
        "output": [{"type": "message", "content": [said]}],
        "content": [{"type": "text", "text": "Lima"}],
        "stop_reason": "end_turn",
        "candidates": [{"content": {"parts": [{"text": "Lima"}]}, "finishReason": "STOP"}],
        "usage": usage,
        "usageMetadata": usage,
    }


def check_usage(usage):
    """Parts are in their totals, and the total is the sum: nothing is counted twice."""
    sent, got = usage["input_tokens"], usage["output_tokens"]
    assert all(type(count) is int and count >= 0 for count in usage.values())
    assert usage["total_tokens"] == sent + got
    assert usage.get("cache_read_tokens", 0) + usage.get("cache_write_tokens", 0) <= sent
    assert usage.get("cache_write_1h_tokens", 0) <= usage.get("cache_write_tokens", 0)
    assert usage.get("reasoning_tokens", 0) <= got


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@given(
    status=st.integers(100, 599),
    body=st.binary(max_size=100) | values.map(lambda value: json.dumps(value).encode()),
    shape=st.sampled_from([None, OutputSchema.choices("a", "b")]),
)
def test_no_answer_breaks_a_codec(codec, status, body, shape):
    outcome = codec.decode(status, {}, body, Request.of("x:m", "hi", output=shape))

    assert outcome.error is None or isinstance(outcome.error, ItemError)
    assert outcome.error is None or str(outcome.error)
    if outcome.usage is not None:
        check_usage(outcome.usage)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@given(status=st.integers(100, 599), body=st.binary(max_size=200))
def test_bytes_by_chance_are_no_answer(codec, status, body):
    assert codec.decode(status, {}, body, Request.of("x:m", "hi")).error is not None


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"Incorrect API key provided: hush-hush-hush"}}',
        b'{"error":{"message":"bad header Bearer 0123456789abcdef"}}',
        b'{"error":{"message":"sk-proj-0123456789abcdef is unknown"}}',
        b"hush-hush-hush",
    ],
)
def test_no_error_repeats_a_key(codec, status, body):
    request = Request.of("x:m", "hi")

    error = codec.decode(status, {}, body, request, secret="hush-hush-hush").error

    for shown in (str(error), repr(error), repr(error.args)):
        assert "hush" not in shown
        assert "0123456789" not in shown


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@given(
    lines=st.lists(
        st.sampled_from(["message_start", "content_block_start", "content_block_delta",
                         "message_delta", "error", "ping"]).flatmap(
            lambda kind: st.fixed_dictionaries(
                {"type": st.just(kind)},
                optional=dict.fromkeys(
                    ("message", "index", "content_block", "delta", "usage", "error"), values
                ),
            )
        ),
        max_size=6,
    ),
    cut=st.integers(0, 50),
)  # fmt: skip
def test_no_stream_breaks_a_codec(codec, lines, cut):
    body = "".join(f"data: {json.dumps(line)}\n\n" for line in lines).encode()

    outcome = codec.decode(200, {}, body[: len(body) - cut], Request.of("x:m", "hi"))

    assert outcome.error is None or isinstance(outcome.error, ItemError)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@given(usages(counts) | usages(odd_counts) | values)
def test_kinds_of_tokens_are_contained_in_their_totals_whatever_a_server_says(codec, usage):
    body = json.dumps(good_answers(usage)).encode()

    outcome = codec.decode(200, {}, body, Request.of("x:m", "hi"))

    assert (outcome.output, outcome.error) == ("Lima", None)
    if outcome.usage is not None:
        check_usage(outcome.usage)


messages = st.lists(
    st.builds(
        Message,
        st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        st.none()
        | text
        | st.lists(
            st.builds(Text, text) | st.builds(Image, text | st.just("data:,%")), max_size=2
        ).map(tuple),
        st.sampled_from([{}, {"name": "a"}, {"tool_calls": [{"id": "1"}]}]),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
settings = st.builds(
    Settings,
    temperature=st.none() | st.floats(0, 2),
    max_tokens=st.none() | st.integers(1, 10**6),
    top_p=st.none() | st.floats(0, 1),
    seed=st.none() | st.integers(0, 9),
    stop=st.none() | st.just(("END",)),
    extra=st.dictionaries(text, st.none() | st.integers(0, 9) | text, max_size=2),
)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@given(
    messages,
    settings,
    st.sampled_from([None, OutputSchema.choices("a", "b"), OutputSchema.of(list[int])]),
    st.none() | text.map(lambda said: BadOutputError(said, "wrong")),
)
def test_a_request_is_written_the_same_each_time_or_refused(codec, turns, chosen, shape, feedback):
    request = Request("x:m", turns, chosen, shape)

    try:
        body = codec.encode(request, feedback=feedback)
    except UnsupportedRequestError:
        return

    assert isinstance(json.loads(body), dict)
    assert body == codec.encode(request, feedback=feedback)
    assert codec.path("m/?#").startswith("/")
    assert not set("?#") & set(codec.path("m/?#"))
