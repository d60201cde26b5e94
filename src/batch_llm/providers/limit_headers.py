"""What the headers of a response say of the provider's limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.strategies.admission import CONCURRENCY, INPUT, OUTPUT, TOKENS
from batch_llm.strategies.budgets import REQUESTS, REQUESTS_PER_DAY, LimitHeader
from batch_llm.strategies.default_classifier import headers_of
from batch_llm.strategies.http_errors import go_seconds, seconds_until

if TYPE_CHECKING:
    from collections.abc import Mapping

_OPENAI = {
    REQUESTS: "x-ratelimit-{}-requests",
    TOKENS: "x-ratelimit-{}-tokens",
}
_ANTHROPIC = {
    REQUESTS: "anthropic-ratelimit-requests-{}",
    INPUT: "anthropic-ratelimit-input-tokens-{}",
    OUTPUT: "anthropic-ratelimit-output-tokens-{}",
}
#: A limit whose reset is further away is not one per minute: Groq counts requests by the day.
_LONGEST_RESET_SECONDS = 60.0
#: Refusals are short; what is longer is no message.
_MOST_WORDS = 2000
#: Words of refusals that name a limit which is none per minute.
_NAMED = {
    CONCURRENCY: ("concurren", "in flight", "parallel request", "simultaneous"),
    REQUESTS_PER_DAY: ("per day", "perday", "(rpd)", "daily"),
}


def read_limits(headers: Mapping[str, str]) -> dict[str, LimitHeader] | None:
    """Read the limits by dimension; None when there are none.

    OpenAI and what is compatible with it: resets as Go durations (``6m0s``, ``12ms``). Anthropic:
    resets as dates. What cannot be read is left out.
    """
    if "x-ratelimit-limit-requests" in headers or "x-ratelimit-limit-tokens" in headers:
        names = _OPENAI
    elif "anthropic-ratelimit-requests-limit" in headers:
        names = _ANTHROPIC
    else:
        return None
    found = {}
    for dimension, pattern in names.items():
        limit = _number(headers.get(pattern.format("limit")))
        remaining = _number(headers.get(pattern.format("remaining")))
        reset = _reset(headers.get(pattern.format("reset")))
        if limit is None or remaining is None or reset is None:
            continue
        if limit < 1 or remaining < 0:  # less than one call ever is no limit but nonsense
            continue
        if reset <= _LONGEST_RESET_SECONDS:
            found[dimension] = LimitHeader(limit, remaining, reset)
        elif dimension == REQUESTS:
            found[REQUESTS_PER_DAY] = LimitHeader(limit, remaining, reset)
    return found or None


def limits_of_error(error: BaseException) -> dict[str, LimitHeader] | None:
    """Read the limits from the answer that an SDK's exception speaks of, or one of its causes."""
    try:
        headers = headers_of(error)
        if not headers:
            return None
        return read_limits({str(name).lower(): str(value) for name, value in headers.items()})
    except Exception:  # noqa: BLE001 - a stranger's exception may raise when it is looked at
        return None


def named_limit(words: str) -> str | None:
    """Return the limit that a refusal speaks of, where it is none per minute."""
    lower = words[:_MOST_WORDS].lower()
    for dimension, signs in _NAMED.items():
        if any(sign in lower for sign in signs):
            return dimension
    return None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _reset(text: str | None) -> float | None:
    if text is None:
        return None
    seconds = go_seconds(text)
    return seconds if seconds is not None else seconds_until(text)
