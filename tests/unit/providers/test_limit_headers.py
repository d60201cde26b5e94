from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from batch_llm.providers.limit_headers import read_limits
from batch_llm.strategies.admission import INPUT, OUTPUT, REQUESTS, TOKENS
from batch_llm.strategies.budgets import LimitHeader


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
        ("reset", "2m59s"),
        ("reset", "soon"),
    ],
)
def test_nonsense_and_limits_by_the_day_are_left_out(name, value):
    headers = {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "40",
        "x-ratelimit-reset-requests": "1s",
        f"x-ratelimit-{name}-requests": value,
    }

    assert read_limits(headers) is None


def test_no_headers_are_no_limits():
    assert read_limits({"content-type": "application/json"}) is None
