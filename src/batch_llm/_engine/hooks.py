"""The user's hooks around an item: middlewares and the post-processor. None costs it its result."""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from batch_llm.base import LLMWorkItem, WorkItemResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from batch_llm._engine.pool import Worker
    from batch_llm.base import PostProcessor
    from batch_llm.middleware.base import Middleware

    Item = LLMWorkItem[Any, Any, Any]
    Result = WorkItemResult[Any, Any]

T = TypeVar("T")

logger = logging.getLogger("batch_llm.pipeline")

#: A post-processor that takes longer is given up; the item's result stands.
POST_PROCESSOR_SECONDS = 75.0


class Hooks:
    """Calls the user's hooks, and passes over what goes wrong in them.

    Args:
        middlewares: Outermost first.
        post_processor: Sees each result.
        goes_on: Tells whether a worker that was cancelled ends its item all the same.
    """

    def __init__(
        self,
        middlewares: Sequence[Middleware],
        post_processor: PostProcessor | None,
        goes_on: Callable[[Worker], bool],
    ) -> None:
        self._middlewares = middlewares
        self._post_processor = post_processor
        self._goes_on = goes_on

    async def post_process(self, result: Result, worker: Worker) -> None:
        """Show a result to the post-processor."""
        assert self._post_processor is not None  # noqa: S101 - the caller has looked
        with self._passed_over("post_processor", result.item_id, worker):
            pending = self._post_processor(result)
            if inspect.isawaitable(pending):
                await worker.deadline.bound(pending, POST_PROCESSOR_SECONDS)

    @contextmanager
    def _passed_over(
        self, hook: str, item_id: str, worker: Worker, *, has_outcome: bool = True
    ) -> Iterator[None]:
        """Log what a hook raises and go on: the user's code never costs an item its result.

        Raises:
            asyncio.CancelledError: The worker was cancelled; but a run that is abandoned does not
                give up an item that has its outcome.
        """
        try:
            yield
        except asyncio.CancelledError:
            if not worker.is_cancelled:
                worker.take_back_cancellation()
                logger.exception("%s of %r cancelled itself; passed over", hook, item_id)
            elif not (has_outcome and self._goes_on(worker)):
                raise
        except Exception:  # a broken hook is as good as none
            logger.exception("%s failed on %r; passed over", hook, item_id)

    async def before(self, item: Item, worker: Worker) -> Item | None:
        """Return an item as the middlewares want it; None when one of them skips it."""
        current = item
        for middleware in self._middlewares:
            with self._passed_over("before_process", item.item_id, worker, has_outcome=False):
                changed = await middleware.before_process(current)
                if changed is None:
                    return None
                current = _checked(changed, LLMWorkItem)
        return current

    async def after(self, result: Result, worker: Worker) -> Result:
        """Return a good result as the middlewares want it, the innermost first."""
        for middleware in reversed(self._middlewares):
            with self._passed_over("after_process", result.item_id, worker):
                result = _checked(await middleware.after_process(result), WorkItemResult)
        return result

    async def on_error(self, item: Item, error: Exception, worker: Worker) -> Result | None:
        """Return what a middleware gives in place of a failure, the innermost first; else None."""
        for middleware in reversed(self._middlewares):
            with self._passed_over("on_error", item.item_id, worker):
                substitute = await middleware.on_error(item, error)
                if substitute is not None:
                    return _checked(substitute, WorkItemResult)
        return None


def _checked(value: T, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"expected a {kind.__name__}, got {type(value).__name__}")
    return value
