"""What the headers of a response say of the provider's limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.default_classifier import headers_of
from batch_llm.strategies.dimensions import (
    CONCURRENCY,
    INPUT,
    OUTPUT,
    REQUESTS,
    REQUESTS_PER_DAY,
    TOKENS,
)
from batch_llm.strategies.http_errors import clock_of, go_seconds, seconds_until

if TYPE_CHECKING:
    from collections.abc import Mapping

#: By dimension, the headers of its limit, of what remains, and of its reset.
LimitNames = dict[str, tuple[str, str, str]]


def _by_pattern(patterns: Mapping[str, str]) -> LimitNames:
    return {
        dimension: (pattern.format("limit"), pattern.format("remaining"), pattern.format("reset"))
        for dimension, pattern in patterns.items()
    }


#: OpenAI's, and of what is compatible with it.
OPENAI_LIMITS = _by_pattern({REQUESTS: "x-ratelimit-{}-requests", TOKENS: "x-ratelimit-{}-tokens"})
#: Groq counts requests by the day, under the same name.
GROQ_LIMITS = _by_pattern(
    {REQUESTS_PER_DAY: "x-ratelimit-{}-requests", TOKENS: "x-ratelimit-{}-tokens"}
)
ANTHROPIC_LIMITS = _by_pattern(
    {
        REQUESTS: "anthropic-ratelimit-requests-{}",
        INPUT: "anthropic-ratelimit-input-tokens-{}",
        OUTPUT: "anthropic-ratelimit-output-tokens-{}",
    }
)
#: Mistral tells no reset: its minutes are those of the clock.
MISTRAL_LIMITS = _by_pattern(
    {REQUESTS: "x-ratelimit-{}-req-minute", TOKENS: "x-ratelimit-{}-tokens-minute"}
)
_ALL_LIMITS = (OPENAI_LIMITS, ANTHROPIC_LIMITS, MISTRAL_LIMITS)
#: A limit whose reset is further away is not one per minute. Resets may be rounded up, and clocks
#: differ a little.
_LONGEST_RESET_SECONDS = 63.0
#: Refusals are short; what is longer is no message.
_MOST_WORDS = 2000
_MOST_CAUSES = 8
#: Words of refusals that name a limit which is none per minute.
_NAMED = {
    CONCURRENCY: ("concurren", "in flight", "parallel request", "simultaneous"),
    REQUESTS_PER_DAY: ("per day", "perday", "(rpd)", "daily"),
}


def read_limits(
    headers: Mapping[str, str], names: LimitNames | None = None
) -> dict[str, LimitHeader] | None:
    """Read the limits by dimension; None when there are none.

    Resets are Go durations (``6m0s``, ``12ms``) or dates. What cannot be read is left out.

    Args:
        headers: Of an answer; found by names in lower case.
        names: How they are called; None finds out.
    """
    if names is None:
        names = next((one for one in _ALL_LIMITS if _has_any(headers, one)), None)
        if names is None:
            return None
    found = {}
    for dimension, (limit_name, remaining_name, reset_name) in names.items():
        limit = _number(headers.get(limit_name))
        remaining = _number(headers.get(remaining_name))
        if limit is None or remaining is None:
            continue
        is_by_clock = names is MISTRAL_LIMITS
        reset = _until_minute(headers) if is_by_clock else _reset(headers, reset_name)
        if reset is None:
            continue
        # Less than one call ever is no limit but nonsense, and so is more left than there is.
        if limit < 1 or not 0 <= remaining <= limit:
            continue
        if reset <= _LONGEST_RESET_SECONDS or dimension == REQUESTS_PER_DAY:
            found[dimension] = LimitHeader(limit, remaining, reset)
        elif dimension == REQUESTS:
            found[REQUESTS_PER_DAY] = LimitHeader(limit, remaining, reset)
    return found or None


def _has_any(headers: Mapping[str, str], names: LimitNames) -> bool:
    return any(limit in headers for limit, _, _ in names.values())


def _until_minute(headers: Mapping[str, str]) -> float:
    """Return the seconds until the next full minute of the server's clock."""
    now = clock_of(headers)
    return 60.0 - now.second - now.microsecond / 1e6


def limits_of_error(error: BaseException) -> dict[str, LimitHeader] | None:
    """Read the limits from the answer that an SDK's exception speaks of, or one of its causes."""
    try:
        headers = headers_of(error)
        if not headers:
            return None
        names = GROQ_LIMITS if "groq" in _packages(error) else None
        return read_limits(
            {str(name).lower(): str(value) for name, value in headers.items()}, names
        )
    except Exception:  # noqa: BLE001 - a stranger's exception may raise when it is looked at
        return None


def _packages(error: BaseException) -> set[str]:
    """Return the packages that an exception and its causes come from."""
    found: set[str] = set()
    current: BaseException | None = error
    for _depth in range(_MOST_CAUSES):
        if current is None:
            break
        found.add(type(current).__module__.partition(".")[0])
        current = current.__cause__
    return found


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


def _reset(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    seconds = go_seconds(text)
    return seconds if seconds is not None else seconds_until(text, clock_of(headers))
