"""Hooks around each item."""

from __future__ import annotations

from typing import Any, Generic, Protocol

from batch_llm.base import LLMWorkItem, TContext, TInput, TOutput, WorkItemResult


class Middleware(Protocol):
    """Changes, skips or substitutes items. Called once per item, not per attempt.

    A hook that raises is logged and passed over.
    """

    async def before_process(
        self, work_item: LLMWorkItem[Any, Any, Any], /
    ) -> LLMWorkItem[Any, Any, Any] | None:
        """Return the item to process, changed or not; None skips it."""
        ...

    async def after_process(self, result: WorkItemResult[Any, Any], /) -> WorkItemResult[Any, Any]:
        """Return the result to keep. Called after a success."""
        ...

    async def on_error(
        self, work_item: LLMWorkItem[Any, Any, Any], error: Exception, /
    ) -> WorkItemResult[Any, Any] | None:
        """Return a result to use instead of the failure, or None. Called after the last attempt."""
        ...


class BaseMiddleware(Generic[TInput, TOutput, TContext]):
    """A middleware that changes nothing. Override what you need."""

    async def before_process(
        self, work_item: LLMWorkItem[TInput, TOutput, TContext], /
    ) -> LLMWorkItem[TInput, TOutput, TContext] | None:
        """Return the item unchanged."""
        return work_item

    async def after_process(
        self, result: WorkItemResult[TOutput, TContext], /
    ) -> WorkItemResult[TOutput, TContext]:
        """Return the result unchanged."""
        return result

    async def on_error(
        self,
        work_item: LLMWorkItem[TInput, TOutput, TContext],  # noqa: ARG002
        error: Exception,  # noqa: ARG002
        /,
    ) -> WorkItemResult[TOutput, TContext] | None:
        """Substitute nothing."""
        return None
