"""Rows of a ledger by id, read ahead where they are asked for in the order of their numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Row = tuple[Any, ...]

#: Where a row's id and its number stand.
_KEY, _NUMBER = 0, 12
#: How many rows are read ahead: few at first, and twice as many each time that most were used.
_FEWEST, _MOST = 32, 512


class LookAhead:
    """Finds rows by id.

    A run that goes on mostly asks for its items in the order in which it once started them. To read
    the next rows by number costs a fraction of finding each by its id.

    Args:
        query: Runs a named statement and returns all its rows.
    """

    def __init__(self, query: Callable[..., Sequence[Row]]) -> None:
        self._query = query
        self._rows: dict[str | bytes, Row] = {}
        self._last = 0
        self._count = _FEWEST
        self._is_at_end = False

    def forget(self) -> None:
        """Take nothing for true that was read: the file changes."""
        self._rows.clear()
        self._last, self._count, self._is_at_end = 0, _FEWEST, False

    def rows_of(self, keys: Sequence[str | bytes]) -> list[Row | None]:
        """Return the row of each id; None where there is none."""
        take = self._rows.pop
        found = [take(key, None) for key in keys]
        missing = [place for place, row in enumerate(found) if row is None]
        while missing and not self._is_at_end and len(self._rows) <= self._count // 2:
            self._read_on()
            still = []
            for place in missing:
                row = found[place] = take(keys[place], None)
                if row is None:
                    still.append(place)
            if len(still) == len(missing):
                break
            missing = still
        if missing:
            self._find(keys, missing, found)
        return found

    def _read_on(self) -> None:
        is_used = len(self._rows) <= self._count // 4
        self._count = min(2 * self._count, _MOST) if is_used else max(self._count // 2, _FEWEST)
        rows = self._query("ahead", (self._last, self._count))
        self._rows.clear()
        self._rows.update({row[_KEY]: row for row in rows})
        self._is_at_end = len(rows) < self._count
        if rows:
            self._last = rows[-1][_NUMBER]

    def _find(
        self, keys: Sequence[str | bytes], missing: list[int], found: list[Row | None]
    ) -> None:
        """Find rows by id, and read on behind the last of them from now on."""
        texts = [keys[place] for place in missing]
        numbers = []
        plain = [key if isinstance(key, str) else None for key in texts]
        for row in self._query("look_up", (json.dumps(plain),)):
            found[missing[row[-1]]] = row[:-1]
            numbers.append(row[_NUMBER])
        for place in missing:
            key = keys[place]
            if isinstance(key, bytes):
                rows = self._query("look_up_one", (key,))
                found[place] = rows[0] if rows else None
        if numbers and (numbers[-1] < self._last - self._count or self._last < numbers[-1]):
            self._rows.clear()
            self._last, self._is_at_end = numbers[-1], False
