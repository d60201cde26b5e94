"""OpenAI's errors, told by their text: works without its SDK."""

from __future__ import annotations

from batch_llm.classifiers.worded import WordedErrorClassifier


class OpenAIErrorClassifier(WordedErrorClassifier):
    """Judges as the default classifier does, and by OpenAI's own wordings."""

    wordings = (
        (r"insufficient_quota|billing_hard_limit_reached|credit_balance_exhausted", 429),
        (r"(?:organization|project)_spend_limit_exceeded|organization_usage_limit_exceeded", 429),
        (r"context_length_exceeded|maximum context length", 400),
        (r"invalid_api_key|incorrect api key", 401),
        (r"model_not_found", 404),
        (r"rate_limit_exceeded|rate limit reached", 429),
        (r"server_is_overloaded|service_unavailable", 503),
        (r"server_error", 500),
    )
