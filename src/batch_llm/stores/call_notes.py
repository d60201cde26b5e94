"""Which calls are under way, noted so that a killed process cannot take it along.

The notes are in a file that is mapped into memory: writing one costs less than a microsecond and no
system call, and what was written stays whatever becomes of the process. (A loss of power may take
it along; then calls in flight are not known of.) A note is written before its call is sent, and
let go of when the call is booked in the ledger. One that is held is of a call that waits for its
connection: that has cost nothing yet, and whoever finds the note forgets it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batch_llm.core.usage import MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from batch_llm.strategies.caps import Size

_MAGIC = b"batch-llm calls 2"
_HEAD_BYTES, _SLOT_BYTES, _FIRST_SLOTS = 4096, 256, 256
#: Magic, session, and the length of the names after it.
_HEAD = struct.Struct("<24sqi")
#: The number of the item (0: free), attempt, name, start; what is known of its size; id and digest
#: of the item; the number again: a note that is not whole has two; whether the call is still here,
#: not sent yet. Then tokens, of none so far.
_NOTE = struct.Struct("<qiid qqqqq? B64s B16s q ? 61x")
_HELD_AT = 155
#: Tokens, and that they are known.
_USAGE = struct.Struct("<7Q ?")
_USAGE_AT = 160
_FREE = bytes(8)
_KINDS = (
    "input_tokens", "output_tokens", "total_tokens", "cache_read_tokens", "cache_write_tokens",
    "cache_write_1h_tokens", "reasoning_tokens",
)  # fmt: skip
_LARGEST = 2**63 - 1
_LONGEST_ID = 64
_MOST_ITEMS = 2**48

#: Model, server and tier under which a call's tokens are counted.
BilledAs = tuple[str, str, str]


class CallNote(NamedTuple):
    """A call that was under way, or had ended and was not booked yet.

    Attributes:
        number: The item's.
        key: The item's id as UTF-8; None where it is too long.
        content: The digest of what was asked.
        attempt: The attempt's number.
        billed_as: Under which its tokens are counted; None: not known.
        started_at: Seconds since 1970.
        size: What was known of it before it was sent, as ``strategies.caps.Size`` has it.
        usage: What it took, where that had been told.
    """

    number: int
    key: bytes | None
    content: bytes
    attempt: int
    billed_as: BilledAs | None
    started_at: float
    size: tuple[int, int, int | None, bool, int | None, int | None]
    usage: dict[str, int] | None


class NotedCall(msgspec.Struct, gc=False):
    """The note of a call that is under way; what is told of one that has ended is not noted."""

    notes: CallNotes
    #: The note's place.
    at: int
    #: The item's.
    number: int
    #: What the call has told to have taken.
    usage: Mapping[str, int] | None = None
    is_over: bool = False

    def goes(self) -> None:
        """Note that it leaves the process now: it may cost from here on."""
        if not self.is_over:
            self.notes.map[self.at + _HELD_AT] = 0

    def took(self, usage: Mapping[str, int], /) -> None:
        """Note what it took, until it is settled."""
        if not self.is_over:
            self.usage = usage
            self.notes.tell(self.at, usage)


class CallNotes:
    """Notes of one session's calls under way, in a file.

    Args:
        path: The file; made when it is not there.

    Raises:
        OSError: It cannot be made or mapped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("r+b" if path.exists() else "w+b") as file:
            size = file.seek(0, 2)
            torn = (size - _HEAD_BYTES) % _SLOT_BYTES if size >= _HEAD_BYTES else size
            if torn:  # a process was killed while it made room
                size = file.truncate(size - torn)
            if not size:
                _extend(file, _HEAD_BYTES + _FIRST_SLOTS * _SLOT_BYTES)
            self.map: mmap.mmap | bytearray = mmap.mmap(file.fileno(), 0)
        self._names: dict[BilledAs, int] = {}
        #: Calls mostly have the name of the one before.
        self._named_last: BilledAs | None = None
        self._name_of_last = -1
        self._free: list[int] = []

    def close(self) -> None:
        """Let go of the file. What is told later is written nowhere."""
        mapped, self.map = self.map, bytearray(len(self.map))
        if isinstance(mapped, mmap.mmap):
            with contextlib.suppress(ValueError, BufferError):
                mapped.close()

    @property
    def session(self) -> int | None:
        """The session that wrote the notes; None when there is none."""
        return _session_of(self.map)

    def left(self) -> Iterator[CallNote]:
        """Give the notes that were not let go of."""
        return _notes_in(self.map)

    def begin(self, session: int) -> None:
        """Forget all, and note for a session from now on."""
        self._names.clear()
        self._named_last = None
        self._write_head(session, b"")
        places = range(_HEAD_BYTES, len(self.map), _SLOT_BYTES)
        for at in places:
            self.map[at : at + 8] = _FREE
        self._free = list(reversed(places))

    def _write_head(self, session: int, names: bytes) -> None:
        self.map[_HEAD.size : _HEAD.size + len(names)] = names
        _HEAD.pack_into(self.map, 0, _MAGIC, session, len(names))

    def name(self, billed_as: BilledAs) -> int:
        """Return the number of a name, which is noted the first time; -1 when there is no room."""
        number = self._names.get(billed_as)
        if number is None:
            names = msgspec.json.encode([*self._names, billed_as])
            if _HEAD.size + len(names) > _HEAD_BYTES:
                return -1
            number = self._names[billed_as] = len(self._names)
            self._write_head(self.session or 0, names)
        return number

    def note(
        self,
        number: int,
        key: bytes,
        content: bytes,
        attempt: int,
        billed_as: BilledAs,
        started_at: float,
        size: Size,
        *,
        is_held: bool = False,
    ) -> NotedCall | None:
        """Note a call that is about to be sent; one that is held has not left the process yet.

        Returns:
            The note; None where the file has no room and cannot grow: a full disk, say.
        """
        if not (self._free or self._grow()):
            return None
        at = self._free.pop()
        if billed_as is not self._named_last:
            self._named_last, self._name_of_last = billed_as, self.name(billed_as)
        sent, further, most, is_seen, told_in, told_out = size
        # Its fields are written in this order, the first and the last of them the item's number.
        _NOTE.pack_into(
            self.map, at, number, attempt, self._name_of_last, started_at,
            sent, further, -1 if most is None else most,
            -1 if told_in is None else told_in, -1 if told_out is None else told_out, is_seen,
            len(key) if len(key) <= _LONGEST_ID else _LONGEST_ID + 1, key,
            len(content), content, number, is_held,
        )  # fmt: skip
        return NotedCall(self, at, number)

    def tell(self, at: int, usage: Mapping[str, int]) -> None:
        """Note what a call took."""
        get = usage.get
        try:  # that they are known is written after them
            if len(usage) == 3:
                sent, got, total = get("input_tokens"), get("output_tokens"), get("total_tokens")
                if sent is not None and got is not None and total is not None:
                    _USAGE.pack_into(self.map, at + _USAGE_AT, sent, got, total, 0, 0, 0, 0, True)
                    return
            _USAGE.pack_into(
                self.map, at + _USAGE_AT, get("input_tokens", 0), get("output_tokens", 0),
                get("total_tokens", 0), get("cache_read_tokens", 0), get("cache_write_tokens", 0),
                get("cache_write_1h_tokens", 0), get("reasoning_tokens", 0), True,
            )  # fmt: skip
        except struct.error:  # too many, or fewer than none
            counts = [min(max(0, get(kind, 0)), _LARGEST) for kind in _KINDS]
            _USAGE.pack_into(self.map, at + _USAGE_AT, *counts, True)

    def let_go(self, places: Collection[int]) -> None:
        """Free the places of notes: their calls are booked, or were not sent."""
        for at in places:
            self.map[at : at + 8] = _FREE
        self._free += places

    def _grow(self) -> bool:
        before = len(self.map)
        with contextlib.suppress(OSError, ValueError), self._path.open("r+b", buffering=0) as file:
            try:
                _extend(file, before - _HEAD_BYTES)
                grown = mmap.mmap(file.fileno(), 0)
            except (OSError, ValueError):
                file.truncate(before)
                return False
            self.close()
            self.map = grown
            self._free = list(range(before, len(grown), _SLOT_BYTES))
            return True
        return False


def _extend(file: BinaryIO, count: int) -> None:
    # Written and not just made longer: a mapped page without a place on a full disk would end the
    # process.
    file.seek(0, 2)
    while count:
        count -= file.write(bytes(count))
    file.flush()


def _size(count: int) -> int:
    return min(max(0, count), MOST_TOKENS)


def _told(count: int) -> int | None:
    return None if count < 0 else min(count, MOST_TOKENS)


def notes_path(ledger: Path) -> Path:
    """Return where the notes of a ledger's calls are."""
    return ledger.with_name(f"{ledger.name}-calls")


def read_notes(path: Path) -> tuple[int, list[CallNote]] | None:
    """Return the session that wrote a file's notes, and those that were not let go of.

    Nothing is changed; whoever writes them may go on. None where there is no such file.
    """
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        return None
    session = _session_of(content) if len(content) >= _HEAD_BYTES else None
    return None if session is None else (session, list(_notes_in(content)))


def _session_of(content: bytes | bytearray | mmap.mmap) -> int | None:
    magic, session, _ = _HEAD.unpack_from(content, 0)
    return session if magic.rstrip(b"\0") == _MAGIC else None


def _notes_in(content: bytes | bytearray | mmap.mmap) -> Iterator[CallNote]:
    length = _HEAD.unpack_from(content, 0)[2]
    start = _HEAD.size
    names: list[BilledAs] = []
    with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
        names = msgspec.json.decode(content[start : start + length], type=list[BilledAs])
    for at in range(_HEAD_BYTES, len(content) - _SLOT_BYTES + 1, _SLOT_BYTES):
        found = _NOTE.unpack_from(content, at)
        if not found[0] or found[0] != found[14] or found[15]:
            continue
        if not (0 < found[0] <= _MOST_ITEMS and math.isfinite(found[3])):
            continue  # nothing that we have written
        number, attempt, name, started_at, sent, further, most, told_in, told_out = found[:9]
        is_seen, key_length, key, content_length, asked = found[9:14]
        usage = None
        *tokens, is_known = _USAGE.unpack_from(content, at + _USAGE_AT)
        if is_known:
            counts = zip(_KINDS, tokens, strict=True)
            usage = {
                kind: min(count, _LARGEST) for kind, count in counts if count or kind in _KINDS[:3]
            }
        yield CallNote(
            number,
            None if key_length > _LONGEST_ID else key[:key_length],
            asked[:content_length],
            attempt,
            names[name] if 0 <= name < len(names) else None,
            started_at,
            (_size(sent), _size(further), _told(most), is_seen, _told(told_in), _told(told_out)),
            usage,
        )
