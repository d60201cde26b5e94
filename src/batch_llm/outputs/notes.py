"""Notes of an output file: which rows its parts hold, so that it can be kept and only added to.

A part is some thousand lines of the file: how many bytes, their digest, and of which lines of the
input it holds the results. A part counts while its bytes are what was noted. What is behind
the last good one (a torn line, what an editor did, what was written since the last note) is cut
off, and written anew from the ledger.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from batch_llm.core.framed_files import frame_of, frames_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: A part ends behind so many rows, or so many bytes.
_ROWS, _BYTES = 4096, 1 << 20


class _Heading(msgspec.Struct, array_like=True):
    """What stands first: which notes these are, and what the output is made by."""

    token: str
    key: str


class Part(msgspec.Struct, array_like=True):
    """A part of the output.

    Attributes:
        size: Its bytes.
        digest: Of these.
        rows: The lines in the input of its rows, four bytes each.
    """

    size: int
    digest: bytes
    rows: bytes

    def lines(self) -> Sequence[int]:
        """Return the lines in the input of its rows."""
        return memoryview(self.rows).cast("I")


def intact_parts(notes: Path, output: Path, token: str, key: str) -> Iterator[tuple[int, Part]]:
    """Give the parts of an output that are what was noted, each with its place in it.

    Args:
        notes: The file of the notes.
        output: The output.
        token: What the ledger has: others are notes of another run, or of an earlier session.
        key: What the output is to be made by.
    """
    if not notes.is_file():
        return
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(notes.open("rb"))
            written = opened.enter_context(output.open("rb"))
        except OSError:
            return
        frames = frames_of(file)
        if next(frames, b"") != _encode(_Heading(token, key)):
            return
        place, size = 0, os.fstat(written.fileno()).st_size
        for frame in frames:
            try:
                part = msgspec.msgpack.decode(frame, type=Part)
            except msgspec.DecodeError:
                return
            if part.size < 0 or place + part.size > size or len(part.rows) % 4:
                return
            if _digest(written.read(part.size)) == part.digest:
                yield place, part
            place += part.size


def move_together(output: Path, parts: Sequence[tuple[int, Part]]) -> None:
    """Move parts of an output, each with its place, to its beginning; the rest stays behind them.

    When a kill comes meanwhile, old notes and new ones are true of what is before the first gap.

    Raises:
        OSError: It cannot be written.
    """
    end = 0
    if sum(part.size for _, part in parts) == sum(map(_end, parts[-1:])):
        return  # no gap
    with output.open("r+b") as file:
        for place, part in parts:
            if place > end:
                file.seek(place)
                found = file.read(part.size)
                file.seek(end)
                file.write(found)
            end += part.size


def _end(placed: tuple[int, Part]) -> int:
    return placed[0] + placed[1].size


class OutputNotes:
    """Notes what is written to an output, as far as possible: without them it is written anew.

    Args:
        path: The file of the notes; what is there is replaced.
        token: See ``intact_parts``.
        key: See ``intact_parts``.
        kept: The parts that the output has already.
        has_changed: Tells whether the input was written to: then its lines are not what they were,
            and nothing more is noted.
    """

    def __init__(
        self,
        path: Path,
        token: str,
        key: str,
        kept: Sequence[Part] = (),
        has_changed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._has_changed = has_changed
        self._rows = array("I")
        self._size = 0
        self._digest = blake2b(digest_size=16)
        self._file: IO[bytes] | None = None
        unfinished = Path(f"{path}.part")
        with contextlib.suppress(OSError):
            with unfinished.open("wb") as file:
                file.write(frame_of(_encode(_Heading(token, key))))
                file.writelines(frame_of(_encode(part)) for part in kept)
            unfinished.replace(path)
            self._file = path.open("ab", buffering=0)

    def wrote(self, written: bytes, line: int | None) -> None:
        """Note what was written, and the row's line in the input; None for what is no row."""
        if self._file is None:
            return
        if line is not None:
            self._rows.append(line)
        self._digest.update(written)
        self._size += len(written)
        if self._size >= _BYTES or len(self._rows) >= _ROWS:
            self._end_part()

    def _end_part(self) -> None:
        assert self._file is not None  # noqa: S101 - the callers have looked
        if self._has_changed():
            self._give_up()
            return
        frame = frame_of(_encode(Part(self._size, self._digest.digest(), self._rows.tobytes())))
        self._rows, self._size = array("I"), 0
        self._digest = blake2b(digest_size=16)
        try:
            if self._file.write(frame) < len(frame):
                self._give_up()  # what is behind a torn frame would not be found
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Note the last part."""
        if self._file is not None and self._size:
            self._end_part()
        self._give_up()


def _encode(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def _digest(found: bytes) -> bytes:
    return blake2b(found, digest_size=16).digest()
