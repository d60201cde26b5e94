from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import StatusError
from batch_llm.classifiers import HttpErrorClassifier
from batch_llm.strategies.errors import code_of
from batch_llm.strategies.http_errors import (
    go_seconds,
    judge_status,
    named_status,
    suggested_wait,
)

OPENAI_QUOTAS = (
    *("insufficient_quota", "billing_hard_limit_reached", "credit_balance_exhausted"),
    *("organization_spend_limit_exceeded", "project_spend_limit_exceeded"),
    "organization_usage_limit_exceeded",
)


def anthropic(code, message="no"):
    error = {"type": "rate_limit_error", "message": message}
    return {"type": "error", "error": error | ({"details": {"error_code": code}} if code else {})}


@pytest.mark.parametrize(
    ("status", "category", "is_retryable"),
    [
        (302, "not_found", False),
        (400, "bad_request", False),
        (401, "auth", False),
        (402, "quota", False),
        (403, "auth", False),
        (404, "not_found", False),
        (405, "not_found", False),
        (410, "not_found", False),
        (408, "timeout", True),
        (409, "server_error", True),
        (413, "bad_request", False),
        (418, "bad_request", False),
        (422, "bad_request", False),
        (429, "rate_limit", True),
        (498, "server_error", True),
        (500, "server_error", True),
        (501, "bad_request", False),
        (502, "server_error", True),
        (503, "overloaded", True),
        (504, "timeout", True),
        (520, "server_error", True),
        (529, "overloaded", True),
    ],
)
def test_each_status_has_its_verdict(status, category, is_retryable):
    info = HttpErrorClassifier().classify(StatusError(status, "no"))

    assert (info.error_category, info.is_retryable) == (category, is_retryable)
    assert info.is_rate_limit == (category == "rate_limit")
    assert info.is_timeout == (category == "timeout")


@pytest.mark.parametrize(
    ("status", "body", "category"),
    [
        (400, {"error": {"code": "content_filter"}}, "content_filter"),
        (400, {"error": {"code": "model_not_found"}}, "not_found"),
        (
            400,
            {"error": {"message": "This model's maximum context length is 8192"}},
            "context_length",
        ),
        (400, {"error": {"message": "Please reduce the length of the messages"}}, "context_length"),
        (400, {"code": "context_length_exceeded"}, "context_length"),
        (500, {"error": {"type": "overloaded_error"}}, "overloaded"),
        (500, {"error": {"code": "server_is_overloaded"}}, "overloaded"),
        (429, b'{"error":{"code":"insufficient_quota"}}', "quota"),
        (429, '{"error":{"code":"insufficient_quota"}}', "quota"),
        (429, [{"error": {"code": "insufficient_quota"}}], "quota"),
        (429, "insufficient_quota is a word here, not a code", "rate_limit"),
        (429, {"error": {"message": "Resource Unavailable"}}, "rate_limit"),
        *((429, {"error": {"code": code}}, "quota") for code in OPENAI_QUOTAS),
        *((429, {"error": {"type": code}}, "quota") for code in OPENAI_QUOTAS),
        (429, anthropic("contract_spend_limit_reached"), "quota"),
        (429, anthropic("enforced_spend_limit_reached"), "quota"),
        (429, anthropic("ramp_limit_exceeded"), "rate_limit"),
        (400, anthropic(None, "Your credit balance is too low to access the API"), "quota"),
        (400, anthropic("organization_on_hold"), "quota"),
        (400, anthropic(None, "prompt is too long: 9 tokens > 8 maximum"), "context_length"),
        (402, anthropic("linked_organization_spend_limit_reached"), "quota"),
        (
            413,
            {"error": {"code": "rate_limit_exceeded", "message": "try again in 5s"}},
            "bad_request",
        ),
        (429, {"error": {"code": "request_quota_exceeded"}}, "rate_limit"),  # Cerebras
        (429, {"error": {"code": "queue_exceeded"}}, "rate_limit"),
        (403, {"error": {"code": 403, "metadata": {"flagged_input": "x"}}}, "content_filter"),
        (403, {"message": "API access suspended until next month"}, "quota"),
        (400, {"code": "unknown_model", "type": "invalid_request_error"}, "not_found"),
        (400, {"error": {"status": "FAILED_PRECONDITION"}}, "auth"),
        (400, {"error": {"details": [{"reason": "API_KEY_INVALID"}]}}, "auth"),
        (
            400,
            {"error": {"message": "The input token count (9) exceeds the maximum"}},
            "context_length",
        ),
        (503, {"error": {"status": "RESOURCE_EXHAUSTED"}}, "rate_limit"),
        (503, {"error": {"status": "UNAVAILABLE"}}, "overloaded"),
        (400, {"error": {"code": "json_validate_failed"}}, "validation_error"),
        (
            400,
            {"error": {"code": "x", "innererror": {}, "type": "content_filter"}},
            "content_filter",
        ),
    ],
)
def test_the_body_says_more_than_the_status(status, body, category):
    assert judge_status(status, body).error_category == category


@pytest.mark.parametrize("status", [400, 429, 500, 503])
@pytest.mark.parametrize("value", ["true", "false"])
def test_x_should_retry_is_no_proof_of_anything(status, value):
    assert judge_status(status, None, {"x-should-retry": value}) == judge_status(status)


def test_an_error_that_is_final_suggests_no_wait():
    body = {"error": {"code": "insufficient_quota"}}

    assert judge_status(429, body, {"retry-after": "5"}).suggested_wait is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"Retry-After": "0"}, 0.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
        ({b"Retry-After": b"7"}, 7.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"}, 62.5),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "6m0s"}, None),
        ({"x-ratelimit-remaining-tokens": "0"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "20ms",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "3s",
            },
            3.0,
        ),
        (
            {
                "retry-after": "1",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            1.0,
        ),
        (
            {
                "anthropic-ratelimit-tokens-remaining": "0",
                "anthropic-ratelimit-tokens-reset": "2020-01-01T00:00:00Z",
            },
            0.0,
        ),
    ],
)
def test_the_wait_is_found_in_the_headers(headers, seconds):
    assert suggested_wait("", headers) == seconds


@pytest.mark.parametrize("write", [format_datetime, lambda moment: moment.isoformat()])
def test_a_date_is_a_wait_until_then(write):
    moment = datetime.now(UTC) + timedelta(seconds=100)

    assert suggested_wait("", {"retry-after": write(moment)}) == pytest.approx(100, abs=5)


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_date_is_by_the_clock_of_the_server(hours):
    theirs = datetime.now(UTC) + timedelta(hours=hours)
    headers = {
        "date": format_datetime(theirs, usegmt=True),
        "retry-after": format_datetime(theirs + timedelta(seconds=100), usegmt=True),
    }

    assert suggested_wait("", headers) == pytest.approx(99.5, abs=1)


@pytest.mark.parametrize(
    "date", ["soon", "", "Thu, 99 Nov 2026 11:00:00 GMT", "9999-12-31T23:59:59.9+00:00"]
)
def test_a_server_whose_clock_cannot_be_read_is_taken_to_have_ours(date):
    moment = datetime.now(UTC) + timedelta(seconds=100)

    headers = {"date": date, "retry-after": format_datetime(moment, usegmt=True)}

    assert suggested_wait("", headers) == pytest.approx(100, abs=5)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Rate limit reached. Please try again in 1m2.5s. Visit …", 62.5),
        ("Please try again in 7m12s.", 432.0),
        ("Please try again in 20ms.", 0.02),
        ("Please retry in 35.2s.", 35.2),
        ("Please try again in a while", None),
        ('{"details": [{"@type": "RetryInfo", "retryDelay": "34s"}]}', 34.0),
    ],
)
def test_the_wait_is_found_in_the_text(text, seconds):
    assert suggested_wait(text, {}) == seconds


def test_googles_retry_info_is_found_in_a_decoded_body():
    body = {"error": {"code": 429, "details": [{"retryDelay": "34.5s"}]}}

    assert judge_status(429, body).suggested_wait == 34.5


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 999))
def test_a_go_duration_is_the_sum_of_its_parts(hours, minutes, milliseconds):
    seconds = hours * 3600 + minutes * 60 + milliseconds / 1000

    assert go_seconds(f"{hours}h{minutes}m{milliseconds}ms") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1", "1s2", "1 s", "-1s", "9" * 400 + "h"])
def test_what_is_no_go_duration_is_none(text):
    assert go_seconds(text) is None


class Unprintable:
    def __str__(self):
        raise RuntimeError("no text for you")

    __repr__ = __str__


weird = st.recursive(
    st.none()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.builds(Unprintable)
    | st.builds(set),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers() | st.sampled_from(["error", "code"]), inner)
    ),
)


@given(st.integers(), weird, weird)
def test_no_answer_breaks_the_rules(status, body, headers):
    info = judge_status(status, body, headers)

    assert code_of(info.error_category)
    assert info.suggested_wait is None or 0 <= info.suggested_wait < float("inf")
    assert info.is_retryable or not info.is_rate_limit


@given(st.text(), st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), st.text()))
def test_a_wait_is_finite_and_not_negative(text, headers):
    wait = suggested_wait(text, headers)

    assert wait is None or 0 <= wait < float("inf")


@pytest.mark.parametrize("after", ["999999999", "Fri, 31 Dec 2999 23:59:59 GMT"])
def test_a_wait_of_years_is_nonsense(after):
    assert suggested_wait("", {"retry-after": after}) is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 502}, 502),
        ({"code": "429"}, 429),
        ({"code": 200, "type": "overloaded_error"}, 529),
        ({"error": {"type": "overloaded_error"}}, 529),
        ({"type": "error", "error": {"type": "rate_limit_error"}}, 429),
        ({"error": {"details": {"error_code": "enforced_spend_limit_reached"}}}, 429),
        ({"status": "UNAVAILABLE"}, 503),
        ({"code": "insufficient_quota"}, 429),
        ({"code": "some_new_quota_thing"}, 429),
        ({"code": "invalid_image_url"}, 400),
        ({"code": "something_new"}, None),
        ({"code": True}, None),
        ({}, None),
        ("rate_limit_error", None),
        (None, None),
    ],
)
def test_names_stand_for_statuses(error, status):
    assert named_status(error) == status
