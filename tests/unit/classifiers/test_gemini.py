from __future__ import annotations

import pytest

from batch_llm import StatusError
from batch_llm.classifiers import GeminiErrorClassifier

classify = GeminiErrorClassifier().classify


class ApiError(Exception):
    """As google-genai's: ``code`` is the status and ``details`` the whole body."""

    def __init__(self, code, details):
        super().__init__(f"{code} {details['error']['status']}. {details}")
        self.code, self.details = code, details


def exhausted(*details):
    return ApiError(
        429, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [*details]}}
    )


def test_the_text_alone_tells_a_rate_limit():
    info = classify(RuntimeError("429 RESOURCE_EXHAUSTED. {'error': …}"))

    assert (info.error_category, info.is_rate_limit, info.is_retryable) == (
        "rate_limit",
        True,
        True,
    )


def test_the_wait_of_the_retry_info_is_kept():
    assert classify(exhausted({"retryDelay": "34s"})).suggested_wait == 34.0


def test_a_daily_quota_is_no_rate_limit():
    info = classify(
        exhausted({"quotaId": "GenerateRequestsPerDayPerProject"}, {"retryDelay": "1s"})
    )

    assert (info.error_category, info.is_retryable) == ("quota", False)


@pytest.mark.parametrize(
    "text", ["504 DEADLINE_EXCEEDED", "Deadline expired", "request timeout", "timed out"]
)
def test_the_text_alone_tells_a_timeout(text):
    info = classify(RuntimeError(text))

    assert (info.error_category, info.is_timeout, info.is_retryable) == ("timeout", True, True)


@pytest.mark.parametrize(
    ("code", "status", "category"),
    [
        (503, "UNAVAILABLE", "overloaded"),
        (504, "DEADLINE_EXCEEDED", "timeout"),
        (403, "PERMISSION_DENIED", "auth"),
    ],
)
def test_a_status_is_judged_as_everywhere(code, status, category):
    error = ApiError(code, {"error": {"code": code, "status": status}})

    assert classify(error).error_category == category


def test_the_word_timeout_does_not_overrule_a_status():
    assert classify(StatusError(400, "timeout must be positive")).error_category == "bad_request"


def test_unknown_errors_are_tried_again():
    assert classify(RuntimeError("whatever")).is_retryable
