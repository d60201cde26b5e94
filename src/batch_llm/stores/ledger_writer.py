"""One thread that writes a ledger: what has gathered meanwhile is one transaction.

Rows are gathered in the event loop's thread, kind by kind, ready to be bound: the writing thread
runs hardly any Python of its own, so the loop hardly ever waits for the interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from batch_llm.stores.base import Saving

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from batch_llm.stores.sqlite import Work

#: A group of so many items is handed over at once: waiting would save nothing more.
_ENOUGH = 256
#: How many of those who wait go on in one turn of the event loop: others want their turn too.
_AT_A_TURN = 32
#: A group that takes longer is no reason for workers to do nothing meanwhile.
_LONG_SECONDS = 0.1
#: Between two attempts at a group for which there is no room.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 2.0

#: The kinds of rows in the order in which they are written, with their columns.
KINDS: Final = {
    "billed_as": 4,
    "reopen": 1,
    "start": 3,
    "insert": 8,
    "forget": 1,
    "finish": 6,
    "payload": 8,
    "try": 12,
}


class Group:
    """What is written in one transaction.

    No item takes two steps in one group, but that it starts and ends: then the rows can be written
    kind by kind, whatever their order was.
    """

    __slots__ = (
        "error", "finish", "forget", "insert", "is_settled", "names", "payload", "reopen",
        "results", "slots", "start", "tries", "waiting", "works",
    )  # fmt: skip

    def __init__(self) -> None:
        # One list of values for each kind, row after row.
        self.names: list[Any] = []
        self.reopen: list[Any] = []
        self.start: list[Any] = []
        self.insert: list[Any] = []
        self.forget: list[Any] = []
        self.finish: list[Any] = []
        self.payload: list[Any] = []
        self.tries: list[Any] = []
        #: The items whose last step is in here.
        self.works: list[Work] = []
        #: Notes of calls that are booked with this group.
        self.slots: list[int] = []
        self.results = 0
        #: Who waits: id, call, and what it is called with, one after the other. (Of objects that
        #: stay for a while the garbage collector has to look at each one, and here are many.)
        self.waiting: list[Any] = []
        self.is_settled = False
        self.error: BaseException | None = None

    def rows(self) -> tuple[tuple[str, list[Any]], ...]:
        """Return the values of all rows, by the names of their statements, in order."""
        return (
            ("billed_as", self.names),
            ("reopen", self.reopen),
            ("start", self.start),
            ("insert", self.insert),
            ("forget", self.forget),
            ("finish", self.finish),
            ("payload", self.payload),
            ("try", self.tries),
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not any(values for _, values in self.rows())


class GroupSaving(Saving):
    """The saving of one result, with all others of its group."""

    __slots__ = ("_group", "_item_id", "_writer")

    def __init__(self, group: Group, item_id: str, writer: LedgerWriter) -> None:
        self._group, self._item_id, self._writer = group, item_id, writer

    @property
    def takes_long(self) -> bool:
        """Whether the group before took long."""
        return self._writer.seconds > _LONG_SECONDS

    @property
    def is_stuck(self) -> bool:
        """Whether the group before waits for room."""
        return self._writer.is_stuck

    def then(self, call: Callable[..., None], /, *values: Any) -> None:
        """Have ``call`` called when it has ended. Not for one that has."""
        self._group.waiting += (self._item_id, call, values)

    def __await__(self) -> Generator[Any, None, None]:
        group = self._group
        if not group.is_settled:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def wake(_error: Exception | None) -> None:
                if not future.done():
                    future.set_result(None)

            self.then(wake)
            yield from future
        if group.error is not None:
            raise self._writer.error_of(group.error, self._item_id)


class LedgerWriter:
    """Hands groups of rows to ``write``, in order, in a thread of its own.

    All methods are for the thread of the event loop, but ``call`` and ``close``.

    Args:
        write: Writes a group whole or not at all; raises when it could not.
        settle: Called in the event loop with each group that was written, or will not be.
        linger_seconds: How long a group's first member waits for others.
        can_pass: Tells of an error whether trying again may help.
        error_of: Makes an error of writing that of one item.
        patience_seconds: For how long that is done.
    """

    def __init__(
        self,
        write: Callable[[Group], None],
        settle: Callable[[Group], None],
        *,
        linger_seconds: float,
        can_pass: Callable[[BaseException], bool],
        error_of: Callable[[BaseException, str], Exception],
        patience_seconds: float,
    ) -> None:
        self._write, self._settle, self._can_pass = write, settle, can_pass
        self.error_of = error_of
        self._linger_seconds, self._patience_seconds = linger_seconds, patience_seconds
        #: The group that is being gathered.
        self.open = Group()
        #: Why nothing can be written any more. Set by the thread, read by everyone.
        self.error: BaseException | None = None
        #: How long the last group took to write.
        self.seconds = 0.0
        #: Whether a group waits for room on the disk.
        self.is_stuck = False
        #: Groups that could not be written, in order.
        self._unsaved: list[Group] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._handed = 0
        self._is_closing = threading.Event()
        self._queue: SimpleQueue[Group | Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batch-llm-ledger", daemon=True)
        self._thread.start()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Settle in this loop from now on; nothing is being written."""
        self._loop, self._handed, self._timer = loop, 0, None

    def added(self) -> None:
        """Hear that something was added to the open group."""
        if self._handed:
            return  # it is looked at when that one is written
        if len(self.open.works) >= _ENOUGH:
            self.hand_over()
        elif self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(self._linger_seconds, self.hand_over)

    def hand_over(self) -> None:
        """Have the open group written, and open another."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.open.is_empty:
            return
        group, self.open = self.open, Group()
        self._handed += 1
        self._queue.put(group)

    def call(self, change: Callable[[], Any]) -> Future[Any]:
        """Call ``change`` in the writer's thread, after all that was added before.

        What could not be written before is tried once more first. From any thread, while no run
        adds anything, or from that of the event loop.
        """
        self.hand_over()
        found: Future[Any] = Future()

        def act() -> None:
            try:
                self._write_unsaved()
                found.set_result(change())
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
                found.set_exception(error)

        self._queue.put(act)
        return found

    @property
    def unsaved_results(self) -> int:
        """How many results were accepted and could not be written so far."""
        return sum(group.results for group in [*self._unsaved, self.open])

    def close(self) -> None:
        """Write what is left, what could not be written before too, and end the thread."""
        self._is_closing.set()
        self.hand_over()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            entry = self._queue.get()
            if entry is None:
                with contextlib.suppress(Exception):  # who waited for it was told
                    self._write_unsaved()
                return
            if not isinstance(entry, Group):
                entry()
                continue
            began = time.monotonic()  # noqa: TID251 - of this thread, which no test clock moves
            if self.error is None:
                self.error = self._write_patiently(entry)
            if self.error is not None:
                self._unsaved.append(entry)
            self.seconds = time.monotonic() - began  # noqa: TID251
            self._tell(entry, self.error)

    def _write_patiently(self, group: Group) -> BaseException | None:
        deadline = time.monotonic() + self._patience_seconds  # noqa: TID251
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                self._write(group)
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits must hear it
                is_late = time.monotonic() >= deadline  # noqa: TID251
                self.is_stuck = True
                if is_late or not self._can_pass(error) or self._is_closing.wait(pause):
                    return error
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                self.is_stuck = False
                return None

    def _write_unsaved(self) -> None:
        while self._unsaved:
            self._write(self._unsaved[0])
            del self._unsaved[0]
        self.error, self.is_stuck = None, False

    def _tell(self, group: Group, error: BaseException | None) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._written, group, error)

    def _written(self, group: Group, error: BaseException | None) -> None:
        self._handed -= 1
        group.error, group.is_settled = error, True
        self._settle(group)
        if error is not None:
            if not self._handed:
                self.hand_over()  # nothing can be written any more: it is kept and told so
        elif not (self._handed or self.open.is_empty):
            # What has gathered may be little: a transaction costs as much as a hundred rows.
            self.added()
        self._wake(group, 0)

    def _wake(self, group: Group, first: int) -> None:
        waiting, error = group.waiting, group.error
        last = first + 3 * _AT_A_TURN
        one = iter(waiting[first:last])
        for item_id, call, values in zip(one, one, one, strict=True):
            call(None if error is None else self.error_of(error, item_id), *values)
        if last < len(waiting) and self._loop is not None:
            self._loop.call_soon(self._wake, group, last)
