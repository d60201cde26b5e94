from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.core.text import counted, cut, described, safe, width

#: Characters that turn the direction of what stands behind them, or open a line.
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_LINES = {"Cc", "Zl", "Zp"}


def test_nothing_that_moves_or_turns_a_terminal_is_left():
    moving = [
        char
        for char in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(char) in _LINES or unicodedata.bidirectional(char) in _TURNING
    ]

    assert [char for char in moving if safe(f"a{char}b") != "a b"] == []


@given(st.text(max_size=80), st.integers(1, 60))
def test_no_text_is_longer_than_it_may_be(text, limit):
    assert len(safe(text, limit)) <= limit


def test_half_a_character_does_not_end_a_run():
    assert safe("a\ud800b") == "a?b"


@given(st.text("abc ÄЖ漢", max_size=20))
def test_harmless_text_is_left_alone(text):
    assert safe(text) == text


def test_what_is_cut_off_ends_with_a_mark():
    assert safe("abcdef", 6) == "abcdef"
    assert safe("abcdefg", 6) == "abcde…"


def test_lines_become_one():
    assert safe("a\r\nb\u2028c\x1b[2Jd\x9be") == "a  b c [2Jd e"


@pytest.mark.parametrize(
    ("text", "cells"),
    [("", 0), ("abc", 3), ("漢字", 4), ("e\u0301", 1), ("\uff71", 1), ("\uff21", 2)],
)
def test_wide_characters_take_two_cells_and_marks_none(text, cells):
    assert width(text) == cells


@pytest.mark.parametrize(
    ("text", "cells", "expected"),
    [
        ("abc", 5, "abc"),
        ("abcdef", 3, "abc"),
        ("漢字漢", 4, "漢字"),
        ("漢字", 3, "漢"),
        ("a", 0, ""),
    ],
)
def test_text_is_cut_by_the_cells_that_it_takes(text, cells, expected):
    assert cut(text, cells) == expected
    assert width(cut(text, cells)) <= cells


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (12_345, "12,345 rows")]
)
def test_one_is_told_as_one(number, expected):
    assert counted(number, "row") == expected


def test_an_error_is_described_by_its_type_and_message():
    assert described(ValueError("no")) == "ValueError: no"


def test_an_error_that_cannot_be_printed_is_described_all_the_same():
    class UnprintableError(Exception):
        def __str__(self):
            raise RuntimeError("never")

    assert described(UnprintableError()) == "UnprintableError: (its message cannot be printed)"
