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
    Request,
    Settings,
    StatusError,
    Text,
    TruncatedError,
    UnsupportedRequestError,
)
from batch_llm.core.schema import OutputSchema
from batch_llm.providers.gemini import GENERATE

MODEL = "google:gemini-2.5-flash"
PLAIN = Request.of(MODEL, "hi", system="Be brief.", settings=Settings(max_tokens=9))
USAGE = {
    "promptTokenCount": 10,
    "cachedContentTokenCount": 4,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 3,
    "toolUsePromptTokenCount": 2,
    "totalTokenCount": 20,
}
RATINGS = [
    {"category": "HARM_CATEGORY_HATE_SPEECH", "probability": "LOW"},
    {"category": "HARM_CATEGORY_HARASSMENT", "probability": "NEGLIGIBLE", "blocked": False},
]
BY_CATEGORY = {"HARM_CATEGORY_HATE_SPEECH": "LOW", "HARM_CATEGORY_HARASSMENT": "NEGLIGIBLE"}


def candidate(*parts, reason="STOP", **more):
    content = {"content": {"role": "model", "parts": list(parts)}} if parts else {}
    return content | {"finishReason": reason, "index": 0, "safetyRatings": RATINGS} | more


def answer(*candidates, **more):
    body = {"candidates": list(candidates), "usageMetadata": USAGE, "modelVersion": "gemini-x"}
    return json.dumps(body | more).encode()


def decode(body, request=PLAIN, status=200, secret=""):
    return GENERATE.decode(status, {}, body, request, secret=secret)


def encode(request, **more):
    return json.loads(GENERATE.encode(request, **more))


def asking(**settings):
    return encode(Request.of(MODEL, "hi", settings=Settings(**settings)))


def test_the_model_is_in_the_path_and_cannot_leave_it():
    assert GENERATE.path("gemini-2.5-flash") == "/models/gemini-2.5-flash:generateContent"
    assert GENERATE.path("../files?a#b") == "/models/..%2Ffiles%3Fa%23b:generateContent"


def test_the_system_stands_beside_the_contents():
    assert encode(PLAIN) == {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "generationConfig": {"maxOutputTokens": 9},
    }


def test_turns_and_parts_have_their_kinds():
    parts = (
        Text("a"),
        Image("data:image/png;base64,AAAA"),
        Image("https://x/y.png?z=1"),
        Image("https://x/y"),
        OtherPart({"videoMetadata": {}}),
    )
    turns = (Message("user", parts), Message("assistant", "b"), Message("user", "c"))

    assert encode(Request(MODEL, turns))["contents"] == [
        {
            "role": "user",
            "parts": [
                {"text": "a"},
                {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
                {"fileData": {"fileUri": "https://x/y.png?z=1", "mimeType": "image/png"}},
                {"fileData": {"fileUri": "https://x/y"}},
                {"videoMetadata": {}},
            ],
        },
        {"role": "model", "parts": [{"text": "b"}]},
        {"role": "user", "parts": [{"text": "c"}]},
    ]


def test_settings_have_their_own_names():
    config = asking(temperature=(0.0, 0.5), max_tokens=7, top_p=0.9, seed=3, stop=("a",))

    assert config["generationConfig"] == {
        "temperature": 0.0, "maxOutputTokens": 7, "topP": 0.9, "seed": 3, "stopSequences": ["a"],
    }  # fmt: skip


def test_further_fields_go_where_they_belong():
    body = asking(
        extra={
            "thinkingConfig": {"thinkingBudget": 0},
            "generationConfig": {"topK": 4},
            "safetySettings": [],
            "max_tokens": 7,
        }
    )

    assert body["safetySettings"] == []
    assert body["generationConfig"] == {
        "thinkingConfig": {"thinkingBudget": 0}, "topK": 4, "maxOutputTokens": 7,
    }  # fmt: skip


def test_a_schema_is_part_of_the_settings():
    output = OutputSchema.choices("a", "b")

    config = encode(Request.of(MODEL, "hi", output=output))["generationConfig"]

    assert config == {
        "responseMimeType": "application/json", "responseJsonSchema": output.schema,
    }  # fmt: skip


def test_feedback_is_the_answer_and_what_was_wrong_with_it():
    sent = encode(PLAIN, feedback=BadOutputError("{oops", "a: missing"))["contents"]

    assert sent[1] == {"role": "model", "parts": [{"text": "{oops"}]}
    assert "a: missing" in sent[2]["parts"][0]["text"]


@pytest.mark.parametrize(
    "message",
    [
        Message("tool", "sunny", {"tool_call_id": "1"}),
        Message("assistant", None, {"tool_calls": [{"id": "1"}]}),
    ],
)
def test_what_has_no_place_is_refused_and_not_dropped(message):
    with pytest.raises(UnsupportedRequestError):
        GENERATE.encode(Request(MODEL, (message,)))


def test_an_answer_is_its_text_without_what_was_thought_and_output_counts_both():
    body = answer(candidate({"text": "hm", "thought": True}, {"text": "Li"}, {"text": "ma"}))

    outcome = decode(body)

    assert (outcome.output, outcome.error, outcome.model) == ("Lima", None, "gemini-x")
    assert outcome.safety_ratings == BY_CATEGORY
    assert outcome.usage == {
        "input_tokens": 12,
        "output_tokens": 8,
        "total_tokens": 20,
        "cache_read_tokens": 4,
        "reasoning_tokens": 3,
    }


def test_an_answer_by_a_schema_is_its_value_or_says_what_is_wrong():
    request = Request.of(MODEL, "hi", output=OutputSchema.choices("a", "b"))

    good = decode(answer(candidate({"text": '{"choice":"b"}'})), request)
    bad = decode(answer(candidate({"text": "c"})), request)

    assert (good.output, good.safety_ratings) == ("b", BY_CATEGORY)
    assert isinstance(bad.error, BadOutputError)
    assert (bad.usage["total_tokens"], bad.safety_ratings) == (20, BY_CATEGORY)


def test_function_calls_are_an_answer():
    call = {"name": "f", "args": {"a": 1}}

    assert decode(answer(candidate({"functionCall": call}))).output == [call]


@pytest.mark.parametrize(
    "reason",
    ["SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE",
     "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "MODEL_ARMOR", "PUP_LIMITED_DISABLED"],
)  # fmt: skip
def test_an_answer_that_was_withheld_says_why_and_keeps_its_ratings(reason):
    outcome = decode(answer(candidate(reason=reason, finishMessage="Because.")))

    assert isinstance(outcome.error, ContentFilteredError)
    assert f"{reason}: Because." in str(outcome.error)
    assert outcome.safety_ratings == BY_CATEGORY
    assert outcome.usage["total_tokens"] == 20


def test_a_blocked_prompt_has_no_candidates():
    feedback = {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": RATINGS}
    body = json.dumps({"promptFeedback": feedback, "usageMetadata": {"promptTokenCount": 10}})

    outcome = decode(body.encode())

    assert isinstance(outcome.error, ContentFilteredError)
    assert "PROHIBITED_CONTENT" in str(outcome.error)
    assert outcome.safety_ratings == BY_CATEGORY
    assert outcome.usage == {"input_tokens": 10, "output_tokens": 0, "total_tokens": 10}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (answer(candidate({"text": "half"}, reason="MAX_TOKENS")), TruncatedError),
        (answer(candidate({"text": "half"}, reason="CONTINUATION")), TruncatedError),
        (answer(candidate(reason="MALFORMED_FUNCTION_CALL")), MalformedResponseError),
        (answer(candidate(reason="MALFORMED_RESPONSE")), MalformedResponseError),
        (answer(candidate(reason="OTHER")), MalformedResponseError),
        (answer(candidate({"text": "x"}, reason="SOMETHING_NEW")), MalformedResponseError),
        (answer(candidate()), MalformedResponseError),
        (answer(), MalformedResponseError),
        (b"{", MalformedResponseError),
        (b"[]", MalformedResponseError),
        (b"{}", MalformedResponseError),
    ],
)
def test_what_is_no_good_answer_is_told_apart(body, kind):
    assert type(decode(body).error) is kind


def test_a_cut_answer_keeps_its_text_and_its_limit():
    error = decode(answer(candidate({"text": "half"}, reason="MAX_TOKENS"))).error

    assert (error.text, error.max_tokens) == ("half", 9)


@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize("is_list", [False, True])
def test_an_errors_status_name_is_its_code(status, is_list):
    body = {"error": {"code": 429, "message": "Slow down.", "status": "RESOURCE_EXHAUSTED"}}

    error = decode(json.dumps([body] if is_list else body).encode(), status=status).error

    assert isinstance(error, StatusError)
    assert (error.status, error.code) == (429, "RESOURCE_EXHAUSTED")
    assert error.message == "Slow down."


@pytest.mark.parametrize(
    "more",
    [
        {"modelVersion": 7},
        {"usageMetadata": "many"},
        {"usageMetadata": USAGE | {"promptTokenCount": "ten"}},
        {"candidates": [candidate({"text": "Lima", "thought": None}), 5]},
        {"candidates": [candidate({"text": "Lima"}, safetyRatings="none")]},
    ],
)
def test_an_oddity_beside_the_answer_does_not_spoil_it(more):
    outcome = decode(answer(candidate({"text": "Lima"}), **more))

    assert (outcome.output, outcome.error) == ("Lima", None)
