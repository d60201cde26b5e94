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
)
from batch_llm.core.schema import OutputSchema
from batch_llm.providers import openai
from batch_llm.providers.openai import CHAT, ChatCodec

PLAIN = Request.of("openai-chat:m", "hi", settings=Settings(max_tokens=9))
USAGE = {"prompt_tokens": 10, "completion_tokens": 5}


def answer(message, reason="stop", usage=USAGE, **more):
    body = {"model": "m-1", "choices": [{"message": message, "finish_reason": reason}]}
    return json.dumps(body | {"usage": usage} | more).encode()


def decode(body, request=PLAIN, status=200, headers=None, secret=""):
    return CHAT.decode(status, headers or {}, body, request, secret=secret)


@pytest.mark.parametrize("field", ["max_completion_tokens", "max_tokens"])
def test_the_limit_goes_out_by_the_name_that_the_server_knows(field):
    body = json.loads(ChatCodec(field).encode(PLAIN))

    assert {name for name in body if "tokens" in name} == {field}


def test_the_endpoints_name_of_the_model_goes_before_the_requests():
    assert json.loads(CHAT.encode(PLAIN, model="other"))["model"] == "other"
    assert json.loads(CHAT.encode(PLAIN))["model"] == "m"


def test_each_attempt_has_its_temperature():
    request = Request.of("openai-chat:m", "hi", settings=Settings(temperature=(0.0, 0.5)))

    sent = [json.loads(CHAT.encode(request, attempt=n))["temperature"] for n in (1, 2, 3)]

    assert sent == [0.0, 0.5, 0.5]


def test_a_schema_goes_out_with_its_name_and_its_flag():
    request = Request.of("openai-chat:m", "hi", output=OutputSchema.choices("a", "b"))

    shape = json.loads(CHAT.encode(request))["response_format"]

    assert shape["type"] == "json_schema"
    assert (shape["json_schema"]["name"], shape["json_schema"]["strict"]) == ("choice", True)


def test_feedback_is_the_answer_and_what_was_wrong_with_it():
    sent = json.loads(CHAT.encode(PLAIN, feedback=BadOutputError("{oops", "a: missing")))

    assert sent["messages"][:2] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "{oops"},
    ]
    assert "a: missing" in sent["messages"][2]["content"]


def test_what_a_body_holds_is_found_in_its_place():
    request = openai.read(
        {
            "model": "gpt-5",
            "messages": [
                {
                    "role": "user",
                    "name": "ada",
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "image_url", "image_url": {"url": "u"}},
                        {"type": "file", "file": {}},
                    ],
                }
            ],
            "temperature": 0.5,
            "max_completion_tokens": 7,
            "user": "me",
        },
        "openai-chat",
    )

    assert request.model == "openai-chat:gpt-5"
    parts = (Text("a"), Image("u"), OtherPart({"type": "file", "file": {}}))
    assert request.messages == (Message("user", parts, {"name": "ada"}),)
    assert request.settings == Settings(temperature=0.5, max_tokens=7, extra={"user": "me"})


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be an object"),
        ({}, "no `model`"),
        ({"model": 5, "messages": []}, "no `model`"),
        ({"model": "m"}, "no `messages`"),
        ({"model": "m", "messages": []}, "no `messages`"),
        ({"model": "m", "messages": ["hi"]}, "no `role`"),
        ({"model": "m", "messages": [{"role": "user", "content": 5}]}, "must be text"),
        ({"model": "m", "messages": [{"role": "user", "content": ["x"]}]}, "must be an object"),
    ],
)
def test_a_body_that_makes_no_request_is_refused(body, complaint):
    with pytest.raises(ValueError, match=complaint):
        openai.read(body, "openai-chat")


def test_an_answer_is_its_text_and_says_which_model_gave_it():
    outcome = decode(answer({"content": "Lima"}))

    assert (outcome.output, outcome.error, outcome.model) == ("Lima", None, "m-1")


def test_tokens_are_told_by_kind_and_only_those_that_were_told():
    full = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 99,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }

    assert decode(answer({"content": "x"}, usage=full)).usage == {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "cache_read_tokens": 0,
        "cache_write_tokens": 3,
        "reasoning_tokens": 2,
    }
    assert decode(answer({"content": "x"})).usage == {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
    }
    assert decode(answer({"content": "x"}, usage=None)).usage is None


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ({"content": "Lima", "audio": 5}, {"id": 7}),
        ({"content": [{"type": "text", "text": "Li"}, {"type": "text", "text": "ma"}]}, {}),
        ({"content": "Lima", "refusal": False}, {}),
        ({"content": "Lima"}, {"model": 5}),
        ({"content": "Lima"}, {"usage": "many"}),
        ({"content": "Lima"}, {"usage": {"prompt_tokens": "ten"}}),
        ({"content": "Lima"}, {"error": {}}),
    ],
)
def test_an_oddity_beside_the_answer_does_not_spoil_it(message, more):
    outcome = decode(answer(message, **more))

    assert (outcome.output, outcome.error) == ("Lima", None)


def test_tokens_survive_an_oddity_elsewhere():
    odd = USAGE | {"prompt_tokens": 10.0, "completion_tokens_details": {"reasoning_tokens": "?"}}

    assert decode(answer({"content": "x"}, usage=odd)).usage == {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
    }


def test_an_answer_that_does_not_fit_was_paid_for_all_the_same():
    request = Request.of("openai-chat:m", "hi", output=OutputSchema.choices("a", "b"))

    outcome = decode(answer({"content": "c"}), request)

    assert isinstance(outcome.error, BadOutputError)
    assert (outcome.usage["total_tokens"], outcome.model) == (15, "m-1")


def test_an_answer_that_fits_is_its_value():
    request = Request.of("openai-chat:m", "hi", output=OutputSchema.choices("a", "b"))

    assert decode(answer({"content": '{"choice": "b"}'}), request).output == "b"


def test_a_cut_answer_keeps_its_text_and_its_limit_and_was_paid_for():
    outcome = decode(answer({"content": "half"}, "length"))

    assert isinstance(outcome.error, TruncatedError)
    assert (outcome.error.text, outcome.error.max_tokens) == ("half", 9)
    assert outcome.usage["total_tokens"] == 15


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (answer({"content": None, "refusal": "no"}), RefusedError),
        (answer({"content": ""}, "content_filter"), ContentFilteredError),
        (answer({"content": None}), MalformedResponseError),
        (b'{"model":"m","choices":[]}', MalformedResponseError),
        (b"<html>502</html>", MalformedResponseError),
    ],
)
def test_what_is_no_good_answer_is_told_apart(body, kind):
    assert isinstance(decode(body).error, kind)


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_tool_calls_are_an_answer():
    outcome = decode(answer({"content": None, "tool_calls": [CALL]}, "tool_calls"))

    assert outcome.error is None
    assert outcome.output == [CALL]


def test_an_answer_without_content_or_tool_calls_is_none():
    error = decode(answer({"content": None, "tool_calls": []}, "tool_calls")).error

    assert isinstance(error, MalformedResponseError)
    assert "without content" in str(error)


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        ({"code": 502, "message": "upstream"}, 502),
        ({"code": "429", "message": "slow"}, 429),
        ({"code": "rate_limit_exceeded"}, 429),
        ({"type": "insufficient_quota"}, 429),
        ({"code": "server_error"}, 500),
        ({"code": True}, 500),
        ("went wrong", 500),
    ],
)
@pytest.mark.parametrize("is_inner", [False, True])
def test_an_error_inside_a_200_has_the_status_that_it_means(trouble, status, is_inner):
    body = {"usage": USAGE, "choices": [], "error": None}
    if is_inner:
        body["choices"] = [{"error": trouble, "finish_reason": "error"}]
    else:
        body["error"] = trouble

    outcome = decode(json.dumps(body).encode())

    assert isinstance(outcome.error, StatusError)
    assert outcome.error.status == status
    assert outcome.usage["total_tokens"] == 15


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error":{"message":"slow","type":"requests","code":"x"}}', "slow", "x"),
        (b'{"error":{"message":"slow","type":"requests","code":null}}', "slow", "requests"),
        (b'{"error":"slow"}', "slow", None),
        (b'{"message":"slow","type":"t"}', "slow", "t"),
        (b'{"detail":"slow"}', "slow", None),
        (
            b'{"detail":[{"loc":["body","n"],"msg":"too many","type":"x"},{"msg":"b"},5]}',
            "body.n: too many; b",
            None,
        ),
        (b'{"detail":{"a":1}}', "", None),
        (b'[{"error":{"code":429,"message":"slow","status":"R_E"}}]', "slow", "R_E"),
        (b'{"error":{"type":"t","message":"slow","details":{"error_code":"c"}}}', "slow", "c"),
        (
            b'{"object":"error","message":"slow","type":"t","param":null,"code":"1300"}',
            "slow",
            "1300",
        ),
        (b"<html>slow</html>", "<html>slow</html>", None),
        (b"", "", None),
        (b"null", "", None),
        (b"[1]", "[1]", None),
        (b"\xff", "\ufffd", None),
    ],
)
def test_every_shape_of_error_body_is_read(body, message, code):
    error = decode(body, status=429).error

    assert (error.status, error.message, error.code) == (429, message, code)


def test_the_names_of_an_errors_headers_are_lower_case():
    assert decode(b"", status=429, headers={"Retry-After": "3"}).error.headers == {
        "retry-after": "3"
    }


def test_bytes_of_a_header_that_are_no_text_are_replaced():
    headers = {"x-broken": b"caf\xe9".decode("utf-8", "surrogateescape")}

    assert decode(b"", status=429, headers=headers).error.headers == {"x-broken": "caf?"}


def test_a_redirect_is_an_error_that_names_the_base_url():
    assert "base URL" in str(decode(b"", status=302).error)


def test_a_placeholder_for_a_key_is_not_struck_out_of_messages():
    error = decode(b'{"error":{"message":"anything goes"}}', status=400, secret="any").error

    assert error.message == "anything goes"


def test_the_messages_that_were_written_last_are_those_of_their_own_request():
    asked = [Request.of("openai-chat:m", prompt) for prompt in ("a", "b")]
    sent = [
        json.loads(CHAT.encode(request))["messages"][0]["content"]
        for request in [*asked, asked[1], asked[0]]
    ]
    assert sent == ["a", "b", "b", "a"]


def test_messages_that_may_be_changed_are_written_anew():
    facts, turns = {"name": "x"}, [Message("user", "a")]
    named = Request("openai-chat:m", (Message("user", "a", facts),))
    listed = Request("openai-chat:m", turns)
    before = [json.loads(CHAT.encode(one))["messages"] for one in (named, listed)]
    facts["name"], turns[0] = "y", Message("user", "b")

    after = [json.loads(CHAT.encode(one))["messages"] for one in (named, listed)]

    assert [before[0][0]["name"], after[0][0]["name"]] == ["x", "y"]
    assert [before[1][0]["content"], after[1][0]["content"]] == ["a", "b"]


@pytest.mark.parametrize("role", ["developer", "system", "user"])
def test_a_dialects_words_for_roles_are_its_own_whoever_wrote_the_messages_before(role):
    request = Request("openai-chat:m", (Message(role, "a"),))
    dialects = [CHAT, ChatCodec(has_developers=False), CHAT]

    roles = [json.loads(one.encode(request))["messages"][0]["role"] for one in dialects]

    told = "system" if role == "developer" else role
    assert roles == [role, told, role]
