"""The ledger in one SQLite file.

Reading happens in the event loop's thread: single rows by an index, some microseconds each.
Writing happens in a thread of its own, many results in one transaction (``ledger_writer``). The
statements stand in ``sql/``; what they mean for a person with an SQLite tool, in its views.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_llm.base import WorkItemResult
from batch_llm.core.usage import no_usage
from batch_llm.exceptions import DuplicateItemError, LedgerError, StoreError
from batch_llm.stores.base import Attempt, ItemState, Record, Spent, is_settled
from batch_llm.stores.bookings import book_left, booked_under, spent_so_far
from batch_llm.stores.call_notes import CallNotes
from batch_llm.stores.file_lock import FileLock
from batch_llm.stores.ledger_writer import KINDS, Group, GroupSaving, LedgerWriter
from batch_llm.stores.look_ahead import LookAhead
from batch_llm.stores.seen_ids import SeenIds
from batch_llm.stores.sqlite_files import REASONS, reason_of, transaction
from batch_llm.stores.statements import many, migrations, statements
from batch_llm.stores.values import (
    clean,
    from_json,
    further_usage,
    id_of,
    key_of,
    reused,
    to_json,
    usage_from,
    usage_to_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from typing import Self

    from batch_llm.stores.call_notes import BilledAs
    from batch_llm.strategies.caps import Size

LINGER_SECONDS = 0.004
#: An item that is in work for longer is written down as such; how often that is looked at.
RIPE_SECONDS, _LOOK_SECONDS = 1.0, 0.25
#: How long a write waits for another program that has the file locked, or for room on the disk.
PATIENCE_SECONDS = 30.0
_PAGE_BYTES = 16_384
#: Rows in one statement at the most.
_MOST_ROWS = 512
_ROWS_AT_ONCE = 500
#: Ids read in one turn of the event loop.
_IDS_AT_A_TURN = 1000


class Work:
    """An item in work, from its start until what became of it is in the file."""

    __slots__ = (
        "content", "is_finished", "is_new", "is_open", "is_reopened", "is_written", "item_id",
        "number", "slot", "slots", "started_at",
    )  # fmt: skip

    def __init__(self, number: int, item_id: str, content: bytes, started_at: float) -> None:
        self.number = number
        self.item_id = item_id
        self.content = content
        self.started_at = started_at
        #: The file has no row of it; it has one with a result; it knows that the item is in work.
        self.is_new = self.is_reopened = self.is_written = False
        #: Neither given up nor finished; finished.
        self.is_open, self.is_finished = True, False
        #: Notes of its calls that have ended: the first one, and the others.
        self.slot: int | None = None
        self.slots: tuple[int, ...] = ()


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
        self._writer: LedgerWriter | None = None
        self._writing: sqlite3.Connection | None = None
        try:
            if not read_only:
                self._lock = FileLock(self.path.resolve())
                self._writing = self._connect_to_write()
            self._reading = self._connect_to_read()
            self._session = self._number("last_session")
        except (OSError, sqlite3.Error) as error:
            self._let_go()
            raise LedgerError(str(path), reason_of(error, _REASONS)) from error
        except BaseException:
            self._let_go()
            raise
        if self._writing is not None:
            self._writer = LedgerWriter(
                self._write,
                self._settle,
                linger_seconds=linger_seconds,
                can_pass=_is_for_want_of_room,
                error_of=self._save_error,
                patience_seconds=patience_seconds,
            )
        self._ahead = LookAhead(self._rows)
        self._is_in_run = self._keeps_ids = False
        self._next_number = 1
        self._open: dict[str, Work] = {}
        self._reused_ids: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clock_offset = 0.0
        self._time: Callable[[], float] = float
        self._look: asyncio.TimerHandle | None = None
        self._seen: SeenIds | None = None
        self._has_results = False
        self._spent = Spent([], [])
        self._billed_as: dict[BilledAs, int] = {}
        self._notes: CallNotes | None = None
        #: The items, by number, of calls that are noted and under way, by their notes.
        self._under_way: dict[int, int] = {}

    # A connection is used by one thread: the writing one by the writer's, from when that starts.

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Save what was accepted, and let go of the file. A second time it does nothing."""
        if self._writer is not None:
            self.end_run()
            self._writer.close()
            self._put_away_notes(is_all_saved=not self._writer.unsaved_results)
            self._writer = None
        self._let_go()

    def _put_away_notes(self, *, is_all_saved: bool) -> None:
        if self._notes is None:
            return
        self._notes.close()
        self._notes = None
        if is_all_saved and not self._under_way:
            with contextlib.suppress(OSError):
                self._notes_path.unlink()

    @property
    def _notes_path(self) -> Path:
        return Path(f"{self.path}-calls")

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

    async def begin_run(self, *, keeps_ids: bool) -> None:
        """Get ready for a run in the current event loop, without holding it up.

        Raises:
            LedgerError: Another run uses the ledger, or it cannot be written.
        """
        if self._is_in_run or self._writer is None:
            raise LedgerError(str(self.path), "it is in a run already, or was closed")
        self._loop = loop = asyncio.get_running_loop()
        self._is_in_run = True  # nobody else begins while we wait
        now = datetime.now(UTC).timestamp()
        self._clock_offset, self._time = now - loop.time(), loop.time
        try:
            await asyncio.wrap_future(self._in_writers_thread(lambda one: self._begin(one, now)))
            if self._seen is None:
                self._seen = await self._all_ids()
        except BaseException as error:
            self._is_in_run = False
            if isinstance(error, sqlite3.Error):
                raise LedgerError(str(self.path), reason_of(error, _REASONS)) from error
            raise
        if self._notes is not None:
            self._notes.begin(self._session)
        self._writer.attach(loop)
        self._keeps_ids = keeps_ids
        self._open.clear()
        self._reused_ids.clear()
        self._under_way.clear()
        self._ahead.forget()
        self._look = loop.call_later(_LOOK_SECONDS, self._write_ripe)

    def _begin(self, connection: sqlite3.Connection, now: float) -> None:
        """Take stock, in the writer's thread: what an earlier process has left, what it spent."""
        if self._notes is None:
            with contextlib.suppress(OSError, ValueError):  # a file system that maps no files
                self._notes = CallNotes(self._notes_path)
        session = self._session + 1
        if self._notes is not None:
            book_left(connection, self._notes)
        connection.execute(self._sql["begin_session"], (session, now))
        connection.execute(self._sql["recover"])
        self._next_number = 1 + connection.execute(self._sql["last_number"]).fetchone()[0]
        self._has_results = connection.execute(self._sql["has_results"]).fetchone()[0] > 0
        self._billed_as = booked_under(connection)
        self._spent = spent_so_far(connection)
        self._session = session

    async def _all_ids(self) -> SeenIds:
        seen = SeenIds()
        cursor = self._reading.execute(self._sql["ids"])
        while rows := cursor.fetchmany(_IDS_AT_A_TURN):
            for (key,) in rows:
                seen.add(id_of(key))
            await asyncio.sleep(0)
        return seen

    def end_run(self) -> None:
        """Note when the run ended, as far as that can be saved."""
        if not self._is_in_run or self._writer is None:
            return
        self._is_in_run = False
        if self._look is not None:
            self._look.cancel()
        ended = (datetime.now(UTC).timestamp(), self._session)
        # Whoever waited for a result was told, and nobody waits for this.
        self._in_writers_thread(lambda one: one.execute(self._sql["end_session"], ended))

    def start(self, item_id: str, content: bytes, /) -> WorkItemResult[Any, Any] | None:
        """Note that an item is in work, unless the file has its result for this content.

        Raises:
            DuplicateItemError: An item of this id is in work or has a result in this run.
            StoreError: The ledger cannot be written or read any more.
        """
        writer = self._writer
        if writer is None or not self._is_in_run or writer.error is not None:
            raise self._unusable(item_id)
        assert self._seen is not None  # noqa: S101 - the run has begun
        known = self._open.get(item_id)
        if (known is not None and known.is_open) or item_id in self._reused_ids:
            raise DuplicateItemError(item_id)
        # Looking into the file costs ten times the rest, right after another thread wrote to it.
        may_be_known = self._seen.add(item_id)
        row = self._row_of(item_id) if known is None and may_be_known else None
        if known is not None:  # given up a moment ago; the file may not know yet
            if known.is_finished:
                raise DuplicateItemError(item_id)
            writer.hand_over()
            work = Work(known.number, item_id, content, self._time())
        elif row is None:
            work = Work(self._next_number, item_id, content, self._time())
            work.is_new = True
            self._next_number += 1
        else:
            number, content_before, state, session, error_code, attempts = row
            is_ended = state in {ItemState.DONE, ItemState.FAILED}
            if is_ended and session == self._session:
                raise DuplicateItemError(item_id)
            if content_before == content and is_settled(state, error_code, attempts):
                if self._keeps_ids:
                    self._reused_ids.add(item_id)
                return reused(self._record(number))
            work = Work(number, item_id, content, self._time())
            work.is_reopened = is_ended
        self._open[item_id] = work
        return None

    @property
    def has_results(self) -> bool:
        """Whether there are any, of earlier sessions; within a run."""
        return self._has_results

    def may_have(self, item_id: str, /) -> bool:
        """Tell whether the file may know an item; False is certain."""
        return self._seen is None or self._seen.has(item_id)

    def kept(self, items: Sequence[tuple[str, bytes]], /) -> list[WorkItemResult[Any, Any] | None]:
        """Return for each id and content the kept result, as ``start`` would, or None."""
        rows = self._ahead.rows_of([key_of(item_id) for item_id, _ in items])
        found: list[WorkItemResult[Any, Any] | None] = []
        for (item_id, content), row in zip(items, rows, strict=True):
            if (
                row is None
                or row[1] != content
                or row[13] == self._session
                or not is_settled(row[2], row[5], row[8])
                or item_id in self._open
                or item_id in self._reused_ids
            ):
                found.append(None)
                continue
            if self._keeps_ids:
                self._reused_ids.add(item_id)
            found.append(_reused_row(item_id, row))
        return found

    def _write_ripe(self) -> None:
        """Write down which items have been in work for a while.

        Most calls are over soon, and one row is cheaper than a row that is changed. An item of
        which the file does not know yet that it is in work is as good as pending.
        """
        writer = self._writer
        if writer is None or self._loop is None or not self._is_in_run:
            return
        self._look = self._loop.call_later(_LOOK_SECONDS, self._write_ripe)
        ripe_at = self._time() - RIPE_SECONDS
        is_any = False
        for work in self._open.values():
            if work.started_at > ripe_at:
                break  # they are in the order of their start
            if work.is_open and not work.is_written:
                self._write_start(writer.open, work)
                is_any = True
        if is_any:
            writer.added()

    def _write_start(self, group: Group, work: Work) -> None:
        work.is_written = True
        if work.is_new:
            key, running = key_of(work.item_id), ItemState.RUNNING
            group.insert += (
                work.number, key, work.content, running, self._session, None, 0, None
            )  # fmt: skip
            return
        if work.is_reopened:
            group.reopen.append(work.number)
        group.start += (work.number, work.content, self._session)

    def forget(self, item_id: str, history: Sequence[Attempt], /) -> None:
        """Make an item pending again, and book the attempts that were made."""
        work, writer = self._open.get(item_id), self._writer
        if work is None or not work.is_open or writer is None:
            return
        work.is_open = False
        group = writer.open
        if not work.is_written:
            self._write_start(group, work)
        group.forget.append(work.number)
        self._conclude(writer, work, history)

    def finish(
        self, result: WorkItemResult[Any, Any], history: Sequence[Attempt], /
    ) -> GroupSaving:
        """Save an item's only result.

        Raises:
            StoreError: The item is not in work. Nothing changed. What is returned raises it too,
                when the result cannot be written.
        """
        writer = self._writer
        if writer is None or not self._is_in_run or self._loop is None:
            raise self._unusable(result.item_id)
        item_id = result.item_id
        work = self._open.get(item_id)
        if work is None or not work.is_open:
            raise StoreError(item_id, "it is not in work")
        success, ratings = result.success, result.gemini_safety_ratings
        try:
            output = to_json(result.output) if success else None
            rated = None if ratings is None else to_json(ratings)
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(item_id, f"{error}; return what JSON can hold") from error
        number, session = work.number, self._session
        code = None if result.error_code is None else clean(result.error_code)
        state = ItemState.DONE if success else ItemState.FAILED
        now = self._time() + self._clock_offset
        group = writer.open
        if work.is_new and not work.is_written:
            group.insert += (
                number, key_of(item_id), work.content, state, session, code, result.attempts, now
            )  # fmt: skip
        else:
            if not work.is_written:
                self._write_start(group, work)
            group.finish += (number, state, session, code, result.attempts, now)
        usage_json = usage_to_json(result.token_usage)
        group.payload += (
            number, output, None if success else clean(result.error or "failed"),
            clean(result.model), usage_json, result.duration_seconds, rated, result.response_body,
        )  # fmt: skip
        work.is_open, work.is_finished = False, True
        group.results += 1
        self._conclude(writer, work, history, result.token_usage, usage_json)
        return GroupSaving(group, item_id, writer)

    def _conclude(
        self,
        writer: LedgerWriter,
        work: Work,
        history: Sequence[Attempt],
        usage: Mapping[str, Any] | None = None,
        usage_json: str | None = None,
    ) -> None:
        group = writer.open
        for attempt in history:
            self._book(group, work.number, attempt, usage, usage_json)
        group.works.append(work)
        if work.slot is not None:
            group.slots.append(work.slot)
            if work.slots:
                group.slots += work.slots
        writer.added()

    def _book(
        self,
        group: Group,
        number: int,
        attempt: Attempt,
        known: Mapping[str, Any] | None = None,
        known_json: str | None = None,
    ) -> None:
        usage, billed_as = attempt.usage, attempt.billed_as
        sent = got = further = None
        if usage is not None:
            sent, got, further = further_usage(usage, known, known_json)
        booked_under = None
        if billed_as is not None:
            booked_under = self._billed_as.get(billed_as)
            if booked_under is None:
                booked_under = self._billed_as[billed_as] = len(self._billed_as) + 1
                group.names += (booked_under, *billed_as)
        group.tries += (
            number, self._session, attempt.number, attempt.started_at + self._clock_offset,
            attempt.seconds, sent, got, further, attempt.error_code,
            None if attempt.error is None else clean(attempt.error), booked_under, attempt.change,
        )  # fmt: skip

    def _unusable(self, item_id: str) -> StoreError:
        if self._writer is not None and self._writer.error is not None:
            return self._save_error(self._writer.error, item_id)
        return StoreError(item_id, "the ledger is in no run")

    def _save_error(self, error: BaseException, item_id: str) -> StoreError:
        reason = reason_of(error, _REASONS)
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

    def _row_of(self, item_id: str) -> tuple[Any, ...] | None:
        try:
            rows = self._reading.execute(self._sql["find"], (key_of(item_id),)).fetchall()
        except sqlite3.Error as error:
            raise StoreError(item_id, reason_of(error, _REASONS)) from error
        return rows[0] if rows else None

    def _settle(self, group: Group) -> None:
        found = self._open
        for work in group.works:
            if found.get(work.item_id) is work:
                del found[work.item_id]
        if self._notes is not None and group.error is None:
            for slot in group.slots:
                self._notes.let_go(slot)

    # ---- calls under way ----

    def call_begins(
        self,
        item_id: str,
        attempt: int,
        started_at: float,
        billed_as: BilledAs,
        size: Size,
        /,
    ) -> int | None:
        """Note that a call is about to be sent: what is noted outlives the process."""
        notes, work = self._notes, self._open.get(item_id)
        if notes is None or work is None or not self._is_in_run:
            return None
        key = item_id.encode("utf-8", "surrogatepass")
        at = started_at + self._clock_offset
        slot = notes.note(work.number, key, work.content, attempt, billed_as, at, size)
        self._under_way[slot] = work.number
        return slot

    def call_ended(self, item_id: str, token: int, attempt: Attempt | None, /) -> None:
        """Note how a call ended, until it is booked with its item; alone, if that is finished."""
        number = self._under_way.pop(token, None)
        if self._notes is None or self._writer is None or number is None:
            return
        if attempt is None:
            self._notes.let_go(token)
            return
        if attempt.usage:
            self._notes.tell(token, attempt.usage)
        work = self._open.get(item_id)
        if work is not None and work.is_open and work.number == number:
            if work.slot is None:
                work.slot = token
            else:
                work.slots += (token,)
            return
        group = self._writer.open
        self._book(group, number, attempt)
        group.slots.append(token)
        self._writer.added()

    def spent(self) -> Spent:
        """Return what was spent in earlier sessions of the run; within a run."""
        return self._spent

    # ---- the writer's thread ----

    def _write(self, group: Group) -> None:
        assert self._writing is not None  # noqa: S101 - the thread ends before it is closed
        with transaction(self._writing) as connection:
            for name, values in group.rows():
                if values:
                    _run(connection, name, values)

    def _in_writers_thread(self, change: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
        """Change the file in a transaction, after all that was added before."""
        connection, writer = self._writing, self._writer
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
            raise LedgerError(str(self.path), reason_of(error, _REASONS)) from error

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
        """Return, for each id and content, the result that would be kept, or None.

        Cheapest in the order in which the items were first started: rows are read ahead then.
        """
        asked = list(items)
        rows = self._ahead.rows_of([key_of(item_id) for item_id, _ in asked])
        return [
            _read_record(row)
            if row is not None and row[1] == content and is_settled(row[2], row[5], row[8])
            else None
            for row, (_, content) in zip(rows, asked, strict=True)
        ]

    def settled_after(self, number: int, most: int) -> list[tuple[int, bytes, bool]]:
        """Return the number, the content and whether it is done of items with a kept result.

        Args:
            number: Those with higher numbers alone, in their order.
            most: As many at the most; an empty list only where there are no more.
        """
        while rows := self._rows("settled", (number, most)):
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
        for place, number in self._rows("numbers", (json.dumps(plain),)):
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
            rows = self._rows("records", (last, wanted, _ROWS_AT_ONCE))
            if not rows:
                return
            last = rows[-1][-1]
            yield from map(_read_record, rows)

    def attempts(self, item_id: str, /) -> list[Attempt]:
        """Return all attempts of an item, those of earlier runs first."""
        row = self._row_of(item_id)
        return [] if row is None else list(map(_read_attempt, self._rows("tries", (row[0],))))

    def spent_so_far(self) -> Spent:
        """Return what all sessions of the run have spent, as far as it is booked."""
        try:
            return spent_so_far(self._reading)
        except sqlite3.Error as error:
            raise LedgerError(str(self.path), reason_of(error, _REASONS)) from error

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

        self._ahead.forget()
        return int(self._exclusively(change))

    def problems(self) -> list[str]:
        """Return what SQLite itself and our own rules find wrong with the file."""
        try:
            found = [str(row[0]) for row in self._query("PRAGMA integrity_check(20)")]
            if found == ["ok"]:
                found = [str(row[0]) for row in self._rows("damaged_texts")]
        except LedgerError as error:
            return [error.reason]
        return found

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
            raise LedgerError(str(self.path), reason_of(error, _REASONS)) from error


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
        connection.execute(many(name, size), values[first:last])
        first, count = last, count - size


def _read_record(row: tuple[Any, ...]) -> Record:
    item_id, content, state, output, error, code, model, usage, attempts, seconds, ratings, body = (
        row[:12]
    )
    if state not in {ItemState.DONE, ItemState.FAILED}:  # what it was before does not count
        return Record(item_id=id_of(item_id), content=content, state=ItemState(state))
    return Record(
        item_id=id_of(item_id),
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


def _not_ours(version: int) -> str:
    if version > max(migrations()):
        return f"a later version of batch-llm made it (schema {version}); update batch-llm"
    return "it is no ledger"


def _reused_row(item_id: str, row: tuple[Any, ...]) -> WorkItemResult[Any, Any]:
    """Return a row's result as it was; what ``reused`` makes of its record, at half the price."""
    error, ratings = row[4], row[10]
    result: WorkItemResult[Any, Any] = WorkItemResult(
        item_id,
        error is None,
        from_json(row[3]),
        error,
        None,
        from_json(row[7]) or no_usage(),
        None if ratings is None else from_json(ratings),
        row[5],
        row[8],
        row[9] or 0.0,
        row[6],
        row[11],
    )
    result.is_reused = True
    return result


def _read_attempt(row: tuple[Any, ...]) -> Attempt:
    number, started_at, seconds, sent, got, further, code, error, change, *billed_as = row
    return Attempt(
        number,
        started_at,
        seconds,
        usage_from(sent, got, further),
        code,
        error,
        None if billed_as[0] is None else (billed_as[0], billed_as[1], billed_as[2]),
        change,
    )


def _is_for_want_of_room(error: BaseException) -> bool:
    """Tell whether a write may succeed later: somebody may make room on the disk."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


_REASONS = REASONS | {
    "is full": "the disk is full; what was saved before is safe",
    "is locked": "another program holds it; close that, and go on",
    "malformed": "the file is damaged; `batch-llm verify` says more",
    "not a database": "it is no ledger, or its beginning is damaged",
}
