"""What a ledger tells whoever asks: of the run, of items, of attempts, and what is damaged."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import LedgerError, StoreError
from batch_llm.stores.base import Attempt, ItemState, Record, is_settled
from batch_llm.stores.bookings import not_booked_yet, spent_in_all, spent_so_far
from batch_llm.stores.call_notes import notes_path
from batch_llm.stores.cut_off import cut_off_calls
from batch_llm.stores.ledger_file import LedgerFile, is_damage, why
from batch_llm.stores.ledger_rows import read_attempt, read_record, result_of_row
from batch_llm.stores.look_ahead import LookAhead
from batch_llm.stores.values import from_json, key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from batch_llm.base import WorkItemResult
    from batch_llm.stores.base import Spent
    from batch_llm.stores.call_notes import CallNote

    Result = WorkItemResult[Any, Any]

_ROWS_AT_ONCE = 500


class LedgerReader:
    """A ledger that can be read. All of it is for one thread, and single rows take microseconds.

    Args:
        file: The ledger's file.
    """

    def __init__(self, file: LedgerFile) -> None:
        self._file = file
        self._ahead = LookAhead(file.rows)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._file.path

    def manifest(self) -> dict[str, Any]:
        """Return what is noted of the run as a whole; empty for a new one."""
        rows = self._file.rows("manifest")
        with self._file.naming_damage():
            return {name: from_json(value) for name, value in rows}

    def counts(self) -> dict[ItemState, int]:
        """Count the items by state; each state has an entry."""
        found = dict(self._file.rows("counts"))
        return {state: found.get(state, 0) for state in ItemState}

    def look_up(self, items: Iterable[tuple[str, bytes]], /) -> list[Record | None]:
        """Return, for each id and content, the result that would be kept, or None.

        Cheapest in the order in which the items were first started: rows are read ahead then.
        """
        asked = list(items)
        rows = self._ahead.rows_of([key_of(item_id) for item_id, _ in asked])
        with self._file.naming_damage():
            return [
                read_record(row)
                if row is not None and row[1] == content and is_settled(row[2], row[5], row[8])
                else None
                for row, (_, content) in zip(rows, asked, strict=True)
            ]

    def results_of(self, items: Sequence[tuple[str, bytes]], /) -> list[Result | None]:
        """Return, for each id and content, the result that ``look_up`` finds, as it was."""
        rows = self._ahead.rows_of([key_of(item_id) for item_id, _ in items])
        with self._file.naming_damage():
            return [
                result_of_row(item_id, row)
                if row is not None and row[1] == content and is_settled(row[2], row[5], row[8])
                else None
                for row, (item_id, content) in zip(rows, items, strict=True)
            ]

    def settled_after(self, number: int, most: int) -> list[tuple[int, bytes, bool]]:
        """Return the number, the content and whether it is done of items with a kept result.

        Args:
            number: Those with higher numbers alone, in their order.
            most: As many at the most; an empty list only where there are no more.
        """
        while rows := self._file.rows("settled", (number, most)):
            found = [
                (row[0], row[1], row[2] == ItemState.DONE)
                for row in rows
                if row[2] == ItemState.DONE or is_settled(row[2], row[3], row[4])
            ]
            if found:
                return found
            number = rows[-1][0]
        return []

    def numbers_of(self, item_ids: Sequence[str]) -> list[int | None]:
        """Return the number of each item; None of such as were never started."""
        keys = [key_of(item_id) for item_id in item_ids]
        plain = [key if isinstance(key, str) else None for key in keys]
        found: list[int | None] = [None] * len(keys)
        for place, number in self._file.rows("numbers", (json.dumps(plain),)):
            found[place] = number
        for place, key in enumerate(keys):
            if isinstance(key, bytes) and (row := self._row_of(item_ids[place])) is not None:
                found[place] = row[0]
        return found

    def find(self, item_id: str, /) -> Record | None:
        """Return what is known of an item."""
        row = self._row_of(item_id)
        return None if row is None else self._record(row[0])

    def records(self, *states: ItemState) -> Iterator[Record]:
        """Give all items in these states, in the order in which they were first started."""
        wanted, last = json.dumps(states), 0
        while True:
            # Page by page: a reader that stays open would keep the log of changes from being cut.
            rows = self._file.rows("records", (last, wanted, _ROWS_AT_ONCE))
            if not rows:
                return
            last = rows[-1][-1]
            for row in rows:
                with self._file.naming_damage():
                    record = read_record(row)
                yield record

    def attempts(self, item_id: str, /) -> list[Attempt]:
        """Return all attempts of an item, those of earlier runs first."""
        row = self._row_of(item_id)
        if row is None:
            return []
        rows = self._file.rows("tries", (row[0],))
        with self._file.naming_damage():
            return list(map(read_attempt, rows))

    @property
    def session(self) -> int:
        """The number of the session that began last, from 1; 0: none has."""
        return self._file.number("last_session")

    def spent_in_all(self) -> Spent:
        """Return what all sessions of the run have spent, as far as it is in the file."""
        try:
            reading = self._file.reading
            return spent_in_all(spent_so_far(reading), cut_off_calls(reading))
        except sqlite3.Error as error:
            raise self._file.error(error) from error

    def not_booked_yet(self) -> list[CallNote]:
        """Return the calls that are noted and in no sum: under way, or cut off a moment ago.

        The next session books those that the end of the process has cut off.
        """
        try:
            return not_booked_yet(self._file.reading, notes_path(self.path))
        except sqlite3.Error as error:
            raise self._file.error(error) from error

    def problems(self) -> list[str]:
        """Return what SQLite itself and our own rules find wrong with the file."""
        try:
            found = [str(row[0]) for row in self._file.query("PRAGMA integrity_check(20)")]
            if found == ["ok"]:
                found = [str(row[0]) for row in self._file.rows("damaged_texts")]
        except LedgerError as error:
            if not is_damage(error.__cause__):
                return [error.reason]
            # Not `why`: that sends people to `verify`, which asks here.
            said = (
                f"the file is damaged ({error.__cause__}): `sqlite3 FILE .recover` shows what can "
                "be read of it, --overwrite begins anew and keeps it as .old"
            )
            return [said]
        return found

    def _record(self, number: int) -> Record:
        row = self._file.rows("record", (number,))[0]
        with self._file.naming_damage():
            return read_record(row)

    def _row_of(self, item_id: str) -> tuple[Any, ...] | None:
        try:
            rows = self._file.reading.execute(self._file.sql["find"], (key_of(item_id),)).fetchall()
        except sqlite3.Error as error:
            raise StoreError(item_id, why(error)) from error
        return rows[0] if rows else None
