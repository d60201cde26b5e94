"""START HERE: the path of one item, from the source to its one result.

    Pipeline.handle            journal: pending → running → done, saved once, before anyone sees it
      └ _with_middleware       changes, skips, substitutes; once per item
          └ Retrier.answer     again or give up                                   (retry.py)
              └ Gate.enter     when this attempt may start                        (gate.py)
                  └ Deadline.bound   how long it may take                         (deadlines.py)
                      └ Caller.call  one exchange                                 (providers/)

The item stays in this one coroutine until it has its result. Nothing is put back into a queue.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
from typing import TYPE_CHECKING, Any

from batch_llm._engine.retry import Progress, Retrier, describe
from batch_llm.base import WorkItemResult
from batch_llm.core.usage import attach_usage
from batch_llm.exceptions import AbandonedError
from batch_llm.observers.base import ProcessingEvent
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from batch_llm._engine.events import EventDispatcher
    from batch_llm._engine.pool import Pool, Worker
    from batch_llm._engine.statistics import Counts
    from batch_llm.base import LLMWorkItem, PostProcessor
    from batch_llm.middleware.base import Middleware
    from batch_llm.stores.base import Store

    Item = LLMWorkItem[Any, Any, Any]
    Result = WorkItemResult[Any, Any]

logger = logging.getLogger("batch_llm.pipeline")

#: A post-processor that takes longer is given up; the item's result stands.
POST_PROCESSOR_SECONDS = 75.0


class Pipeline:
    """The layers around each item's call."""

    def __init__(
        self,
        *,
        retrier: Retrier,
        store: Store,
        middlewares: Sequence[Middleware],
        post_processor: PostProcessor | None,
        events: EventDispatcher,
        counts: Counts,
        emit: Callable[[Result], Awaitable[None] | None],
        progress_interval: int,
    ) -> None:
        self._retrier = retrier
        self._store = store
        self._middlewares = middlewares
        self._post_processor = post_processor
        self._events = events
        self._counts = counts
        self._emit = emit
        self._progress_interval = progress_interval
        self._time = asyncio.get_running_loop().time
        self.pool: Pool | None = None
        self.is_abandoned = False

    async def handle(self, item: Item, worker: Worker) -> None:
        """Take one item from start to result.

        Raises:
            DuplicateItemError: The id is taken. Nothing was done.
            StoreError: The result could not be saved. Nobody has seen it.
            asyncio.CancelledError: The item has no result, and is pending again.
        """
        self._store.start(item.item_id)
        self._counts.started += 1
        started_at = self._time()
        if self._events.is_active:
            data = {"item_id": item.item_id, "worker_id": worker.id}
            self._events.emit(ProcessingEvent.ITEM_STARTED, data)
        progress = Progress()
        error_type: str | None = None
        try:
            result, error_type = await self._with_middleware(item, worker, progress)
        except asyncio.CancelledError:
            self._store.forget(item.item_id)
            if not self.is_abandoned:
                raise
            worker.deadline.task.uncancel()
            error = AbandonedError()
            progress.error_code, error_type = ErrorCode.CANCELLED, type(error).__name__
            result = _failure(item, error, progress)
            self._stamp(result, progress, started_at)
        else:
            self._stamp(result, progress, started_at)
            await self._save(result, progress)
        await self._show(result, worker, error_type)

    def _stamp(self, result: Result, progress: Progress, started_at: float) -> None:
        result.attempts = len(progress.history)
        result.duration_seconds = self._time() - started_at

    # -- journal

    async def _save(self, result: Result, progress: Progress) -> None:
        saved = self._store.finish(result, progress.history)
        if saved is None:
            return
        # A cancellation may end our waiting, never the saving.
        pending = asyncio.ensure_future(saved)
        try:
            await asyncio.shield(pending)
        except asyncio.CancelledError:
            if not pending.done():
                await asyncio.wait([pending])
            raise

    async def _show(self, result: Result, worker: Worker, error_type: str | None) -> None:
        counts = self._counts
        if result.success:
            counts.succeeded += 1
        else:
            counts.failed += 1
            counts.error_counts[error_type or "unknown"] += 1
            counts.failures_by_code[result.error_code or ErrorCode.INTERNAL.value] += 1
        if self._events.is_active:
            self._emit_finished(result, worker, error_type)
        if self._post_processor is not None:
            await self._post_process(result, worker)
        if (shown := self._emit(result)) is not None:
            await shown
        if self._progress_interval:
            processed = counts.succeeded + counts.failed
            if processed % self._progress_interval == 0:
                logger.info(
                    "%d items done: %d ok, %d failed", processed, counts.succeeded, counts.failed
                )

    def _emit_finished(self, result: Result, worker: Worker, error_type: str | None) -> None:
        data: dict[str, Any] = {
            "item_id": result.item_id,
            "worker_id": worker.id,
            "duration": result.duration_seconds,
            "tokens": (result.token_usage or {}).get("total_tokens", 0),
        }
        if result.success:
            self._events.emit(ProcessingEvent.ITEM_COMPLETED, data)
        else:
            data["error_type"] = error_type
            self._events.emit(ProcessingEvent.ITEM_FAILED, data)

    async def _post_process(self, result: Result, worker: Worker) -> None:
        assert self._post_processor is not None  # noqa: S101 - the caller has looked
        try:
            pending = self._post_processor(result)
            if inspect.isawaitable(pending):
                await worker.deadline.bound(pending, POST_PROCESSOR_SECONDS)
        except Exception:  # the user's code; the item's result stands
            logger.exception("post_processor failed on %r", result.item_id)

    # -- middleware

    async def _with_middleware(
        self, item: Item, worker: Worker, progress: Progress
    ) -> tuple[Result, str | None]:
        """Return the result, and the type of the error that made it a failure."""
        changed = item
        if self._middlewares:
            kept = await self._before(item)
            if kept is None:
                skipped: Result = WorkItemResult(
                    item.item_id, success=False, error="Skipped by middleware", context=item.context
                )
                skipped.error_code = ErrorCode.CANCELLED.value
                return skipped, "Skipped"
            changed = kept
        assert self.pool is not None  # noqa: S101 - set before the first item
        outcome = await self._retrier.answer(changed, worker, self.pool, progress)
        error = outcome.error
        if error is None:
            result: Result = WorkItemResult(
                item.item_id,
                True,
                outcome.output,
                None,
                changed.context,
                progress.usage,
                outcome.safety_ratings,
            )
            result.model, result.response_body = outcome.model, outcome.body
            return (await self._after(result) if self._middlewares else result), None
        attach_usage(error, progress.usage)
        if self._middlewares:
            substitute = await self._on_error(changed, error)
            if substitute is not None:
                substitute = _with_id(substitute, item.item_id)
                if not any((substitute.token_usage or {}).values()):
                    substitute.token_usage = progress.usage  # the failed attempts were paid for
                return substitute, None if substitute.success else type(error).__name__
        result = _failure(changed, error, progress)
        result.item_id, result.model = item.item_id, outcome.model
        return result, type(error).__name__

    async def _before(self, item: Item) -> Item | None:
        current = item
        for middleware in self._middlewares:
            try:
                changed = await middleware.before_process(current)
            except Exception:  # the user's code; a broken hook is as good as none
                logger.exception("before_process failed on %r; passed over", item.item_id)
                continue
            if changed is None:
                return None
            current = changed
        return current

    async def _after(self, result: Result) -> Result:
        for middleware in reversed(self._middlewares):
            try:
                changed = await middleware.after_process(result)
                if not isinstance(changed, WorkItemResult):
                    raise TypeError(f"expected a WorkItemResult, got {type(changed).__name__}")  # noqa: TRY301
            except Exception:  # the user's code; a broken hook is as good as none
                logger.exception("after_process failed on %r; passed over", result.item_id)
                continue
            result = _with_id(changed, result.item_id)
        return result

    async def _on_error(self, item: Item, error: Exception) -> Result | None:
        for middleware in reversed(self._middlewares):
            try:
                substitute = await middleware.on_error(item, error)
                if substitute is not None and not isinstance(substitute, WorkItemResult):
                    raise TypeError(f"expected a WorkItemResult, got {type(substitute).__name__}")  # noqa: TRY301
            except Exception:  # the user's code; a broken hook is as good as none
                logger.exception("on_error failed on %r; passed over", item.item_id)
                continue
            if substitute is not None:
                return substitute
        return None


def _failure(item: Item, error: BaseException, progress: Progress) -> Result:
    result: Result = WorkItemResult(
        item.item_id,
        success=False,
        error=describe(error),
        context=item.context,
        token_usage=progress.usage,
    )
    result.error_code = (progress.error_code or ErrorCode.INTERNAL).value
    return result


def _with_id(result: Result, item_id: str) -> Result:
    """Results are matched by id, so no hook may change it."""
    return result if result.item_id == item_id else dataclasses.replace(result, item_id=item_id)
