from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import MappingProxyType

import groq
import httpx
import pytest

from batch_llm import (
    DefaultErrorClassifier,
    ParallelBatchProcessor,
    ProcessorConfig,
    StatusError,
)
from batch_llm.providers.limit_headers import (
    GROQ_LIMITS,
    limits_of_error,
    named_limit,
    read_limits,
)
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.dimensions import (
    CONCURRENCY,
    INPUT,
    OUTPUT,
    REQUESTS,
    REQUESTS_PER_DAY,
    TOKENS,
)
from fakes import USAGE, item


def test_openais_headers_are_read():
    found = read_limits(
        {
            "x-ratelimit-limit-requests": "5000",
            "x-ratelimit-remaining-requests": "4999",
            "x-ratelimit-reset-requests": "12ms",
            "x-ratelimit-limit-tokens": "160000",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "1m0s",
        }
    )

    assert found == {
        REQUESTS: LimitHeader(5000, 4999, 0.012),
        TOKENS: LimitHeader(160000, 0, 60),
    }


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_resets_are_by_the_clock_of_the_server(hours):
    theirs = datetime.now(UTC) + timedelta(hours=hours)
    found = read_limits(
        {
            "date": format_datetime(theirs.astimezone(UTC), usegmt=True),
            "anthropic-ratelimit-requests-limit": "100",
            "anthropic-ratelimit-requests-remaining": "40",
            "anthropic-ratelimit-requests-reset": (theirs + timedelta(seconds=30)).isoformat(),
        }
    )

    assert found[REQUESTS].reset_seconds == pytest.approx(30, abs=1)


def test_a_reset_that_is_rounded_up_makes_a_minute_no_day():
    headers = {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "61s",
    }

    assert read_limits(headers).keys() == {REQUESTS}


def test_anthropics_headers_are_read():
    reset = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    names = ("requests", "input-tokens", "output-tokens")
    headers = {f"anthropic-ratelimit-{name}-limit": "100" for name in names}
    headers |= {f"anthropic-ratelimit-{name}-remaining": "40" for name in names}
    headers |= {f"anthropic-ratelimit-{name}-reset": reset for name in names}

    found = read_limits(headers)

    assert found.keys() == {REQUESTS, INPUT, OUTPUT}
    assert found[INPUT].reset_seconds == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "-1"),
        ("limit", "many"),
        ("remaining", "-1"),
        ("remaining", "101"),
        ("remaining", "nan"),
        ("reset", "soon"),
    ],
)
def test_nonsense_is_left_out(name, value):
    headers = {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "40",
        "x-ratelimit-reset-requests": "1s",
        f"x-ratelimit-{name}-requests": value,
    }

    assert read_limits(headers) is None


def test_no_headers_are_no_limits():
    assert read_limits({"content-type": "application/json"}) is None


def test_a_limit_whose_reset_is_far_away_is_one_by_the_day():
    headers = {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-remaining-requests": "14370",
        "x-ratelimit-reset-requests": "2m59.56s",
        "x-ratelimit-limit-tokens": "18000",
        "x-ratelimit-remaining-tokens": "17997",
        "x-ratelimit-reset-tokens": "7.66s",
    }

    found = read_limits(headers)

    assert found.keys() == {REQUESTS_PER_DAY, TOKENS}
    assert found[REQUESTS_PER_DAY] == LimitHeader(14400, 14370, 179.56)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("Rate limit reached on requests per day (RPD): Limit 200", REQUESTS_PER_DAY),
        ("quotaId: GenerateRequestsPerDayPerProjectPerModel-FreeTier", REQUESTS_PER_DAY),
        ("Number of concurrent connections has exceeded your rate limit", CONCURRENCY),
        ("Rate limit reached on tokens per min (TPM): Limit 40000", None),
    ],
)
def test_a_refusal_may_name_its_limit(words, named):
    assert named_limit(words) == named


class Response:
    headers = MappingProxyType(
        {
            "X-RateLimit-Limit-Requests": "600",
            "X-RateLimit-Remaining-Requests": "0",
            "X-RateLimit-Reset-Requests": "100ms",
            "Retry-After": "7",
        }
    )


class SdkError(Exception):
    """Has what the openai and anthropic SDKs leave on theirs."""

    status_code, response = 429, Response()


class Hostile(Exception):
    @property
    def response(self):
        raise RuntimeError("not to be looked at")


def wrapped():
    """Return an exception such as pydantic-ai's, which has the status and no headers."""
    error = Exception("status_code: 429")
    error.status_code = 429
    error.__cause__ = SdkError()
    return error


@pytest.mark.parametrize("error", [SdkError(), wrapped()])
def test_limits_are_read_from_an_sdks_exception_and_from_what_wraps_it(error):
    assert limits_of_error(error) == {"requests": LimitHeader(600.0, 0.0, 0.1)}
    assert DefaultErrorClassifier().classify(error).suggested_wait == 7.0


@pytest.mark.parametrize("error", [ValueError("x"), Hostile(), StatusError(429, "x")])
def test_other_exceptions_tell_no_limits(error):
    assert limits_of_error(error) is None


async def test_the_limits_of_a_refused_call_reach_admission():
    refusals = iter([SdkError()])

    async def call(attempt, timeout):
        for error in refusals:
            raise error
        return "ok", USAGE

    built = ParallelBatchProcessor(config=ProcessorConfig(progress_interval=0))
    await built.process([item("a", call)])

    assert [(one.limit, one.source) for one in built.statistics().limits] == [(600.0, "header")]


def test_a_limit_below_one_is_no_limit():
    found = read_limits(
        {
            "x-ratelimit-limit-requests": "1e-300",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1s",
        }
    )

    assert found is None


GROQ = {
    "x-ratelimit-limit-requests": "14400",
    "x-ratelimit-remaining-requests": "14399",
    "x-ratelimit-reset-requests": "6s",
    "x-ratelimit-limit-tokens": "6000",
    "x-ratelimit-remaining-tokens": "5000",
    "x-ratelimit-reset-tokens": "7.66s",
}


def test_groqs_requests_are_those_of_a_day_however_soon_they_are_refilled():
    assert read_limits(GROQ, GROQ_LIMITS) == {
        REQUESTS_PER_DAY: LimitHeader(14400, 14399, 6.0),
        TOKENS: LimitHeader(6000, 5000, 7.66),
    }


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_groqs_are_told_by_its_sdks_exception(is_wrapped):
    response = httpx.Response(429, headers=GROQ, request=httpx.Request("POST", "http://h"))
    error = groq.RateLimitError("no", response=response, body=None)
    if is_wrapped:
        outer = RuntimeError("wrapped")
        outer.__cause__ = error
        error = outer

    assert limits_of_error(error).keys() == {REQUESTS_PER_DAY, TOKENS}


def test_mistrals_minutes_are_those_of_the_clock():
    headers = {
        "x-ratelimit-limit-req-minute": "60",
        "x-ratelimit-remaining-req-minute": "59",
        "x-ratelimit-limit-tokens-minute": "500000",
        "x-ratelimit-remaining-tokens-minute": "0",
        "x-ratelimit-tokens-query-cost": "12",
    }

    found = read_limits(headers)

    assert found.keys() == {REQUESTS, TOKENS}
    assert (found[TOKENS].limit, found[TOKENS].remaining) == (500000, 0)
    now = datetime.now(UTC)
    assert found[REQUESTS].reset_seconds == pytest.approx(60 - now.second, abs=2) or (
        now.second >= 58  # the minute may end meanwhile
    )
