"""Timeouts for many attempts with one timer.

Each worker owns one ``Deadline`` and arms it for each attempt. Arming costs a clock reading and a
comparison; only the sweeper's single timer ever enters the event loop's heap.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from batch_llm._engine.clock import clock_of
from batch_llm.exceptions import AttemptTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import TypeVar

    T = TypeVar("T")


class CallCutError(Exception):
    """The call was cut short because nobody wants its answer any more: no failure of anybody's."""


class Deadline:
    """When the current attempt of one worker has to be over."""

    __slots__ = ("_time", "at", "is_cut", "is_expired", "sweeper", "task")

    def __init__(self, sweeper: DeadlineSweeper, task: asyncio.Task[None]) -> None:
        self.sweeper = sweeper
        self._time = sweeper.time
        self.task = task
        self.at = math.inf
        self.is_expired = False
        #: Why it expired, when it did: it was cut short, or time was up.
        self.is_cut = False

    async def bound(self, call: Awaitable[T], seconds: float, since: float | None = None) -> T:
        """Await ``call`` in the worker's own task, for ``seconds`` at the most.

        Args:
            call: What is awaited.
            seconds: How long it may take.
            since: From when on, on the loop's clock; None: from now.

        Raises:
            AttemptTimeoutError: Time was up; the call was cancelled.
            CallCutError: ``cut`` was called; the call was cancelled.
            asyncio.CancelledError: The worker itself was cancelled; passed on.
        """
        cancelling = self.task.cancelling()
        self.at = at = (self._time() if since is None else since) + seconds
        # With one timeout for all, later attempts expire later, so the timer is hardly ever moved.
        if at < self.sweeper.timer_at:
            self.sweeper.schedule(at)
        try:
            return await call
        except asyncio.CancelledError:
            # Ours only if nobody else cancelled the task in the same moment.
            if self._take_back() and self.task.cancelling() <= cancelling:
                raise (CallCutError() if self.is_cut else AttemptTimeoutError(seconds)) from None
            raise
        finally:
            self.at = math.inf
            if self.is_expired:
                self._take_back()

    def cut(self) -> None:
        """End the call that is under way now; does nothing when none is, or its time is up."""
        if self.at < math.inf:
            self.expire(is_cut=True)

    def expire(self, *, is_cut: bool) -> None:
        """Cancel the call."""
        self.at = math.inf
        self.is_expired, self.is_cut = True, is_cut
        self.task.cancel()

    def _take_back(self) -> bool:
        """Undo our cancellation, once. The call may have swallowed it and answered all the same."""
        if not self.is_expired:
            return False
        self.is_expired = False
        self.task.uncancel()
        return True


class DeadlineSweeper:
    """Cancels the attempts whose time is up, with one timer for all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.time = clock_of(loop)
        self._deadlines: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        #: When it goes off.
        self.timer_at = math.inf

    def open_deadline(self, task: asyncio.Task[None]) -> Deadline:
        """Return a new deadline for ``task``; close it when the task ends."""
        deadline = Deadline(self, task)
        self._deadlines.add(deadline)
        return deadline

    def close_deadline(self, deadline: Deadline) -> None:
        """Forget a deadline. The last one takes the timer along."""
        self._deadlines.discard(deadline)
        if not self._deadlines and self._timer is not None:
            self._timer.cancel()
            self._timer, self.timer_at = None, math.inf

    def schedule(self, at: float) -> None:
        """Look at the deadlines then, and no later."""
        if self._timer is not None:
            self._timer.cancel()
        self.timer_at = at
        self._timer = self._loop.call_at(at, self._sweep)

    def _sweep(self) -> None:
        self._timer, self.timer_at = None, math.inf
        now = self._loop.time()
        earliest = math.inf
        for deadline in self._deadlines:
            if deadline.at <= now:
                deadline.expire(is_cut=False)
            elif deadline.at < earliest:
                earliest = deadline.at
        if earliest < math.inf:
            self.schedule(earliest)
