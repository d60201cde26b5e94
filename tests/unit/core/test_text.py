from __future__ import annotations

import pytest

from batch_llm.core.text import counted, cut, width


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
