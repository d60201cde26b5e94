"""``ParallelBatchProcessor``: live calls, many at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from batch_llm._engine.events import EventDispatcher
from batch_llm._engine.gate import Gate
from batch_llm._engine.pipeline import Pipeline
from batch_llm._engine.pool import Pool
from batch_llm._engine.retry import Retrier
from batch_llm._engine.sources import IterableSource, QueueSource
from batch_llm._engine.statistics import Counts, Statistics
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
from batch_llm.exceptions import DuplicateItemError, SourceError
from batch_llm.observers.base import ProcessingEvent
from batch_llm.providers.agents import CallByMode
from batch_llm.stores.memory import MemoryStore
from batch_llm.strategies.default_classifier import DefaultErrorClassifier
from batch_llm.strategies.rate_limit import ExponentialBackoffStrategy, RateLimitStrategy

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Awaitable,
        Callable,
        Iterable,
        Sequence,
    )
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

    from batch_llm._engine.sources import Source
    from batch_llm.base import PostProcessor
    from batch_llm.core.config import RateLimitConfig
    from batch_llm.middleware.base import Middleware
    from batch_llm.observers.base import ProcessorObserver
    from batch_llm.providers.base import Caller
    from batch_llm.stores.base import Store
    from batch_llm.strategies.errors import ErrorClassifier

    Emit = Callable[[WorkItemResult[Any, Any]], Awaitable[None] | None]

#: Items that may wait between two attempts while others take their workers, per worker.
PARKED_PER_WORKER = 10
#: The longest cooldown of the default strategy, in seconds, unless the first is longer.
MAX_COOLDOWN_SECONDS = 600.0


class ParallelBatchProcessor(BatchProcessor[TInput, TOutput, TContext]):
    """Processes many items at a time and gives exactly one result for each.

    Either queue items (``add_work``) and ``process_all``, or hand over an iterable: ``process``
    returns when all is done, ``stream`` yields each result as it comes. Item failures never
    raise; they are results. A processor can be used again, for one run at a time.

    Args:
        max_workers: Overrides ``config.max_workers``.
        batch_size: Accepted for old callers; has no effect.
        post_processor: Called once per item with its result, sync or async. What it raises is
            logged, and it is given up after 75 s; the result stands.
        timeout_per_item: Overrides ``config.timeout_per_item``.
        rate_limit_cooldown: Overrides ``config.rate_limit.cooldown_seconds``.
        config: Everything else. The object is not changed.
        error_classifier: Tells what errors mean; the default knows HTTP, transport and
            validation errors.
        rate_limit_strategy: Cooldown and slow start; the default follows ``config.rate_limit``.
        middlewares: Hooks around each item, outermost first.
        observers: Receive the run's events.
        requests: Makes the calls of items that are requests.

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
    ) -> None:
        self.config = _overridden(
            config or ProcessorConfig(), max_workers, timeout_per_item, rate_limit_cooldown
        )
        self.config.validate()
        self.post_processor = post_processor
        self.error_classifier = error_classifier or DefaultErrorClassifier()
        self.rate_limit_strategy = rate_limit_strategy or _strategy_from(self.config.rate_limit)
        self.middlewares = list(middlewares or ())
        self.observers = list(observers or ())
        self._caller = CallByMode(requests)
        self._queue = QueueSource(self.config.max_queue_size)
        self._queued_ids: set[str] = set()
        self._run: _Run | None = None
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

    # -- items in

    async def add_work(self, work_item: LLMWorkItem[TInput, TOutput, TContext]) -> None:
        """Queue an item, before a run or during one.

        Waits while ``config.max_queue_size`` items are queued.

        Raises:
            DuplicateItemError: The id was added before in this run. Also a ``ValueError``.
        """
        self._loop = asyncio.get_running_loop()
        if work_item.item_id in self._queued_ids:
            raise DuplicateItemError(work_item.item_id)
        self._queued_ids.add(work_item.item_id)
        try:
            await self._queue.put(work_item)
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

    # -- results out

    async def process_all(self) -> BatchResult[TOutput, TContext]:
        """Process what is queued, and what is added meanwhile, and return all results.

        Returns:
            One result per item. After ``stop`` the items that were not started are missing; they
            stay queued.

        Raises:
            StoreError: A result could not be saved.
            asyncio.CancelledError: All work was cancelled and has ended.
        """
        results: list[WorkItemResult[Any, Any]] = []
        try:
            await self._execute(self._queue, results.append, MemoryStore(keep_ids=False))
        finally:
            if not len(self._queue):
                self._queued_ids.clear()
        return BatchResult(results)

    async def process(
        self,
        items: Iterable[LLMWorkItem[TInput, TOutput, TContext]]
        | AsyncIterable[LLMWorkItem[TInput, TOutput, TContext]],
    ) -> BatchResult[TOutput, TContext]:
        """Process an iterable's items and return all results.

        Raises:
            SourceError: ``items`` raised; ``partial`` holds the results of the items before.
            DuplicateItemError: Two items have the same id; those before were finished.
        """
        results: list[WorkItemResult[Any, Any]] = []
        try:
            await self._execute(IterableSource(items), results.append, MemoryStore())
        except SourceError as error:
            error.partial = BatchResult(results)
            raise
        return BatchResult(results)

    async def stream(
        self,
        items: Iterable[LLMWorkItem[TInput, TOutput, TContext]]
        | AsyncIterable[LLMWorkItem[TInput, TOutput, TContext]],
        *,
        buffer: int | None = None,
    ) -> AsyncGenerator[WorkItemResult[TOutput, TContext]]:
        """Yield each result as soon as it is there.

        A consumer that is slower than the calls slows them down, and they slow the reading of
        ``items``: memory is bounded by the items in work and the buffer. Leaving the loop early
        cancels what is in work (close the generator, or use ``contextlib.aclosing``).

        Args:
            items: Pulled as there is room.
            buffer: Finished results that may wait for the consumer; default 2 per worker.

        Raises:
            SourceError: ``items`` raised; all results before were yielded.
            DuplicateItemError: Two items in work have the same id; the results before were
                yielded.
        """
        channel = _Channel(buffer or 2 * self.config.max_workers)
        store = MemoryStore(keep_ids=False)

        async def execute() -> None:
            try:
                await self._execute(IterableSource(items), channel.put, store)
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

    def stop(self, *, drain: bool = True) -> None:
        """End the current run early; does nothing when there is none.

        Args:
            drain: Finish the items in work first. Otherwise they are cancelled, and their
                results say so (``AbandonedError``). Items not yet taken stay where they are.
        """
        if self._run is not None and not self._run.is_finished:
            self._run.stop(drain=drain)

    # -- numbers

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
        """Return the numbers of the current run, or of the last one, as a frozen snapshot."""
        run = self._run
        queued = len(self._queue)
        if run is None:
            return _snapshot(Counts(0.0), self.config, total=queued, state="finished")
        return run.statistics(self.config, queued)

    # -- one run

    async def _execute(self, source: Source, emit: Emit, store: Store) -> None:
        if self._run is not None and not self._run.is_finished:
            raise RuntimeError("This processor is in a run already; wait for it, or make another.")
        self._loop = asyncio.get_running_loop()
        self._run = run = _Run(self, self._caller, source, emit, store)
        await run.execute()


class _Run:
    """One execution: its gate, its workers, its counts."""

    def __init__(
        self,
        processor: ParallelBatchProcessor[Any, Any, Any],
        caller: Caller,
        source: Source,
        emit: Emit,
        store: Store,
    ) -> None:
        config = processor.config
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._source = source
        self._is_draining = False
        self.is_finished = False
        self._ended_at: float | None = None
        self._counts = Counts(loop.time())
        self._events = EventDispatcher(processor.observers)
        self._gate = Gate(config.max_workers, processor.rate_limit_strategy, self._events.emit)
        retrier = Retrier(
            caller=caller,
            gate=self._gate,
            classifier=processor.error_classifier,
            config=config.retry,
            timeout_seconds=config.timeout_per_item,
            counts=self._counts,
            events=self._events,
            log_level=logging.INFO if config.enable_detailed_logging else logging.DEBUG,
        )
        self._pipeline = Pipeline(
            retrier=retrier,
            store=store,
            middlewares=processor.middlewares,
            post_processor=processor.post_processor,
            events=self._events,
            counts=self._counts,
            emit=emit,
            progress_interval=config.progress_interval,
        )
        self._pool = Pool(
            config.max_workers,
            config.max_workers * PARKED_PER_WORKER,
            self._pipeline.handle,
            lambda worker_id: self._note(ProcessingEvent.WORKER_STARTED, worker_id=worker_id),
            lambda worker_id: self._note(ProcessingEvent.WORKER_STOPPED, worker_id=worker_id),
        )
        self._pipeline.pool = self._pool

    def _note(self, event: ProcessingEvent, **data: Any) -> None:
        if self._events.is_active:
            self._events.emit(event, data)

    async def execute(self) -> None:
        self._note(ProcessingEvent.BATCH_STARTED)
        try:
            await self._pool.run(self._source)
        finally:
            self.is_finished = True
            self._ended_at = self._loop.time()
            await self._gate.close()
            counts = self._counts
            self._note(
                ProcessingEvent.BATCH_COMPLETED,
                duration=self._ended_at - counts.started_at,
                tokens=counts.input_tokens + counts.output_tokens,
            )
            await self._events.close()

    def stop(self, *, drain: bool) -> None:
        self._is_draining = True
        if drain:
            self._pool.drain()
        else:
            self._pipeline.is_abandoned = True
            self._pool.abandon()

    def statistics(self, config: ProcessorConfig, queued: int) -> Statistics:
        gate = self._gate
        if self.is_finished:
            state = "finished"
        elif self._is_draining:
            state = "draining"
        else:
            state = "cooling" if gate.is_cooling else "running"
        is_queue = isinstance(self._source, QueueSource)
        now = self._ended_at if self._ended_at is not None else self._loop.time()
        return _snapshot(
            self._counts,
            config,
            total=self._counts.started + queued if is_queue else None,
            state=state,
            gate=gate,
            retrying=self._pool.parked,
            elapsed_seconds=now - self._counts.started_at,
        )


class _Channel:
    """Results on their way to a consumer; producers wait while it is full."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: list[WorkItemResult[Any, Any]] = []
        self._has_some = asyncio.Event()
        self._producers: deque[asyncio.Future[None]] = deque()
        self._is_closed = False

    @property
    def has_ended(self) -> bool:
        return self._is_closed and not self._results

    def put(self, result: WorkItemResult[Any, Any]) -> Awaitable[None] | None:
        """Take the result; return something to wait for when the channel is full now."""
        self._results.append(result)
        self._has_some.set()
        if len(self._results) < self._size:
            return None
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._producers.append(room)
        return room

    async def take(self) -> list[WorkItemResult[Any, Any]]:
        """Wait for results and return all that are there; none only at the end."""
        await self._has_some.wait()
        results, self._results = self._results, []
        if not self._is_closed:
            self._has_some.clear()
        while self._producers:
            room = self._producers.popleft()
            if not room.done():
                room.set_result(None)
        return results

    def close(self) -> None:
        self._is_closed = True
        self._has_some.set()


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


def _snapshot(
    counts: Counts,
    config: ProcessorConfig,
    *,
    total: int | None,
    state: str,
    gate: Gate | None = None,
    retrying: int = 0,
    elapsed_seconds: float = 0.0,
) -> Statistics:
    is_cooling = gate is not None and gate.is_cooling
    return Statistics(
        total=total,
        started=counts.started,
        processed=counts.succeeded + counts.failed,
        succeeded=counts.succeeded,
        failed=counts.failed,
        in_flight=gate.in_flight if gate else 0,
        waiting=gate.waiting if gate else 0,
        retrying=retrying,
        attempts=counts.attempts,
        rate_limit_count=counts.rate_limit_count,
        retries_by_code=dict(counts.retries_by_code),
        failures_by_code=dict(counts.failures_by_code),
        error_counts=dict(counts.error_counts),
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        state=state,
        cooldown_seconds=gate.cooldown_seconds if gate else 0.0,
        cooldown_remaining_seconds=gate.cooldown_remaining_seconds if gate else 0.0,
        cooldown_reason=counts.cooldown_reason if is_cooling else None,
        concurrency=config.max_workers,
        elapsed_seconds=elapsed_seconds,
        latency_p50=counts.latency(0.5),
        latency_p90=counts.latency(0.9),
        latency_p99=counts.latency(0.99),
        start_time=counts.start_time if gate else None,
    )
