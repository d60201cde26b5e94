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
from typing import TYPE_CHECKING, Any

from batch_llm._engine.clock import clock_of
from batch_llm._engine.hooks import Hooks
from batch_llm._engine.progress import Progress
from batch_llm._engine.unsaved import NO_PROGRESS, Unsaved
from batch_llm.base import LLMWorkItem, WorkItemResult
from batch_llm.core.schema import as_shaped
from batch_llm.core.text import described
from batch_llm.core.usage import attach_usage, tokens
from batch_llm.exceptions import (
    AbandonedError,
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
    from batch_llm.middleware.base import Middleware
    from batch_llm.providers.base import Outcome
    from batch_llm.stores.base import Store

    Item = LLMWorkItem[Any, Any, Any]
    Result = WorkItemResult[Any, Any]

logger = logging.getLogger("batch_llm.pipeline")


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
        on_error: Callable[[Exception], None],
        most_unsaved: int,
    ) -> None:
        self._unsaved = Unsaved(most_unsaved, self._finish, events, on_error)
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
                unsaved = self._unsaved
                if not self._has_post_processor and unsaved.take(saved, result, worker, progress):
                    if unsaved.are_too_many:
                        await unsaved.wait_for_room(worker)
                    return
                await self._wait_for(saved, worker)
        if self._has_post_processor:
            await self._show(result, worker, progress)
            return
        if (shown := self._finish(result, worker, progress)) is not None:
            await shown

    async def _show_kept(self, item: Item, kept: Result, worker: Worker) -> None:
        """Show what an earlier run has brought, as if it came now; nothing is called or booked."""
        await self._show(kept, worker, self._take_kept(item, kept))

    def show_kept_now(self, item: Item, kept: Result) -> Awaitable[None] | None:
        """Do the same for an item that never came to a worker; return what is to be waited for."""
        self._counts.started += 1
        return self._finish(kept, None, self._take_kept(item, kept))

    def _take_kept(self, item: Item, kept: Result) -> Progress:
        kept.context = item.context
        if kept.success and item.request is not None:
            kept.output = as_shaped(item.request.output, kept.output)
        self._counts.reused += 1
        if kept.success:
            return NO_PROGRESS
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
        if not self._has_post_processor:
            if (shown := self._finish(result, worker, progress)) is not None:
                await shown
            return
        self._count(result, worker, progress)
        item_id = result.item_id
        await self._hooks.post_process(result, worker)
        result.item_id = item_id
        if (shown := self._emit(result)) is not None:
            await shown
        if self._progress_interval:
            self._log_progress()

    def _finish(
        self, result: Result, worker: Worker | None, progress: Progress
    ) -> Awaitable[None] | None:
        """Count a result and show it; return what is to be waited for."""
        self._count(result, worker, progress)
        shown = self._emit(result)
        if self._progress_interval:
            self._log_progress()
        return shown

    async def show_all(self) -> None:
        """Wait until all results are saved and shown, however often one is cancelled.

        Raises:
            asyncio.CancelledError: It was; all is shown by then.
        """
        await self._unsaved.show_all()

    def _count(self, result: Result, worker: Worker | None, progress: Progress) -> None:
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


class _Shielded(Saving):
    """The saving of a store that returns any awaitable."""

    __slots__ = ("_pending",)

    def __init__(self, saved: Awaitable[None]) -> None:
        self._pending = asyncio.ensure_future(saved)

    def then(self, call: Callable[..., None], value: Any, /) -> None:
        self._pending.add_done_callback(lambda done: call(done.exception(), value))

    def __await__(self) -> Generator[Any, None, None]:
        yield from asyncio.shield(self._pending).__await__()


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
