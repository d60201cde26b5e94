"""Mistral's errors, told by their text: works without its SDK."""

from __future__ import annotations

from batch_llm.classifiers.worded import WordedErrorClassifier


class MistralErrorClassifier(WordedErrorClassifier):
    """Judges as the default classifier does, and by Mistral's own wordings."""

    wordings = (
        (r"access suspended until next month", 403),
        (r"maximum context length", 400),
        (r"unknown_model|invalid_model", 400),
        (r"\bunauthorized\b", 401),
        (r"rate_limited|rate limit exceeded", 429),
    )
