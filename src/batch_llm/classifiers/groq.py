"""Groq's errors, told by their text: works without its SDK."""

from __future__ import annotations

from batch_llm.classifiers.worded import WordedErrorClassifier


class GroqErrorClassifier(WordedErrorClassifier):
    """Judges as the default classifier does, and by Groq's own wordings."""

    wordings = (
        (r"request too large for model", 413),  # larger than the limit of a minute: for good
        (r"reduce the length of the messages", 400),
        (r"invalid_api_key|invalid api key", 401),
        (r"model_not_found", 404),
        (r"rate_limit_exceeded|rate limit reached", 429),
        (r"over capacity", 503),
    )
