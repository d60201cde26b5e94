from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import batch_llm

#: What the contract lists; users' code imports them by these names.
PROMISED = {
    "batch_llm.base": ["LLMWorkItem", "WorkItemResult", "BatchResult", "BatchProcessor"],
    "batch_llm.parallel": ["ParallelBatchProcessor"],
    "batch_llm.core": ["ProcessorConfig", "RetryConfig", "RateLimitConfig"],
    "batch_llm.core.config": ["ProcessorConfig", "RetryConfig", "RateLimitConfig"],
    "batch_llm.core.protocols": ["AgentLike", "ResultLike", "UsageLike"],
    "batch_llm.strategies": [
        "DefaultErrorClassifier",
        "ErrorClassifier",
        "ErrorInfo",
        "ExponentialBackoffStrategy",
        "FixedDelayStrategy",
        "RateLimitStrategy",
    ],
    "batch_llm.strategies.errors": ["ErrorClassifier", "ErrorInfo"],
    "batch_llm.strategies.rate_limit": ["RateLimitStrategy", "ExponentialBackoffStrategy"],
    "batch_llm.observers": ["BaseObserver", "MetricsObserver", "ProcessingEvent"],
    "batch_llm.observers.base": ["BaseObserver", "ProcessingEvent"],
    "batch_llm.observers.metrics": ["MetricsObserver"],
    "batch_llm.middleware": ["BaseMiddleware"],
    "batch_llm.middleware.base": ["BaseMiddleware"],
    "batch_llm.classifiers": ["GeminiErrorClassifier"],
    "batch_llm.classifiers.gemini": ["GeminiErrorClassifier"],
    "batch_llm.testing": ["MockAgent", "MockResult", "MockUsage"],
    "batch_llm.testing.mocks": ["MockAgent", "MockResult", "MockUsage"],
}
HEAVY = ["pydantic", "pydantic_ai", "openai", "rich", "uvicorn", "jinja2", "cyclopts"]


def test_the_list_of_public_names_is_sorted_and_complete():
    public = {
        name
        for name, value in vars(batch_llm).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("batch_llm.")
    }

    assert batch_llm.__all__ == sorted(set(batch_llm.__all__))
    assert public <= set(batch_llm.__all__)


@pytest.mark.parametrize(("module", "names"), PROMISED.items())
def test_promised_names_stay_importable(module, names):
    found = importlib.import_module(module)

    for name in names:
        assert hasattr(found, name)
        assert hasattr(batch_llm, name)


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, batch_llm; print([m for m in {HEAVY} if m in sys.modules])"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert loaded.stdout.strip() == "[]"
