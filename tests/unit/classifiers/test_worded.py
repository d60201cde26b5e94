"""Exceptions of strangers that only quote a provider's answer."""

from __future__ import annotations

import pytest

from batch_llm import StatusError
from batch_llm.classifiers import (
    AnthropicErrorClassifier,
    GroqErrorClassifier,
    MistralErrorClassifier,
    OpenAIErrorClassifier,
)


@pytest.mark.parametrize(
    ("classifier", "text", "category"),
    [
        (OpenAIErrorClassifier, "Error code: 429 - {'code': 'insufficient_quota'}", "quota"),
        (OpenAIErrorClassifier, "billing_hard_limit_reached", "quota"),
        (OpenAIErrorClassifier, "credit_balance_exhausted", "quota"),
        (OpenAIErrorClassifier, "organization_spend_limit_exceeded", "quota"),
        (OpenAIErrorClassifier, "project_spend_limit_exceeded", "quota"),
        (OpenAIErrorClassifier, "organization_usage_limit_exceeded", "quota"),
        (OpenAIErrorClassifier, "Rate limit reached for gpt-4.1", "rate_limit"),
        (OpenAIErrorClassifier, "maximum context length is 8192", "context_length"),
        (OpenAIErrorClassifier, "Incorrect API key provided", "auth"),
        (OpenAIErrorClassifier, "model_not_found", "not_found"),
        (OpenAIErrorClassifier, "server_is_overloaded", "overloaded"),
        (OpenAIErrorClassifier, "server_error", "server_error"),
        (AnthropicErrorClassifier, "Your credit balance is too low to access", "quota"),
        (AnthropicErrorClassifier, "429 enforced_spend_limit_reached", "quota"),
        (AnthropicErrorClassifier, "contract_spend_limit_reached", "quota"),
        (AnthropicErrorClassifier, "billing_error", "quota"),
        (AnthropicErrorClassifier, "prompt is too long: 9 tokens > 8 maximum", "context_length"),
        (AnthropicErrorClassifier, "Error code: 529 - overloaded_error", "overloaded"),
        (AnthropicErrorClassifier, "rate_limit_error", "rate_limit"),
        (AnthropicErrorClassifier, "authentication_error", "auth"),
        (AnthropicErrorClassifier, "permission_error", "auth"),
        (AnthropicErrorClassifier, "not_found_error", "not_found"),
        (AnthropicErrorClassifier, "request_too_large", "bad_request"),
        (AnthropicErrorClassifier, "timeout_error", "timeout"),
        (AnthropicErrorClassifier, "api_error", "server_error"),
        (AnthropicErrorClassifier, "invalid_request_error", "bad_request"),
        (MistralErrorClassifier, "Requests rate limit exceeded", "rate_limit"),
        (MistralErrorClassifier, "API access suspended until next month", "quota"),
        (MistralErrorClassifier, "Status 401. Body: Unauthorized", "auth"),
        (MistralErrorClassifier, "unknown_model", "not_found"),
        (MistralErrorClassifier, "exceeds the maximum context length", "context_length"),
        (
            GroqErrorClassifier,
            "Request too large for model `m`: rate_limit_exceeded",
            "bad_request",
        ),
        (GroqErrorClassifier, "Rate limit reached for model `m`", "rate_limit"),
        (GroqErrorClassifier, "Please reduce the length of the messages", "context_length"),
        (GroqErrorClassifier, "Invalid API Key", "auth"),
        (GroqErrorClassifier, "model_not_found", "not_found"),
        (GroqErrorClassifier, "Model is over capacity", "overloaded"),
    ],
)
def test_a_providers_wordings_are_known(classifier, text, category):
    assert classifier().classify(RuntimeError(text)).error_category == category


def test_the_wait_in_such_a_text_is_kept():
    info = GroqErrorClassifier().classify(
        RuntimeError("Rate limit reached for model `m`. Please try again in 14m24s.")
    )

    assert info.suggested_wait == 864.0


@pytest.mark.parametrize(
    "classifier",
    [OpenAIErrorClassifier, AnthropicErrorClassifier, MistralErrorClassifier, GroqErrorClassifier],
)
def test_a_status_counts_more_than_words(classifier):
    def judged(error):
        return classifier().classify(error).error_category

    assert judged(StatusError(500, "insufficient_quota rate_limit_error")) == "server_error"
    assert judged(StatusError(429, "server_error over capacity")) == "rate_limit"
    assert judged(RuntimeError("whatever")) == "unknown"
    assert judged(TypeError("rate_limited")) == "internal"
