"""Results that wait to be saved while their workers go on; shown as soon as they are.

So many of them at the most: then the workers wait, too. What becomes of a result that nobody waits
for is decided here; what showing one means is the pipeline's business.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from batch_llm._engine.progress import Progress
from batch_llm.stores.base import Saving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batch_llm._engine.events import EventDispatcher
    from batch_llm._engine.pool import Worker
    from batch_llm.base import WorkItemResult

    Result = WorkItemResult[Any, Any]
    Show = Callable[[Result, Worker | None, Progress], Awaitable[None] | None]

#: When so many results wait to be saved, their workers do so too.
MOST_UNSAVED = 1024
#: Of successes that nobody is told more about; never written to.
NO_PROGRESS = Progress()


class Unsaved:
    """The results of a run that are being saved.

    Args:
        most: So many at a time, and as many more as there are workers.
        show: Shows a result; what it returns is waited for before any further worker goes on.
        events: Tell whether a success is shown with how it came about.
        on_error: Called with what saving or showing has raised.
    """

    def __init__(
        self,
        most: int,
        show: Show,
        events: EventDispatcher,
        on_error: Callable[[Exception], None],
    ) -> None:
        self._most = most
        self._show = show
        self._events = events
        self._on_error = on_error
        self._count = 0
        self._on_saved = self._show_saved
        self._all_shown: asyncio.Future[None] | None = None
        #: The kind of saving that the store returns.
        self._kind: type[Saving] | None = None
        #: Workers that wait until fewer are unsaved, and whether one of them was just woken.
        self._queue: deque[asyncio.Future[None]] = deque()
        self._is_waking = False
        #: Until when whoever takes the results has no room for more.
        self._room: asyncio.Future[None] | None = None

    @property
    def are_too_many(self) -> bool:
        """Whether a worker is to wait before it goes on."""
        return self._count >= self._most

    def take(
        self, saved: Saving | Awaitable[None], result: Result, worker: Worker, progress: Progress
    ) -> bool:
        """Have a result shown as soon as it is saved; return whether its worker may go on at once.

        It may not where nothing can be saved for now, or whoever takes the results has no room.
        """
        if saved.__class__ is not self._kind:  # to ask whose kind it is takes long
            if not isinstance(saved, Saving):
                return False
            self._kind = saved.__class__
        if saved.is_stuck:
            return False
        room = self._room
        if room is not None:
            if not room.done():
                return False
            self._room = None
        self._count += 1
        # Of a success, how it came about is not needed any more. Many wait here, and the garbage
        # collector looks at each object that does.
        is_told_whole = self._events.is_active or not result.success
        saved.then(self._on_saved, (result, worker, progress) if is_told_whole else result)
        return True

    def _show_saved(
        self, error: Exception | None, finished: Result | tuple[Result, Worker, Progress]
    ) -> None:
        self._count -= 1
        if error is not None:
            self._on_error(error)
        else:
            result, worker, progress = (
                finished if isinstance(finished, tuple) else (finished, None, NO_PROGRESS)
            )
            try:
                shown = self._show(result, worker, progress)
                if shown is not None:
                    self._room = asyncio.ensure_future(shown)
            except Exception as problem:  # noqa: BLE001 - as if its worker had raised it
                self._on_error(problem)
        if not self._count and self._all_shown is not None and not self._all_shown.done():
            self._all_shown.set_result(None)
        if self._queue and not self._is_waking:
            self._wake_next()

    async def wait_for_room(self, worker: Worker) -> None:
        """Wait until fewer results wait to be saved; the worker's own one is in good hands."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not worker.is_cancelled:
                raise
            worker.take_back_cancellation()  # there is no item to give back; the worker ends

    def _wake_next(self) -> None:
        """Let the next worker go on, and look again when it has come to a halt.

        One whose items take no time may fill the room alone: to wake the others would be in vain.
        """
        self._is_waking = False
        while self._queue and not self.are_too_many:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                self._is_waking = True
                asyncio.get_running_loop().call_soon(self._wake_next)
                return

    async def show_all(self) -> None:
        """Wait until all that was taken is saved and shown, however often one is cancelled.

        Raises:
            asyncio.CancelledError: It was; all is shown by then.
        """
        cancelled: asyncio.CancelledError | None = None
        while self._count:
            self._all_shown = asyncio.get_running_loop().create_future()
            try:
                await self._all_shown
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
