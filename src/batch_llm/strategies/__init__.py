"""What errors mean, and what to do about them. Decisions only: no clock, no I/O."""

from __future__ import annotations

from batch_llm.strategies.default_classifier import DefaultErrorClassifier
from batch_llm.strategies.errors import ErrorClassifier, ErrorCode, ErrorInfo
from batch_llm.strategies.rate_limit import (
    ExponentialBackoffStrategy,
    FixedDelayStrategy,
    RateLimitStrategy,
)

__all__ = [
    "DefaultErrorClassifier",
    "ErrorClassifier",
    "ErrorCode",
    "ErrorInfo",
    "ExponentialBackoffStrategy",
    "FixedDelayStrategy",
    "RateLimitStrategy",
]
