"""Files of frames: each has its length and its digest before it, so that a torn one is seen."""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENGTH, _DIGEST = 4, 8
#: What stands before a frame.
HEAD = _LENGTH + _DIGEST


def frame_of(content: bytes) -> bytes:
    """Return a content as it is written."""
    return len(content).to_bytes(_LENGTH, "little") + _digest(content) + content


def frames_of(file: IO[bytes]) -> Iterator[bytes]:
    """Give the contents of a file's frames, up to one that is torn."""
    left = os.fstat(file.fileno()).st_size
    while len(head := file.read(HEAD)) == HEAD:
        size = int.from_bytes(head[:_LENGTH], "little")
        left -= HEAD + size
        if left < 0:  # nor is there room made for what is not there
            return
        content = file.read(size)
        if len(content) < size or _digest(content) != head[_LENGTH:]:
            return
        yield content


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST).digest()
