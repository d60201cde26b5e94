"""Push many LLM requests through any provider: every item answered once.

Start with ``run_sync`` or ``run`` for rows and a model, with ``ParallelBatchProcessor`` for agents
and code of your own; ``batch_llm.testing`` has agents without a model.

Names are loaded when they are first used (PEP 562), so that ``import batch_llm`` costs nothing.
"""

from __future__ import annotations

#: What type checkers take for true; `typing` itself takes longer to load than all else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from batch_llm._engine.statistics import Statistics
    from batch_llm.base import (
        BatchProcessor,
        BatchResult,
        LLMWorkItem,
        PostProcessor,
        WorkItemResult,
    )
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
        ContextLengthError,
        DuplicateItemError,
        InputError,
        ItemError,
        LedgerError,
        LedgerInUseError,
        MalformedResponseError,
        MissingExtraError,
        MissingKeyError,
        OutputExistsError,
        OutputGoneError,
        OutputInUseError,
        OutputLostError,
        ProviderError,
        RateLimitedTooOftenError,
        RefusedError,
        RowsFailedError,
        SettingRefusedError,
        SettingsChangedError,
        SourceError,
        StatusError,
        StoreError,
        TransportError,
        TruncatedError,
        UnknownModelError,
        UnknownPriceError,
        UnsupportedRequestError,
    )
    from batch_llm.middleware import BaseMiddleware, Middleware
    from batch_llm.observers import (
        BaseObserver,
        MetricsObserver,
        ProcessingEvent,
        ProcessorObserver,
    )
    from batch_llm.parallel import ParallelBatchProcessor
    from batch_llm.providers.models import open_model
    from batch_llm.runs import (
        AttachedRun,
        BlockingHandle,
        Plot,
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
    "CacheError",
    "CallCancelledError",
    "ConfigError",
    "ContentFilteredError",
    "ContextLengthError",
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
    "OutputGoneError",
    "OutputInUseError",
    "OutputLostError",
    "ParallelBatchProcessor",
    "Plot",
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
    "SettingRefusedError",
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
    "UnsupportedRequestError",
    "UsageLike",
    "WorkItemResult",
    "attach",
    "open_model",
    "run",
    "run_frame",
    "run_frame_sync",
    "run_sync",
    "stream",
    "stream_sync",
    "submit",
    "submit_sync",
]

#: Where each name is at home.
_HOMES = {
    "_engine.statistics": ("Statistics",),
    "base": ("BatchProcessor", "BatchResult", "LLMWorkItem", "PostProcessor", "WorkItemResult"),
    "classifiers": ("GeminiErrorClassifier", "HttpErrorClassifier"),
    "core.config": ("Limits", "ProcessorConfig", "RateLimitConfig", "RetryConfig"),
    "core.prices": ("Bill", "ModelUsage", "Price", "Prices"),
    "core.protocols": ("AgentLike", "ResultLike", "UsageLike"),
    "core.request": ("Image", "Message", "OtherPart", "Request", "Settings", "Text"),
    "exceptions": (
        "AbandonedError",
        "AttemptTimeoutError",
        "BadOutputError",
        "BatchLLMError",
        "CacheError",
        "CallCancelledError",
        "ConfigError",
        "ContentFilteredError",
        "ContextLengthError",
        "DuplicateItemError",
        "InputError",
        "ItemError",
        "LedgerError",
        "LedgerInUseError",
        "MalformedResponseError",
        "MissingExtraError",
        "MissingKeyError",
        "OutputExistsError",
        "OutputGoneError",
        "OutputInUseError",
        "OutputLostError",
        "ProviderError",
        "RateLimitedTooOftenError",
        "RefusedError",
        "RowsFailedError",
        "SettingRefusedError",
        "SettingsChangedError",
        "SourceError",
        "StatusError",
        "StoreError",
        "TransportError",
        "TruncatedError",
        "UnknownModelError",
        "UnknownPriceError",
        "UnsupportedRequestError",
    ),
    "middleware": ("BaseMiddleware", "Middleware"),
    "observers": ("BaseObserver", "MetricsObserver", "ProcessingEvent", "ProcessorObserver"),
    "parallel": ("ParallelBatchProcessor",),
    "providers.models": ("open_model",),
    "runs": (
        "AttachedRun",
        "BlockingHandle",
        "Plot",
        "RunHandle",
        "RunResult",
        "attach",
        "run",
        "run_frame",
        "run_frame_sync",
        "run_sync",
        "stream",
        "stream_sync",
        "submit",
        "submit_sync",
    ),
    "stores": ("AnswerCache", "Ledger", "MemoryLedger", "SqliteLedger"),
    "strategies": (
        "DefaultErrorClassifier",
        "ErrorClassifier",
        "ErrorCode",
        "ErrorInfo",
        "ExponentialBackoffStrategy",
        "FixedDelayStrategy",
        "RateLimitStrategy",
    ),
    "testing.mocks": ("MockAgent", "MockResult", "MockUsage"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
#: Modules of ours that can be reached as attributes without an import of their own.
_MODULES = {
    "agents",
    "base",
    "classifiers",
    "core",
    "exceptions",
    "middleware",
    "observers",
    "parallel",
    "runs",
    "stores",
    "strategies",
    "testing",
}

if not TYPE_CHECKING:  # else a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"batch_llm.{name}")
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'batch_llm' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"batch_llm.{home}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
