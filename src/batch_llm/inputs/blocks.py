"""An input in blocks of whole records, recognised by their bytes when they were seen before.

A block is known by the digest of its bytes, wherever it stands: rows that are added, taken away or
changed make other blocks of those around them, and leave the rest as it was. Here files of lines
are cut; values and Parquet files in ``value_blocks``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import IO, TYPE_CHECKING, Protocol
from zlib import crc32

from batch_llm.inputs.lines import BOM, Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from batch_llm.inputs.records import Problem, Row

#: A block ends behind so many records, or so many bytes.
RECORDS, BYTES = 1000, 1 << 20


class KnownBlock(Protocol):
    """What must be known of a block to recognise it."""

    @property
    def mark(self) -> int:
        """What ``mark_of`` says of its first line."""

    @property
    def digest(self) -> bytes:
        """That of its bytes."""

    @property
    def length(self) -> int:
        """Its bytes."""

    @property
    def lines(self) -> int:
        """Its lines."""

    @property
    def records(self) -> int:
        """Its records, bad ones among them."""

    @property
    def number(self) -> int:
        """The number of its first record where rows are called by their numbers; else 0."""


@dataclass(slots=True)
class Block:
    """Records that stand behind each other.

    Attributes:
        offset: Where it begins: in bytes, or in values; of ``length`` bytes, and ``lines`` lines.
        line: The number of its first line, from 1.
        number: That of its first record, of ``records``, from 1.
        mark: See ``mark_of``.
        digest: Of its bytes.
        is_whole: Whether it means the same wherever it stands.
        known: What it was recognised as; None: it is new.
        rows: Its records, where it is new; whoever has used them lets go of them.
    """

    offset: int
    line: int
    number: int
    mark: int
    length: int = 0
    lines: int = 0
    records: int = 0
    digest: bytes = b""
    is_whole: bool = True
    known: KnownBlock | None = None
    rows: list[Row | Problem] | None = None

    def recognise(self, found: KnownBlock) -> None:
        """Take over what is known."""
        self.length, self.lines, self.records = found.length, found.lines, found.records
        self.digest, self.known = found.digest, found


def mark_of(line: bytes) -> int:
    """Return a number that tells most lines apart."""
    return crc32(line)


class KnownBlocks:
    """Blocks that may be found in a file, each once.

    Args:
        blocks: They.
    """

    def __init__(self, blocks: Iterable[KnownBlock] = ()) -> None:
        self._by_mark: dict[int, list[KnownBlock]] = {}
        for block in blocks:
            self._by_mark.setdefault(block.mark, []).append(block)
        for found in self._by_mark.values():
            found.reverse()

    def __bool__(self) -> bool:
        return bool(self._by_mark)

    def find(
        self, head: bytes, number: int, is_there: Callable[[KnownBlock], bool]
    ) -> KnownBlock | None:
        """Return the block that begins at a place, if one does.

        Args:
            head: What its mark is made of there; empty at the end.
            number: That of the record which begins there.
            is_there: Tells whether a block with this mark stands there.
        """
        candidates = self._by_mark.get(mark_of(head)) if head else None
        while candidates:
            block = candidates[-1]
            if block.number > number:
                break  # further on, perhaps
            candidates.pop()  # each is tried once: to try is to read it
            if block.number in {0, number} and is_there(block):
                return block
        return None


class Body(Protocol):
    """The rows of an input, to be read block by block."""

    @property
    def dialect(self) -> str:
        """Whatever, beside the bytes, decides what the records are."""

    def blocks(self, known: KnownBlocks, /) -> Iterator[Block]:
        """Give all blocks in order.

        Args:
            known: Those that need no reading.
        """

    def read(self, block: Block, /) -> Iterator[Row | Problem]:
        """Give the records of a block, without ids."""

    def is_intact(self, block: Block, /) -> bool:
        """Tell whether a block's records are those that were cut."""


def _find(known: KnownBlocks, file: IO[bytes], lines: Lines, number: int) -> KnownBlock | None:
    """Return the block that begins where ``lines`` stands; ``file`` is the same, opened again."""
    if not known:
        return None
    return known.find(lines.peek(), number, lambda one: _is_at(file, lines.offset, one))


def _is_at(file: IO[bytes], offset: int, block: KnownBlock) -> bool:
    if offset + block.length > os.fstat(file.fileno()).st_size:
        return False
    file.seek(offset)
    found = file.read(block.length)
    if len(found) < block.length or digest_of(found) != block.digest:
        return False
    return found.endswith(b"\n") or not file.read(1)


def digest_of(found: bytes) -> bytes:
    """Return the digest of a block's bytes."""
    return blake2b(found, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class LineBody:
    """The rows of a file of lines. See ``Body``.

    Attributes:
        path: The file.
        begin: Where its first record begins, and the lines before it.
        records_from: Reads records, without ids, from a place on.
        limit: Records after which to stop.
        dialect: See ``Body``.
        has_changed: Tells whether the file was written to since it was opened first.
    """

    path: Path
    begin: tuple[int, int]
    records_from: Callable[[Lines], Iterator[Row | Problem]]
    limit: int | None
    dialect: str
    has_changed: Callable[[], bool]

    def blocks(self, known: KnownBlocks, /) -> Iterator[Block]:
        """See ``Body``."""
        limit = self.limit
        with self.path.open("rb") as file, self.path.open("rb") as again:
            lines = Lines(file, *self.begin)
            number, found = 1, _find(known, again, lines, 1)
            while lines.peek() and (limit is None or number <= limit):
                most = RECORDS if limit is None else min(RECORDS, limit - number + 1)
                block = Block(lines.offset, lines.number + 1, number, mark_of(lines.peek()))
                if found is not None and (limit is None or number + found.records - 1 <= limit):
                    block.recognise(found)
                    lines.go_to(block.offset + block.length, lines.number + block.lines)
                    found = _find(known, again, lines, number + block.records)
                else:
                    found = _read(block, lines, self.records_from, most, limit, known, again)
                number += block.records
                yield block

    def is_intact(self, block: Block, /) -> bool:  # noqa: ARG002 - of the whole file
        """See ``Body``."""
        return not self.has_changed()

    def read(self, block: Block, /) -> Iterator[Row | Problem]:
        """See ``Body``."""
        with self.path.open("rb") as file:
            lines = Lines(file, block.offset, block.line - 1)
            yield from islice(self.records_from(lines), block.records)


def _read(
    block: Block,
    lines: Lines,
    records_from: Callable[[Lines], Iterator[Row | Problem]],
    most: int,
    limit: int | None,
    known: KnownBlocks,
    again: IO[bytes],
) -> KnownBlock | None:
    """Read a block's records, up to where a known one begins; return that."""
    rows: list[Row | Problem] = []
    found = None
    for record in records_from(lines):
        rows.append(record)
        if not lines.is_at_end_of_line:
            if limit is not None and block.number + len(rows) > limit:
                break
            continue
        found = _find(known, again, lines, block.number + len(rows))
        if found is not None or len(rows) >= most or lines.offset - block.offset >= BYTES:
            break
    block.rows, block.records = rows, len(rows)
    block.length, block.lines = lines.offset - block.offset, lines.number + 1 - block.line
    again.seek(block.offset)
    whole = again.read(block.length)
    block.digest = digest_of(whole)
    # The mark before a file's first line is no part of a row there, and one anywhere else.
    block.is_whole = lines.is_at_end_of_line and not whole.startswith(BOM)
    return found
