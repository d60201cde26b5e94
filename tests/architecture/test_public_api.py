from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

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
HEAVY = ["pydantic", "pydantic_ai", "openai", "rich", "uvicorn", "jinja2", "cyclopts", "tiktoken"]


def told_to_type_checkers():
    """The names of ours that `batch_llm/__init__.py` imports for type checkers alone."""
    imports = [
        node
        for node in ast.walk(ast.parse(Path(batch_llm.__file__).read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("batch_llm.")
    ]
    return {
        alias.name: node.module.removeprefix("batch_llm.")
        for node in imports
        for alias in node.names
    }


def test_the_list_of_public_names_is_sorted_and_complete():
    assert batch_llm.__all__ == sorted(set(batch_llm.__all__))
    assert set(batch_llm.__all__) == set(told_to_type_checkers())


def test_what_type_checkers_are_told_is_what_is_loaded():
    assert told_to_type_checkers() == batch_llm._HOME_OF
    for name in batch_llm.__all__:
        found = getattr(batch_llm, name)
        assert not isinstance(found, type) or found.__name__ == name
        assert name in dir(batch_llm)


def test_modules_are_reached_through_the_package_and_other_names_are_not():
    code = """
import batch_llm
assert batch_llm.core.config.Limits is batch_llm.Limits
assert callable(batch_llm.agents.observe)
assert batch_llm.strategies.errors.ErrorInfo is batch_llm.ErrorInfo
namespace = {}
exec("from batch_llm import *", namespace)
assert set(batch_llm.__all__) <= set(namespace)
try:
    batch_llm.Nonsense
except AttributeError as error:
    print(error)
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "module 'batch_llm' has no attribute 'Nonsense'"


def test_importing_the_package_loads_none_of_its_modules():
    code = "import sys, batch_llm; print([m for m in sys.modules if m.startswith('batch_llm.')])"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert loaded.stdout.strip() == "[]"


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


def test_the_page_of_public_names_has_each_once_and_says_what_its_docstring_says():
    page = (Path(__file__).parents[2] / "docs" / "names.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    errors = re.findall(r"^[│├└─ ]*(\w+Error)\b", page, re.MULTILINE)

    assert sorted([name for name, _ in rows] + errors) == sorted(
        {*batch_llm.__all__, *(name for name in vars(batch_llm.exceptions) if "Error" in name)}
    )
    for name, says in rows:
        if name != "PostProcessor":  # a type of functions has no docstring
            first, *_ = inspect.getdoc(getattr(batch_llm, name)).split("\n")
            assert says == first.replace("``", "`")
    tree = inspect.getdoc(batch_llm.exceptions).split("\n\n")[1]
    assert textwrap.dedent(tree) in page


def public_functions(found):
    """A public function itself; of a class, its public methods and properties."""
    if not isinstance(found, type):
        return [found] if inspect.isfunction(found) else []
    members = [value for name, value in vars(found).items() if not name.startswith("_")]
    unbound = [getattr(one, "fget", None) or getattr(one, "__func__", one) for one in members]
    return [one for one in unbound if inspect.isfunction(one)]


def fields_of(found):
    if dataclasses.is_dataclass(found):
        return [field.name for field in dataclasses.fields(found) if field.init]
    return list(getattr(found, "__struct_fields__", ()))


@pytest.mark.parametrize("name", sorted(set(batch_llm.__all__) - {"PostProcessor"}))
def test_each_public_name_says_what_it_is_and_what_its_fields_are(name):
    found = getattr(batch_llm, name)
    said = (vars(found).get("__doc__") if isinstance(found, type) else found.__doc__) or ""

    assert said
    assert not said.startswith(f"{name}(")  # what dataclasses write by themselves
    assert [one.__qualname__ for one in public_functions(found) if not one.__doc__] == []
    if isinstance(found, type):
        assert [field for field in fields_of(found) if field not in said] == []


def test_each_argument_of_a_public_function_is_told():
    for name in batch_llm.__all__:
        for function in public_functions(getattr(batch_llm, name)):
            if "Args:" not in function.__doc__:
                continue
            arguments = inspect.signature(function).parameters.keys() - {"self", "cls"}
            told = {one for one in arguments if f"{one}:" in function.__doc__}
            assert arguments == told, function.__qualname__
