"""Settings, protocols and plain data."""

from __future__ import annotations

from batch_llm.core.config import Limits, ProcessorConfig, RateLimitConfig, RetryConfig
from batch_llm.core.protocols import AgentLike, ResultLike, UsageLike

__all__ = [
    "AgentLike",
    "Limits",
    "ProcessorConfig",
    "RateLimitConfig",
    "ResultLike",
    "RetryConfig",
    "UsageLike",
]
