"""One session of a run: what a ledger has is shown again, what is left is sent.

Each row's result comes out once. Nothing here writes files, shows progress or listens to signals:
that is the business of who started it, the command (``cli.execution``) or ``runs.api``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Literal

from batch_llm.core.config import DEFAULT_WORKERS, Limits, ProcessorConfig, RetryConfig
from batch_llm.core.schema import as_shaped
from batch_llm.core.text import safe
from batch_llm.exceptions import LaneStoppedError, LimitPauseError
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.providers.transport import HttpTransport
from batch_llm.runs.plan import chunks, look_up
from batch_llm.runs.plot import Plot
from batch_llm.stores.base import ItemState
from batch_llm.stores.values import reused

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Sequence,
    )

    from batch_llm._engine.statistics import Statistics
    from batch_llm.base import LLMWorkItem, WorkItemResult
    from batch_llm.inputs import Row
    from batch_llm.runs.brief import Brief
    from batch_llm.runs.pools import Pools
    from batch_llm.runs.recipe import Variant
    from batch_llm.stores.answers import AnswerCache
    from batch_llm.stores.base import Ledger, Record

    Item = LLMWorkItem[Any, Any, Row]
    Result = WorkItemResult[Any, Row]

logger = logging.getLogger("batch_llm.session")
#: Rows that are passed over before others have their turn.
_ROWS_AT_ONCE = 100


class Session:
    """Sends what is left of a brief, once.

    Args:
        brief: The brief.
        pools: Where its calls go.
        ledger: Keeps the results; None keeps none.
        cache: Answers of earlier runs; None uses none.
        variants: What rows were retried with.
        keep_bodies: Whether results carry the provider's answer as it came.
        looks_up: Whether the ledger is asked for many rows at a time, before they reach the engine:
            right where it may know some.
        on_row: Called with each row when it is taken; what it returns is waited for.
    """

    def __init__(
        self,
        brief: Brief,
        pools: Pools,
        ledger: Ledger | None = None,
        *,
        cache: AnswerCache | None = None,
        variants: Sequence[Variant] = (),
        keep_bodies: bool = False,
        looks_up: bool = False,
        on_row: Callable[[Row], Awaitable[None]] | None = None,
    ) -> None:
        self._brief, self._ledger, self._variants = brief, ledger, variants
        self._looks_up = ledger is not None and looks_up
        self._on_row = on_row
        #: Rows with a result of an earlier session that never reached the engine: done, and failed.
        self.passed_over = [0, 0]
        #: What the provider refuses everything with; empty while it does not.
        self.refusal = ""
        #: What rows fail with that would wait too long for a limit.
        self.pause: str | None = None
        self._transport = HttpTransport()
        self.processor: ParallelBatchProcessor[Any, Any, Row] = ParallelBatchProcessor(
            config=_config(brief, pools.possible),
            requests=pools.caller(self._transport, brief, keep_bodies=keep_bodies),
            store=ledger,
            cache=cache,
        )

    def statistics(self) -> Statistics:
        """Return the session's numbers."""
        return self.processor.statistics()

    @property
    def stop_reason(self) -> str | None:
        """Why it ended early of itself, as a sentence; None when it did not."""
        return self.refusal or self.statistics().stop_reason

    async def run(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        take: Callable[[Result], Awaitable[None] | None],
    ) -> None:
        """Send the items that have no result yet, and hand over each result, kept ones among them.

        Results of rows that were cut off (code ``cancelled``) are handed over too.

        Args:
            items: The rows of the brief.
            take: Gets each result; what it returns is waited for, so that it may be slow.
        """
        rows: Iterator[tuple[Item, Record | None]] = iter(())
        kept = 0
        if self._looks_up and self._ledger is not None:
            counts = self._ledger.counts()
            kept = counts[ItemState.DONE] + counts[ItemState.FAILED]
        if self._looks_up or self._on_row is not None:
            assert not hasattr(items, "__aiter__")  # noqa: S101 - those go straight to the engine
            rows = self._looked_up(items)
            items = self._unfinished(rows, take)
        try:
            async with self._drawn(), contextlib.aclosing(self.processor.stream(items)) as results:
                async for result in results:
                    waiting = take(result)
                    self._watch(result)
                    if waiting is not None:
                        await waiting
            if sum(self.passed_over) < kept:
                await self._hand_over_rest(rows, kept, take)
        finally:
            await self._transport.aclose()
            if self._brief.agent is not None:
                await self._brief.agent.aclose()
        now = self.statistics()
        if now.stopped_lanes and now.succeeded == now.reused:
            self._end(now.stopped_lanes[-1].reason)

    @contextlib.asynccontextmanager
    async def _drawn(self) -> AsyncIterator[None]:
        """Draw the run's pace, where that is asked for. A run never fails for its picture."""
        if self._brief.plot is None:
            yield
            return
        plot = Plot(self._brief.model)
        try:
            async with plot.watching(self.statistics):
                yield
        finally:
            try:
                plot.save(self._brief.plot)
            except OSError as error:
                logger.warning("The plot could not be written: %s", safe(error))

    def _looked_up(self, items: Iterable[Item]) -> Iterator[tuple[Item, Record | None]]:
        """Give items with their kept results, where they have any."""
        for chunk in chunks(items):
            if not self._looks_up or self._ledger is None:
                yield from ((item, None) for item in chunk)
            else:
                found = look_up(self._ledger, chunk, self._variants)
                yield from ((one.item, one.record) for one in found)

    async def _unfinished(
        self,
        rows: Iterable[tuple[Item, Record | None]],
        take: Callable[[Result], Awaitable[None] | None],
    ) -> AsyncIterator[Item]:
        """Give the items that are to be sent; hand over the results of the others."""
        for number, (item, record) in enumerate(rows, 1):
            if self._on_row is not None:
                assert item.context is not None  # noqa: S101 - each item comes with its row
                await self._on_row(item.context)
            if record is None:
                yield item
            else:
                await self.hand_over(item, record, take)
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _hand_over_rest(
        self,
        rows: Iterable[tuple[Item, Record | None]],
        kept: int,
        take: Callable[[Result], Awaitable[None] | None],
    ) -> None:
        """Hand over the kept results of rows that were not come to: the run was stopped before.

        Args:
            rows: Those rows.
            kept: So many rows had a result at the most; what is behind them all is not read.
            take: Gets the results; what it returns is waited for.
        """
        for number, (item, record) in enumerate(rows, 1):
            if record is not None:
                await self.hand_over(item, record, take)
            if sum(self.passed_over) >= kept:
                return
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def hand_over(
        self, item: Item, record: Record, take: Callable[[Result], Awaitable[None] | None]
    ) -> None:
        """Hand over the kept result of a row that is not sent."""
        result = _kept(record, item)
        self.passed_over[not result.success] += 1
        if (waiting := take(result)) is not None:
            await waiting

    def _watch(self, result: Result) -> None:
        """Stop when the provider refuses everything."""
        if isinstance(result.stop, LaneStoppedError):
            # The row's own lane, or that of its last fallback: nobody is left to ask.
            self._end(str(result.stop))
        if result.error_code != "cancelled" and isinstance(result.stop, LimitPauseError):
            # All that are left fail so, at once, and are in the file to be run again.
            self.pause = str(result.stop)

    def _end(self, refusal: str) -> None:
        if not self.refusal:
            self.refusal = refusal
            self.end()

    def end(self, *, drain: bool = True) -> None:
        """Send nothing any more; wait for the calls in flight, or abandon them too."""
        self.processor.stop(drain=drain, retry=False)


def _kept(record: Record, item: Item) -> Result:
    result = reused(record)
    result.context = item.context
    if result.success and item.request is not None:
        result.output = as_shaped(item.request.output, result.output)
    return result


def _config(brief: Brief, possible: int | None) -> ProcessorConfig:
    """Return how a brief's rows are processed; only ``possible`` connections can be opened."""
    return ProcessorConfig(
        concurrency=_concurrency(brief, possible),
        max_workers=DEFAULT_WORKERS if possible is None else possible,
        limits=brief.limits or Limits(),
        longest_pause_seconds=brief.longest_pause_seconds,
        timeout_per_item=brief.timeout_seconds,
        hedge=brief.hedge,
        retry=RetryConfig(
            max_attempts=brief.retries + 1,
            initial_wait=0.5,
            max_tokens_cap=brief.max_tokens_cap,
            fallback_on=brief.fallback_on,
        ),
        fallbacks=brief.fallbacks if brief.agent is None else (),
        progress_interval=0,
        max_cost_usd=brief.max_cost_usd,
        max_tokens_total=brief.max_tokens_total,
        deadline_seconds=brief.deadline_seconds,
        max_failed=brief.max_failed,
        max_failed_share=brief.max_failed_share,
        prices=brief.prices,
        dedupe=brief.dedupe,
    )


def _concurrency(brief: Brief, possible: int | None) -> int | Literal["auto", "knee"]:
    """Return what the processor is told; only ``possible`` connections can be opened."""
    if isinstance(brief.concurrency, int):
        return possible or brief.concurrency
    return brief.concurrency or "auto"
