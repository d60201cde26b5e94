"""A ledger's file: who may open it, how, and in which version of its schema."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import LedgerError
from batch_llm.stores.file_lock import FileLock
from batch_llm.stores.sqlite_files import REASONS, reason_of
from batch_llm.stores.statements import migrations, statements
from batch_llm.stores.values import DamagedTextError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PAGE_BYTES = 16_384
_REASONS = REASONS | {
    "is full": "the disk is full; what was saved before is safe",
    "is locked": "another program holds it; close that, and go on",
    "malformed": "the file is damaged; `batch-llm verify` says more",
    "not a database": "it is no ledger, or its beginning is damaged",
}


def why(error: BaseException) -> str:
    """Say in people's words why a ledger could not be read or written."""
    return reason_of(error, _REASONS)


def is_damage(error: BaseException | None) -> bool:
    """Tell whether SQLite has met a damaged page."""
    return "malformed" in str(error)


class LedgerFile:
    """The file with its connections, and the lock that keeps other writers away.

    Each connection is one thread's at a time: ``writing`` is the writer's from when that starts.

    Args:
        path: The file; made when it is not there.
        read_only: Change nothing, and need no lock.
        patience_seconds: How long a write waits while another program holds the file.

    Raises:
        LedgerInUseError: Another process writes to it.
        LedgerError: It cannot be opened: no such file, not writable, no ledger, of a later version.
    """

    def __init__(self, path: str | Path, *, read_only: bool, patience_seconds: float) -> None:
        self.path = Path(path)
        self.sql = statements()
        self._patience_seconds = patience_seconds
        self._lock: FileLock | None = None
        self.writing: sqlite3.Connection | None = None
        try:
            if not read_only:
                self._lock = FileLock(self.path.resolve())
                self.writing = self._connect_to_write()
            self.reading = self._connect_to_read()
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise LedgerError(str(path), why(error)) from error
        except BaseException:
            self.close()
            raise

    def _connect_to_write(self) -> sqlite3.Connection:
        found = sqlite3.connect(
            self.path,
            timeout=self._patience_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            found.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            found.execute("PRAGMA journal_mode = WAL")
            found.execute("PRAGMA synchronous = FULL")
            self._migrate(found)
        except BaseException:
            found.close()
            raise
        return found

    def _connect_to_read(self) -> sqlite3.Connection:
        # `?mode=ro` would refuse the file of a folder that is not writable; nothing is written here
        # all the same, and a ledger without a log of changes may be taken as it lies.
        if not self.path.exists():
            raise LedgerError(str(self.path), "there is no such file")
        uri = self.path.resolve().as_uri()
        try:
            found = self._opened(f"{uri}?mode=ro")
        except sqlite3.OperationalError:
            if Path(f"{self.path}-wal").exists():
                raise
            found = self._opened(f"{uri}?immutable=1")
        version = found.execute("PRAGMA user_version").fetchone()[0]
        if version == max(migrations()):
            return found
        try:
            return self._migrated_copy(found)
        finally:
            found.close()

    def _migrated_copy(self, earlier: sqlite3.Connection) -> sqlite3.Connection:
        """Return what a file of an earlier version holds in the present schema; it stays as it is.

        A process that was killed as it made its ledger leaves one of version 0, without a table.
        """
        copy = sqlite3.connect(
            "", isolation_level=None, check_same_thread=False
        )  # a temporary file
        try:
            earlier.backup(copy)
            self._migrate(copy)
        except BaseException:
            copy.close()
            raise
        return copy

    def _opened(self, uri: str) -> sqlite3.Connection:
        found = sqlite3.connect(
            uri, uri=True, timeout=self._patience_seconds, check_same_thread=False
        )
        try:
            found.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except BaseException:
            found.close()
            raise
        return found

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        newest = max(migrations())
        is_empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if version > newest or (version == 0 and not is_empty):
            raise LedgerError(str(self.path), _not_ours(version))
        for number, script in migrations().items():
            if number > version:
                connection.executescript(
                    f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;"
                )

    def close(self) -> None:
        """Let go of the file. A second time it does nothing."""
        reading = getattr(self, "reading", None)
        for connection in (reading, self.writing):  # the last one to leave tidies up
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def rows(self, name: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a named statement that reads, and return all its rows.

        Raises:
            LedgerError: The file cannot be read.
        """
        return self.query(self.sql[name], values)

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement that reads, and return all its rows.

        Raises:
            LedgerError: The file cannot be read.
        """
        try:
            return self.reading.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self.error(error) from error

    def number(self, name: str) -> int:
        """Run a named statement that returns one number."""
        return int(self.rows(name)[0][0])

    def error(self, error: BaseException) -> LedgerError:
        """Return what SQLite has raised as an error of this ledger."""
        return LedgerError(str(self.path), why(error))

    @contextlib.contextmanager
    def naming_damage(self) -> Iterator[None]:
        """Say of which ledger a text is that cannot be read."""
        try:
            yield
        except DamagedTextError as error:
            raise LedgerError(str(self.path), str(error)) from error


def _not_ours(version: int) -> str:
    if version > max(migrations()):
        return f"a later version of batch-llm made it (schema {version}); update batch-llm"
    return "it is no ledger"
