"""Values and the rows of Parquet files in blocks, see ``blocks``. Their bytes are their pickle.

Only plain values have bytes here: texts, numbers, bytes, truth, nothing, and lists, tuples, sets
and mappings of these, of just these types. What an object of another type means to a template, its
class decides: a block with one is never known. Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import pickle
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NoReturn

from batch_llm.inputs import blocks
from batch_llm.inputs.blocks import Block, mark_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from batch_llm.inputs.blocks import KnownBlock, KnownBlocks
    from batch_llm.inputs.records import Problem, Row

#: Values that are written together; part of what a digest is of.
_AT_ONCE = 100


class _PlainPickler(pickle.Pickler):
    """Writes plain values, each time the same bytes, whichever of them are the same object."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, 4)
        self.fast = True  # no mention of what came before

    def reducer_override(self, found: object) -> NoReturn:
        """Refuse whatever has a type that is not plain."""
        raise pickle.PicklingError(type(found))


def bytes_of(values: Sequence[Any]) -> bytes | None:
    """Return bytes that other values do not have; None where one is not plain, or holds itself."""
    file = io.BytesIO()
    try:
        _PlainPickler(file).dump(values)
    except (pickle.PicklingError, ValueError, RuntimeError):  # too deep, or changed meanwhile
        return None
    return file.getvalue()


class ValueBody:
    """Rows that are had by their numbers. See ``blocks.Body``.

    Args:
        some: Gives values: the first one's place, from 0, and how many; fewer at the end. Cheapest
            where no place lies before that of the last call.
        read: Makes a record of a value, given its number from 1.
        limit: Values after which to stop.
        dialect: See ``Body``.
        is_intact: See ``Body``; None looks at the values again.
    """

    def __init__(
        self,
        some: Callable[[int, int], Sequence[Any]],
        read: Callable[[Any, int], Row | Problem],
        limit: int | None,
        dialect: str,
        is_intact: Callable[[Block], bool] | None = None,
    ) -> None:
        self._values, self._record, self._limit = some, read, limit
        self.dialect = dialect
        self._is_intact = is_intact

    def _some(self, place: int, count: int) -> list[Any]:
        if self._limit is not None:
            count = min(count, self._limit - place)
        return list(self._values(place, count)) if count > 0 else []

    def blocks(self, known: KnownBlocks, /) -> Iterator[Block]:
        """See ``Body``."""
        place, found = 0, self._find(known, 0)
        while values := self._some(place, blocks.RECORDS if found is None else 1):
            head = bytes_of(values[:1])
            block = Block(place, place + 1, place + 1, mark_of(head or b""))
            if found is not None:
                block.recognise(found)
                found = self._find(known, place + block.records)
            else:
                found = self._cut(block, values, known)
            place += block.records
            yield block

    def _cut(self, block: Block, values: list[Any], known: KnownBlocks) -> KnownBlock | None:
        """Take values up to where a known block begins; return that."""
        found, count = None, 1
        while count < len(values):
            found = self._find(known, block.offset + count)
            if found is not None:
                break
            count += 1
        del values[count:]
        block.rows = [
            self._record(value, number) for number, value in enumerate(values, block.number)
        ]
        block.records = block.lines = count
        block.length, block.digest = _digest(values)
        block.is_whole = bool(block.digest)
        return found if found is not None else self._find(known, block.offset + count)

    def _find(self, known: KnownBlocks, place: int) -> KnownBlock | None:
        if not known:
            return None
        head = bytes_of(self._some(place, 1))
        return known.find(head or b"", place + 1, lambda one: self._is_at(place, one))

    def _is_at(self, place: int, block: KnownBlock) -> bool:
        values = self._some(place, block.records)
        return len(values) == block.records and _digest(values) == (block.length, block.digest)

    def is_intact(self, block: Block, /) -> bool:
        """See ``Body``."""
        if self._is_intact is not None:
            return self._is_intact(block)
        return _digest(self._some(block.offset, block.records)) == (block.length, block.digest)

    def read(self, block: Block, /) -> Iterator[Row | Problem]:
        """See ``Body``."""
        values = self._some(block.offset, block.records)
        return map(self._record, values, range(block.number, block.number + len(values)))


def _digest(values: Sequence[Any]) -> tuple[int, bytes]:
    """Return the length of values in bytes, and their digest; nothing where one is not plain."""
    length, digest = 0, blake2b(digest_size=16)
    for at in range(0, len(values), _AT_ONCE):
        found = bytes_of(values[at : at + _AT_ONCE])
        if found is None:
            return 0, b""
        length += len(found)
        digest.update(found)
    return length, digest.digest()
