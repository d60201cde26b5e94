"""START HERE: the path of one item, from the source to its one result.

    Pipeline.handle            journal: pending → running → done, saved once, before anyone sees it
      └ _with_middleware       changes, skips, substitutes; once per item
          └ Sharing.answer     of requests: another's answer, or a cache's        (sharing.py)
          └ Retrier.answer     again or give up                                   (retry.py)
              ├ Gate.enter     when this attempt may start                        (gate.py)
              └ Hedging.make   where asked for: two copies of a slow call         (hedging.py)
                  └ Calls.make     one call, settled                              (calls.py)
                      └ Deadline.bound   how long it may take                     (deadlines.py)
                          └ Caller.call  the exchange itself                      (providers/)

The item stays in this one coroutine until it has its result. Nothing is put back into a queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm._engine.clock import clock_of
from batch_llm._engine.hooks import Hooks
from batch_llm._engine.progress import Progress
from batch_llm.base import LLMWorkItem, WorkItemResult
from batch_llm.core.text import described
from batch_llm.core.usage import attach_usage, tokens
from batch_llm.exceptions import (
    AbandonedError,
    BadOutputError,
    LaneStoppedError,
    LimitPauseError,
)
from batch_llm.observers.base import ProcessingEvent
from batch_llm.stores.base import CACHED, SHARED, Saving
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from batch_llm._engine.events import EventDispatcher
    from batch_llm._engine.pool import Worker
    from batch_llm._engine.sharing import Answerer
    from batch_llm._engine.statistics import Counts
    from batch_llm.base import PostProcessor
    from batch_llm.core.request import Request
    from batch_llm.core.schema import OutputSchema
    from batch_llm.middleware.base import Middleware
    from batch_llm.providers.base import Outcome
    from batch_llm.stores.base import Store

    Item = LLMWorkItem[Any, Any, Any]
    Result = WorkItemResult[Any, Any]

logger = logging.getLogger("batch_llm.pipeline")

#: When so many results wait to be saved, their workers do so too.
MOST_UNSAVED = 1024


#: Of kept successes; never written to.
_NO_PROGRESS = Progress()


class Pipeline:
    """The layers around each item's call."""

    def __init__(
        self,
        *,
        answerer: Answerer,
        store: Store,
        middlewares: Sequence[Middleware],
        post_processor: PostProcessor | None,
        events: EventDispatcher,
        counts: Counts,
        emit: Callable[[Result], Awaitable[None] | None],
        progress_interval: int,
        content_of: Callable[[Item], bytes] | None = None,
        on_error: Callable[[Exception], None] | None = None,
        most_unsaved: int = MOST_UNSAVED,
    ) -> None:
        self._most_unsaved = most_unsaved
        self._on_error_of_store = on_error or _raise
        #: Results that are shown as soon as they are saved; their workers have gone on.
        self._unsaved = 0
        self._on_saved = self._show_saved
        self._all_saved: asyncio.Future[None] | None = None
        #: The kind of saving that the store returns.
        self._saving: type[Saving] | None = None
        #: Workers that wait until fewer are unsaved, and whether one of them was just woken.
        self._queue: deque[asyncio.Future[None]] = deque()
        self._is_waking = False
        #: Until when whoever takes the results has no room for more.
        self._room: asyncio.Future[None] | None = None
        self._content_of = content_of
        self._answerer = answerer
        self._store = store
        self._hooks = Hooks(middlewares, post_processor, self._goes_on_after_cancellation)
        self._has_middlewares = len(middlewares) > 0
        self._has_post_processor = post_processor is not None
        self._events = events
        self._counts = counts
        self._emit = emit
        self._progress_interval = progress_interval
        self._time = clock_of(asyncio.get_running_loop())
        self.is_abandoned = False

    async def handle(self, item: Item, worker: Worker) -> None:
        """Take one item from start to result.

        Raises:
            DuplicateItemError: The id is taken. Nothing was done.
            StoreError: The result could not be saved. Nobody has seen it.
            asyncio.CancelledError: The item has no result, and is pending again.
        """
        item_id = item.item_id  # hooks may change the item, but not whose result this is
        content = b"" if self._content_of is None else self._content_of(item)
        kept = self._store.start(item_id, content)
        self._counts.started += 1
        if kept is not None:
            await self._show_kept(item, kept, worker)
            return
        started_at = self._time()
        if self._events.is_active:
            data = {"item_id": item_id, "worker_id": worker.id}
            self._events.emit(ProcessingEvent.ITEM_STARTED, data)
        progress = Progress(item_id)
        try:
            if self._has_middlewares:
                result = await self._with_middleware(item, worker, progress)
            else:
                # Not kept in a name here: see the end of `Retrier.answer`.
                result = _result(
                    item, await self._answerer.answer(item, worker, progress), progress
                )
        except asyncio.CancelledError:
            self._store.forget(item_id, progress.history)
            item.item_id = item_id
            if not self._goes_on_after_cancellation(worker):
                raise
            progress.error_code = ErrorCode.CANCELLED
            result = _failure(item, AbandonedError(), progress)
            self._stamp(result, progress, started_at)
        else:
            result.item_id = item_id
            self._stamp(result, progress, started_at)
            history, origin = progress.history, progress.origin
            saved = self._store.finish(result, history if origin is None else [*history, origin])
            if saved is not None:
                if self._hand_over(saved, result, worker, progress):
                    if self._unsaved >= self._most_unsaved:
                        await self._wait_for_room(worker)
                    return
                await self._wait_for(saved, worker)
        if self._has_post_processor:
            await self._show(result, worker, progress)
            return
        self._note_finished(result, worker, progress)
        if (shown := self._emit(result)) is not None:
            await shown
        self._log_progress()

    async def _show_kept(self, item: Item, kept: Result, worker: Worker) -> None:
        """Show what an earlier run has brought, as if it came now; nothing is called or booked."""
        await self._show(kept, worker, self._take_kept(item, kept))

    def show_kept_now(self, item: Item, kept: Result) -> Awaitable[None] | None:
        """Do the same for an item that never came to a worker; return what is to be waited for."""
        self._counts.started += 1
        self._note_finished(kept, None, self._take_kept(item, kept))
        shown = self._emit(kept)
        self._log_progress()
        return shown

    def _take_kept(self, item: Item, kept: Result) -> Progress:
        kept.context = item.context
        if kept.success and item.request is not None:
            kept.output = as_asked(item.request, kept.output)
        self._counts.reused += 1
        if kept.success:
            return _NO_PROGRESS
        progress = Progress()
        progress.error_type = (kept.error or "").partition(":")[0]
        return progress

    def _stamp(self, result: Result, progress: Progress, started_at: float) -> None:
        """Write onto a result how it came about."""
        result.attempts = len(progress.history)
        if progress.changes:
            result.changes = tuple(progress.changes)
        result.duration_seconds = self._time() - started_at
        if (origin := progress.origin) is not None:
            result.is_cached = origin.error_code == CACHED
            result.shared_with = origin.error if origin.error_code == SHARED else None

    def _goes_on_after_cancellation(self, worker: Worker) -> bool:
        """Tell whether a run that is abandoned cancelled this; then the worker ends its item."""
        if not self.is_abandoned:
            return False
        worker.take_back_cancellation()
        return True

    def _hand_over(
        self, saved: Saving | Awaitable[None], result: Result, worker: Worker, progress: Progress
    ) -> bool:
        """Have a result shown as soon as it is saved; return whether its worker may go on at once.

        Not where the showing takes time of its own, or nothing can be saved for now.
        """
        if saved.__class__ is not self._saving:  # to ask whose kind it is takes long
            if not isinstance(saved, Saving):
                return False
            self._saving = saved.__class__
        if self._has_post_processor or saved.is_stuck:
            return False
        room = self._room
        if room is not None:
            if not room.done():
                return False
            self._room = None
        self._unsaved += 1
        # Of a success, how it came about is not needed any more. Many wait here, and the garbage
        # collector looks at each object that does.
        is_told_whole = self._events.is_active or not result.success
        saved.then(self._on_saved, (result, worker, progress) if is_told_whole else result)
        return True

    def _show_saved(
        self, error: Exception | None, finished: Result | tuple[Result, Worker, Progress]
    ) -> None:
        self._unsaved -= 1
        result, worker, progress = (
            finished if isinstance(finished, tuple) else (finished, None, _NO_PROGRESS)
        )
        if error is not None:
            self._on_error_of_store(error)
        else:
            try:
                self._note_finished(result, worker, progress)
                shown = self._emit(result)
                if shown is not None:
                    self._room = asyncio.ensure_future(shown)
                self._log_progress()
            except Exception as problem:  # noqa: BLE001 - as if its worker had raised it
                self._on_error_of_store(problem)
        if not self._unsaved and self._all_saved is not None and not self._all_saved.done():
            self._all_saved.set_result(None)
        if self._queue and not self._is_waking:
            self._wake_next()

    async def _wait_for_room(self, worker: Worker) -> None:
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
        while self._queue and self._unsaved < self._most_unsaved:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                self._is_waking = True
                asyncio.get_running_loop().call_soon(self._wake_next)
                return

    async def show_all(self) -> None:
        """Wait until all that was handed over is saved and shown, however often one is cancelled.

        Raises:
            asyncio.CancelledError: It was; all is shown by then.
        """
        cancelled: asyncio.CancelledError | None = None
        while self._unsaved:
            self._all_saved = asyncio.get_running_loop().create_future()
            try:
                await self._all_saved
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _wait_for(self, saved: Saving | Awaitable[None], worker: Worker) -> None:
        saving = saved if isinstance(saved, Saving) else _Shielded(saved)
        try:
            if saving.takes_long and not saving.is_stuck:
                with worker.parking():
                    await saving
            else:
                await saving
        except asyncio.CancelledError:
            # A cancellation ends our waiting, never the saving.
            await saving
            if not self._goes_on_after_cancellation(worker):
                raise

    async def _show(self, result: Result, worker: Worker, progress: Progress) -> None:
        self._note_finished(result, worker, progress)
        if self._has_post_processor:
            item_id = result.item_id
            await self._hooks.post_process(result, worker)
            result.item_id = item_id
        if (shown := self._emit(result)) is not None:
            await shown
        self._log_progress()

    def _note_finished(self, result: Result, worker: Worker | None, progress: Progress) -> None:
        counts = self._counts
        if result.success:
            counts.succeeded += 1
        else:
            counts.failed += 1
            counts.error_counts[progress.error_type or "unknown"] += 1
            code = result.error_code
            counts.failures_by_code[code if isinstance(code, str) else "internal"] += 1
        if self._events.is_active:
            self._emit_finished(result, worker, progress)

    def _log_progress(self) -> None:
        if self._progress_interval:
            counts = self._counts
            processed = counts.succeeded + counts.failed
            if processed % self._progress_interval == 0:
                logger.info(
                    "%d items done: %d ok, %d failed", processed, counts.succeeded, counts.failed
                )

    def _emit_finished(self, result: Result, worker: Worker | None, progress: Progress) -> None:
        data: dict[str, Any] = {
            "item_id": result.item_id,
            "worker_id": None if worker is None else worker.id,
            "duration": result.duration_seconds,
            "tokens": tokens(result.token_usage, "total_tokens"),
        }
        if result.success:
            self._events.emit(ProcessingEvent.ITEM_COMPLETED, data)
        else:
            data["error_type"] = progress.error_type
            self._events.emit(ProcessingEvent.ITEM_FAILED, data)

    async def _with_middleware(self, item: Item, worker: Worker, progress: Progress) -> Result:
        changed = await self._hooks.before(item, worker)
        if changed is None:
            return self._skipped(item, progress)
        # Not kept in a name here: see the end of `Retrier.answer`.
        return await self._concluded(
            changed, await self._answerer.answer(changed, worker, progress), worker, progress
        )

    async def _concluded(
        self, item: Item, outcome: Outcome, worker: Worker, progress: Progress
    ) -> Result:
        error = outcome.error
        if error is None:
            return await self._hooks.after(_result(item, outcome, progress), worker)
        progress.error_type = type(error).__name__
        attach_usage(error, progress.usage)
        substitute = await self._hooks.on_error(item, error, worker)
        if substitute is None:
            return _result(item, outcome, progress)
        if not any((substitute.token_usage or {}).values()):
            substitute.token_usage = progress.usage  # the failed attempts were paid for
        return substitute

    @staticmethod
    def _skipped(item: Item, progress: Progress) -> Result:
        progress.error_type = "Skipped"
        result: Result = WorkItemResult(
            item.item_id, success=False, error="Skipped by middleware", context=item.context
        )
        result.error_code = ErrorCode.CANCELLED.value
        return result


def _raise(error: Exception) -> None:
    raise error


class _Shielded(Saving):
    """The saving of a store that returns any awaitable."""

    __slots__ = ("_pending",)

    def then(self, call: Callable[..., None], value: Any, /) -> None:
        self._pending.add_done_callback(lambda done: call(done.exception(), value))

    def __init__(self, saved: Awaitable[None]) -> None:
        self._pending = asyncio.ensure_future(saved)

    def __await__(self) -> Generator[Any, None, None]:
        yield from asyncio.shield(self._pending).__await__()


def as_asked(request: Request, output: Any) -> Any:
    """Return a kept output in the type that the request's shape makes of an answer."""
    return as_shaped(request.output, output)


def as_shaped(shape: OutputSchema | None, output: Any) -> Any:
    """Return a kept output in the type that a shape makes of an answer."""
    if shape is None or not isinstance(output, dict | list):
        return output
    try:
        return shape.parse(msgspec.json.encode(output).decode())
    except BadOutputError:  # tool calls, or what a hook had put there
        return output


def _result(item: Item, outcome: Outcome, progress: Progress) -> Result:
    """Make an outcome the result of its item."""
    error = outcome.error
    if error is None:
        return WorkItemResult(
            item.item_id,
            True,
            outcome.output,
            None,
            item.context,
            progress.usage,
            outcome.safety_ratings,
            None,
            0,
            0.0,
            outcome.model,
            outcome.body,
        )
    attach_usage(error, progress.usage)
    result = _failure(item, error, progress)
    result.model, result.gemini_safety_ratings = outcome.model, outcome.safety_ratings
    return result


def _failure(item: Item, error: Exception, progress: Progress) -> Result:
    progress.error_type = type(error).__name__
    result: Result = WorkItemResult(
        item.item_id,
        success=False,
        error=described(error),
        context=item.context,
        token_usage=progress.usage,
    )
    result.error_code = (progress.error_code or ErrorCode.INTERNAL).value
    if isinstance(error, LaneStoppedError | LimitPauseError):
        result.stop = error
    return result
