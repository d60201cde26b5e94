"""Gemini's errors, told by their text: works without google-genai."""

from __future__ import annotations

import re

from batch_llm.strategies.default_classifier import DefaultErrorClassifier
from batch_llm.strategies.errors import ErrorInfo
from batch_llm.strategies.http_errors import judge_status

_TIMEOUT = re.compile(r"\b504\b|deadline|timeout|timed out", re.IGNORECASE)


class GeminiErrorClassifier:
    """Judges as the default classifier does, after a look at Gemini's own wordings."""

    def __init__(self) -> None:
        self._default = DefaultErrorClassifier()

    def classify(self, exception: Exception, /) -> ErrorInfo:
        """Return the verdict; unknown errors are retryable."""
        try:
            text = str(exception)
            details = getattr(exception, "details", None)
        except Exception:  # noqa: BLE001 - a stranger's exception may raise when it is looked at
            return self._default.classify(exception)
        if "429" in text and "RESOURCE_EXHAUSTED" in text:
            return judge_status(429, details if details is not None else text)
        verdict = self._default.classify(exception)
        if verdict.error_category == "unknown" and _TIMEOUT.search(text):
            return ErrorInfo(
                is_retryable=True, is_rate_limit=False, is_timeout=True, error_category="timeout"
            )
        return verdict
