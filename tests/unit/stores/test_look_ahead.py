from __future__ import annotations

import json
import random

import pytest

from batch_llm.stores.look_ahead import LookAhead

COUNT = 3000


class Table:
    """Rows 1 to ``COUNT``, ``id-N``; counts the queries by name."""

    def __init__(self):
        self.queries = []

    def __call__(self, name, values):
        self.queries.append(name)
        if name == "ahead":
            last, count = values
            return [self.row(n) for n in range(last + 1, min(last + count, COUNT) + 1)]
        (texts,) = values
        asked = [int(text.partition("-")[2]) for text in json.loads(texts)]
        return [(*self.row(n), place) for place, n in enumerate(asked) if 0 < n <= COUNT]

    @staticmethod
    def row(number):
        return (f"id-{number}", *[None] * 11, number, 1)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_order_each_is_found(seed):
    dice = random.Random(seed)
    asked = list(range(-50, COUNT + 100))
    if seed:
        dice.shuffle(asked)
    ahead = LookAhead(Table())
    for first in range(0, len(asked), 100):
        chunk = asked[first : first + 100]
        found = ahead.rows_of([f"id-{n}" for n in chunk])
        assert [row and row[12] for row in found] == [n if 0 < n <= COUNT else None for n in chunk]


def test_in_the_order_of_the_numbers_no_row_is_looked_for_by_itself():
    table = Table()
    ahead = LookAhead(table)
    for first in range(1, COUNT, 100):
        ahead.rows_of([f"id-{n}" for n in range(first, first + 100)])
    assert table.queries.count("ahead") < 30
    assert table.queries.count("look_up") == 0


def test_it_follows_to_where_the_order_goes_on():
    table = Table()
    ahead = LookAhead(table)
    for first in range(1500, COUNT, 100):
        ahead.rows_of([f"id-{n}" for n in range(first, first + 100)])
    assert table.queries.count("look_up") <= 2
