"""The workers: as many items in work as there is room for, each in its own coroutine to the end."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from batch_llm._engine.deadlines import Deadline, DeadlineSweeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from batch_llm._engine.sources import Source
    from batch_llm.base import LLMWorkItem

#: A worker whose items never wait for anything lets the others run after so many of them.
ITEMS_PER_TURN = 64


#: The pool in whose worker the current code runs, in a hook or a call, directly or in its tasks.
current_pool: ContextVar[Pool | None] = ContextVar("current_pool", default=None)


class Worker:
    """One coroutine's identity and its timeout."""

    __slots__ = ("_pool", "deadline", "id", "is_idle", "is_leaving", "is_waiting")

    def __init__(self, worker_id: int, deadline: Deadline, pool: Pool) -> None:
        self.id = worker_id
        self.deadline = deadline
        self._pool = pool
        self.is_idle = False
        self.is_leaving = False
        #: Whether its item has no call under way: it waits to be let in, or for its next attempt.
        self.is_waiting = False

    def parking(self) -> AbstractContextManager[None]:
        """Let another worker stand in for this one for as long as the block lasts."""
        return self._pool.parking()

    @property
    def is_cancelled(self) -> bool:
        """Whether a ``CancelledError`` is ours, and not an item's that cancelled itself."""
        return self._pool.is_cancelling

    def take_back_cancellation(self) -> None:
        """Go on after a cancellation that has been dealt with."""
        while self.deadline.task.cancelling():
            self.deadline.task.uncancel()


class Pool:
    """Runs ``handle`` over a source's items, ``size`` at a time.

    An item that waits (backoff) is *parked*: it keeps its coroutine, and another worker stands in
    for it. The number of parked items that are replaced is bounded, so that memory is too.

    Args:
        size: Tells how many items are to be in work, parked ones not counted, when told how many
            are. It may change; ``fill`` follows it.
        max_parked: Parked items that are replaced at the most.
        handle: Takes an item from start to result; it raises only what shall stop the run.
        on_started: Called with the id of each worker that starts.
        on_stopped: Called with the id of each worker that stops.
    """

    def __init__(
        self,
        size: Callable[[int], int],
        max_parked: int,
        handle: Callable[[LLMWorkItem[Any, Any, Any], Worker], Awaitable[None]],
        on_started: Callable[[int], None],
        on_stopped: Callable[[int], None],
    ) -> None:
        self._size = size
        self._max_parked = max_parked
        self._handle = handle
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._sweeper = DeadlineSweeper(asyncio.get_running_loop())
        self._tasks: dict[asyncio.Task[None], Worker] = {}
        self._free_ids: list[int] = []
        self._all_stopped = asyncio.Event()
        self._source: Source | None = None
        self._error: BaseException | None = None
        self._is_draining = False
        self.is_cancelling = False
        self._leaving = 0
        #: Whether a worker was started that has not asked for its first item in vain, or got it.
        self._is_one_starting = False
        self.parked = 0

    async def run(self, source: Source) -> None:
        """Process everything that the source gives.

        Raises:
            Exception: The first error that ``source`` or ``handle`` let escape. Items in work
                were finished first.
            asyncio.CancelledError: All workers were cancelled, and have ended.
        """
        self._source = source
        self._spawn()
        try:
            await self._all_stopped.wait()
        except asyncio.CancelledError:
            await self._cancel_all()
            raise
        self.raise_error()

    def fail(self, error: Exception) -> None:
        """End the run early because of an error that no worker has raised."""
        self._error = self._error or error
        self.drain()

    def raise_error(self) -> None:
        """Raise what ended the run early, if anything did."""
        if self._error is not None:
            raise self._error

    def drain(self) -> None:
        """Take no more items; those in work are finished."""
        self._is_draining = True
        for task, worker in self._tasks.items():
            if worker.is_idle:
                task.cancel()

    def finish_calls(self) -> None:
        """Take no more items and make no more calls; those under way are waited for."""
        self._is_draining = self.is_cancelling = True
        for task, worker in self._tasks.items():
            if worker.is_idle or worker.is_waiting:
                task.cancel()

    def abandon(self) -> None:
        """Cancel the items in work too. Each still gets its result from its own coroutine."""
        self._cancel()

    @contextmanager
    def parking(self) -> Iterator[None]:
        """Let another worker stand in for this one for as long as the block lasts."""
        self.parked += 1
        if not self._is_draining:
            self._spawn_if_room()
        try:
            yield
        finally:
            self.parked -= 1

    @property
    def is_draining(self) -> bool:
        """Whether no more items are taken, although the source may have some."""
        return self._is_draining

    @property
    def _headcount(self) -> int:
        """Workers that take items; those that wait with an item, or are on their way out, don't."""
        present = len(self._tasks) - self._leaving
        return present - min(self.parked, self._max_parked) if self.parked else present

    def fill(self) -> None:
        """Start a worker when there is room for one more item."""
        if not (self._is_one_starting or self._is_draining):
            self._spawn_if_room()

    def _spawn_if_room(self) -> None:
        # One at a time: it takes its item, and then whether there is room for more can be told.
        if self._is_one_starting:
            return
        present = self._headcount
        if present < self._size(present):
            self._spawn()

    def _spawn(self) -> None:
        self._is_one_starting = True
        worker_id = self._free_ids.pop() if self._free_ids else len(self._tasks)
        # `_work` cannot start before the entry below is made: tasks start on the next step.
        task = asyncio.create_task(self._work())
        self._tasks[task] = Worker(worker_id, self._sweeper.open_deadline(task), self)
        task.add_done_callback(self._stopped)

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None and self._source is not None  # noqa: S101, PT018
        worker, source = self._tasks[task], self._source
        current_pool.set(self)
        self._on_started(worker.id)
        is_first = has_room = True
        turn = ITEMS_PER_TURN
        while not self._is_draining:
            worker.is_idle = True
            try:
                item = await source.take()
            except asyncio.CancelledError:
                if not self._is_draining:
                    raise
                # `drain` or `abandon` woke us, and we hold nothing. (mypy thinks that the flag
                # cannot change during an await.)
                item = None  # type: ignore[unreachable]
            finally:
                worker.is_idle = False
                if is_first:
                    self._is_one_starting = False
            if item is None:
                return
            is_first = False
            if has_room:
                self.fill()  # a worker that finds work starts the next one
            try:
                await self._handle(item, worker)
            except asyncio.CancelledError:
                source.give_back(item)
                raise
            finally:
                source.finished()
            present = self._headcount if self.parked else len(self._tasks) - self._leaving
            wanted = self._size(present)
            has_room = present < wanted
            if present > wanted:
                # A parked item came back, and this worker had stood in for it. It counts as gone
                # at once: its task is removed a step later, and nobody else may leave for it.
                worker.is_leaving = True
                self._leaving += 1
                return
            turn -= 1
            if not turn:
                turn = ITEMS_PER_TURN
                await asyncio.sleep(0)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        worker = self._tasks.pop(task)
        self._leaving -= worker.is_leaving
        self._sweeper.close_deadline(worker.deadline)
        self._free_ids.append(worker.id)
        self._on_stopped(worker.id)
        error = _error_of(task)
        if error is not None and not (self._is_draining and task.cancelled()):
            self._error = self._error or error
            self.drain()
        if not self._tasks:
            self._all_stopped.set()

    def _cancel(self) -> None:
        self._is_draining = self.is_cancelling = True
        for task in self._tasks:
            task.cancel()

    async def _cancel_all(self) -> None:
        self._cancel()
        while self._tasks:
            await asyncio.wait(list(self._tasks))
            await asyncio.sleep(0)  # the done callbacks run before us now


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    if task.cancelled():
        return RuntimeError("A worker of the run was cancelled from outside.")
    return task.exception()
