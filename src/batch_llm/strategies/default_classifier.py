"""What errors mean when nobody says otherwise: HTTP, transport, validation, time, and bugs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from batch_llm.exceptions import (
    BadOutputError,
    ConfigError,
    ContentFilteredError,
    ContextLengthError,
    MalformedResponseError,
    MissingKeyError,
    RefusedError,
    SettingRefusedError,
    StatusError,
    TruncatedError,
    UnknownModelError,
    UnsupportedRequestError,
)
from batch_llm.strategies.errors import ErrorCode, ErrorInfo
from batch_llm.strategies.http_errors import judge_status, named_status, suggested_wait

_HTTP_PACKAGES = {"httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "requests", "urllib3"}
#: Of HTTP libraries: roots of errors of a connection, and of answers that are cut off.
_BROKEN = {
    *("TransportError", "ClientConnectionError", "ClientPayloadError", "HTTPError"),
    "RequestException",
}
#: Of the providers' own libraries.
_SDK_PACKAGES = {"openai", "anthropic", "google", "mistralai", "groq", "pydantic_ai"}
#: Errors that say that the code is wrong: the same call will fail the same way. ``KeyError``,
#: ``IndexError``, ``ValueError`` and ``AssertionError`` are not among them: code that reads a
#: model's answer raises them when the answer is odd, and the next answer may be better.
_BUGS = (
    TypeError,
    NameError,
    AttributeError,
    ImportError,
    SyntaxError,
    NotImplementedError,
    Warning,
    ConfigError,
)
#: Their texts quote data, in which "429" is a number like any other.
_DATA_ERRORS = (ValueError, LookupError, ArithmeticError, AssertionError)
_RATE_LIMIT_TEXT = re.compile(
    r"\b429\b|rate.?limit|too many requests|resource.?exhausted", re.IGNORECASE
)
_MAX_DEPTH = 8
_MAX_MEMBERS = 20


def _verdict(
    category: str, *, retry: bool, timeout: bool = False, wait: float | None = None
) -> ErrorInfo:
    is_limit = category == "rate_limit"
    return ErrorInfo(retry, is_limit, timeout, category, wait)


_TIMEOUT = _verdict("timeout", retry=True, timeout=True)
_CONNECTION = _verdict("connection_error", retry=True)
_VALIDATION = _verdict("validation_error", retry=True)
_UNKNOWN = _verdict("unknown", retry=True)
_CONTENT_FILTER = _verdict(ErrorCode.CONTENT_FILTER, retry=False)
_TRUNCATED = _verdict(ErrorCode.TRUNCATED, retry=True)
_SERVER_ERROR = _verdict(ErrorCode.SERVER_ERROR, retry=True)
_OVERLOADED = _verdict(ErrorCode.OVERLOADED, retry=True)
_AUTH = _verdict(ErrorCode.AUTH, retry=False)
_NOT_FOUND = _verdict(ErrorCode.NOT_FOUND, retry=False)
_BAD_REQUEST = _verdict(ErrorCode.BAD_REQUEST, retry=False)
_CONTEXT_LENGTH = _verdict(ErrorCode.CONTEXT_LENGTH, retry=False)
_QUOTA = _verdict(ErrorCode.QUOTA, retry=False)
_INTERNAL = _verdict(ErrorCode.INTERNAL, retry=False)
_OURS = {
    BadOutputError: _VALIDATION,
    TruncatedError: _TRUNCATED,
    RefusedError: _CONTENT_FILTER,
    ContentFilteredError: _CONTENT_FILTER,
    MalformedResponseError: _SERVER_ERROR,
    MissingKeyError: _AUTH,
    UnknownModelError: _NOT_FOUND,
    ContextLengthError: _CONTEXT_LENGTH,
    UnsupportedRequestError: _BAD_REQUEST,
    SettingRefusedError: _verdict(ErrorCode.BAD_REQUEST, retry=True, wait=0.0),
}
#: Verdicts on classes of libraries, by name, for errors that carry no HTTP status. The most
#: telling names first: an error's base classes are looked up too.
_BY_NAME = {
    "ContentFilterError": _CONTENT_FILTER,
    "ContentFilterFinishReasonError": _CONTENT_FILTER,
    "LengthFinishReasonError": _TRUNCATED,
    "IncompleteToolCall": _TRUNCATED,
    "APITimeoutError": _TIMEOUT,
    "TimeoutException": _TIMEOUT,
    "ModelTimeoutError": _TIMEOUT,
    "ModelRequestTimeout": _TIMEOUT,
    "RunTimedOut": _TIMEOUT,
    "APIConnectionError": _CONNECTION,
    "ModelConnectionError": _CONNECTION,
    "NoResponseError": _CONNECTION,
    "WebSocketConnectionClosedError": _CONNECTION,
    "WebSocketQueueFullError": _OVERLOADED,
    "ModelRateLimitError": _verdict("rate_limit", retry=True),
    "ModelQuotaExceededError": _QUOTA,
    "ModelUnavailableError": _OVERLOADED,
    "ConcurrencyLimitExceeded": _OVERLOADED,
    "ModelServerError": _SERVER_ERROR,
    "ModelAuthenticationError": _AUTH,
    "CredentialsError": _AUTH,
    "ModelNotFoundError": _NOT_FOUND,
    "ModelContextWindowExceededError": _CONTEXT_LENGTH,
    "ModelRequestRejectedError": _BAD_REQUEST,
    "UsageLimitExceeded": _BAD_REQUEST,
    "RunCancelled": _verdict(ErrorCode.CANCELLED, retry=False),
    "APIResponseValidationError": _SERVER_ERROR,
    "ResponseValidationError": _SERVER_ERROR,
    "UnknownApiResponseError": _SERVER_ERROR,
    "SuspendedResponseExpired": _SERVER_ERROR,
    "RetryableError": _SERVER_ERROR,
    "UserError": _INTERNAL,
    "UnsupportedFunctionError": _INTERNAL,
    "FunctionInvocationError": _INTERNAL,
    "InvalidWebhookSignatureError": _INTERNAL,
    "APIWebhookValidationError": _INTERNAL,
    "CallDeferred": _INTERNAL,
    "ApprovalRequired": _INTERNAL,
    "SkipModelRequest": _INTERNAL,
    "SkipToolValidation": _INTERNAL,
    "SkipToolExecution": _INTERNAL,
    "ValidationError": _VALIDATION,
    "UnexpectedModelBehavior": _VALIDATION,
    "UnknownFunctionCallArgumentError": _VALIDATION,
    "ModelRetry": _VALIDATION,
    "RetryModelRequest": _VALIDATION,
    "ToolFailed": _VALIDATION,
    # Roots, for what a later version adds below them.
    "ModelAPIError": _SERVER_ERROR,
    "APIError": _SERVER_ERROR,
}
#: Roots of libraries that raise them as they are when there is no key.
_MISSING_KEY = re.compile(r"api.?key|credentials?", re.IGNORECASE)
_ROOTS = {"OpenAIError", "AnthropicError", "GroqError"}


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
    return _judge_causes(exception, _MAX_DEPTH) or _judge_text(exception)


def _judge_causes(error: BaseException | None, depth: int) -> ErrorInfo | None:
    """Judge an exception by its kind, else by its cause's; a group by its members'."""
    while error is not None and depth > 0:
        depth -= 1
        if isinstance(error, BaseExceptionGroup):
            return _judge_group(error, depth)
        verdict = _judge(error)
        if verdict is not None:
            return verdict
        if isinstance(error, _BUGS) and error.__cause__ is None:
            return _INTERNAL
        error = error.__cause__
    return None


def _judge_group(group: BaseExceptionGroup[BaseException], depth: int) -> ErrorInfo | None:
    """Return the most cautious way of going on: wait for a limit, else try again, else give up."""
    found = [
        verdict
        for member in group.exceptions[:_MAX_MEMBERS]
        if (verdict := _judge_causes(member, depth)) is not None
    ]
    return max(found, key=lambda one: (one.is_rate_limit, one.is_retryable), default=None)


def _judge_text(exception: BaseException) -> ErrorInfo:
    if isinstance(exception, _BUGS):
        return _INTERNAL
    if isinstance(exception, _DATA_ERRORS):
        return _UNKNOWN
    text = str(exception)
    if _RATE_LIMIT_TEXT.search(text):
        return _verdict("rate_limit", retry=True, wait=suggested_wait(text, {}))
    return _UNKNOWN


def _judge(error: BaseException) -> ErrorInfo | None:
    """Judge one exception by its kind; None when its kind tells nothing."""
    for kind, verdict in _OURS.items():
        if isinstance(error, kind):
            return verdict
    names = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__]
    by_name = {name for _, name in names}
    if "ContentFilterError" in by_name:  # Azure's comes with a status
        return _CONTENT_FILTER
    status = status_of(error)
    if status is not None:
        return judge_status(status, _body_of(error), headers_of(error))
    if isinstance(error, TimeoutError):
        return _TIMEOUT
    if isinstance(error, ConnectionError):
        return _CONNECTION
    if any(package in _SDK_PACKAGES for package, _ in names):  # an error in mid-stream, say
        body = _told_body(error)
        status = named_status(body)
        if status is not None:
            return judge_status(status, body, headers_of(error))
    if names[0][1] in _ROOTS and _MISSING_KEY.search(str(error)):
        return _AUTH
    named = next((_BY_NAME[name] for _, name in names if name in _BY_NAME), None)
    if named is not None:
        return _refined(error, named)
    if any(package in _HTTP_PACKAGES for package, _ in names):
        if by_name & {"Timeout", "TimeoutError"}:
            return _TIMEOUT
        if by_name & _BROKEN:
            return _CONNECTION
    if by_name & {"gaierror", "SSLError"}:  # names that do not resolve, TLS that breaks off
        return _CONNECTION
    return None


def _refined(error: BaseException, verdict: ErrorInfo) -> ErrorInfo:
    if verdict.is_rate_limit:
        wait = getattr(error, "retry_after", None)
        if isinstance(wait, int | float) and 0 <= wait < math.inf:
            return _verdict("rate_limit", retry=True, wait=float(wait))
    # pydantic-ai has no class of its own for this one.
    if verdict is _VALIDATION and "token limit" in str(error) and "exceeded" in str(error):
        return _TRUNCATED
    return verdict


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an exception carries, by whatever name; None without one."""
    lowest = 300 if isinstance(error, StatusError) else 400  # a stranger's 3xx may be anything
    for holder, name in (
        (error, "status_code"),
        (error, "code"),  # google-genai
        (error, "status"),
        (getattr(error, "response", None), "status_code"),
    ):
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= 599:
            return int(value)
    return None


def _body_of(error: BaseException) -> Any:
    body = _told_body(error)
    return body if body is not None else str(error)


def _told_body(error: BaseException) -> Any:
    for name in ("body", "details"):
        value = getattr(error, name, None)
        if value is not None:
            return value
    return None


def headers_of(error: BaseException) -> Mapping[str, str]:
    """Return the headers of the answer that an exception speaks of; empty where it has none.

    Libraries that wrap an SDK's exception (pydantic-ai) leave them on the cause.
    """
    current: BaseException | None = error
    for _depth in range(_MAX_DEPTH):
        if current is None:
            break
        for holder in (
            current,
            getattr(current, "response", None),
            getattr(current, "raw_response", None),
        ):
            headers = getattr(holder, "headers", None)
            if isinstance(headers, Mapping) and headers:
                return headers
        current = current.__cause__
    return {}
