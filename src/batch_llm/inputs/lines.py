"""The lines of a file, each with its place, so that reading can begin and go on anywhere."""

from __future__ import annotations

import io
from collections import deque
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOM = b"\xef\xbb\xbf"
_LOOKED_AT = 1 << 16


class Lines:
    """Gives a file's lines with their ends; without the mark that may stand before the first.

    Args:
        file: The file.
        offset: Where to begin.
        number: Lines before that place.
    """

    def __init__(self, file: IO[bytes], offset: int = 0, number: int = 0) -> None:
        self._file = file
        self._ahead: bytes | None = None
        #: Parts of a line that were not given yet: see ``texts``.
        self._rest: deque[str] = deque()
        self.go_to(offset, number)

    def go_to(self, offset: int, number: int) -> None:
        """Go on at another place."""
        self._file.seek(offset)
        self._ahead = None
        self._rest.clear()
        #: Where the next line begins, and how many there are before it.
        self.offset, self.number = offset, number

    def peek(self) -> bytes:
        """Return the next line as it stands in the file, and stay; empty at the end."""
        if self._ahead is None:
            self._ahead = self._file.readline()
        return self._ahead

    @property
    def is_at_end_of_line(self) -> bool:
        """Whether all that was read of the file was given."""
        return not self._rest

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._ahead if self._ahead is not None else self._file.readline()
        self._ahead = None
        if not line:
            raise StopIteration
        is_first = self.offset == 0
        self.offset += len(line)
        self.number += 1
        return line.removeprefix(BOM) if is_first else line

    def texts(self) -> Iterator[str]:
        """Give the lines as texts, ended by a carriage return alone too: so tables are read.

        What is no UTF-8 comes as lone surrogates.
        """
        rest = self._rest
        for line in self:
            text = line.decode("utf-8", "surrogateescape")
            returns = text.count("\r")
            if not returns or (returns == 1 and text.endswith("\r\n")):
                yield text
                continue
            rest.extend(io.StringIO(text, newline=""))
            self.number += len(rest) - 1
            while rest:
                yield rest.popleft()


def has_lines(path: Path) -> bool:
    """Tell whether a file has lines of usual length: one that has not is never read by lines."""
    with path.open("rb") as file:
        beginning = file.read(_LOOKED_AT)
    return b"\n" in beginning or len(beginning) < _LOOKED_AT
