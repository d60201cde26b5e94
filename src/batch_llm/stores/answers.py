"""Answers of earlier runs in one SQLite file, for many runs and processes at once.

Nothing waits for the disk in the event loop: look-ups that come together are one query in a thread
of their own, and what is kept is written by another one, many answers in a transaction. What a key
stands for is not decided here, and of questions nothing but the key is kept.

A cache only saves calls. Whatever is wrong with it while a run goes on costs no more than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sqlite3
import threading
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from batch_llm.exceptions import CacheError, ConfigError
from batch_llm.stores.group_thread import GroupThread
from batch_llm.stores.sqlite_files import REASONS, reason_of, transaction
from batch_llm.stores.statements import many, statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self

logger = logging.getLogger("batch_llm.cache")

_SQL = "answers.sql"
_FILE = "answers.sqlite"
#: "b-llm" to SQLite, in the file's header.
_APPLICATION_ID = 0x626C6C6D
_VERSION = 2
_PAGE_BYTES = 16_384
#: Answers that wait to be written; what comes beyond is not kept.
MOST_WAITING = 10_000
LINGER_SECONDS = 0.02
#: How long a write waits for another process that writes.
PATIENCE_SECONDS = 30.0
_AGAIN_SECONDS = 0.02
#: Expired answers that are removed at the most when a run begins, and with each group that is kept.
MOST_REMOVED_AT_FIRST, MOST_REMOVED = 1000, 100
_ROWS_PER_STATEMENT = (64, 8, 1)


class KeptModel(NamedTuple):
    """What is kept of one model; the times are seconds since 1970."""

    model: str
    answers: int
    oldest_at: float
    newest_at: float


class _Look:
    __slots__ = ("answer", "done", "key")

    def __init__(self, key: bytes, done: asyncio.Future[bytes | None]) -> None:
        self.key = key
        self.done = done
        self.answer: bytes | None = None


class _Kept(NamedTuple):
    key: bytes
    model: str
    answer: bytes


class _Sweep:
    """Stands among what is to be kept for: remove what has expired."""


_SWEEP = _Sweep()


class AnswerCache:
    """A cache in a folder. Use it as a context manager, or ``close`` it.

    An answer is good as long as whoever kept it has said, of several the one who wants it the
    longest, and as whoever asks for it says. What is past the first is removed, some with each use.

    Args:
        folder: Where the file is; made, with a ``.gitignore`` in it, when it is not there.
        expires_seconds: Older answers are asked for again, and what is kept now expires after so
            long; None: it stays good.
        must_exist: Refuse a folder without a cache, instead of making one.
        patience_seconds: How long a write waits for another process that writes.
        now: The time of day, in seconds since 1970.

    Raises:
        CacheError: It cannot be opened: no folder, not writable, another program's file, damaged,
            of a later version.
        ConfigError: ``expires_seconds`` is out of bounds.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        expires_seconds: float | None = None,
        must_exist: bool = False,
        patience_seconds: float = PATIENCE_SECONDS,
        now: Callable[[], float] | None = None,
    ) -> None:
        if expires_seconds is not None and not 0 < expires_seconds < math.inf:
            raise ConfigError("expires_seconds", expires_seconds, "> 0 and finite, or None")
        self.path = Path(folder) / _FILE
        self._expires_seconds = math.inf if expires_seconds is None else expires_seconds
        self._now = now or (lambda: datetime.now(UTC).timestamp())
        self._sql = statements(_SQL)
        self._patience_seconds = patience_seconds
        #: Answers that are not in the file yet.
        self._fresh: dict[bytes, bytes] = {}
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        #: What went wrong first while a run went on; nothing is read or written any more then.
        self.trouble: str | None = None
        if must_exist and not self.path.exists():
            raise CacheError(str(self.path), "there is none")
        # Each connection is its thread's, and others' only while that is idle.
        with contextlib.ExitStack() as opened:
            try:
                _make_folder(self.path.parent)
                self._writing = opened.enter_context(contextlib.closing(self._connect()))
                self._reading = opened.enter_context(contextlib.closing(self._connect()))
            except (OSError, sqlite3.Error) as error:
                raise CacheError(str(self.path), reason_of(error, _REASONS)) from error
            opened.pop_all()
        self._writer = GroupThread(
            "batch-llm-cache-writer", self._write, self._settle, linger_seconds=LINGER_SECONDS
        )
        self._reader = GroupThread(
            "batch-llm-cache-reader", self._read, self._tell, linger_seconds=0.0
        )

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        """Tell whether there is a cache in a folder, or what looks like one."""
        return (Path(folder) / _FILE).exists()

    def _connect(self) -> sqlite3.Connection:
        found = sqlite3.connect(
            self.path,
            timeout=self._patience_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        pause, tries = threading.Event(), math.ceil(self._patience_seconds / _AGAIN_SECONDS)
        try:
            while True:
                try:
                    self._make_ours(found)
                    return found
                except sqlite3.OperationalError as error:
                    # While several make one file, SQLite refuses some at once, so that none waits
                    # for one that waits for it.
                    if found.in_transaction:
                        found.execute("ROLLBACK")
                    tries -= 1
                    if tries <= 0 or "locked" not in str(error):
                        raise
                pause.wait(_AGAIN_SECONDS)
        except BaseException:
            found.close()
            raise

    def _make_ours(self, connection: sqlite3.Connection) -> None:
        # All that is looked at in one transaction: another process may be about to make it.
        connection.execute("BEGIN")
        is_made, version = _is_made(connection, self.path), _version(connection)
        connection.execute("COMMIT")
        if not is_made:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
        if version < _VERSION:
            with transaction(connection):  # of two that make it, the second finds it made
                if not _is_made(connection, self.path):
                    self._run_all(connection, "create")
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                if _version(connection) < _VERSION:
                    self._run_all(connection, "version_2")
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
        # An answer that the loss of power costs is asked for again.
        connection.execute("PRAGMA synchronous = NORMAL")

    def _run_all(self, connection: sqlite3.Connection, name: str) -> None:
        for statement in self._sql[name].split(";"):
            connection.execute(statement)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what was kept, and let go of the file. A second time it does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for thread in (self._reader, self._writer):
            thread.close()
        for connection in (self._reading, self._writing):
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    # ---- the engine's part ----

    def begin_run(self) -> None:
        """Get ready for a run in the current event loop; several may go on at a time.

        Raises:
            CacheError: It was closed.
        """
        if self._is_closed:
            raise CacheError(str(self.path), "it was closed")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # A loop that was closed may never have heard what is written by now.
            with self._writer.pause():
                self._fresh.clear()
            self._loop = loop
        self._reader.attach(loop)
        self._writer.attach(loop)
        self._writer.put(_SWEEP)

    def look_up(self, key: bytes, /) -> asyncio.Future[bytes | None]:
        """Return the answer that is kept and has not expired; without any, or in trouble, None."""
        done: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        fresh = self._fresh.get(key)
        if fresh is not None or self.trouble is not None or self._is_closed:
            done.set_result(fresh)
        else:
            self._reader.put(_Look(key, done))
        return done

    def put(self, key: bytes, answer: bytes, /, *, model: str) -> None:
        """Keep an answer; whoever asks for it from now on gets it, if the disk has room for it."""
        if self.trouble is None and not self._is_closed and len(self._fresh) < MOST_WAITING:
            self._fresh[key] = answer
            self._writer.put(_Kept(key, model, answer))

    def _settle(self, group: list[_Kept | _Sweep], _error: BaseException | None) -> None:
        for kept in group:
            if isinstance(kept, _Kept) and self._fresh.get(kept.key) is kept.answer:
                del self._fresh[kept.key]

    def _tell(self, group: list[_Look], _error: BaseException | None) -> None:
        for look in group:
            if not look.done.done():
                look.done.set_result(look.answer)

    # ---- the threads ----

    def _read(self, group: list[_Look]) -> None:
        if self.trouble is not None:
            return
        try:
            found = self._find([look.key for look in group])
        except sqlite3.Error as error:
            self._give_up(error)
            return
        for look in group:
            look.answer = found.get(look.key)

    def _find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        now = self._now()
        earliest = now - self._expires_seconds
        found: dict[bytes, bytes] = {}
        for statement, values in _apart("find", [(key,) for key in keys]):
            rows = self._reading.execute(statement, values)
            found |= {
                key: answer
                for key, kept_at, expires_at, answer in rows
                if kept_at >= earliest and (expires_at is None or expires_at >= now)
            }
        return found

    def _write(self, group: list[_Kept | _Sweep]) -> None:
        if self.trouble is not None:
            return
        now = self._now()
        expires_at = None if self._expires_seconds == math.inf else now + self._expires_seconds
        kept = [one for one in group if isinstance(one, _Kept)]
        rows = [(one.key, one.model, now, expires_at, one.answer) for one in kept]
        most = MOST_REMOVED if len(kept) == len(group) else MOST_REMOVED_AT_FIRST
        try:
            with transaction(self._writing):
                self._writing.execute(self._sql["remove_expired"], (now, most))
                for statement, values in _apart("keep", rows):
                    self._writing.execute(statement, values)
        except sqlite3.Error as error:
            if kept:  # else it can be read all the same, and be tidied up another time
                self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on without; whoever waits for an answer gets none, and makes its call."""
        if self.trouble is None:
            self.trouble = reason_of(error, _REASONS)
            logger.warning("%s; the run goes on without", CacheError(str(self.path), self.trouble))

    # ---- for people ----

    def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return, of these keys, the answers that a run would be given now. Not while one goes on.

        Raises:
            CacheError: The file cannot be read.
        """
        try:
            with self._reader.pause():
                return self._find(keys)
        except sqlite3.Error as error:
            raise CacheError(str(self.path), reason_of(error, _REASONS)) from error

    def models(self) -> list[KeptModel]:
        """Tell what is kept, model by model.

        Raises:
            CacheError: The file cannot be read.
        """
        try:
            with self._reader.pause():
                rows = self._reading.execute(self._sql["models"]).fetchall()
        except sqlite3.Error as error:
            raise CacheError(str(self.path), reason_of(error, _REASONS)) from error
        return [KeptModel(*row) for row in rows]

    def clear(self, *, model: str | None = None, older_than_seconds: float | None = None) -> int:
        """Remove answers, and give their room back; others may use the cache meanwhile.

        Args:
            model: Only this one's.
            older_than_seconds: Only what was kept longer ago.

        Returns:
            Their number.

        Raises:
            CacheError: It could not be done; nothing changed.
        """
        before = math.inf if older_than_seconds is None else self._now() - older_than_seconds
        values = {"model": model, "before": before}
        try:
            with self._writer.pause():
                with transaction(self._writing):
                    count = self._writing.execute(self._sql["clear"], values).rowcount
                with contextlib.suppress(sqlite3.OperationalError):  # somebody reads: next time
                    self._writing.execute("VACUUM")
        except sqlite3.Error as error:
            raise CacheError(str(self.path), reason_of(error, _REASONS)) from error
        return int(count)


def _is_made(connection: sqlite3.Connection, path: Path) -> bool:
    """Tell whether a file is a cache, or empty.

    Raises:
        CacheError: It is something else.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = _version(connection)
    is_empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if is_empty and application == version == 0:
        return False
    if application != _APPLICATION_ID:
        raise CacheError(str(path), "another program made that file")
    if version > _VERSION:
        raise CacheError(str(path), f"a later version of batch-llm made it (schema {version})")
    return True


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _apart(name: str, rows: list[tuple[Any, ...]]) -> Iterator[tuple[str, list[Any]]]:
    """Give statements for many rows each, with their values."""
    first = 0
    for size in _ROWS_PER_STATEMENT:
        while len(rows) - first >= size:
            values: Iterable[Any] = chain.from_iterable(rows[first : first + size])
            yield many(name, size, _SQL), list(values)
            first += size


def _make_folder(folder: Path) -> None:
    """Make the folder, with a note to git in it. One that is there is the user's: no note then."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", "utf-8")


_REASONS = REASONS | {"not a database": "it is damaged, or no cache"}
