"""Files in blocks: what was seen before is recognised wherever it stands, and nothing else is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from batch_llm.inputs import Row, Source, blocks
from batch_llm.inputs.blocks import KnownBlocks


@pytest.fixture(autouse=True)
def few_records(monkeypatch):
    monkeypatch.setattr(blocks, "RECORDS", 2)


def cut(path, known=(), **options):
    """Return a file's blocks, and what its rows are however they are read."""
    body = Source(str(path), **options).body()
    found = []
    for block in body.blocks(KnownBlocks(known)):
        read = list(body.read(block))
        assert block.rows is None or block.rows == read
        assert len(read) == block.records
        found.append((block, read))
    return found


def known_of(found):
    return [
        SimpleNamespace(
            mark=block.mark, digest=block.digest, length=block.length, lines=block.lines,
            records=block.records, number=0, rows=read,
        )
        for block, read in found
        if block.is_whole
    ]  # fmt: skip


def recognised(path, known):
    """Return what the rows of recognised blocks are, each next to what it was."""
    pairs = [(block.known, read) for block, read in cut(path, known) if block.known is not None]
    return [([row.data for row in one.rows], [row.data for row in read]) for one, read in pairs]


def write(path, *rows):
    path.write_text("".join(f'{{"id": "{row}", "text": "t"}}\n' for row in rows))


def test_blocks_are_recognised_behind_rows_that_are_new(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, *"abcdef")
    known = known_of(cut(path))

    write(path, *"xabcdxef")

    found = recognised(path, known)
    assert [[row["id"] for row in now] for _, now in found] == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert all(before == now for before, now in found)


def test_a_block_with_a_changed_row_is_another_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, *"abcd")
    known = known_of(cut(path))

    write(path, *"abcx")

    assert [[row["id"] for row in now] for _, now in recognised(path, known)] == [["a", "b"]]


@pytest.mark.parametrize(("more", "count"), [("", 2), ("\n", 1), ("\ne\n", 1), ("!", 1)])
def test_a_last_line_without_an_end_may_have_grown(tmp_path, more, count):
    path = tmp_path / "rows.txt"
    path.write_text("a\nb\nc\nd")
    known = known_of(cut(path))

    path.write_text("a\nb\nc\nd" + more)

    found = recognised(path, known)
    assert len(found) == count
    assert all(before == now for before, now in found)


def test_quoted_fields_hold_lines_and_no_block_ends_in_them(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('id,text\na,"1\n2\n3"\nb,4\nc,"5\n"\nd,6\n')
    first = cut(path)
    path.write_text('id,text\nx,"0\n"\na,"1\n2\n3"\nb,4\nc,"5\n"\nd,6\n')

    found = cut(path, known_of(first))

    assert [row.data["id"] for _, read in found for row in read] == list("xabcd")
    assert [block.known is not None for block, _ in found] == [False, True, True]
    assert [row.line for _, read in found for row in read] == [2, 4, 7, 8, 10]


@pytest.mark.parametrize("text", ["a\nb\rc\nd\r\ne\r", "a\r\nb\rc\rd\r\ne"])
def test_carriage_returns_end_records_of_tables(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    source = Source(str(path), columns=["name"])

    rows = [row for _, read in cut(path, columns=["name"]) for row in read]

    assert [row.data["name"] for row in rows] == list("abcde")
    assert [row.line for row in rows] == [row.line for row in source if isinstance(row, Row)]


def test_a_table_whose_lines_no_line_feed_ends_is_not_cut(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"name\ra\rb\r")

    assert Source(str(path)).body() is None
    assert [row.data["name"] for row in Source(str(path))] == ["a", "b"]


def test_the_mark_before_a_file_is_no_part_of_a_row(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_bytes(b"\xef\xbb\xbfa\nb\n")

    (found,) = cut(path)

    assert [row.data["prompt"] for row in found[1]] == ["a", "b"]
    assert not found[0].is_whole


def test_a_limit_ends_within_a_block(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, *"abcd")
    known = known_of(cut(path))

    found = cut(path, known, limit=3)

    assert [row.data["id"] for _, read in found for row in read] == list("abc")
    assert [block.known is not None for block, _ in found] == [True, False]


def test_blocks_of_numbered_rows_are_known_at_their_number_only(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("a\nb\nc\nd\n")
    known = known_of(cut(path))
    known[0].number, known[1].number = 1, 3

    path.write_text("c\nd\na\nb\nc\nd\n")

    assert recognised(path, known) == []
    path.write_text("x\ny\nc\nd\n")
    assert len(recognised(path, known)) == 1
