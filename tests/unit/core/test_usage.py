from __future__ import annotations

from types import SimpleNamespace

import pytest

from batch_llm.core.usage import (
    MOST_TOKENS,
    attach_usage,
    read_usage,
    usage_by_kind,
    usage_of_error,
)

THREE_TWO = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


class CallableUsage:
    """As pydantic-ai 2: a property's value that can still be called, with a warning."""

    input_tokens, output_tokens, total_tokens = 3, 2, 5

    def __call__(self):
        raise AssertionError("called, although its fields could be read")


@pytest.mark.parametrize(
    "source",
    [
        {"input_tokens": 3, "output_tokens": 2},
        {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        SimpleNamespace(request_tokens=3, response_tokens=2, total_tokens=None),
        lambda: SimpleNamespace(request_tokens=3, response_tokens=2, total_tokens=5),
        CallableUsage(),
    ],
)
def test_usage_is_read_in_every_shape(source):
    assert read_usage(source) == THREE_TWO


@pytest.mark.parametrize("source", [None, {}, object(), {"input_tokens": "many"}, 7])
def test_what_is_no_usage_is_read_as_none(source):
    assert read_usage(source) is None


def error_with(**attributes):
    error = RuntimeError("no")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    "error",
    [
        error_with(usage=THREE_TWO),
        error_with(result=SimpleNamespace(usage=lambda: THREE_TWO)),
        error_with(_failed_token_usage=THREE_TWO),
    ],
)
def test_usage_is_found_on_the_exception_or_its_cause(error):
    outer = ValueError("wrapped")
    outer.__cause__ = error

    assert usage_of_error(error) == THREE_TWO
    assert usage_of_error(outer) == THREE_TWO


def test_a_cycle_of_causes_ends():
    error = RuntimeError("a")
    error.__cause__ = ValueError("b")
    error.__cause__.__cause__ = error

    assert usage_of_error(error) is None


def test_what_we_attached_ourselves_is_not_counted_again():
    error = RuntimeError("raised twice")
    attach_usage(error, dict(THREE_TWO))

    assert error.__dict__["_failed_token_usage"] == THREE_TWO
    assert usage_of_error(error) is None


def test_a_count_below_zero_counts_as_none_at_all():
    usage = usage_by_kind(-3, -2, read=-1, written=-4, written_1h=-5, thought=-6)

    assert set(usage.values()) == {0}


@pytest.mark.parametrize("count", [MOST_TOKENS, 2**63 - 1, 2**70, 10**300])
def test_counts_that_no_call_has_are_numbers_that_can_be_reckoned_with(count):
    found = usage_by_kind(count, count, read=count, written=count, written_1h=count, thought=count)
    three = {"input_tokens": count, "output_tokens": count, "total_tokens": count}

    for usage in (
        found,
        read_usage(three),
        read_usage(three | {"reasoning_tokens": count}),
        read_usage({"prompt_token_count": count, "candidates_token_count": count}),
        read_usage({"input_tokens": count, "cache_creation_input_tokens": count}),
    ):
        assert max(usage.values()) <= MOST_TOKENS
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert found["cache_read_tokens"] + found["cache_write_tokens"] <= found["input_tokens"]
    assert found["reasoning_tokens"] <= found["output_tokens"]
