from __future__ import annotations

import socket
import ssl
import sys

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic_ai import exceptions as ai

from batch_llm import (
    AttemptTimeoutError,
    BadOutputError,
    ConfigError,
    ContentFilteredError,
    MalformedResponseError,
    MissingKeyError,
    RefusedError,
    StatusError,
    TransportError,
    TruncatedError,
    UnknownModelError,
)
from batch_llm.classifiers import DefaultErrorClassifier, GeminiErrorClassifier, HttpErrorClassifier
from batch_llm.strategies.errors import code_of
from batch_llm.testing.mocks import MockRateLimitError

classify = DefaultErrorClassifier().classify
REQUEST = httpx2.Request("POST", "http://h/")


def verdict(error):
    info = classify(error)
    return info.error_category, info.is_retryable


def caused(error, cause):
    error.__cause__ = cause
    return error


def failed_validation():
    class Answer(BaseModel):
        price: int

    try:
        Answer.model_validate({"price": "429 dollars"})
    except ValidationError as error:
        return error
    raise AssertionError("unreachable")


def test_the_classifier_can_be_imported_from_both_of_its_homes():
    import batch_llm.strategies

    assert batch_llm.strategies.DefaultErrorClassifier is DefaultErrorClassifier


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), ("timeout", True)),
        (ConnectionResetError("reset"), ("connection_error", True)),
        (AttemptTimeoutError(5), ("timeout", True)),
        (TransportError("cut off"), ("connection_error", True)),
        (socket.gaierror(-2, "Name or service not known"), ("connection_error", True)),
        (ssl.SSLError("handshake"), ("connection_error", True)),
        (httpx2.ReadTimeout("slow", request=REQUEST), ("timeout", True)),
        (httpx2.ConnectError("no", request=REQUEST), ("connection_error", True)),
        (openai.APITimeoutError(REQUEST), ("timeout", True)),
        (openai.APIConnectionError(request=REQUEST), ("connection_error", True)),
        (BadOutputError("{", "no"), ("validation_error", True)),
        (MalformedResponseError("html"), ("server_error", True)),
        (TruncatedError("half"), ("truncated", True)),
        (RefusedError("no"), ("content_filter", False)),
        (ContentFilteredError(), ("content_filter", False)),
        (MissingKeyError("openai-chat", "X"), ("auth", False)),
        (UnknownModelError("x", "no"), ("not_found", False)),
        (ConfigError("a", 1, "2"), ("internal", False)),
    ],
)
def test_errors_of_transport_and_of_ours_have_their_verdicts(error, expected):
    assert verdict(error) == expected


@pytest.mark.parametrize("package", ["httpx", "httpx2", "aiohttp", "requests"])
@pytest.mark.parametrize(
    ("base", "category"), [("TimeoutException", "timeout"), ("TransportError", "connection_error")]
)
def test_http_libraries_are_known_by_name_and_not_by_import(package, base, category):
    parent = type(base, (Exception,), {"__module__": f"{package}._exceptions"})
    child = type("Special", (parent,), {"__module__": "mine"})

    assert verdict(child("x")) == (category, True)


def test_a_name_alone_does_not_make_a_transport_error():
    stranger = type("TransportError", (Exception,), {"__module__": "trains"})

    assert verdict(stranger("late")) == ("unknown", True)


@pytest.mark.parametrize(
    "error",
    [
        MockRateLimitError("429 RESOURCE_EXHAUSTED: rate limit exceeded"),
        RuntimeError("Error code: 429"),
        RuntimeError("Rate limit reached"),
        RuntimeError("rate_limit_exceeded"),
        RuntimeError("Too Many Requests"),
    ],
)
def test_a_stranger_that_speaks_of_a_rate_limit_is_one(error):
    assert classify(error).is_rate_limit


def test_the_wait_in_such_a_text_is_kept():
    assert classify(RuntimeError("429, try again in 2s")).suggested_wait == 2.0


@pytest.mark.parametrize(
    "error",
    [
        ValueError("line 429: no such label"),
        KeyError(429),
        AssertionError("429 != 428"),
        RuntimeError("row 14290 is odd"),
        failed_validation(),
    ],
)
def test_a_number_in_an_error_about_data_is_no_rate_limit(error):
    info = classify(error)

    assert (info.is_rate_limit, info.is_retryable) == (False, True)


@pytest.mark.parametrize(
    "kind", [TypeError, NameError, AttributeError, ImportError, SyntaxError, NotImplementedError]
)
def test_a_bug_is_not_tried_again_whatever_it_says(kind):
    assert verdict(kind("429 rate limit")) == ("internal", False)


@pytest.mark.parametrize("kind", [ValueError, KeyError, IndexError, AssertionError, RuntimeError])
def test_what_an_odd_answer_can_cause_is_tried_again(kind):
    assert verdict(kind("odd")) == ("unknown", True)


def test_the_first_telling_error_of_a_chain_decides():
    chain = caused(RuntimeError("a"), caused(ValueError("b"), StatusError(503, "busy")))

    assert verdict(chain) == ("overloaded", True)


def test_a_bug_that_was_caused_by_something_else_is_judged_by_that():
    assert verdict(caused(TypeError("x"), TimeoutError())) == ("timeout", True)


def test_a_chain_that_bites_its_tail_ends():
    error = ValueError("a")
    error.__cause__ = caused(ValueError("b"), error)

    assert verdict(error) == ("unknown", True)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([ValueError("x"), TimeoutError()], ("timeout", True)),
        ([StatusError(429, "slow"), TimeoutError()], ("rate_limit", True)),
        ([TimeoutError(), StatusError(429, "slow")], ("rate_limit", True)),
        ([StatusError(401, "key"), TimeoutError()], ("timeout", True)),
        ([StatusError(401, "key")], ("auth", False)),
        ([ExceptionGroup("inner", [caused(RuntimeError(), TimeoutError())])], ("timeout", True)),
        ([ValueError("x")], ("unknown", True)),
    ],
)
def test_a_group_is_as_hopeful_as_its_most_hopeful_member(members, expected):
    assert verdict(ExceptionGroup("all failed", members)) == expected
    assert verdict(caused(RuntimeError("x"), ExceptionGroup("all failed", members))) == expected


def sdk_error(kind, status, inner, headers=()):
    response = httpx2.Response(status, headers=dict(headers), request=REQUEST)
    return kind("no", response=response, body=inner)


def test_openais_rate_limit_is_told_from_its_quota_by_the_inner_body():
    limit = sdk_error(
        openai.RateLimitError, 429, {"code": "rate_limit_exceeded"}, {"retry-after": "0.5"}
    )
    quota = sdk_error(openai.RateLimitError, 429, {"code": "insufficient_quota"})

    assert classify(limit).suggested_wait == 0.5
    assert verdict(limit) == ("rate_limit", True)
    assert verdict(quota) == ("quota", False)


def ai_http(status, body, **headers):
    error = ai.ModelHTTPError(status, "m", body)
    error.headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return error


@pytest.mark.parametrize(
    ("error", "expected", "wait"),
    [
        (ai_http(429, {"code": "x"}, retry_after="0.5"), ("rate_limit", True), 0.5),
        (
            ai_http(429, {"error": {"details": [{"retryDelay": "34s"}]}}),
            ("rate_limit", True),
            34.0,
        ),
        (
            ai_http(429, {"error": {"details": [{"quotaId": "RequestsPerDay"}]}}),
            ("quota", False),
            None,
        ),
        (
            ai_http(429, {"error": {"details": {"error_code": "enforced_spend_limit_reached"}}}),
            ("quota", False),
            None,
        ),
        (ai_http(413, {"error": {"code": "rate_limit_exceeded"}}), ("bad_request", False), None),
        (ai_http(429, '{"type":"rate_limited","code":"1300"}'), ("rate_limit", True), None),
    ],
)
def test_the_gaps_of_pydantic_ai_are_filled(error, expected, wait):
    assert verdict(error) == expected
    assert classify(error).suggested_wait == wait


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ai.UnexpectedModelBehavior("Exceeded maximum output retries (2)"), "validation_error"),
        (
            ai.UnexpectedModelBehavior(
                "Model token limit (100) exceeded before any response was generated"
            ),
            "truncated",
        ),
        (ai.ContentFilterError("filtered"), "content_filter"),
        (ai.UsageLimitExceeded("too much"), "bad_request"),
        (ai.UserError("wrong use"), "internal"),
    ],
)
def test_pydantic_ais_own_errors_are_known(error, expected):
    assert classify(error).error_category == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ModelRateLimitError", ("rate_limit", True)),
        ("ModelQuotaExceededError", ("quota", False)),
        ("ModelOverloadedError", ("overloaded", True)),
        ("ModelServerError", ("server_error", True)),
        ("ModelTimeoutError", ("timeout", True)),
        ("ModelConnectionError", ("connection_error", True)),
        ("ModelAuthenticationError", ("auth", False)),
        ("ModelNotFoundError", ("not_found", False)),
        ("ModelContextWindowExceededError", ("context_length", False)),
    ],
)
def test_pydantic_ais_categories_count_when_no_status_does(name, expected):
    kind = getattr(ai, name)
    error = kind.__new__(kind)  # an error in mid-stream carries no status
    Exception.__init__(error, "in mid-stream")

    assert verdict(error) == expected


def test_a_wait_that_pydantic_ai_found_is_kept():
    error = ai.ModelRateLimitError.__new__(ai.ModelRateLimitError)
    error.retry_after = 12

    assert classify(error).suggested_wait == 12.0


def hostile(message="x"):
    raise RuntimeError("do not look at me")


ATTRIBUTES = [
    "status_code",
    "code",
    "status",
    "body",
    "details",
    "headers",
    "response",
    "retry_after",
]
values = st.one_of(
    st.none(),
    st.integers(-1, 700),
    st.text(),
    st.binary(),
    st.floats(),
    st.just(object()),
    st.dictionaries(st.text(), st.text()),
    st.just(property(hostile)),
    st.just(hostile),
)
BASES = (Exception, ValueError, TypeError, ConnectionError, KeyError, ai.ModelRateLimitError)


@given(
    st.sampled_from(BASES),
    st.dictionaries(st.sampled_from([*ATTRIBUTES, "__str__", "__cause__"]), values),
    st.sampled_from([DefaultErrorClassifier(), HttpErrorClassifier(), GeminiErrorClassifier()]),
)
def test_no_exception_breaks_a_classifier(base, attributes, classifier):
    kind = type("Odd", (base,), attributes)
    info = classifier.classify(kind.__new__(kind))

    assert code_of(info.error_category)
    assert info.suggested_wait is None or 0 <= info.suggested_wait < float("inf")


def test_judging_imports_nothing():
    before = set(sys.modules)

    for error in (ValueError("x"), StatusError(500, "x"), TimeoutError(), failed_validation()):
        classify(error)

    assert set(sys.modules) == before
