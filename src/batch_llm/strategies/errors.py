"""What an error means: try again, slow down, or give up."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class ErrorCode(StrEnum):
    """The closed list of failures that reports, metrics and exit codes speak of."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    SERVER_ERROR = "server_error"
    BAD_OUTPUT = "bad_output"
    TRUNCATED = "truncated"
    CONTENT_FILTER = "content_filter"
    CONTEXT_LENGTH = "context_length"
    BAD_REQUEST = "bad_request"
    AUTH = "auth"
    QUOTA = "quota"
    NOT_FOUND = "not_found"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


#: Categories that the public contract names otherwise than the closed list does.
_SYNONYMS = {
    "rate_limit": ErrorCode.RATE_LIMITED,
    "connection_error": ErrorCode.CONNECTION,
    "validation_error": ErrorCode.BAD_OUTPUT,
}
_CODES = {code.value: code for code in ErrorCode} | _SYNONYMS


def code_of(category: str) -> ErrorCode:
    """Return the closed-list code of a classifier's category; ``internal`` for unknown ones."""
    return _CODES.get(category, ErrorCode.INTERNAL)


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """A classifier's verdict on one exception.

    Attributes:
        is_retryable: Another attempt may succeed.
        is_rate_limit: The provider asked us to slow down: everyone waits, and the refused call
            does not use up one of the item's attempts.
        is_timeout: The call ran out of time.
        error_category: Short, stable label: ``rate_limit``, ``timeout``, ``connection_error``,
            ``validation_error``, ``unknown``, or a value of ``ErrorCode``.
        suggested_wait: Seconds the provider asked us to wait, if it said so.
    """

    is_retryable: bool
    is_rate_limit: bool
    is_timeout: bool
    error_category: str
    suggested_wait: float | None = None


class ErrorClassifier(Protocol):
    """Tells what kind of failure an exception is.

    Implement this to teach the retry loop about a new provider. Implementations are called for
    every failed attempt and must be pure: no I/O, no state, no raising.
    """

    def classify(self, exception: Exception, /) -> ErrorInfo:
        """Return the verdict for ``exception``, including ones never seen before."""
        ...
