"""What was not written by us is not in an index."""

from __future__ import annotations

from array import array

import msgspec
import pytest

from batch_llm.core.framed_files import frame_of
from batch_llm.runs.row_index import WIDTH, Facts, IndexedBlock, RowIndex

ROWS, LINES = 3, 5
SOUND = IndexedBlock(
    mark=1, digest=b"d" * 16, length=50, lines=LINES, records=ROWS, number=0, line=1,
    facts=Facts(rows=ROWS), starts=array("I", [0, 2, 4]).tobytes(), contents=b"c" * ROWS * WIDTH,
)  # fmt: skip


def read_again(path, *frames):
    """Return the blocks of an index that has these frames besides its first block."""
    index = RowIndex(path, "key")
    index.settle([])
    index.add(SOUND)
    index.close()
    with path.open("ab") as file:
        file.writelines(frame_of(frame) for frame in frames)
    again = RowIndex(path, "key")
    again.close()
    return again.blocks


def test_what_was_added_is_read_again(tmp_path):
    assert len(read_again(tmp_path / "rows", msgspec.msgpack.encode(SOUND))) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"length": 0},
        {"length": -1},
        {"length": 2**64 - 1},
        {"length": LINES - 1},
        {"lines": 0},
        {"lines": ROWS - 1},
        {"lines": 51},
        {"lines": 4},
        {"records": 0},
        {"records": 0, "facts": Facts(rows=0), "starts": b"", "contents": b""},
        {"records": ROWS + 1},
        {"number": -1},
        {"line": 0},
        {"facts": Facts(rows=ROWS + 1)},
        {"starts": b"abc"},
        {"starts": array("I", [0, 2, 5]).tobytes()},
        {"starts": array("I", [0, 2, 2]).tobytes()},
        {"contents": b""},
        {"contents": b"c" * (ROWS * WIDTH - 1)},
    ],
    ids=str,
)
def test_a_block_whose_fields_do_not_go_together_is_none(tmp_path, fields):
    forged = msgspec.msgpack.encode(msgspec.structs.replace(SOUND, **fields))

    assert len(read_again(tmp_path / "rows", forged)) == 1


@pytest.mark.parametrize("frame", [b"\xc1", b"\x80", b"", msgspec.msgpack.encode([1, 2])])
def test_what_is_no_block_is_none(tmp_path, frame):
    assert len(read_again(tmp_path / "rows", frame)) == 1
