"""What an HTTP answer of 400 or above means, whoever wrapped it. Pure functions.

Statuses, bodies and headers as the providers document and send them; where a status alone
misleads (a 429 that is an exhausted account), the body decides.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from batch_llm.strategies.errors import ErrorCode, ErrorInfo

#: OpenAI's codes for a 429 that no waiting heals.
_QUOTA_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    # Anthropic's
    "contract_spend_limit_reached",
    "enforced_spend_limit_reached",
    "billing_error",
    "linked_organization_spend_limit_reached",
    "linked_organization_billing_unavailable",
    "organization_on_hold",
}
#: Of models that there are not, under a 400.
_MODEL_CODES = {"model_not_found", "unknown_model", "invalid_model"}
#: Groq's, where it is the model's answer that was no good.
_OUTPUT_CODES = {"json_validate_failed", "tool_use_failed"}
#: Wordings of accounts without money, whatever the status.
_QUOTA_WORDINGS = (
    "credit balance is too low",  # Anthropic's, a 400
    "access suspended until next month",  # Mistral's spending limit
)
#: What errors without a status of their own (in a stream, inside of a 200) would have had.
_STATUS_BY_NAME = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "rate_limited": 429,
    "too_many_requests": 429,
    "RESOURCE_EXHAUSTED": 429,
    "invalid_prompt": 400,
    "invalid_request_error": 400,
    "data_residency_mismatch": 400,
    "bio_policy": 400,
    "misalignment_policy_violation": 400,
    "context_length_exceeded": 400,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "UNAUTHENTICATED": 401,
    "billing_error": 402,
    "permission_error": 403,
    "PERMISSION_DENIED": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "NOT_FOUND": 404,
    "request_too_large": 413,
    "server_error": 500,
    "api_error": 500,
    "INTERNAL": 500,
    "service_unavailable": 503,
    "server_is_overloaded": 503,
    "overloaded": 503,
    "UNAVAILABLE": 503,
    "timeout_error": 504,
    "vector_store_timeout": 504,
    "DEADLINE_EXCEEDED": 504,
    "overloaded_error": 529,
} | dict.fromkeys(_QUOTA_CODES - {"billing_error"}, 429)
_BAD_REQUEST_STARTS = ("invalid_", "image_", "unsupported_", "empty_")
_CONTEXT_WORDINGS = (
    "context_length_exceeded",
    "maximum context length",
    "reduce the length of the messages",
    "prompt is too long",
    "input token count",
    "model_context_window_exceeded",
)
_RETRYABLE = {
    ErrorCode.OVERLOADED,
    ErrorCode.TIMEOUT,
    ErrorCode.CONNECTION,
    ErrorCode.SERVER_ERROR,
    ErrorCode.BAD_OUTPUT,
}
#: A day, and an hour for clocks that differ.
LONGEST_WAIT_SECONDS = 25 * 3600.0
#: Clocks that differ by less than this are taken for the same one.
CLOCKS_AGREE = timedelta(seconds=2)
_HALF_A_SECOND = timedelta(seconds=0.5)
_GO_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_GO_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)")
_TRY_AGAIN = re.compile(r"(?:try again|retry) in ((?:\d+(?:\.\d+)?(?:h|ms|us|µs|ns|m|s))+)")
_RETRY_DELAY = re.compile(r'"retryDelay"\s*:\s*"(\d+(?:\.\d+)?)s"')
#: Longer bodies are cut before they are searched.
_MAX_SEARCHED = 20_000


def judge_status(
    status: int, body: Any = None, headers: Mapping[str, str] | None = None
) -> ErrorInfo:
    """Return the verdict on an answer.

    Args:
        status: The HTTP status.
        body: The decoded JSON body, its inner ``error`` object, or text. Any shape is accepted.
        headers: Response headers; names in any case.

    Never raises.
    """
    text = _as_text(body)
    code = _code_for(status, text, _error_codes(body))
    is_rate_limit = code is ErrorCode.RATE_LIMITED
    category = "rate_limit" if is_rate_limit else code.value
    if code is ErrorCode.CONNECTION:
        category = "connection_error"
    if code is ErrorCode.BAD_OUTPUT:
        category = "validation_error"
    can_retry = is_rate_limit or code in _RETRYABLE
    return ErrorInfo(
        is_retryable=can_retry,
        is_rate_limit=is_rate_limit,
        is_timeout=code is ErrorCode.TIMEOUT,
        error_category=category,
        suggested_wait=suggested_wait(text, headers or {}) if can_retry else None,
    )


def named_status(error: Any) -> int | None:
    """Return the status that an error's names stand for; None for names that nobody knows.

    Args:
        error: An error body or its inner object, as decoded JSON. Routers give the status itself
            as the ``code``.
    """
    numbers, names = _named(error)
    for number in numbers:
        if 400 <= number <= 599:
            return number
    for name in names:
        if name in _STATUS_BY_NAME:
            return _STATUS_BY_NAME[name]
    if any("rate_limit" in name or "quota" in name for name in names):
        return 429
    return 400 if any(name.startswith(_BAD_REQUEST_STARTS) for name in names) else None


def _named(error: Any) -> tuple[list[int], list[str]]:
    """Return the numbers and the words by which an error is called, innermost last."""
    numbers: list[int] = []
    names: list[str] = []
    for _depth in range(3):
        if not isinstance(error, Mapping):
            break
        for field in ("code", "status", "error_code", "type"):
            value = error.get(field)
            if type(value) is int:
                numbers.append(value)
            elif isinstance(value, str):
                if value.isdecimal() and len(value) == 3:
                    numbers.append(int(value))
                else:
                    names.append(value)
        inner = error.get("error")
        error = inner if inner is not None else error.get("details")
    return numbers, names


def _code_for(status: int, text: str, codes: set[str]) -> ErrorCode:
    lower = text.lower()
    if status == 429:
        is_daily = "perday" in lower  # Gemini: the short retryDelay beside it is misleading
        is_spent = is_daily or codes & _QUOTA_CODES or any(one in lower for one in _QUOTA_WORDINGS)
        return ErrorCode.QUOTA if is_spent else ErrorCode.RATE_LIMITED
    if status == 402 or (status == 400 and codes & _QUOTA_CODES):
        return ErrorCode.QUOTA
    if status in {400, 401, 403} and any(wording in lower for wording in _QUOTA_WORDINGS):
        return ErrorCode.QUOTA
    if status == 400 and ("api_key_invalid" in lower or "FAILED_PRECONDITION" in codes):
        return ErrorCode.AUTH  # Google's: a bad key; a country or an account that may not call
    if status in {400, 413, 422} and any(wording in lower for wording in _CONTEXT_WORDINGS):
        return ErrorCode.CONTEXT_LENGTH
    if status == 400 and codes & _OUTPUT_CODES:
        return ErrorCode.BAD_OUTPUT
    if status == 400 and codes & {"content_filter", "ResponsibleAIPolicyViolation"}:
        return ErrorCode.CONTENT_FILTER
    if status == 403 and '"flagged_input"' in lower:  # OpenRouter's moderation
        return ErrorCode.CONTENT_FILTER
    if status in {401, 403}:
        return ErrorCode.AUTH
    # A redirect is not followed, and no API is there that takes nothing by POST: a wrong address.
    if status in {404, 405, 410} or 300 <= status < 400 or codes & _MODEL_CODES:
        return ErrorCode.NOT_FOUND
    if status in {408, 504}:
        return ErrorCode.TIMEOUT
    if status == 503 and "RESOURCE_EXHAUSTED" in codes:  # Google's, now and then
        return ErrorCode.RATE_LIMITED
    if status in {503, 529} or codes & {"server_is_overloaded", "overloaded", "overloaded_error"}:
        return ErrorCode.OVERLOADED
    if status == 501:
        return ErrorCode.BAD_REQUEST
    # 409: a lock at the provider; 498: Groq's flex tier is full.
    return (
        ErrorCode.SERVER_ERROR if status >= 500 or status in {409, 498} else ErrorCode.BAD_REQUEST
    )


def suggested_wait(text: str, headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the provider asked to wait, wherever it says so, or None.

    Looked for, in this order, in ``retry-after-ms``, ``retry-after`` (seconds or a date), Google's
    ``RetryInfo``, the prose "try again in 1m2.5s", and the reset headers of the limits that are
    used up. ``x-should-retry`` is for SDKs and is no proof of anything: it is not read. More than
    a day is taken for nonsense: no limit of any provider is longer.
    """
    wait = _told_wait(text, _lowered(headers))
    return wait if wait is not None and wait <= LONGEST_WAIT_SECONDS else None


def _told_wait(text: str, found: Mapping[str, str]) -> float | None:
    milliseconds = _number(found.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    after = found.get("retry-after")
    if after is not None:
        seconds = _number(after)
        if seconds is None:
            seconds = seconds_until(after, clock_of(found))
        if seconds is not None:
            return seconds
    if match := _RETRY_DELAY.search(text):
        return _number(match[1])
    if (match := _TRY_AGAIN.search(text)) and (seconds := go_seconds(match[1])) is not None:
        return seconds
    return _until_reset(found)


def _until_reset(headers: Mapping[str, str]) -> float | None:
    """Return the longest reset among the limits of which nothing remains, or None.

    OpenAI and Groq: ``x-ratelimit-remaining-tokens: 0``, ``x-ratelimit-reset-tokens: 6m0s``.
    Anthropic: ``anthropic-ratelimit-tokens-remaining``, ``…-reset`` with an RFC 3339 date.
    """
    waits = []
    for name, value in headers.items():
        if "ratelimit" in name and "remaining" in name and _number(value) == 0:
            reset = headers.get(name.replace("remaining", "reset"), "")
            wait = go_seconds(reset)
            if wait is None:
                wait = seconds_until(reset, clock_of(headers))
            if wait is not None:
                waits.append(wait)
    return max(waits, default=None)


def go_seconds(duration: str) -> float | None:
    """Return the seconds of a Go duration such as ``1m2.5s`` or ``20ms``; None for nonsense."""
    parts = _GO_PART.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        return None
    seconds = sum(float(number) * _GO_UNITS[unit] for number, unit in parts)
    return seconds if math.isfinite(seconds) else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else -1.0
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def seconds_until(date: str, now: datetime) -> float | None:
    """Return the seconds until a date, RFC 3339 or RFC 9110; None for nonsense."""
    moment = _moment(date)
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def clock_of(headers: Mapping[str, str]) -> datetime:
    """Return the time by the clock of the server that sent these headers.

    The dates in them are by that clock too. Its ``Date`` is of whole seconds: where ours agrees
    with it, ours is the more exact one.
    """
    ours = datetime.now(UTC)
    sent = _moment(headers.get("date", ""))
    if sent is None:
        return ours
    try:
        theirs = sent + _HALF_A_SECOND
    except OverflowError:  # the year 9999
        return ours
    return ours if abs(theirs - ours) < CLOCKS_AGREE else theirs


def _moment(date: str) -> datetime | None:
    try:
        try:
            moment = datetime.fromisoformat(date)
        except ValueError:
            moment = parsedate_to_datetime(date)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _lowered(headers: Any) -> dict[str, str]:
    """Return headers of any kind with lower-case names, as far as they can be looked at."""
    try:
        return {_as_line(name).lower(): _as_line(value) for name, value in headers.items()}
    except Exception:  # noqa: BLE001 - a stranger's mapping
        return {}


def _as_line(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _as_text(body: Any) -> str:
    if isinstance(body, bytes | bytearray):
        return bytes(body[:_MAX_SEARCHED]).decode("utf-8", "replace")
    if isinstance(body, str):
        return body[:_MAX_SEARCHED]
    if body is None:
        return ""
    try:
        return json.dumps(body, default=str, skipkeys=True)[:_MAX_SEARCHED]
    except Exception:  # noqa: BLE001 - a stranger's ``__str__``
        return ""


def _error_codes(body: Any) -> set[str]:
    """Collect the ``code`` and ``type`` of an error body, at whatever depth the vendor has them."""
    codes: set[str] = set()
    try:
        if isinstance(body, str | bytes | bytearray):
            body = json.loads(body)
        for _depth in range(3):
            if isinstance(body, list) and body:
                body = body[0]  # Google's, when streamed
            if not isinstance(body, Mapping):
                break
            named = (body.get(name) for name in ("code", "type", "error_code", "status"))
            codes.update(code for code in named if isinstance(code, str))
            inner = body.get("error")
            body = inner if inner is not None else body.get("details")
    except Exception:  # noqa: BLE001 - text that is no JSON, or a stranger's mapping
        return codes
    return codes
