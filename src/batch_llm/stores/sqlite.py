"""The ledger in one SQLite file.

Reading happens in the event loop's thread: single rows by an index, some microseconds each.
Writing happens in a thread of its own, many results in one transaction (``ledger_writer``). The
statements stand in ``sql/``; what they mean for a person with an SQLite tool, in its views.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import DuplicateItemError, LedgerError, StoreError
from batch_llm.stores.base import Attempt, ItemState, Spent, is_settled
from batch_llm.stores.bookings import book_left, booked_under, spent_in_all, spent_so_far
from batch_llm.stores.call_notes import CallNotes, NotedCall, notes_path
from batch_llm.stores.cut_off import cut_off_calls, note_known_inputs
from batch_llm.stores.ledger_changes import LedgerChanges
from batch_llm.stores.ledger_file import LedgerFile
from batch_llm.stores.ledger_groups import MOST_TAKEN, Group, RowMaker, Work
from batch_llm.stores.ledger_rows import reused_row
from batch_llm.stores.seen_ids import SeenIds
from batch_llm.stores.values import (
    id_of,
    key_of,
    reused,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Self

    from batch_llm.base import WorkItemResult
    from batch_llm.core.prices import ModelUsage
    from batch_llm.stores.call_notes import BilledAs
    from batch_llm.stores.cut_off import CutOff
    from batch_llm.stores.ledger_writer import LedgerWriter
    from batch_llm.strategies.caps import Size

LINGER_SECONDS = 0.004
#: How often is looked at who has been in work for long, and for how many looks that is: a second.
_LOOK_SECONDS, _RIPE_LOOKS = 0.25, 4
#: How long a write waits for another program that has the file locked, or for room on the disk.
PATIENCE_SECONDS = 30.0
#: Ids read in one turn of the event loop.
_IDS_AT_A_TURN = 1000


class SqliteLedger(LedgerChanges):
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
        file = LedgerFile(path, read_only=read_only, patience_seconds=patience_seconds)
        try:
            self._session = file.number("last_session")
        except BaseException:
            file.close()
            raise
        super().__init__(
            file,
            lambda group: self._maker.make_rows(group),  # noqa: PLW0108 - one for each session
            self._settle,
            linger_seconds=linger_seconds,
            patience_seconds=patience_seconds,
        )
        self._is_in_run = self._keeps_ids = False
        self._next_number = 1
        self._open: dict[str, Work] = {}
        self._reused_ids: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        #: The writer, within a run.
        self._recording: LedgerWriter | None = None
        self._clock_offset = 0.0
        self._looks = 0
        self._look: asyncio.TimerHandle | None = None
        self._seen: SeenIds | None = None
        self._has_results = False
        #: What earlier sessions have spent, and the calls of it that crashes have cut off.
        self._spent_before: list[ModelUsage] = []
        self._cut_off: CutOff | None = None
        self._maker = RowMaker(self._session, 0.0, {}, _now)
        self._notes: CallNotes | None = None
        #: Calls that are noted and have not ended.
        self._under_way = 0

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
        self._file.close()

    def _put_away_notes(self, *, is_all_saved: bool) -> None:
        if self._notes is None:
            return
        self._notes.close()
        self._notes = None
        if is_all_saved and not self._under_way:
            with contextlib.suppress(OSError):
                notes_path(self.path).unlink()

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
        now = _now()
        self._clock_offset = now - loop.time()
        try:
            await asyncio.wrap_future(self._in_writers_thread(lambda one: self._begin(one, now)))
            if self._seen is None:
                self._seen = await self._all_ids()
        except BaseException as error:
            self._is_in_run = False
            if isinstance(error, sqlite3.Error):
                raise self._file.error(error) from error
            raise
        if self._notes is not None:
            self._notes.begin(self._session)
        self._writer.attach(loop)
        self._keeps_ids = keeps_ids
        self._open.clear()
        self._reused_ids.clear()
        self._under_way = 0
        self._ahead.forget()
        self._look = loop.call_later(_LOOK_SECONDS, self._write_ripe)
        self._recording = self._writer

    def _begin(self, connection: sqlite3.Connection, now: float) -> None:
        """Take stock, in the writer's thread: what an earlier process has left, what it spent."""
        if self._notes is not None:
            self._notes.close()  # what is told of calls of the run before is not of this one
            self._notes = None
        with contextlib.suppress(OSError, ValueError):  # a file system that maps no files
            self._notes = CallNotes(notes_path(self.path))
        session = self._session + 1
        if self._notes is not None:
            book_left(connection, self._notes)
        note_known_inputs(connection)
        connection.execute(self._sql["begin_session"], (session, now))
        connection.execute(self._sql["recover"])
        self._next_number = 1 + connection.execute(self._sql["last_number"]).fetchone()[0]
        self._has_results = connection.execute(self._sql["has_results"]).fetchone()[0] > 0
        self._maker = RowMaker(session, self._clock_offset, booked_under(connection), _now)
        self._spent_before = spent_so_far(connection)
        self._cut_off = cut_off_calls(connection)
        self._session = session

    async def _all_ids(self) -> SeenIds:
        seen = SeenIds()
        cursor = self._file.reading.execute(self._sql["ids"])
        while rows := cursor.fetchmany(_IDS_AT_A_TURN):
            for (key,) in rows:
                seen.add(id_of(key))
            await asyncio.sleep(0)
        return seen

    def end_run(self) -> None:
        """Note when the run ended, as far as that can be saved."""
        if not self._is_in_run or self._writer is None:
            return
        self._is_in_run, self._recording = False, None
        if self._look is not None:
            self._look.cancel()
        ended = (_now(), self._session)
        # Whoever waited for a result was told, and nobody waits for this.
        self._in_writers_thread(lambda one: one.execute(self._sql["end_session"], ended))

    def start(self, item_id: str, content: bytes, /) -> WorkItemResult[Any, Any] | None:
        """Note that an item is in work, unless the file has its result for this content.

        Raises:
            DuplicateItemError: An item of this id is in work or has a result in this run.
            StoreError: The ledger cannot be written or read any more.
        """
        writer, seen = self._recording, self._seen
        if writer is None or seen is None or writer.error is not None:
            raise self._unusable(item_id)
        # Looking into the file costs ten times the rest, right after another thread wrote to it.
        if seen.add(item_id):
            return self._start_known(writer, item_id, content)
        number = self._next_number
        self._next_number = number + 1
        self._open[item_id] = Work(number, item_id, content, self._looks, True)
        return None

    def _start_known(
        self, writer: LedgerWriter, item_id: str, content: bytes
    ) -> WorkItemResult[Any, Any] | None:
        known = self._open.get(item_id)
        if (known is not None and known.is_open) or item_id in self._reused_ids:
            raise DuplicateItemError(item_id)
        row = self._row_of(item_id) if known is None else None
        if known is not None:  # given up a moment ago; the file may not know yet
            if known.is_finished:
                raise DuplicateItemError(item_id)
            writer.hand_over()
            work = Work(known.number, item_id, content, self._looks)
        elif row is None:
            work = Work(self._next_number, item_id, content, self._looks, True)
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
            work = Work(number, item_id, content, self._looks, False, is_ended)
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
        with self._file.naming_damage():
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
                found.append(reused_row(item_id, row))
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
        self._looks += 1
        ripe, is_any = self._looks - _RIPE_LOOKS, False
        for work in self._open.values():
            if work.began_at > ripe:
                break  # they are in the order of their start
            if work.is_open and not work.is_written:
                self._maker.start(writer.open, work)
                is_any = True
        if is_any:
            writer.added()

    def forget(self, item_id: str, history: Sequence[Attempt], /) -> None:
        """Make an item pending again, and book the attempts that were made."""
        work, writer = self._open.get(item_id), self._writer
        if work is None or not work.is_open or writer is None:
            return
        work.is_open = False
        self._maker.forget(writer.open, work, history)
        self._learn(history)
        writer.added()

    def finish(self, result: WorkItemResult[Any, Any], history: Sequence[Attempt], /) -> Work:
        """Save an item's only result.

        Raises:
            StoreError: The item is not in work. Nothing changed. What is returned raises it too,
                when the result cannot be written.
        """
        writer, work = self._recording, self._open.get(result.item_id)
        if writer is None:
            raise self._unusable(result.item_id)
        if work is None or not work.is_open:
            raise StoreError(result.item_id, "it is not in work")
        work.is_open, work.is_finished = False, True
        work.group = group = writer.open
        group.results += 1
        taken = group.taken
        # What is added to the history from now on is not of the result.
        taken += (work, result, history[0] if len(history) == 1 else tuple(history))
        if self._cut_off is not None:
            self._cut_off.learn_input(work.number, work.content, history)
            self._learn(history)
        if group.results == 1:
            writer.added()
        elif len(taken) >= MOST_TAKEN:
            self._maker.make_rows(group)
            writer.added()
        return work

    def _unusable(self, item_id: str) -> StoreError:
        if self._writer is not None and self._writer.error is not None:
            return self._save_error(self._writer.error, item_id)
        return StoreError(item_id, "the ledger is in no run")

    def _settle(self, group: Group) -> None:
        found = self._open
        for work in group.works:
            if found.get(work.item_id) is work:
                del found[work.item_id]
        if self._notes is not None and group.error is None:
            self._notes.let_go(group.slots)

    # ---- calls under way ----

    def call_begins(
        self,
        item_id: str,
        attempt: int,
        started_at: float,
        billed_as: BilledAs,
        size: Size,
        is_held: bool,  # noqa: FBT001 - for every call
        /,
    ) -> NotedCall | None:
        """Note that a call is about to be sent: what is noted outlives the process."""
        notes, work = self._notes, self._open.get(item_id)
        if notes is None or work is None or self._recording is None:
            return None
        key = item_id.encode("utf-8", "surrogatepass")
        at = started_at + self._clock_offset
        noted = notes.note(
            work.number, key, work.content, attempt, billed_as, at, size, is_held=is_held
        )
        self._under_way += noted is not None
        return noted

    def call_ended(self, item_id: str, call: NotedCall, attempt: Attempt | None, /) -> None:
        """Note how a call ended, until it is booked with its item; alone, if that is finished."""
        notes = self._notes
        if call.is_over or call.notes is not notes or self._writer is None:
            return
        self._under_way -= 1
        if attempt is None:
            call.is_over = True
            notes.let_go((call.at,))
            return
        if attempt.usage and attempt.usage is not call.usage:
            call.took(attempt.usage)
        call.is_over = True
        work = self._open.get(item_id)
        if work is not None and work.is_open and work.number == call.number:
            if work.slot is None:
                work.slot = call.at
            else:
                work.slots += (call.at,)
            return
        group = self._writer.open
        self._maker.book(group, call.number, attempt)
        self._learn((attempt,))
        group.slots.append(call.at)
        self._writer.added()

    def _learn(self, history: Iterable[Attempt]) -> None:
        if self._cut_off is not None:
            for attempt in history:
                self._cut_off.learn(attempt)

    def spent(self) -> Spent:
        """Return what earlier sessions of the run have spent, as is known by now; within a run."""
        return spent_in_all(self._spent_before, self._cut_off)


def _now() -> float:
    return datetime.now(UTC).timestamp()
