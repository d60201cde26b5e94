"""Anthropic's errors, told by their text: works without its SDK."""

from __future__ import annotations

from batch_llm.classifiers.worded import WordedErrorClassifier


class AnthropicErrorClassifier(WordedErrorClassifier):
    """Judges as the default classifier does, and by Anthropic's own wordings."""

    wordings = (
        (r"credit balance is too low", 400),
        (r"(?:contract|enforced)_spend_limit_reached", 429),
        (r"billing_error", 402),
        (r"prompt is too long", 400),
        (r"authentication_error", 401),
        (r"permission_error", 403),
        (r"not_found_error", 404),
        (r"request_too_large", 413),
        (r"overloaded_error", 529),
        (r"rate_limit_error", 429),
        (r"timeout_error", 504),
        (r"api_error", 500),
        (r"invalid_request_error", 400),
    )
