"""Tokens as a ledger keeps them: whatever was told, in and out again."""

from __future__ import annotations

import pytest

from batch_llm.stores.values import (
    from_json,
    plain_usage,
    usage_columns,
    usage_from,
)

THREE = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (THREE, THREE),
        ({**THREE, "reasoning_tokens": 3}, {**THREE, "reasoning_tokens": 3}),
        ({**THREE, "output_tokens": -1}, {"input_tokens": 7, "total_tokens": 12}),
        ({**THREE, "output_tokens": "5"}, {"input_tokens": 7, "total_tokens": 12}),
        ({**THREE, "total_tokens": 2**70}, {**THREE, "total_tokens": 2**40}),
        ({1: 2}, {"1": 2}),
        ({}, {}),
        (None, {}),
    ],
)
def test_only_counts_that_a_file_can_hold_are_kept(told, kept):
    assert plain_usage(told) == kept
    assert from_json(usage_columns(told)[3]) == kept


def test_what_is_kept_is_not_what_was_told():
    told = dict(THREE)

    kept = plain_usage(told)
    told["input_tokens"] = 0

    assert kept == THREE


@pytest.mark.parametrize(
    "usage",
    [
        THREE,
        {**THREE, "cache_read_tokens": 4},
        {**THREE, "total_tokens": 13},
        {"input_tokens": 7, "output_tokens": 5},
    ],
)
def test_tokens_of_an_attempt_come_back_as_they_were(usage):
    assert usage_from(*usage_columns(usage)[:3]) == usage
    assert from_json(usage_columns(usage)[3]) == usage


def test_further_kinds_are_written_only_where_there_are_any():
    assert usage_columns(THREE)[:3] == (7, 5, None)
    assert usage_columns({**THREE, "reasoning_tokens": 3})[2] is not None
