"""What errors mean when nobody says otherwise: HTTP, transport, validation, time, and bugs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from batch_llm.exceptions import (
    BadOutputError,
    ConfigError,
    ContentFilteredError,
    MalformedResponseError,
    RefusedError,
    TruncatedError,
)
from batch_llm.strategies.errors import ErrorCode, ErrorInfo
from batch_llm.strategies.http_errors import judge_status, suggested_wait

_HTTP_PACKAGES = {"httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "requests", "urllib3"}
#: Errors that say that the code is wrong: the same call will fail the same way.
_BUGS = (TypeError, NameError, AttributeError, ImportError, SyntaxError, ConfigError)
_RATE_LIMIT_TEXT = re.compile(
    r"\b429\b|rate.?limit|too many requests|resource.?exhausted", re.IGNORECASE
)
_MAX_CAUSES = 5


def _verdict(
    category: str, *, retry: bool, timeout: bool = False, wait: float | None = None
) -> ErrorInfo:
    is_limit = category == "rate_limit"
    return ErrorInfo(retry, is_limit, timeout, category, wait)


_TIMEOUT = _verdict("timeout", retry=True, timeout=True)
_CONNECTION = _verdict("connection_error", retry=True)
_VALIDATION = _verdict("validation_error", retry=True)
_UNKNOWN = _verdict("unknown", retry=True)
_OURS = {
    BadOutputError: _VALIDATION,
    TruncatedError: _verdict(ErrorCode.TRUNCATED, retry=True),
    RefusedError: _verdict(ErrorCode.CONTENT_FILTER, retry=False),
    ContentFilteredError: _verdict(ErrorCode.CONTENT_FILTER, retry=False),
    MalformedResponseError: _verdict(ErrorCode.SERVER_ERROR, retry=True),
}


class DefaultErrorClassifier:
    """Judges by type, then by HTTP status, then by the causes, then by the text.

    Unknown errors are retryable; errors that show a bug in the calling code (``TypeError``,
    ``NameError`` …) are not. Works without any SDK being installed, and never raises.
    """

    def classify(self, exception: Exception, /) -> ErrorInfo:
        """Return the verdict."""
        try:
            return _judge_chain(exception)
        except Exception:  # noqa: BLE001 - a stranger's exception may raise when it is looked at
            return _UNKNOWN


def _judge_chain(exception: BaseException) -> ErrorInfo:
    current: BaseException | None = exception
    for _ in range(_MAX_CAUSES):
        if current is None:
            break
        if isinstance(current, BaseExceptionGroup):
            current = current.exceptions[-1]
        verdict = _judge(current)
        if verdict is not None:
            return verdict
        current = current.__cause__
    text = str(exception)
    if _RATE_LIMIT_TEXT.search(text):
        return _verdict("rate_limit", retry=True, wait=suggested_wait(text, {}))
    if isinstance(exception, _BUGS):
        return _verdict(ErrorCode.INTERNAL, retry=False)
    return _UNKNOWN


def _judge(error: BaseException) -> ErrorInfo | None:
    """Judge one exception by its kind; None when its kind tells nothing."""
    for kind, verdict in _OURS.items():
        if isinstance(error, kind):
            return verdict
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    by_name = {name for _, name in names}
    if "ContentFilterError" in by_name:
        return _OURS[ContentFilteredError]
    status = _status_of(error)
    if status is not None:
        return judge_status(status, _body_of(error), _headers_of(error))
    is_network = any(package in _HTTP_PACKAGES for package, _ in names)
    if isinstance(error, TimeoutError) or by_name & {
        "APITimeoutError",
        "TimeoutException",
        "ModelTimeoutError",
        "RunTimedOut",
    }:
        return _TIMEOUT
    if (
        isinstance(error, ConnectionError)
        or by_name & {"APIConnectionError", "ModelConnectionError"}
        or (is_network and by_name & {"TransportError", "ClientConnectionError", "HTTPError"})
    ):
        return _CONNECTION
    if by_name & {"ValidationError", "UnexpectedModelBehavior"}:
        return _VALIDATION
    return None


def _status_of(error: BaseException) -> int | None:
    for holder, name in (
        (error, "status_code"),
        (error, "code"),  # google-genai
        (error, "status"),
        (getattr(error, "response", None), "status_code"),
    ):
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
            return value
    return None


def _body_of(error: BaseException) -> Any:
    for name in ("body", "details"):
        value = getattr(error, name, None)
        if value is not None:
            return value
    return str(error)


def _headers_of(error: BaseException) -> Mapping[str, str]:
    for holder in (error, getattr(error, "response", None), getattr(error, "raw_response", None)):
        headers = getattr(holder, "headers", None)
        if isinstance(headers, Mapping):
            return headers
    return {}
