"""Errors that carry an HTTP status, from whatever library."""

from __future__ import annotations

from batch_llm.strategies.default_classifier import DefaultErrorClassifier


class HttpErrorClassifier(DefaultErrorClassifier):
    """Judges by status, body and headers (``strategies.http_errors`` has the rules)."""
