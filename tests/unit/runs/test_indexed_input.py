"""An input in blocks: ids across all of them, and nothing kept of what may be other rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from batch_llm.inputs import Identifier, Problem, Row
from batch_llm.inputs.blocks import Block
from batch_llm.runs.indexed_input import IndexedInput
from batch_llm.runs.row_index import WIDTH, Facts

DIGEST = b"d" * WIDTH


class FakeBody:
    """Two blocks of two rows each, on lines 2 to 5; the last row has the first one's id."""

    ids = ("a", "b", "c", "a")

    def __init__(self):
        self.has_changed = False
        self.read_rows = 0

    def blocks(self, _known):
        for first in (0, 2):
            block = Block(first, first + 2, first + 1, 0, length=2, lines=2, records=2)
            block.rows = list(self._rows(block))
            yield block

    def _rows(self, block):
        for place in (block.offset, block.offset + 1):
            yield Row("", place + 2, {"id": self.ids[place]})

    def read(self, block):
        for row in self._rows(block):
            self.read_rows += 1
            yield row

    def is_intact(self, _block):
        return not self.has_changed


@pytest.fixture
def body():
    return FakeBody()


@pytest.fixture
def kept():
    return []


@pytest.fixture
def indexed(body, kept):
    index = SimpleNamespace(blocks=[], add=kept.append)
    return IndexedInput(body, index, lambda: Identifier("id"), has_ids=True)


def test_an_id_of_another_block_is_not_given_twice(indexed):
    records = [record for block in indexed.cut() for record in indexed.records(block)]

    assert [record.item_id for record in records[:3]] == ["a", "b", "c"]
    assert isinstance(records[3], Problem)
    assert records[3].code == "duplicate_id"


def test_the_records_of_a_block_leave_memory_when_the_next_one_comes(indexed):
    blocks = indexed.cut()
    first = next(blocks)
    assert first.rows is not None
    next(blocks)

    assert first.rows is None


def test_lines_before_the_first_record_count(indexed):
    assert indexed.lines == 0
    list(indexed.cut())

    assert indexed.lines == 5


def test_no_more_of_a_block_is_read_than_up_to_the_last_place_wanted(indexed, body):
    block = next(indexed.cut())

    assert [row.item_id for row in indexed.some(block, {0})] == ["a"]
    assert body.read_rows == 1


def test_rows_known_to_have_ids_of_their_own_are_not_compared_with_others(indexed):
    blocks = list(indexed.cut())
    list(indexed.records(blocks[0]))

    [known] = indexed.some(blocks[1], {1})
    [new] = indexed.some(blocks[1], {1}, is_known=False)

    assert isinstance(known, Row)
    assert isinstance(new, Problem)


def test_what_a_block_asks_is_kept_with_where_its_rows_begin(indexed, kept):
    block = list(indexed.cut())[1]
    indexed.note(block, Facts(rows=2))
    indexed.add(block, [4, 5], [DIGEST, DIGEST])

    [one] = kept
    assert one.contents == 2 * DIGEST
    assert one.starts == b""  # a row on each line
    assert one.number == 0  # ids are in a column: wherever the block stands


@pytest.mark.parametrize("fault", ["unnoted", "a row is missing", "not whole", "changed"])
def test_nothing_is_kept_of_a_block_that_may_have_other_rows(indexed, body, kept, fault):
    block = next(indexed.cut())
    if fault != "unnoted":
        indexed.note(block, Facts(rows=2))
    block.is_whole = fault != "not whole"
    body.has_changed = fault == "changed"
    indexed.add(block, [2, 3], [DIGEST] * (1 if fault == "a row is missing" else 2))

    assert kept == []
