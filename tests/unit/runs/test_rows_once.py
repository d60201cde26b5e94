"""Rows that can be read only once: looked at when they come, and no sooner."""

from __future__ import annotations

import pytest

from batch_llm.exceptions import InputError
from batch_llm.runs.brief import Brief
from batch_llm.runs.rows_once import RowsOnce

GOOD, BAD = {"text": "a"}, 17


def rows_of(values, **settings):
    brief = Brief(input="rows", model="sim:fast", prompt="{{ text }}", **settings)
    return RowsOnce(brief, values)


async def read(rows):
    """Return the ids of all items, and the lines of the rows that cannot be used."""
    problems, kept = [], []
    await rows.open()
    items = rows.items(None, (), lambda problem: problems.append(problem.line), kept.append)
    ids = [item.item_id async for item in items]
    return ids, problems


async def later(values):
    for value in values:
        yield value


@pytest.mark.parametrize("as_they_come", [iter, later])
async def test_each_row_is_an_item_in_order_however_they_come(as_they_come):
    values = [{"id": name, "text": name} for name in "abc"]

    assert await read(rows_of(as_they_come(values))) == (["a", "b", "c"], [])


async def test_no_more_is_read_than_is_asked_for():
    taken = []
    values = ({"text": taken.append(number) or "a"} for number in range(10))
    rows = rows_of(values)
    await rows.open()
    assert len(taken) == 1
    items = rows.items(None, (), print, print)
    await anext(items)
    await anext(items)

    assert len(taken) == 2


async def test_no_more_rows_than_the_limit_are_read():
    assert len((await read(rows_of([GOOD] * 9, limit=4)))[0]) == 4


async def test_without_rows_there_is_nothing_to_send():
    with pytest.raises(InputError, match="there are no rows"):
        await rows_of([]).open()


async def test_a_first_row_that_cannot_be_used_ends_the_run_before_it_begins():
    with pytest.raises(InputError, match="the first row cannot be used"):
        await rows_of([BAD, GOOD], bad_rows="fail").open()


@pytest.mark.parametrize(
    ("bad_rows", "items", "problems", "is_ended"),
    [("stop", 1, [], True), ("fail", 2, [2], False), ("skip", 2, [], False)],
)
async def test_a_later_row_that_cannot_be_used_does_what_was_asked_for(
    bad_rows, items, problems, is_ended
):
    rows = rows_of([GOOD, BAD, {"text": "b"}], bad_rows=bad_rows)

    ids, found = await read(rows)

    assert (len(ids), found) == (items, problems)
    assert (rows.error is not None) == is_ended
    if is_ended:
        assert "row 2 cannot be used" in str(rows.error)
