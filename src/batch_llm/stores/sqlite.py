"""The ledger in one SQLite file.

Reading happens in the event loop's thread: single rows by an index, some microseconds each.
Writing happens in a thread of its own, many results in one transaction (``group_writer``). The
statements stand in ``sql/``; what they mean for a person with an SQLite tool, in its views.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from datetime import UTC, datetime
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import DuplicateItemError, LedgerError, StoreError
from batch_llm.stores.base import Attempt, ItemState, Record, is_settled
from batch_llm.stores.file_lock import FileLock
from batch_llm.stores.group_writer import GroupWriter
from batch_llm.stores.seen_ids import SeenIds
from batch_llm.stores.statements import many, migrations, statements
from batch_llm.stores.values import clean, from_json, plain_usage, reused, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from batch_llm.base import WorkItemResult

LINGER_SECONDS = 0.004
#: An item that is in work for longer is written down as such.
RIPE_SECONDS = 1.0
#: How long a write waits for another program that has the file locked.
PATIENCE_SECONDS = 30.0
_PAGE_BYTES = 16_384
_ROWS_AT_ONCE = 500
_ROWS_PER_STATEMENT = (64, 8, 1)


class _Work:
    """An item in work, from its start until what became of it is in the file."""

    __slots__ = (
        "content", "done", "is_new", "is_open", "is_reopened", "item_id", "number", "payload",
        "result", "started_at", "tries",
    )  # fmt: skip

    def __init__(self, number: int, item_id: str, content: bytes) -> None:
        self.number = number
        self.item_id = item_id
        self.content = content
        self.is_new = self.is_reopened = False
        self.is_open = True
        self.started_at = 0.0
        self.tries: list[tuple[Any, ...]] = []
        self.result: WorkItemResult[Any, Any] | None = None
        self.payload: tuple[Any, ...] = ()
        self.done: asyncio.Future[None] | None = None


_Entry = tuple[str, _Work]


class SqliteLedger:
    """A run's ledger in a file. Use it as a context manager, or ``close`` it.

    A result is safe when its ``finish`` has ended: it survives the end of the process however it
    comes and, with a disk that keeps its promises, the loss of power.

    Outputs come back as plain data: what JSON can hold, of pydantic models their fields. An output
    that is no plain data cannot be saved, and stops the run.

    Args:
        path: The file; made when it is not there.
        read_only: Change nothing, and need no lock. Only reading works then.
        linger_seconds: How long a finished result waits for others to be saved with.
        patience_seconds: How long a write waits while another program holds the file.

    Raises:
        LedgerInUseError: Another process writes to it.
        LedgerError: It cannot be opened: no such file, not writable, no ledger, of a later version.
    """

    compares_content = True

    def __init__(
        self,
        path: str | Path,
        *,
        read_only: bool = False,
        linger_seconds: float = LINGER_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.path = Path(path)
        self._sql = statements()
        self._patience_seconds = patience_seconds
        self._lock: FileLock | None = None
        self._writer: GroupWriter[_Entry] | None = None
        self._writing: sqlite3.Connection | None = None
        try:
            if not read_only:
                self._lock = FileLock(self.path.resolve())
                self._writing = self._connect_to_write()
            self._reading = self._connect_to_read()
            self._next_number = 1 + self._number("last_number")
            self._session = self._number("last_session")
        except (OSError, sqlite3.Error) as error:
            self._let_go()
            raise LedgerError(str(path), _reason(error)) from error
        except BaseException:
            self._let_go()
            raise
        if self._writing is not None:
            self._writer = GroupWriter(self._write, self._settle, linger_seconds=linger_seconds)
        self._is_in_run = False
        self._keeps_ids = False
        self._open: dict[str, _Work] = {}
        self._reused_ids: set[str] = set()
        self._clock_offset = 0.0
        self._time: Callable[[], float] = float
        self._seen: SeenIds | None = None
        #: Items in work of which the file does not know it yet; the writer's thread has them.
        self._young: dict[int, _Work] = {}

    # A connection is used by one thread at a time: the writing one by the writer's thread from the
    # moment it starts, and by others only in `_exclusively`, between two groups.

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
        if version not in migrations():
            found.close()
            raise LedgerError(str(self.path), _not_ours(version))
        return found

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Save what was accepted, and let go of the file. A second time it does nothing."""
        if self._writer is not None:
            self.end_run()
            self._writer.close()
            self._writer = None
        self._let_go()

    def _let_go(self) -> None:
        reading = getattr(self, "_reading", None)
        for connection in (reading, self._writing):  # the last one to leave tidies up
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ---- the engine's part ----

    def begin_run(self, *, keeps_ids: bool) -> None:
        """Get ready for a run in the current event loop.

        Raises:
            LedgerError: Another run uses the ledger, or it cannot be written.
        """
        if self._is_in_run or self._writer is None:
            raise LedgerError(str(self.path), "it is in a run already, or was closed")
        loop = asyncio.get_running_loop()
        now = datetime.now(UTC).timestamp()
        self._clock_offset, self._time = now - loop.time(), loop.time
        session = self._session + 1

        def begin(connection: sqlite3.Connection) -> None:
            connection.execute(self._sql["begin_session"], (session, now))
            connection.execute(self._sql["recover"])

        self._exclusively(begin)
        if self._seen is None:
            self._seen = self._all_ids()
        self._young.clear()  # the thread is idle: nothing is put in between two runs
        self._writer.attach(loop)
        self._session, self._is_in_run, self._keeps_ids = session, True, keeps_ids
        self._open.clear()
        self._reused_ids.clear()

    def _all_ids(self) -> SeenIds:
        seen = SeenIds()
        try:
            for (key,) in self._reading.execute(self._sql["ids"]):
                seen.add(_id(key))
        except sqlite3.Error as error:
            raise LedgerError(str(self.path), _reason(error)) from error
        return seen

    def end_run(self) -> None:
        """Note when the run ended, as far as that can be saved."""
        if not self._is_in_run:
            return
        self._is_in_run = False
        ended = (datetime.now(UTC).timestamp(), self._session)
        with contextlib.suppress(LedgerError):  # whoever waited for a result was told
            self._exclusively(lambda one: one.execute(self._sql["end_session"], ended))

    def start(self, item_id: str, content: bytes, /) -> WorkItemResult[Any, Any] | None:
        """Note that an item is in work, unless the file has its result for this content.

        Raises:
            DuplicateItemError: An item of this id is in work or has a result in this run.
            StoreError: The ledger cannot be written or read any more.
        """
        writer = self._usable(item_id)
        assert self._seen is not None  # noqa: S101 - the run has begun
        known = self._open.get(item_id)
        if (known is not None and known.is_open) or item_id in self._reused_ids:
            raise DuplicateItemError(item_id)
        # Looking into the file costs ten times the rest, right after another thread wrote to it.
        may_be_known = self._seen.add(item_id)
        row = self._row_of(item_id) if known is None and may_be_known else None
        if known is not None:  # given up a moment ago; the file may not know yet
            work = _Work(known.number, item_id, content)
        elif row is None:
            work = _Work(self._next_number, item_id, content)
            work.is_new = True
            self._next_number += 1
        else:
            number, content_before, state, session, error_code, attempts = row
            work = _Work(number, item_id, content)
            work.is_reopened = state in {ItemState.DONE, ItemState.FAILED}
            if work.is_reopened and session == self._session:
                raise DuplicateItemError(item_id)
            if content_before == content and is_settled(state, error_code, attempts):
                if self._keeps_ids:
                    self._reused_ids.add(item_id)
                return reused(self._record(number))
        work.started_at = self._time()
        self._open[item_id] = work
        writer.put(("start", work))
        return None

    def forget(self, item_id: str, history: Sequence[Attempt], /) -> None:
        """Make an item pending again, and book the attempts that were made."""
        work = self._open.get(item_id)
        if work is None or not work.is_open or self._writer is None:
            return
        work.is_open = False
        work.tries = [self._try(work.number, attempt) for attempt in history]
        self._writer.put(("forget", work))

    def finish(
        self, result: WorkItemResult[Any, Any], history: Sequence[Attempt], /
    ) -> asyncio.Future[None]:
        """Save an item's only result.

        Raises:
            StoreError: The item is not in work, or the ledger cannot be written. Nothing changed.
                The future raises it too.
        """
        writer = self._usable(result.item_id)
        work = self._open.get(result.item_id)
        if work is None or not work.is_open or work.result is not None:
            raise StoreError(result.item_id, "it is not in work")
        try:
            work.payload = _payload(work.number, result)
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(result.item_id, f"{error}; return what JSON can hold") from error
        work.tries = [self._try(work.number, attempt) for attempt in history]
        work.result = result
        work.done = asyncio.get_running_loop().create_future()
        writer.put(("finish", work))
        return work.done

    def _usable(self, item_id: str) -> GroupWriter[_Entry]:
        if self._writer is None or not self._is_in_run:
            raise StoreError(item_id, "the ledger is in no run")
        if self._writer.error is not None:
            raise StoreError(item_id, _reason(self._writer.error))
        return self._writer

    def _row_of(self, item_id: str) -> tuple[Any, ...] | None:
        try:
            rows = self._reading.execute(self._sql["find"], (_key(item_id),)).fetchall()
        except sqlite3.Error as error:
            raise StoreError(item_id, _reason(error)) from error
        return rows[0] if rows else None

    def _settle(self, group: list[_Entry], error: BaseException | None) -> None:
        for step, work in group:
            if step == "finish" or (step == "forget" and self._open.get(work.item_id) is work):
                self._open.pop(work.item_id, None)
            done = work.done
            if step != "finish" or done is None or done.done():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(StoreError(work.item_id, _reason(error)))

    # ---- the writer's thread ----

    def _write(self, group: list[_Entry]) -> None:
        assert self._writing is not None  # noqa: S101 - the thread ends before it is closed
        with _transaction(self._writing) as connection:
            for steps in _apart(self._ripe(group)):
                self._write_steps(connection, steps)

    def _ripe(self, group: list[_Entry]) -> Iterator[_Entry]:
        """Give the steps that are to be written now.

        That an item is in work is written when it has been for a while, or with what became of it:
        most calls are over soon, and one row is cheaper than a row that is changed. An item of
        which the file does not know yet that it is in work is as good as pending.
        """
        young = self._young
        for step, work in group:
            if step == "start":
                young[work.number] = work
                continue
            if young.pop(work.number, None) is not None:
                yield "start", work
            yield step, work
        ripe_at = self._time() - RIPE_SECONDS
        ripe = list(takewhile(lambda work: work.started_at < ripe_at, young.values()))
        for work in ripe:
            del young[work.number]
            yield "start", work

    def _write_steps(
        self, connection: sqlite3.Connection, steps: Mapping[str, list[_Work]]
    ) -> None:
        """Write steps of different items, all of one kind together."""
        session, now = self._session, datetime.now(UTC).timestamp()
        started, ended = steps.get("start", []), steps.get("finish", [])
        forgotten, both = steps.get("forget", []), steps.get("start and finish", [])
        again = [work for work in (*started, *both) if not work.is_new]
        fresh = [_fresh(work, session, None) for work in started if work.is_new]
        fresh += [_fresh(work, session, now) for work in both if work.is_new]
        known = [*ended, *(work for work in both if not work.is_new)]
        ended = [*ended, *both]
        for name, rows in (
            ("reopen", [(work.number,) for work in again if work.is_reopened]),
            ("start", [(work.number, work.content, session) for work in again]),
            ("insert", fresh),
            ("forget", [(work.number,) for work in forgotten]),
            ("finish", [_end(work, session, now) for work in known]),
            ("payload", [work.payload for work in ended]),
            ("try", [one for work in (*ended, *forgotten) for one in work.tries]),
        ):
            _run(connection, name, rows)

    def _try(self, number: int, attempt: Attempt) -> tuple[Any, ...]:
        usage = None if attempt.usage is None else plain_usage(attempt.usage)
        return (
            number,
            self._session,
            attempt.number,
            attempt.started_at + self._clock_offset,
            attempt.seconds,
            None if usage is None else usage.get("input_tokens"),
            None if usage is None else usage.get("output_tokens"),
            None if usage is None else to_json(usage),
            attempt.error_code,
            clean(attempt.error),
            attempt.change,
        )

    def _exclusively(self, change: Callable[[sqlite3.Connection], object]) -> Any:
        """Change the file from another thread than the writer's, between two of its groups.

        Raises:
            LedgerError: It could not be saved; nothing changed.
        """
        if self._writing is None or self._writer is None:
            raise LedgerError(str(self.path), "it was opened for reading only, or closed")
        try:
            with self._writer.pause(), _transaction(self._writing) as connection:
                return change(connection)
        except sqlite3.Error as error:
            raise LedgerError(str(self.path), _reason(error)) from error

    # ---- reading ----

    def manifest(self) -> dict[str, Any]:
        """Return what is noted of the run as a whole; empty for a new one."""
        return {name: from_json(value) for name, value in self._rows("manifest")}

    def note(self, facts: Mapping[str, Any], /) -> None:
        """Add to the manifest.

        Raises:
            LedgerError: It could not be saved.
        """
        rows = [(name, to_json(value)) for name, value in facts.items()]
        self._exclusively(lambda one: one.executemany(self._sql["note"], rows))

    def counts(self) -> dict[ItemState, int]:
        """Count the items by state; each state has an entry."""
        found = dict(self._rows("counts"))
        return {state: found.get(state, 0) for state in ItemState}

    def look_up(self, items: Iterable[tuple[str, bytes]], /) -> list[Record | None]:
        """Return, for each id and content, the result that would be kept, or None."""
        asked = list(items)
        found: list[Record | None] = [None] * len(asked)
        keys = [_key(item_id) for item_id, _ in asked]
        plain = [key if isinstance(key, str) else None for key in keys]
        for row in self._rows("look_up", (json.dumps(plain),)):
            found[row[-1]] = _read_record(row)
        for index, key in enumerate(keys):
            if not isinstance(key, str):
                found[index] = self.find(asked[index][0])
        return [
            record if record and record.content == content and record.is_settled else None
            for record, (_, content) in zip(found, asked, strict=True)
        ]

    def find(self, item_id: str, /) -> Record | None:
        """Return what is known of an item."""
        row = self._row_of(item_id)
        return None if row is None else self._record(row[0])

    def records(self, *states: ItemState) -> Iterator[Record]:
        """Give all items in these states, in the order in which they were first started."""
        wanted, last = json.dumps(states), 0
        while True:
            # Page by page: a reader that stays open would keep the log of changes from being cut.
            rows = self._rows("records", (last, wanted, _ROWS_AT_ONCE))
            if not rows:
                return
            last = rows[-1][-1]
            yield from map(_read_record, rows)

    def attempts(self, item_id: str, /) -> list[Attempt]:
        """Return all attempts of an item, those of earlier runs first."""
        row = self._row_of(item_id)
        if row is None:
            return []
        return [
            Attempt(number, started_at, seconds, from_json(usage), error_code, error, change=change)
            for number, started_at, seconds, usage, error_code, error, change in self._rows(
                "tries", (row[0],)
            )
        ]

    def retry(self, codes: Collection[str] | None = None, content: bytes | None = None) -> int:
        """Make failed items pending, so that they are tried again.

        Raises:
            LedgerError: It could not be saved; nothing changed.
        """

        def change(connection: sqlite3.Connection) -> int:
            if codes is None:
                return connection.execute(self._sql["retry_all"], (content,)).rowcount
            wanted = json.dumps(sorted(codes))
            return connection.execute(self._sql["retry_some"], (content, wanted)).rowcount

        return int(self._exclusively(change))

    def problems(self) -> list[str]:
        """Return what SQLite itself and our own rules find wrong with the file."""
        try:
            found = [str(row[0]) for row in self._query("PRAGMA integrity_check(20)")]
        except LedgerError as error:
            return [error.reason]
        return [] if found == ["ok"] else found

    def _record(self, number: int) -> Record:
        return _read_record(self._rows("record", (number,))[0])

    def _number(self, name: str) -> int:
        return int(self._rows(name)[0][0])

    def _rows(self, name: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._query(self._sql[name], values)

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._reading.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(str(self.path), _reason(error)) from error


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise


def _run(connection: sqlite3.Connection, name: str, rows: list[tuple[Any, ...]]) -> None:
    """Run a statement over rows, as many at a time as fit."""
    first = 0
    for size in _ROWS_PER_STATEMENT:
        while len(rows) - first >= size:
            values = list(chain.from_iterable(rows[first : first + size]))
            connection.execute(many(name, size), values)
            first += size


def _apart(group: Iterable[_Entry]) -> Iterator[dict[str, list[_Work]]]:
    """Part a group into lots in which no item takes two steps, except that it starts and ends.

    Then the steps of one lot can be written kind by kind, whatever their order was.
    """
    steps: dict[int, str] = {}
    works: dict[int, _Work] = {}
    for step, work in group:
        before = steps.get(work.number)
        if before == "start" and step == "finish":
            steps[work.number] = "start and finish"
            continue
        if before is not None:
            yield _by_kind(steps, works)
            steps, works = {}, {}
        steps[work.number], works[work.number] = step, work
    yield _by_kind(steps, works)


def _by_kind(steps: dict[int, str], works: dict[int, _Work]) -> dict[str, list[_Work]]:
    found: dict[str, list[_Work]] = {}
    for number, step in steps.items():
        found.setdefault(step, []).append(works[number])
    return found


def _fresh(work: _Work, session: int, now: float | None) -> tuple[Any, ...]:
    """Return the row of a new item: in work, or ended by ``now``."""
    result = work.result if now is not None else None
    return (
        work.number,
        _key(work.item_id),
        work.content,
        ItemState.RUNNING if result is None else _state(result),
        session,
        None if result is None else clean(result.error_code),
        0 if result is None else result.attempts,
        now,
    )


def _state(result: WorkItemResult[Any, Any]) -> ItemState:
    return ItemState.DONE if result.success else ItemState.FAILED


def _end(work: _Work, session: int, now: float) -> tuple[Any, ...]:
    result = work.result
    assert result is not None  # noqa: S101 - `finish` has set it
    return (
        work.number,
        _state(result),
        session,
        clean(result.error_code),
        result.attempts,
        now,
    )


def _payload(number: int, result: WorkItemResult[Any, Any]) -> tuple[Any, ...]:
    ratings = result.gemini_safety_ratings
    return (
        number,
        to_json(result.output) if result.success else None,
        None if result.success else clean(result.error or "failed"),
        clean(result.model),
        to_json(plain_usage(result.token_usage)),
        result.duration_seconds,
        None if ratings is None else to_json(ratings),
        result.response_body,
    )


def _read_record(row: tuple[Any, ...]) -> Record:
    item_id, content, state, output, error, code, model, usage, attempts, seconds, ratings, body = (
        row[:12]
    )
    if state not in {ItemState.DONE, ItemState.FAILED}:  # what it was before does not count
        return Record(item_id=_id(item_id), content=content, state=ItemState(state))
    return Record(
        item_id=_id(item_id),
        content=content,
        state=ItemState(state),
        output=from_json(output),
        error=error,
        error_code=code,
        model=model,
        usage=from_json(usage) or {},
        attempts=attempts,
        seconds=seconds or 0.0,
        safety_ratings=from_json(ratings),
        response_body=body,
    )


def _key(item_id: str) -> str | bytes:
    """Return what stands for an id in the file: itself, if UTF-8 can hold it."""
    if item_id.isascii():
        return item_id
    try:
        item_id.encode()
    except UnicodeEncodeError:
        return item_id.encode("utf-8", "surrogatepass")
    return item_id


def _id(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.decode("utf-8", "surrogatepass")


def _not_ours(version: int) -> str:
    if version > max(migrations()):
        return f"a later version of batch-llm made it (schema {version}); update batch-llm"
    return "it is no ledger"


def _reason(error: BaseException) -> str:
    """Say in people's words why SQLite, or the system, refused."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    for words, reason in _REASONS.items():
        if words in text:
            return f"{reason} ({text})"
    return text


_REASONS = {
    "is full": "the disk is full; what was saved before is safe",
    "readonly": "it cannot be written",
    "unable to open": "it cannot be opened; is its folder there, and writable?",
    "is locked": "another program holds it; close that, and go on",
    "malformed": "the file is damaged; `batch-llm verify` says more",
    "not a database": "it is no ledger, or its beginning is damaged",
    "disk I/O": "the disk reports an error",
}
