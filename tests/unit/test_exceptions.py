from __future__ import annotations

import copy
import pickle

import pytest

from batch_llm import exceptions

EXAMPLES = [
    exceptions.ConfigError("max_workers", 0, ">= 1"),
    exceptions.DuplicateItemError("a"),
    exceptions.MissingExtraError("mistral", "mistral"),
    exceptions.UnknownModelError("opnai:x", "No such provider.", "openai:x"),
    exceptions.MissingKeyError("openai", "OPENAI_API_KEY"),
    exceptions.InputError("a.jsonl is empty"),
    exceptions.OutputExistsError("a.jsonl"),
    exceptions.OutputInUseError("a.jsonl"),
    exceptions.OutputLostError("a.jsonl", "disk full"),
    exceptions.OutputGoneError("a.jsonl"),
    exceptions.StoreError("a", "disk full"),
    exceptions.LedgerError("r.sqlite", "it is no ledger"),
    exceptions.LedgerInUseError("r.sqlite", 42),
    exceptions.CacheError("c/answers.sqlite", "it is damaged"),
    exceptions.SettingsChangedError("r.sqlite", {"model": ("a:b", "a:c")}),
    exceptions.RowsFailedError(9, {"timeout": 2}, "q1: TimeoutError: 60 s"),
    exceptions.SourceError(3, "ValueError: line 4"),
    exceptions.AttemptTimeoutError(2.5),
    exceptions.RateLimitedTooOftenError(101, "429"),
    exceptions.LimitPauseError("openai-chat:gpt-6-luna", 18_000.0),
    exceptions.LaneStoppedError("openai-chat:x", "auth", 5, "StatusError: HTTP 401", "Check X."),
    exceptions.UnknownPriceError("vllm:mine"),
    exceptions.UnsupportedRequestError("The Messages format", "a seed"),
    exceptions.CallCancelledError(),
    exceptions.AbandonedError(),
    exceptions.StatusError(500, "oops", "server_error"),
    exceptions.SettingRefusedError(400, "no temperature", "unsupported_value"),
    exceptions.TransportError("connection reset"),
    exceptions.MalformedResponseError("not JSON", "<html>"),
    exceptions.BadOutputError("{", "not JSON"),
    exceptions.TruncatedError("half", 10),
    exceptions.ContextLengthError("half"),
    exceptions.CacheError("cache.sqlite", "it is no database"),
    exceptions.RefusedError("no"),
    exceptions.ContentFilteredError("hate"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickle_and_copy(error):
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)


def test_every_error_has_an_example_here():
    abstract = {"BatchLLMError", "ItemError", "ProviderError"}
    defined = {
        name
        for name, kind in vars(exceptions).items()
        if isinstance(kind, type) and issubclass(kind, exceptions.BatchLLMError)
    }

    assert {type(error).__name__ for error in EXAMPLES} == defined - abstract


def test_every_error_is_drawn_in_the_tree():
    for error in EXAMPLES:
        assert f"── {type(error).__name__}" in exceptions.__doc__


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ConfigError", "max_workers must be >= 1, got 0."),
        ("DuplicateItemError", "item_id 'a' is already in this run."),
        ("MissingExtraError", "pip install 'batch-llm[mistral]'"),
        ("UnknownModelError", "Did you mean openai:x?"),
        ("MissingKeyError", "export OPENAI_API_KEY="),
        ("LedgerError", "the ledger r.sqlite cannot be used: it is no ledger"),
        ("LedgerInUseError", "process 42 is running r.sqlite. Wait for its end"),
        ("SettingsChangedError", "model   a:b  →  a:c"),
        ("SettingsChangedError", "overwrite=True starts this"),
        ("OutputExistsError", "Name another with --output"),
        ("OutputInUseError", "another process is writing a.jsonl. Wait for its end"),
        ("AttemptTimeoutError", "No answer within 2.5 s."),
        ("RateLimitedTooOftenError", "Rate limited 101 times"),
        ("UnknownPriceError", "No price is known for vllm:mine"),
        ("StatusError", "HTTP 500 (server_error): oops"),
        ("TruncatedError", "cut off at the limit of 10 tokens after 4 characters"),
    ],
)
def test_messages_say_what_happened_and_what_to_do(kind, message):
    (error,) = [error for error in EXAMPLES if type(error).__name__ == kind]

    assert message in str(error)
