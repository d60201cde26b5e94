"""Push many LLM requests through any provider: every item answered once.

Start with ``run_sync`` or ``run`` for rows and a model, with ``ParallelBatchProcessor`` for agents
and code of your own; ``batch_llm.testing`` has agents without a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    CallCancelledError,
    ConfigError,
    ContentFilteredError,
    DuplicateItemError,
    InputError,
    ItemError,
    LedgerError,
    LedgerInUseError,
    MalformedResponseError,
    MissingExtraError,
    MissingKeyError,
    OutputExistsError,
    OutputLostError,
    ProviderError,
    RateLimitedTooOftenError,
    RefusedError,
    RowsFailedError,
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
from batch_llm.stores import Ledger, MemoryLedger, SqliteLedger
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

if TYPE_CHECKING:
    from batch_llm.runs import (
        AttachedRun,
        BlockingHandle,
        RunHandle,
        RunResult,
        attach,
        run,
        run_frame,
        run_frame_sync,
        run_sync,
        stream,
        stream_sync,
        submit,
        submit_sync,
    )

__all__ = [
    "AbandonedError",
    "AgentLike",
    "AttachedRun",
    "AttemptTimeoutError",
    "BadOutputError",
    "BaseMiddleware",
    "BaseObserver",
    "BatchLLMError",
    "BatchProcessor",
    "BatchResult",
    "Bill",
    "BlockingHandle",
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
    "InputError",
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
    "OutputExistsError",
    "OutputLostError",
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
    "RowsFailedError",
    "RunHandle",
    "RunResult",
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
    "attach",
    "run",
    "run_frame",
    "run_frame_sync",
    "run_sync",
    "stream",
    "stream_sync",
    "submit",
    "submit_sync",
]

#: Loaded when used: they need a template engine, which takes longer than all the rest.
_LAZY = frozenset(
    {"AttachedRun", "BlockingHandle", "RunHandle", "RunResult", "attach", "run", "run_frame"}
    | {"run_frame_sync", "run_sync", "stream", "stream_sync", "submit", "submit_sync"}
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from batch_llm import runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
