from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from batch_llm import (
    BadOutputError,
    ConfigError,
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
)
from batch_llm.core.schema import OutputSchema
from batch_llm.providers import openai
from batch_llm.providers.openai import CHAT

text = st.text(st.characters(codec="utf-8"), max_size=20)
parts = st.one_of(
    st.builds(Text, text),
    st.builds(Image, text, st.sampled_from([None, "low", "high"])),
    st.builds(OtherPart, st.fixed_dictionaries({"type": st.just("input_audio"), "data": text})),
)
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant"]),
    st.one_of(text, st.none(), st.lists(parts, min_size=1, max_size=3).map(tuple)),
    st.dictionaries(st.sampled_from(["name", "tool_call_id"]), text),
)
settings = st.builds(
    Settings,
    temperature=st.none() | st.floats(0, 2),
    max_tokens=st.none() | st.integers(1, 10**6),
    top_p=st.none() | st.floats(0, 1),
    seed=st.none() | st.integers(0, 2**31),
    stop=st.none() | st.lists(text, min_size=1, max_size=3).map(tuple),
    extra=st.dictionaries(st.sampled_from(["logprobs", "user", "n"]), st.integers(0, 9)),
)
requests = st.builds(
    Request,
    text.filter(bool).map(lambda name: f"openai-chat:{name}"),
    st.lists(messages, min_size=1, max_size=4).map(tuple),
    settings,
)


@given(requests)
def test_what_is_encoded_can_be_read_back(request):
    assert openai.read(json.loads(CHAT.encode(request)), "openai-chat") == request


@given(requests)
def test_a_body_that_was_read_goes_out_as_it_came(request):
    body = json.loads(CHAT.encode(request))

    assert json.loads(CHAT.encode(openai.read(body, "openai-chat"))) == body


def test_a_schema_survives_the_way_out_and_in():
    request = Request.of("openai-chat:m", "hi", output=OutputSchema.choices("ham", "spam"))
    body = json.loads(CHAT.encode(request))

    again = json.loads(CHAT.encode(openai.read(body, "openai-chat")))

    assert again["response_format"]["json_schema"]["strict"] is True
    assert openai.read(body, "openai-chat").output is not None


def test_each_attempt_has_its_temperature():
    request = Request.of("openai-chat:m", "hi", settings=Settings(temperature=(0.0, 0.5)))

    sent = [json.loads(CHAT.encode(request, attempt=n))["temperature"] for n in (1, 2, 3)]

    assert sent == [0.0, 0.5, 0.5]


def test_a_bad_answer_is_fed_back():
    request = Request.of("openai-chat:m", "hi")

    body = json.loads(CHAT.encode(request, feedback=BadOutputError("{oops", "not JSON")))

    assert body["messages"][1] == {"role": "assistant", "content": "{oops"}
    assert "not JSON" in body["messages"][2]["content"]


def answer(message, reason="stop", **more):
    body = {
        "model": "m-1",
        "choices": [{"message": message, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
    }
    return json.dumps(body | more).encode()


PLAIN = Request.of("openai-chat:m", "hi")


def test_an_answer_is_read_with_its_usage():
    outcome = CHAT.decode(200, {}, answer({"content": "Lima"}), PLAIN)

    assert (outcome.output, outcome.error, outcome.model) == ("Lima", None, "m-1")
    assert outcome.usage == {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "cache_read_tokens": 4,
        "reasoning_tokens": 3,
    }


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (answer({"content": "half"}, "length"), TruncatedError),
        (answer({"content": None, "refusal": "no"}), RefusedError),
        (answer({"content": ""}, "content_filter"), ContentFilteredError),
        (answer({"content": None}), MalformedResponseError),
        (b'{"model":"m","choices":[]}', MalformedResponseError),
        (b"<html>502</html>", MalformedResponseError),
        (b'{"error":{"code":502,"message":"upstream"}}', StatusError),
    ],
)
def test_what_is_no_good_answer_is_told_apart(body, kind):
    assert isinstance(CHAT.decode(200, {}, body, PLAIN).error, kind)


def test_tokens_of_a_bad_answer_are_kept():
    outcome = CHAT.decode(200, {}, answer({"content": "half"}, "length"), PLAIN)

    assert outcome.usage["total_tokens"] == 15


def test_an_error_status_is_read_with_its_code():
    body = b'{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}'

    error = CHAT.decode(429, {"retry-after": "3"}, body, PLAIN).error

    assert (error.status, error.code, error.message) == (429, "rate_limit_exceeded", "slow down")
    assert error.headers == {"retry-after": "3"}


@given(st.integers(100, 599), st.binary(max_size=200))
def test_no_answer_breaks_the_codec(status, body):
    outcome = CHAT.decode(status, {}, body, PLAIN)

    assert outcome.error is not None


class Review(BaseModel):
    label: str
    stars: int


@pytest.mark.parametrize(
    ("shape", "text", "value"),
    [
        (["ham", "spam"], '{"choice": "spam"}', "spam"),
        (["ham", "spam"], ' "Spam". ', "spam"),
        (["ham", "spam"], "HAM", "ham"),
        (Review, '{"label": "good", "stars": 5}', Review(label="good", stars=5)),
        (Review, '```json\n{"label": "good", "stars": 5}\n```', Review(label="good", stars=5)),
        (list[int], '{"value": [1, 2]}', [1, 2]),
        ({"type": "object", "required": ["a"]}, '{"a": 1}', {"a": 1}),
    ],
)
def test_answers_are_read_by_their_schema(shape, text, value):
    assert OutputSchema.of(shape).parse(text) == value


@pytest.mark.parametrize(
    ("shape", "text", "problem"),
    [
        (["ham", "spam"], "eggs", "choose exactly one of: ham, spam"),
        (Review, '{"label": "good"}', "stars: Field required"),
        (Review, "nonsense", "not valid JSON"),
        ({"type": "object", "required": ["a"]}, "{}", '"a" is a required property'),
    ],
)
def test_an_answer_that_does_not_fit_says_why(shape, text, problem):
    with pytest.raises(BadOutputError) as caught:
        OutputSchema.of(shape).parse(text)

    assert problem in caught.value.problem


def test_an_invalid_schema_is_refused_before_anything_is_sent():
    with pytest.raises(ConfigError, match="a valid JSON schema"):
        OutputSchema.of({"type": "nonsense"})
