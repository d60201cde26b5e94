from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import (
    BadOutputError,
    ContentFilteredError,
    DefaultErrorClassifier,
    GeminiErrorClassifier,
    MalformedResponseError,
    RefusedError,
    StatusError,
    TransportError,
    TruncatedError,
)
from batch_llm.strategies.http_errors import go_seconds, judge_status, suggested_wait

classify = DefaultErrorClassifier().classify


def verdict(error):
    info = classify(error)
    return info.error_category, info.is_retryable


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), ("timeout", True)),
        (ConnectionResetError("reset"), ("connection_error", True)),
        (TransportError("cut off"), ("connection_error", True)),
        (BadOutputError("{", "not JSON"), ("validation_error", True)),
        (TruncatedError("half"), ("truncated", True)),
        (RefusedError("no"), ("content_filter", False)),
        (ContentFilteredError(), ("content_filter", False)),
        (MalformedResponseError("not JSON"), ("server_error", True)),
        (ValueError("odd"), ("unknown", True)),
        (TypeError("a bug"), ("internal", False)),
        (RuntimeError("HTTP 429 Too Many Requests"), ("rate_limit", True)),
        (StatusError(401, "bad key"), ("auth", False)),
        (StatusError(404, "no such model"), ("not_found", False)),
        (StatusError(500, "oops"), ("server_error", True)),
        (StatusError(503, "busy"), ("overloaded", True)),
        (StatusError(529, "overloaded_error"), ("overloaded", True)),
        (StatusError(408, "slow"), ("timeout", True)),
        (StatusError(418, "tea"), ("bad_request", False)),
        (ExceptionGroup("all failed", [ValueError(), TimeoutError()]), ("timeout", True)),
    ],
)
def test_each_kind_of_error_has_its_verdict(error, expected):
    assert verdict(error) == expected


def test_a_cause_tells_what_its_wrapper_does_not():
    wrapper = RuntimeError("failed")
    wrapper.__cause__ = ConnectionRefusedError()

    assert verdict(wrapper) == ("connection_error", True)


def test_a_pydantic_validation_error_is_one():
    from pydantic import BaseModel, ValidationError

    class Answer(BaseModel):
        number: int

    with pytest.raises(ValidationError) as caught:
        Answer.model_validate({"number": "x"})

    assert verdict(caught.value) == ("validation_error", True)


@pytest.mark.parametrize(
    "code",
    [
        "insufficient_quota",
        "billing_hard_limit_reached",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    ],
)
@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: {"error": inner}])
def test_a_429_that_is_a_quota_is_final(code, wrap):
    info = judge_status(429, wrap({"code": code, "message": "…"}), {"retry-after": "1"})

    assert (info.error_category, info.is_retryable, info.is_rate_limit) == ("quota", False, False)


@pytest.mark.parametrize(
    ("status", "body", "category"),
    [
        (429, {"error": {"details": {"error_code": "enforced_spend_limit_reached"}}}, "quota"),
        (429, {"error": {"details": [{"quotaId": "GenerateRequestsPerDayPerModel"}]}}, "quota"),
        (402, None, "quota"),
        (400, {"error": {"message": "Your credit balance is too low to access"}}, "quota"),
        (400, {"error": {"code": "context_length_exceeded"}}, "context_length"),
        (400, "prompt is too long: 300000 tokens > 200000 maximum", "context_length"),
        (400, {"error": {"details": [{"reason": "API_KEY_INVALID"}]}}, "auth"),
        (413, {"error": {"code": "rate_limit_exceeded"}}, "bad_request"),
    ],
)
def test_bodies_that_belie_their_status(status, body, category):
    info = judge_status(status, body)

    assert info.error_category == category
    assert not info.is_retryable


@pytest.mark.parametrize(
    ("text", "headers", "seconds"),
    [
        ("", {"Retry-After": "12"}, 12.0),
        ("", {"retry-after": "0.5"}, 0.5),
        ("", {"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ("", {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ("", {"retry-after": "soon"}, None),
        ("", {"retry-after": "inf"}, None),
        ('{"retryDelay": "35.2s"}', {}, 35.2),
        ("Please try again in 1m2.5s.", {}, 62.5),
        ("Please try again in 20ms", {}, 0.02),
        ("later", {}, None),
    ],
)
def test_the_providers_wait_is_found_wherever_it_is(text, headers, seconds):
    assert suggested_wait(text, headers) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("6m0s", 360.0), ("1h2m", 3720.0), ("12", None), ("5s!", None)]
)
def test_go_durations(text, seconds):
    assert go_seconds(text) == seconds


def test_x_should_retry_is_no_proof_of_permanence():
    assert judge_status(429, {"code": "queue_exceeded"}, {"x-should-retry": "false"}).is_rate_limit


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("429 RESOURCE_EXHAUSTED. quota", "rate_limit"),
        ("504 DEADLINE_EXCEEDED", "timeout"),
        ("The request timeout was reached", "timeout"),
        ("whatever", "unknown"),
    ],
)
def test_gemini_errors_are_told_by_their_text(text, category):
    info = GeminiErrorClassifier().classify(RuntimeError(text))

    assert info.error_category == category
    assert info.is_retryable


class Hostile(Exception):
    def __str__(self):
        raise RuntimeError("no text for you")

    @property
    def body(self):
        raise RuntimeError("no body either")

    status_code = 500


json_like = st.recursive(
    st.none() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.one_of(json_like, st.just(object())), st.integers(-1, 700))
def test_no_body_breaks_the_classifier(body, status):
    error = RuntimeError("odd")
    error.status_code, error.body = status, body
    error.response = SimpleNamespace(headers=body)

    assert classify(error).error_category


@pytest.mark.parametrize("classifier", [DefaultErrorClassifier(), GeminiErrorClassifier()])
def test_a_hostile_exception_gets_a_verdict(classifier):
    assert classifier.classify(Hostile()).is_retryable
