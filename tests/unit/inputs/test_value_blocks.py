"""Values in blocks: the same plain values are recognised wherever they stand, no others are."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_llm.inputs import Source, ValueSource, blocks, parquet
from batch_llm.inputs.blocks import KnownBlocks
from batch_llm.inputs.value_blocks import bytes_of


class Kind(str):
    """A text that is more than its letters."""

    __slots__ = ()


class Made:
    """Says what it likes when it is pickled."""

    def __reduce__(self):
        return str, ("a",)


@pytest.fixture(autouse=True)
def few_records(monkeypatch):
    monkeypatch.setattr(blocks, "RECORDS", 2)
    monkeypatch.setattr(parquet, "_ROWS_AT_ONCE", 3)


def cut(source, known=()):
    """Return an input's blocks, and what its rows are however they are read."""
    body = source.body()
    found = []
    for block in body.blocks(KnownBlocks(known)):
        read = list(body.read(block))
        assert block.rows is None or block.rows == read
        assert len(read) == block.records
        found.append((block, [row.data for row in read]))
    return found


def known_of(found, *, by_number=False):
    return [
        SimpleNamespace(
            mark=block.mark, digest=block.digest, length=block.length, lines=block.lines,
            records=block.records, number=block.number if by_number else 0,
        )
        for block, _ in found
        if block.is_whole
    ]  # fmt: skip


def recognised(source, known):
    return [rows for block, rows in cut(source, known) if block.known is not None]


def rows(*names):
    return [{"id": name, "text": "t"} for name in names]


def test_values_are_recognised_behind_new_ones():
    known = known_of(cut(ValueSource(rows(*"abcdef"))))

    found = recognised(ValueSource(rows(*"xabcdxef")), known)

    assert found == [rows(*"ab"), rows(*"cd"), rows(*"ef")]


def test_numbered_values_are_recognised_at_their_places_alone():
    known = known_of(cut(ValueSource(list("abcdef"))), by_number=True)

    found = recognised(ValueSource(list("abcdcd")), known)

    assert found == [[{"prompt": "a"}, {"prompt": "b"}], [{"prompt": "c"}, {"prompt": "d"}]]


def test_a_limit_ends_the_last_block():
    known = known_of(cut(ValueSource(rows(*"abcd"))))

    found = cut(ValueSource(rows(*"abcd"), limit=3), known)

    assert [(block.known is not None, len(read)) for block, read in found] == [
        (True, 2),
        (False, 1),
    ]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_rows_of_a_parquet_file_are_recognised_whatever_its_groups_are(tmp_path, size):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows(*"abcdefgh")), path, row_group_size=3)
    known = known_of(cut(Source(str(path))))
    pq.write_table(pa.Table.from_pylist(rows(*"abxcdefgh")), path, row_group_size=size)

    found = recognised(Source(str(path)), known)

    assert found == [rows(*"ab"), rows(*"cd"), rows(*"ef"), rows(*"gh")]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_rows_of_a_parquet_file_are_had_from_any_place(tmp_path, size):
    path = tmp_path / "rows.parquet"
    names = [str(number) for number in range(20)]
    pq.write_table(pa.Table.from_pylist(rows(*names)), path, row_group_size=size)
    table = parquet.ParquetTable(path, "rows")

    for place, count in [(0, 2), (1, 5), (12, 3), (12, 4), (3, 1), (19, 5), (25, 2), (0, 30)]:
        assert table.some(place, count) == rows(*names[place : place + count])


def test_a_parquet_file_without_rows_has_no_blocks(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": pa.array([], pa.string())}), path)

    assert cut(Source(str(path))) == []


VALUES = [
    "1", 1, 1.0, True, None, b"1", [1], (1,), {"a": 1}, {"a": 1.0}, {"a": "1"}, [], {}, "", 0,
    -0.0, 0.0, 2**70, {"a": [1]}, {"a": (1,)}, [[1]], ["1"], {1}, "é", "e\u0301", "\ud800",
    {"a": 1, "b": 2}, {"b": 2, "a": 1}, [1, 2], [[1], 2], [1, [2]], False,
]  # fmt: skip


def test_no_two_values_have_the_same_bytes():
    assert len({bytes_of([value]) for value in VALUES} - {None}) == len(VALUES)


def test_the_same_values_have_the_same_bytes_whichever_objects_they_are():
    text = "a text"
    one, two = {"a": text, "b": text}, {"a": "a text", "b": str(b"a text", "ascii")}

    assert bytes_of([one, one]) == bytes_of([one, two])


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1), np.int64(1), np.array([1]), dt.date(2020, 1, 1), Kind("a"), Made(), print,
        int, ..., range(3), bytearray(b"1"), 1j,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_not_plain_is_never_known(value):
    assert bytes_of([{"id": "a", "text": value}]) is None
    found = cut(ValueSource([*rows("a", "b"), {"id": "c", "text": value}]))
    assert [block.is_whole for block, _ in found] == [True, False]


def test_a_value_that_holds_itself_is_never_known():
    value: list[object] = []
    value.append(value)

    assert bytes_of(value) is None


def test_values_that_were_changed_since_they_were_cut_are_not_intact():
    values = rows(*"abcd")
    body = ValueSource(values).body()
    first, second = body.blocks(KnownBlocks())

    values[0]["text"] = "other"

    assert not body.is_intact(first)
    assert body.is_intact(second)
