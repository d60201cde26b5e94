"""``ParallelBatchProcessor``: live calls, many at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import TYPE_CHECKING, Any

from batch_llm._engine.channel import Channel
from batch_llm._engine.lanes import Lanes
from batch_llm._engine.run import Run, Setup
from batch_llm._engine.sources import IterableSource, QueueSource
from batch_llm._engine.statistics import Counts, Statistics
from batch_llm._engine.unsaved import MOST_UNSAVED
from batch_llm.base import (
    BatchProcessor,
    BatchResult,
    LLMWorkItem,
    TContext,
    TInput,
    TOutput,
    WorkItemResult,
)
from batch_llm.core.config import ProcessorConfig
from batch_llm.exceptions import BatchLLMError, ConfigError, DuplicateItemError
from batch_llm.providers.callables import CallByMode
from batch_llm.providers.models import OpenModels
from batch_llm.stores.limit_memory import LimitMemory, limits_file
from batch_llm.stores.memory import MemoryStore
from batch_llm.strategies.default_classifier import DefaultErrorClassifier
from batch_llm.strategies.policies import fallback_codes
from batch_llm.strategies.rate_limit import ExponentialBackoffStrategy, RateLimitStrategy

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Iterable,
        Sequence,
    )
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

    from batch_llm._engine.run import Emit
    from batch_llm._engine.sources import Source
    from batch_llm.base import PostProcessor
    from batch_llm.core.config import RateLimitConfig
    from batch_llm.middleware.base import Middleware
    from batch_llm.observers.base import ProcessorObserver
    from batch_llm.providers.base import Caller
    from batch_llm.stores.base import Cache, Store
    from batch_llm.strategies.errors import ErrorClassifier

#: The longest cooldown of the default strategy, in seconds, unless the first is longer.
MAX_COOLDOWN_SECONDS = 600.0


class ParallelBatchProcessor(BatchProcessor[TInput, TOutput, TContext]):
    """Processes many items at a time and gives exactly one result for each.

    Either queue items (``add_work``) and ``process_all``, or hand over an iterable: ``process``
    returns when all is done, ``stream`` yields each result as it comes. Item failures never
    raise; they are results. A processor can be used again. Where limits are learned, several runs
    may go on at a time, and share them.

    Args:
        max_workers: Overrides ``config.max_workers``.
        batch_size: Accepted for old callers; has no effect.
        post_processor: Called once per item with its result, before anyone else sees it. What it
            raises is logged and the result stands. An async one is given up after 75 s; a sync
            one holds up everything while it runs.
        timeout_per_item: Overrides ``config.timeout_per_item``.
        rate_limit_cooldown: Overrides ``config.rate_limit.cooldown_seconds``.
        config: Everything else. The object is not changed.
        error_classifier: Tells what errors mean; the default knows HTTP, transport and
            validation errors.
        rate_limit_strategy: Cooldown and slow start after a refusal. Without it, and without a
            ``config.rate_limit`` or ``rate_limit_cooldown``, the provider's limits are learned.
        middlewares: Hooks around each item, outermost first.
        observers: Receive the run's events.
        requests: Makes the calls of items that are requests, see ``open_model``. The caller closes
            it. None: each request goes to the model that it names; what that needs is opened when
            it is needed, and closed when the last run has ended.
        store: A ledger: results are saved there before anyone sees them, and what it holds already
            is given out again without a call (``is_reused``), as long as the item asks the same.
            The caller closes it. One run at a time can use it.
        cache: Answers of earlier runs: a request that asks what another did is answered from there,
            and good answers are kept there. The caller closes it. Runs and processes can share it.

    Raises:
        ConfigError: A setting is out of bounds. Also a ``ValueError``.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        batch_size: int | None = None,  # noqa: ARG002
        post_processor: PostProcessor | None = None,
        timeout_per_item: float | None = None,
        rate_limit_cooldown: float | None = None,
        config: ProcessorConfig | None = None,
        error_classifier: ErrorClassifier | None = None,
        rate_limit_strategy: RateLimitStrategy | None = None,
        middlewares: Sequence[Middleware] | None = None,
        observers: Sequence[ProcessorObserver] | None = None,
        *,
        requests: Caller | None = None,
        store: Store | None = None,
        cache: Cache | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self.config = _overridden(
            config or ProcessorConfig(), max_workers, timeout_per_item, rate_limit_cooldown
        )
        self.config.validate()
        fallback_codes(self.config.retry.fallback_on)  # here, where the user can see it
        self.post_processor = post_processor
        self.error_classifier = error_classifier or DefaultErrorClassifier()
        #: None: the provider's limits are learned, and told ones kept.
        self.rate_limit_strategy = rate_limit_strategy
        if rate_limit_strategy is None:
            if not self.config.learns_limits:
                self.rate_limit_strategy = _strategy_from(self.config.rate_limit)
        elif self.config.limits is not None or isinstance(self.config.concurrency, str):
            raise ConfigError(
                "rate_limit_strategy", rate_limit_strategy, "left out when limits are learned"
            )
        elif self.config.is_auto:  # the strategy was asked for, so the number of workers counts
            self.config = dataclasses.replace(self.config, max_workers=int(self.config.max_workers))
        self.middlewares = list(middlewares or ())
        self.observers = list(observers or ())
        #: Opened by this processor, and closed by it.
        self._models = OpenModels() if requests is None else None
        self._caller = CallByMode(requests if self._models is None else self._models.caller)
        self._queue = QueueSource(self.config.max_queue_size)
        self._is_queue_taken = False
        #: Of all items that are queued, in work or finished since the last run of the queue ended.
        self._queued_ids: set[str] = set()
        #: The run that began last, and all that go on.
        self._run: Run | None = None
        self._runs: set[Run] = set()
        self._lanes: Lanes | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Abandon what is still in work; after a finished run there is nothing."""
        self.stop(drain=False)

    async def add_work(self, work_item: LLMWorkItem[TInput, TOutput, TContext]) -> None:
        """Queue an item, before a run or during one.

        Waits while ``config.max_queue_size`` items are queued; not from inside of the run itself,
        in a call or a hook: those would wait for room that only they can make.

        Raises:
            DuplicateItemError: An item of this id is queued, or was since the last run of the
                queue began. Also a ``ValueError``.
        """
        self._loop = asyncio.get_running_loop()
        if not isinstance(work_item, LLMWorkItem):
            raise TypeError(f"add_work takes an LLMWorkItem, got {type(work_item).__name__}")
        if work_item.item_id in self._queued_ids:
            raise DuplicateItemError(work_item.item_id)
        self._queued_ids.add(work_item.item_id)
        is_inside = any(run.owns_current_task() for run in self._runs)
        try:
            await self._queue.put(work_item, may_wait=not is_inside)
        except asyncio.CancelledError:
            self._queued_ids.discard(work_item.item_id)
            raise

    def add_work_threadsafe(
        self, work_item: LLMWorkItem[TInput, TOutput, TContext]
    ) -> Future[None]:
        """Queue an item from another thread; wait for the returned future to know that it is.

        The processor must have been entered (``async with``) or used in its event loop before.

        Raises:
            RuntimeError: The processor does not know its event loop yet.
        """
        if self._loop is None:
            raise RuntimeError(
                "The processor does not know its event loop yet: enter it with `async with`, or "
                "call add_work or process_all there, before other threads add items."
            )
        return asyncio.run_coroutine_threadsafe(self.add_work(work_item), self._loop)

    async def process_all(self) -> BatchResult[TOutput, TContext]:
        """Process what is queued, and what is added meanwhile, and return all results.

        Returns:
            One result per item. After ``stop`` the items that were not started are missing; they
            stay queued.

        Raises:
            StoreError: A result could not be saved; ``partial`` holds the results before.
            asyncio.CancelledError: All work was cancelled and has ended. Items without a result
                are queued again.
        """
        self._check_may_run(of_queue=True)
        try:
            self._is_queue_taken = True
            return await self._collect(self._queue, keeps_ids=False)
        finally:
            self._is_queue_taken = False
            self._queued_ids = self._queue.ids()

    async def process(
        self,
        items: Iterable[LLMWorkItem[TInput, TOutput, TContext]]
        | AsyncIterable[LLMWorkItem[TInput, TOutput, TContext]],
        *,
        weight: float = 1.0,
    ) -> BatchResult[TOutput, TContext]:
        """Process an iterable's items and return all results.

        Args:
            items: Pulled as there is room.
            weight: Where limits are learned and other runs of this processor go on: how many calls
                this one may make for each of a run of weight 1.

        Raises:
            SourceError: ``items`` raised, or gave something else than items.
            DuplicateItemError: Two items have the same id.

        Both come after the items before were finished, and ``partial`` holds their results.
        """
        return await self._collect(IterableSource(items), weight, keeps_ids=True)

    async def _collect(
        self, source: Source, weight: float = 1.0, *, keeps_ids: bool
    ) -> BatchResult[TOutput, TContext]:
        results: list[WorkItemResult[Any, Any]] = []
        try:
            await self._execute(source, results.append, weight, keeps_ids=keeps_ids)
        except BatchLLMError as error:
            error.partial = BatchResult(results)
            raise
        return BatchResult(results)

    async def stream(
        self,
        items: Iterable[LLMWorkItem[TInput, TOutput, TContext]]
        | AsyncIterable[LLMWorkItem[TInput, TOutput, TContext]],
        *,
        buffer: int | None = None,
        weight: float = 1.0,
    ) -> AsyncGenerator[WorkItemResult[TOutput, TContext]]:
        """Yield each result as soon as it is there.

        A consumer that is slower than the calls slows them down, and they slow the reading of
        ``items``: memory is bounded by the items in work and the buffer. Leaving the loop early
        cancels what is in work (close the generator, or use ``contextlib.aclosing``).

        Args:
            items: Pulled as there is room.
            buffer: Finished results that may wait for the consumer; default 2 per worker.
            weight: As for ``process``.

        Raises:
            SourceError: ``items`` raised; all results before were yielded.
            DuplicateItemError: Two items in work have the same id; the results before were
                yielded.
        """
        channel = Channel(buffer or 2 * self.config.most_in_flight)

        async def execute() -> None:
            try:
                await self._execute(
                    IterableSource(items), channel.put, weight, most_unsaved=channel.size
                )
            finally:
                channel.close()

        running = asyncio.create_task(execute())
        try:
            while True:
                for result in await channel.take():
                    yield result
                if channel.has_ended:
                    break
            await running
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait([running])
            elif not running.cancelled():
                running.exception()  # marked as seen, when the consumer left early

    def stop(self, *, drain: bool = True, retry: bool = True) -> None:
        """End what runs early; does nothing when nothing does.

        Args:
            drain: Finish the items in work first. Otherwise they are cancelled, and their
                results say so (``AbandonedError``). Items not yet taken stay where they are; an
                async generator that is waiting for its next item is ended.
            retry: While draining: whether calls that fail are made again. Otherwise only those in
                flight are waited for, and what has no answer then is abandoned.
        """
        for run in list(self._runs):
            run.stop(drain=drain, retry=retry)

    async def get_stats(self) -> dict[str, Any]:
        """Return a consistent snapshot of the current run, or of the last one.

        Returns:
            ``total``, ``processed``, ``succeeded``, ``failed``, ``rate_limit_count`` (refused
            calls), ``error_counts`` (failed items by exception type) and ``start_time`` (an
            aware ``datetime``; None before the first run).
        """
        now = self.statistics()
        return {
            "total": now.total if now.total is not None else now.started,
            "processed": now.processed,
            "succeeded": now.succeeded,
            "failed": now.failed,
            "rate_limit_count": now.rate_limit_count,
            "error_counts": now.error_counts,
            "start_time": now.start_time,
        }

    def statistics(self) -> Statistics:
        """Return the numbers of the run that began last, as a frozen snapshot."""
        queued = len(self._queue)
        if self._run is not None:
            return self._run.statistics(queued)
        return Counts().snapshot(
            total=queued, state="finished", concurrency=self.config.most_in_flight
        )

    def _check_may_run(self, *, of_queue: bool = False) -> None:
        """Refuse a second run of the queue, and one where runs cannot share limits."""
        is_shared = self.rate_limit_strategy is None and not (of_queue and self._is_queue_taken)
        if self._runs and not is_shared:
            raise RuntimeError("This processor is in a run already; wait for it, or make another.")

    async def _execute(
        self,
        source: Source,
        emit: Emit,
        weight: float = 1.0,
        *,
        keeps_ids: bool = False,
        most_unsaved: int = MOST_UNSAVED,
    ) -> None:
        if self.config.max_cost_usd is not None and self.config.prices.needs_library:
            # Loading the library's prices takes long enough to hold up everything else.
            await asyncio.to_thread(self.config.prices.load)
        self._check_may_run()
        if not 0 < weight < math.inf:
            raise ConfigError("weight", weight, "> 0 and finite")
        self._loop = asyncio.get_running_loop()
        lanes = self._open_lanes()
        setup = Setup(
            config=self.config,
            caller=self._caller,
            error_classifier=self.error_classifier,
            rate_limit_strategy=self.rate_limit_strategy,
            lanes=lanes,
            repeats=self._caller.repeatable,
            cache=self._cache,
            post_processor=self.post_processor,
            middlewares=self.middlewares,
            observers=self.observers,
        )
        store = self._store or MemoryStore(keep_ids=keeps_ids)
        self._run = run = Run(
            setup, source, emit, store, weight, keeps_ids=keeps_ids, most_unsaved=most_unsaved
        )
        self._runs.add(run)
        try:
            await run.execute()
        finally:
            self._runs.discard(run)
            if not self._runs:
                if lanes is not None:
                    lanes.close()
                if self._models is not None:
                    await self._models.aclose()

    def _open_lanes(self) -> Lanes | None:
        """Return the lanes of all runs in this event loop: they keep what they have learned."""
        if self.rate_limit_strategy is not None:
            return None
        loop = asyncio.get_running_loop()
        if self._lanes is None or self._lanes.loop is not loop:
            path = limits_file() if self.config.remember_limits else None
            memory = None if path is None else LimitMemory(path)
            self._lanes = Lanes(
                self.config.most_in_flight,
                self.config.limits,
                self._caller,
                memory,
                loop,
                ceiling=self.config.ceiling,
                is_auto=self.config.is_auto,
                seeks_knee=self.config.seeks_knee,
            )
        return self._lanes


def _overridden(
    config: ProcessorConfig,
    max_workers: int | None,
    timeout_per_item: float | None,
    rate_limit_cooldown: float | None,
) -> ProcessorConfig:
    changes: dict[str, Any] = {}
    if max_workers is not None:
        changes["max_workers"] = max_workers
    if timeout_per_item is not None:
        changes["timeout_per_item"] = timeout_per_item
    if rate_limit_cooldown is not None:
        changes["rate_limit"] = dataclasses.replace(
            config.rate_limit, cooldown_seconds=rate_limit_cooldown
        )
    return dataclasses.replace(config, **changes)


def _strategy_from(config: RateLimitConfig) -> RateLimitStrategy:
    return ExponentialBackoffStrategy(
        initial_cooldown=config.cooldown_seconds,
        max_cooldown=max(MAX_COOLDOWN_SECONDS, config.cooldown_seconds),
        backoff_multiplier=config.backoff_multiplier,
        slow_start_items=config.slow_start_items,
        slow_start_initial_delay=config.slow_start_initial_delay,
        slow_start_final_delay=config.slow_start_final_delay,
    )
