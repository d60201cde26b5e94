"""One thread that writes a ledger: what has gathered meanwhile is one transaction.

Rows are gathered in the event loop's thread, kind by kind, ready to be bound (``ledger_groups``):
the writing thread runs hardly any Python of its own, so the loop hardly ever waits for the
interpreter.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from batch_llm.core.text import safe
from batch_llm.stores.ledger_groups import Group, Pace

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

logger = logging.getLogger("batch_llm.ledger")

#: A group of so many items is handed over at once: waiting would save nothing more.
_ENOUGH = 256
#: So many groups at the most are one transaction.
_MOST_GROUPS = 8
#: How many of those who wait go on in one turn of the event loop: others want their turn too.
_AT_A_TURN = 32
#: Fields of one who waits.
_FIELDS = 3
#: Between two attempts at groups for which there is no room.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 2.0


class LedgerWriter:
    """Hands groups of rows to ``write``, in order, in a thread of its own.

    All methods are for the thread of the event loop, but ``call`` and ``close``.

    Args:
        prepare: Makes the rows of a group, before it is handed over.
        write: Writes groups whole or not at all; raises when it could not.
        settle: Called in the event loop with each group that was written, or will not be.
        linger_seconds: How long a group's first member waits for others.
        can_pass: Tells of an error whether trying again may help.
        error_of: Makes an error of writing that of one item.
        patience_seconds: For how long that is done.
    """

    def __init__(
        self,
        prepare: Callable[[Group], None],
        write: Callable[[Sequence[Group]], None],
        settle: Callable[[Group], None],
        *,
        linger_seconds: float,
        can_pass: Callable[[BaseException], bool],
        error_of: Callable[[BaseException, str], Exception],
        patience_seconds: float,
    ) -> None:
        self._prepare, self._write = prepare, write
        self._settle, self._can_pass = settle, can_pass
        self.pace = Pace(error_of)
        self._linger_seconds, self._patience_seconds = linger_seconds, patience_seconds
        #: The group that is being gathered.
        self.open = Group(self.pace)
        #: Why nothing can be written any more. Set by the thread, read by everyone.
        self.error: BaseException | None = None
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
        group = self.open
        if group.ends >= _ENOUGH:
            self.hand_over()
        elif self._timer is None and not self._handed and self._loop is not None:
            # What is added while another one is written is looked at when that is done.
            self._timer = self._loop.call_later(self._linger_seconds, self.hand_over)

    def hand_over(self) -> None:
        """Have the open group written, and open another."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        group = self.open
        if group.is_empty:
            return
        self._prepare(group)
        self.open = Group(self.pace)
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
        # It holds on to nothing while it waits: what the loop's thread has made is cheapest cleared
        # away there.
        goes_on = True
        while goes_on:
            goes_on = self._do(self._queue.get())

    def _do(self, entry: Group | Callable[[], None] | None) -> bool:
        """Do what was put in, groups that have gathered together; return whether more may come."""
        groups: list[Group] = []
        while isinstance(entry, Group):
            groups.append(entry)
            if len(groups) == _MOST_GROUPS or self._queue.empty():
                self._write_all(groups)
                return True
            entry = self._queue.get()  # there is one, and nobody else takes it
        if groups:
            self._write_all(groups)
        if entry is None:
            with contextlib.suppress(Exception):  # who waited for it was told
                self._write_unsaved()
            return False
        entry()
        return True

    def _write_all(self, groups: list[Group]) -> None:
        began = time.monotonic()  # noqa: TID251 - of this thread, which no test clock moves
        if self.error is None:
            self.error = self._write_patiently(groups)
        if self.error is not None:
            self._unsaved += groups
        self.pace.seconds = time.monotonic() - began  # noqa: TID251
        self._tell(groups, self.error)

    def _write_patiently(self, groups: Sequence[Group]) -> BaseException | None:
        deadline = time.monotonic() + self._patience_seconds  # noqa: TID251
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                self._write(groups)
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits must hear it
                is_late = time.monotonic() >= deadline  # noqa: TID251
                is_news, self.pace.is_stuck = not self.pace.is_stuck, True
                can_wait = not is_late and self._can_pass(error)
                if can_wait and is_news:
                    logger.warning(
                        "Results cannot be saved now (%s); trying again for %g s.",
                        safe(error),
                        self._patience_seconds,
                    )
                if not can_wait or self._is_closing.wait(pause):
                    return error
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                self.pace.is_stuck = False
                return None

    def _write_unsaved(self) -> None:
        while self._unsaved:
            self._write(self._unsaved[:1])
            del self._unsaved[0]
        self.error, self.pace.is_stuck = None, False

    def _tell(self, groups: list[Group], error: BaseException | None) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._written, groups, error)
                return
        except RuntimeError:  # the loop is closed
            pass
        for group in groups:  # nobody waits any more
            group.let_go()

    def _written(self, groups: list[Group], error: BaseException | None) -> None:
        self._handed -= len(groups)
        for group in groups:
            group.error, group.is_settled = error, True
            self._settle(group)
        if error is not None:
            if not self._handed:
                self.hand_over()  # nothing can be written any more: it is kept and told so
        elif not (self._handed or self.open.is_empty):
            # What has gathered may be little: a transaction costs as much as a hundred rows.
            self.added()
        for group in groups:
            self._wake(group, 0)

    def _wake(self, group: Group, first: int) -> None:
        waiting = group.waiting
        last = first + _FIELDS * _AT_A_TURN
        is_good = group.error is None and not group.refused
        each = iter(waiting[first:last])
        for work, call, value in zip(each, each, each, strict=True):
            call(None if is_good else group.error_of(work), value)
        if last < len(waiting) and self._loop is not None:
            self._loop.call_soon(self._wake, group, last)
        else:
            group.let_go()
