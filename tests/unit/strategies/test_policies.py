from __future__ import annotations

import re
from pathlib import Path

import pytest

from batch_llm.exceptions import ConfigError
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.policies import (
    FALLBACK_ON,
    MAY_FALL_BACK_ON,
    POLICIES,
    Falls,
    Next,
    Situation,
    fallback_codes,
    higher_cap,
    next_step,
    remedy,
)

TABLE = Path(__file__).parents[3] / "docs" / "errors.md"


def now(code, **changes):
    facts = {"is_retryable": True, "attempts_left": 3, "failures_here": 1} | changes
    return next_step(Situation(code, **facts))


def test_the_table_is_complete():
    assert set(POLICIES) == set(ErrorCode)


def test_the_documented_table_says_what_the_policies_say():
    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", TABLE.read_text(), re.MULTILINE
    )
    told = {code: rest for code, *rest in rows}

    assert set(told) == {code.value for code in ErrorCode}
    for code, policy in POLICIES.items():
        says, _, fallback, stops = told[code.value]
        assert says == policy.says
        assert fallback == policy.falls_back.value
        assert stops == ("yes" if policy.stops_lane else "no")


@pytest.mark.parametrize("code", ErrorCode)
def test_without_attempts_left_and_without_a_fallback_a_failure_is_final(code):
    assert now(code, attempts_left=0) is Next.NOTHING
    assert now(code, is_retryable=False) is Next.NOTHING


@pytest.mark.parametrize("code", ErrorCode)
def test_a_fallback_is_asked_whether_or_not_attempts_are_left(code):
    asked = now(code, is_retryable=False, attempts_left=0, has_fallback=True, falls_back=True)

    assert asked is Next.FALLBACK
    assert now(code, is_retryable=False, has_fallback=True, falls_back=False) is Next.NOTHING


def test_a_bad_answer_is_corrected_once_before_a_fallback_is_asked():
    steps = [
        now(ErrorCode.BAD_OUTPUT, failures_here=n, has_fallback=True, falls_back=True)
        for n in (1, 2)
    ]

    assert steps == [Next.SAME, Next.FALLBACK]
    assert now(ErrorCode.BAD_OUTPUT, failures_here=3) is Next.SAME


def test_an_answer_that_was_cut_off_is_asked_for_again_only_with_a_higher_cap():
    assert now(ErrorCode.TRUNCATED, cap=5, higher_cap=10) is Next.HIGHER_CAP
    assert now(ErrorCode.TRUNCATED, cap=5, higher_cap=10, attempts_left=0) is Next.NOTHING
    assert now(ErrorCode.TRUNCATED, cap=5) is Next.NOTHING
    assert now(ErrorCode.TRUNCATED) is Next.SAME  # nobody knows why
    assert now(ErrorCode.TRUNCATED, cap=5, has_fallback=True, falls_back=True) is Next.FALLBACK


@pytest.mark.parametrize(
    ("cap", "most", "raised"),
    [(100, None, 200), (100, 0, None), (100, 100, None), (100, 4000, 4000), (None, 4000, None)],
)
def test_a_cap_is_doubled_or_raised_to_what_is_allowed(cap, most, raised):
    assert higher_cap(cap, most) == raised


def test_failures_that_may_lead_to_a_fallback_are_named_by_their_codes():
    assert fallback_codes(None) == set(map(ErrorCode, FALLBACK_ON))
    assert fallback_codes(["quota"]) == {ErrorCode.QUOTA}
    assert set(FALLBACK_ON) < set(MAY_FALL_BACK_ON)
    with pytest.raises(ConfigError, match="fallback_on must be some of overloaded, "):
        fallback_codes(["rate_limited"])


def test_no_fallback_heals_what_stands_still_for_everyone():
    never = {code for code, policy in POLICIES.items() if policy.falls_back is Falls.NEVER}

    assert never == {ErrorCode.RATE_LIMITED, ErrorCode.CANCELLED}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (ErrorCode.AUTH, "Check K1 or K2: it is not accepted at http://h/v1"),
        (ErrorCode.QUOTA, "The account of K1 or K2 has used up its credit"),
        (ErrorCode.NOT_FOUND, "There is no p:m at http://h/v1 for K1 or K2"),
        (ErrorCode.CONNECTION, "Nothing answers as it should at http://h/v1"),
    ],
)
def test_a_remedy_names_key_model_and_address(code, words):
    assert remedy(code, keys=("K1", "K2"), model="p:m", where="http://h/v1").startswith(words)
