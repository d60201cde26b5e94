"""What the rows of an input ask, by blocks of the file: so that they need not be read again.

A file beside the ledger holds, for each block of the input, the digest of its bytes and of what
each of its rows asks. Both follow from the bytes and from the run's settings alone, so nothing
in it can be out of date: whether a row is finished, the ledger alone knows.

It is a file of frames, each with its length and its digest. What is torn or was written by other
settings counts as not there, and is made again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.core.framed_files import HEAD, frame_of, frames_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batch_llm.inputs.blocks import Block

#: Bytes of the digest of what a row asks, as ``content_digest`` makes it.
WIDTH = 16
_LAYOUT_BYTES = 8
#: Of a block: more are never read at once.
_MOST_BYTES = 1 << 40


class Facts(msgspec.Struct, array_like=True):
    """What a plan must know of rows that it does not read.

    Attributes:
        rows: Their number.
        names: Their columns, in the order in which they appear.
        characters: Of all their requests.
        bounded: Rows that say how long their answers are at the most.
        longest: The longest of these.
    """

    rows: int = 0
    names: list[str] = []
    characters: int = 0
    bounded: int = 0
    longest: int = 0


class IndexedBlock(msgspec.Struct, array_like=True, kw_only=True):
    """A block, and what is kept of it. See ``inputs.blocks.KnownBlock``.

    Attributes:
        line: The number of its first line in the input of the last session.
        starts: The lines of its records, counted from its first, of four bytes each; empty where
            each line is a record.
        contents: What its records ask, a digest each.
    """

    mark: int
    digest: bytes
    length: int
    lines: int
    records: int
    number: int
    line: int
    facts: Facts
    starts: bytes
    contents: bytes

    @property
    def is_sound(self) -> bool:
        """Whether its fields go together; those of a file that we have written do."""
        rows = self.records
        if not (0 < rows <= self.lines <= self.length <= _MOST_BYTES and self.line > 0):
            return False
        if len(self.contents) != rows * WIDTH or self.facts.rows != rows or self.number < 0:
            return False
        if not self.starts:
            return True
        if len(self.starts) != rows * 4:
            return False
        starts = self.lines_of_records()
        return starts[-1] < self.lines and all(map(int.__lt__, starts, starts[1:]))

    def lines_of_records(self) -> list[int]:
        """Return the line of each record, counted from the first line."""
        if not self.starts:
            return list(range(self.records))
        return memoryview(self.starts).cast("I").tolist()


class Entry(msgspec.Struct):
    """A block of which the digests stay in the file until they are wanted."""

    mark: int
    digest: bytes
    length: int
    lines: int
    records: int
    number: int
    line: int
    facts: Facts
    place: int
    size: int


class RowIndex:
    """The index of an input.

    Args:
        path: Its file, made when the first block is added.
        key: Whatever, beside the bytes, decides what a row asks. One with another key is empty.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._header = blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()
        #: Names where the blocks stand: another one as soon as one stands elsewhere. Lines that
        #: somebody has noted under one layout say nothing under another.
        self.layout = self.layout_before = b""
        self._file: Any = None
        self._adding: Any = None
        self._end = 0
        with contextlib.suppress(OSError):
            self._file = path.open("rb") if path.is_file() else None
        self.blocks: list[Entry] = list(self._entries())

    def close(self) -> None:
        """Let go of its file."""
        for file in (self._file, self._adding):
            if file is not None:
                file.close()

    def _entries(self) -> Iterator[Entry]:
        if self._file is None:
            return
        frames = frames_of(self._file)
        head = next(frames, b"")
        if head[:-_LAYOUT_BYTES] != self._header:
            return
        self.layout = self.layout_before = head[-_LAYOUT_BYTES:]
        self._end = HEAD + len(head)
        for frame in frames:
            place = self._end + HEAD
            self._end = place + len(frame)
            try:
                one = msgspec.msgpack.decode(frame, type=IndexedBlock)
            except msgspec.DecodeError:
                one = None
            if one is None or not one.is_sound:
                self._end = -1
                return
            yield Entry(
                one.mark, one.digest, one.length, one.lines, one.records, one.number, one.line,
                one.facts, place, len(frame),
            )  # fmt: skip

    def read(self, entry: Entry) -> IndexedBlock:
        """Return a block with its digests."""
        self._file.seek(entry.place)
        return msgspec.msgpack.decode(self._file.read(entry.size), type=IndexedBlock)

    def settle(self, blocks: Iterable[Block]) -> bool:
        """Keep the blocks of this session's input alone, each at its place, and be ready for more.

        To be called before anything of the session is written, while nobody else has the ledger.

        Returns:
            Whether the index is still what it was when it was opened; if not, it is not to be used.
        """
        kept = [(block, block.known) for block in blocks if isinstance(block.known, Entry)]
        # Nobody's, until the file says so: it may be that it cannot be written.
        self.layout = secrets.token_bytes(_LAYOUT_BYTES)
        try:
            if not self._is_as_opened():
                return not kept
            is_same = self._file is not None and self._end == self._path.stat().st_size
            is_same = is_same and len(kept) == len(self.blocks)
            if is_same and all(block.line == entry.line for block, entry in kept):
                self.layout = self.layout_before
            else:
                self._write_anew(kept)
            self._adding = self._path.open("ab", buffering=0)
        except OSError:  # without an index everything is read again, that is all
            self._adding = None
        return True

    def _is_as_opened(self) -> bool:
        """Tell whether the file that was opened is still the one at the path."""
        if self._file is None:
            return not self._path.exists()
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(self._file.fileno()), now)

    def _write_anew(self, kept: list[tuple[Block, Entry]]) -> None:
        unfinished = Path(f"{self._path}.part")
        with unfinished.open("wb") as file:
            file.write(frame_of(self._header + self.layout))
            for block, entry in kept:
                whole = self.read(entry)
                whole.line = block.line
                file.write(frame_of(msgspec.msgpack.encode(whole)))
        unfinished.replace(self._path)

    def add(self, block: IndexedBlock) -> None:
        """Keep a block, as far as possible."""
        if self._adding is None:
            return
        try:
            frame = frame_of(msgspec.msgpack.encode(block))
            if self._adding.write(frame) < len(frame):
                raise OSError  # noqa: TRY301 - as when nothing could be written
        except OSError:  # the disk is full, say: what is behind a torn frame would not be found
            self._adding.close()
            self._adding = None
