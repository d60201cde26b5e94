"""Push many LLM requests through any provider: every item answered once.

Start with ``ParallelBatchProcessor``; ``batch_llm.testing`` has agents without a model.
"""

from __future__ import annotations

from batch_llm._engine.statistics import Statistics
from batch_llm.base import BatchProcessor, BatchResult, LLMWorkItem, PostProcessor, WorkItemResult
from batch_llm.classifiers import GeminiErrorClassifier, HttpErrorClassifier
from batch_llm.core.config import Limits, ProcessorConfig, RateLimitConfig, RetryConfig
from batch_llm.core.prices import Bill, ModelUsage, Price, Prices
from batch_llm.core.protocols import AgentLike, ResultLike, UsageLike
from batch_llm.core.request import Image, Message, OtherPart, Request, Settings, Text
from batch_llm.exceptions import (
    AbandonedError,
    AttemptTimeoutError,
    BadOutputError,
    BatchLLMError,
    CacheError,
    CallCancelledError,
    ConfigError,
    ContentFilteredError,
    DuplicateItemError,
    ItemError,
    LedgerError,
    LedgerInUseError,
    MalformedResponseError,
    MissingExtraError,
    MissingKeyError,
    ProviderError,
    RateLimitedTooOftenError,
    RefusedError,
    SettingsChangedError,
    SourceError,
    StatusError,
    StoreError,
    TransportError,
    TruncatedError,
    UnknownModelError,
    UnknownPriceError,
)
from batch_llm.middleware import BaseMiddleware, Middleware
from batch_llm.observers import BaseObserver, MetricsObserver, ProcessingEvent, ProcessorObserver
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.stores import AnswerCache, Ledger, MemoryLedger, SqliteLedger
from batch_llm.strategies import (
    DefaultErrorClassifier,
    ErrorClassifier,
    ErrorCode,
    ErrorInfo,
    ExponentialBackoffStrategy,
    FixedDelayStrategy,
    RateLimitStrategy,
)
from batch_llm.testing.mocks import MockAgent, MockResult, MockUsage

__all__ = [
    "AbandonedError",
    "AgentLike",
    "AnswerCache",
    "AttemptTimeoutError",
    "BadOutputError",
    "BaseMiddleware",
    "BaseObserver",
    "BatchLLMError",
    "BatchProcessor",
    "BatchResult",
    "Bill",
    "CacheError",
    "CallCancelledError",
    "ConfigError",
    "ContentFilteredError",
    "DefaultErrorClassifier",
    "DuplicateItemError",
    "ErrorClassifier",
    "ErrorCode",
    "ErrorInfo",
    "ExponentialBackoffStrategy",
    "FixedDelayStrategy",
    "GeminiErrorClassifier",
    "HttpErrorClassifier",
    "Image",
    "ItemError",
    "LLMWorkItem",
    "Ledger",
    "LedgerError",
    "LedgerInUseError",
    "Limits",
    "MalformedResponseError",
    "MemoryLedger",
    "Message",
    "MetricsObserver",
    "Middleware",
    "MissingExtraError",
    "MissingKeyError",
    "MockAgent",
    "MockResult",
    "MockUsage",
    "ModelUsage",
    "OtherPart",
    "ParallelBatchProcessor",
    "PostProcessor",
    "Price",
    "Prices",
    "ProcessingEvent",
    "ProcessorConfig",
    "ProcessorObserver",
    "ProviderError",
    "RateLimitConfig",
    "RateLimitStrategy",
    "RateLimitedTooOftenError",
    "RefusedError",
    "Request",
    "ResultLike",
    "RetryConfig",
    "Settings",
    "SettingsChangedError",
    "SourceError",
    "SqliteLedger",
    "Statistics",
    "StatusError",
    "StoreError",
    "Text",
    "TransportError",
    "TruncatedError",
    "UnknownModelError",
    "UnknownPriceError",
    "UsageLike",
    "WorkItemResult",
]
