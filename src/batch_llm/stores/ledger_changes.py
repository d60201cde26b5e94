"""What changes a ledger: groups of a run, in its writer's thread; facts and retries, in between."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import LedgerError, StoreError
from batch_llm.stores.cut_off import note_known_inputs
from batch_llm.stores.ledger_file import LedgerFile, why
from batch_llm.stores.ledger_groups import KINDS, Group, in_order
from batch_llm.stores.ledger_reader import LedgerReader
from batch_llm.stores.ledger_writer import LedgerWriter
from batch_llm.stores.sqlite_files import transaction
from batch_llm.stores.statements import many
from batch_llm.stores.values import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from concurrent.futures import Future

#: Rows in one statement at the most.
_MOST_ROWS = 1024


class LedgerChanges(LedgerReader):
    """A ledger that can be changed, when its file was opened for that.

    Args:
        file: The ledger's file.
        prepare: Makes the rows of a run's group.
        settle: Called in the event loop with each group that was written, or will not be.
        linger_seconds: How long a group's first member waits for others.
        patience_seconds: How long a write waits for room on the disk.
    """

    def __init__(
        self,
        file: LedgerFile,
        prepare: Callable[[Group], None],
        settle: Callable[[Group], None],
        *,
        linger_seconds: float,
        patience_seconds: float,
    ) -> None:
        super().__init__(file)
        self._sql = file.sql
        self._writer: LedgerWriter | None = None
        if file.writing is not None:
            self._writer = LedgerWriter(
                prepare,
                self._write,
                settle,
                linger_seconds=linger_seconds,
                can_pass=_is_for_want_of_room,
                error_of=self._save_error,
                patience_seconds=patience_seconds,
            )

    def _write(self, groups: Sequence[Group]) -> None:
        assert self._file.writing is not None  # noqa: S101 - the thread ends before it is closed
        with transaction(self._file.writing) as connection:
            for rows in in_order(groups):
                for name, values in rows:
                    if values:
                        _run(connection, name, values)

    def _in_writers_thread(self, change: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
        """Change the file in a transaction, after all that was added before."""
        connection, writer = self._file.writing, self._writer
        if connection is None or writer is None:
            raise LedgerError(str(self.path), "it was opened for reading only, or closed")

        def act() -> Any:
            with transaction(connection):
                return change(connection)

        return writer.call(act)

    def _exclusively(self, change: Callable[[sqlite3.Connection], object]) -> Any:
        """Change the file, and wait for it.

        Raises:
            LedgerError: It could not be saved; nothing changed.
        """
        try:
            return self._in_writers_thread(change).result()
        except sqlite3.Error as error:
            raise self._file.error(error) from error

    def note(self, facts: Mapping[str, Any], /) -> None:
        """Add to the manifest.

        Raises:
            LedgerError: It could not be saved.
        """
        rows = [(name, to_json(value)) for name, value in facts.items()]
        self._exclusively(lambda one: one.executemany(self._sql["note"], rows))

    def retry(self, codes: Collection[str] | None = None, content: bytes | None = None) -> int:
        """Make failed items pending, so that they are tried again.

        Raises:
            LedgerError: It could not be saved; nothing changed.
        """

        def change(connection: sqlite3.Connection) -> int:
            note_known_inputs(connection)
            if codes is None:
                return connection.execute(self._sql["retry_all"], (content,)).rowcount
            wanted = json.dumps(sorted(codes))
            return connection.execute(self._sql["retry_some"], (content, wanted)).rowcount

        self._ahead.forget()
        return int(self._exclusively(change))

    def _save_error(self, error: BaseException, item_id: str) -> StoreError:
        reason = why(error)
        unsaved = self.unsaved_results
        if unsaved:
            answers = "1 answer is" if unsaved == 1 else f"{unsaved:,} answers are"
            reason += (
                f"; {answers} not saved yet: that is tried once more at the end of the run, "
                "and what does not fit then is asked again"
            )
        return StoreError(item_id, reason)

    @property
    def unsaved_results(self) -> int:
        """How many results were accepted and could not be written: ``close`` tries once more."""
        return 0 if self._writer is None else self._writer.unsaved_results


def _run(connection: sqlite3.Connection, name: str, values: list[Any]) -> None:
    """Run a statement over rows, as many at a time as fit.

    In powers of two: few statements then make any number of rows, and SQLite keeps all of them.
    """
    width = KINDS[name]
    count, first = len(values) // width, 0
    size = _MOST_ROWS
    while count:
        while size > count:
            size //= 2
        last = first + size * width
        is_all = last - first == len(values)
        connection.execute(many(name, size), values if is_all else values[first:last])
        first, count = last, count - size


def _is_for_want_of_room(error: BaseException) -> bool:
    """Tell whether a write may succeed later: somebody may make room on the disk."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
