"""One run: puts the layers together, executes them over a source, and tells its numbers."""

from __future__ import annotations

import asyncio
import logging
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm._engine.admission_gate import AdmissionGate
from batch_llm._engine.calls import Calls
from batch_llm._engine.collector import collecting_less
from batch_llm._engine.cooldown_gate import CooldownGate
from batch_llm._engine.course import Rules
from batch_llm._engine.events import EventDispatcher
from batch_llm._engine.hedging import Hedging
from batch_llm._engine.metering import Meter
from batch_llm._engine.pipeline import Pipeline
from batch_llm._engine.pool import Pool, current_pool
from batch_llm._engine.retry import Retrier
from batch_llm._engine.sharing import Sharing
from batch_llm._engine.skipping import SkippingSource
from batch_llm._engine.sources import IterableSource, QueueSource
from batch_llm._engine.spending import SpendingGate, size_of
from batch_llm._engine.statistics import Counts
from batch_llm._engine.stops import Stops
from batch_llm._engine.unsaved import MOST_UNSAVED
from batch_llm.observers.base import ProcessingEvent
from batch_llm.stores.base import CallBook, Keeper, Spent
from batch_llm.strategies.caps import Purse
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from batch_llm._engine.calls import MakeCall
    from batch_llm._engine.gate import Gate
    from batch_llm._engine.lanes import Lanes
    from batch_llm._engine.sources import Source
    from batch_llm._engine.statistics import LanePause, Statistics
    from batch_llm.base import PostProcessor, WorkItemResult
    from batch_llm.core.config import ProcessorConfig
    from batch_llm.middleware.base import Middleware
    from batch_llm.observers.base import ProcessorObserver
    from batch_llm.providers.base import Caller, Repeatable
    from batch_llm.stores.base import Cache, Store
    from batch_llm.strategies.errors import ErrorClassifier
    from batch_llm.strategies.rate_limit import RateLimitStrategy

    Emit = Callable[[WorkItemResult[Any, Any]], Awaitable[None] | None]

#: Items that may wait between two attempts while others take their workers, per worker.
PARKED_PER_WORKER = 10


#: Finished items, at the least, before a share of them says anything.
_LEAST_FINISHED = 20


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What all runs of a processor share."""

    config: ProcessorConfig
    caller: Caller
    error_classifier: ErrorClassifier
    rate_limit_strategy: RateLimitStrategy | None
    lanes: Lanes | None
    repeats: Repeatable | None
    cache: Cache | None
    post_processor: PostProcessor | None
    middlewares: Sequence[Middleware]
    observers: Sequence[ProcessorObserver]


class Run:
    """One execution over one source: its gate, its workers, its counts.

    Args:
        setup: What all runs of a processor share.
        source: Where the items come from.
        emit: Takes each result; what it returns is waited for, so that a consumer can be slow.
        store: Records each item's states.
        weight: The run's share of the calls, beside other runs of the processor.
        keeps_ids: Whether the store is to tell each id from all earlier ones.
        most_unsaved: Results that may wait to be saved while their workers go on.
    """

    def __init__(
        self,
        setup: Setup,
        source: Source,
        emit: Emit,
        store: Store,
        weight: float = 1.0,
        *,
        keeps_ids: bool = False,
        most_unsaved: int = MOST_UNSAVED,
    ) -> None:
        self._store, self._keeps_ids = store, keeps_ids
        self._has_post_processor = setup.post_processor is not None
        self._content_of = setup.caller.content
        self._book = store if isinstance(store, CallBook) else None
        self._cache = setup.cache
        self._weight = weight
        self._config = config = setup.config
        self._loop = asyncio.get_running_loop()
        self._source: Source = source
        self._is_draining = False
        self.is_finished = False
        #: What earlier sessions of the run have spent.
        self._before = Spent([], [])
        self._has_begun = False
        self._ended_at: float | None = None
        self._counts = Counts(self._loop.time())
        self._events = EventDispatcher(setup.observers)
        self._gate = self._make_gate(setup)
        calls = self._make_calls(setup)
        self._hedging = self._make_hedging(calls) if config.hedge else None
        self._stops = Stops(setup.caller, self._counts, self._gate.has_answered)
        retrier = self._make_retrier(calls.make if self._hedging is None else self._hedging.make)
        self._sharing = self._make_sharing(setup, retrier)
        self._pipeline = Pipeline(
            answerer=retrier if self._sharing is None else self._sharing,
            store=store,
            middlewares=setup.middlewares,
            post_processor=setup.post_processor,
            events=self._events,
            counts=self._counts,
            emit=self._watched(emit) if config.bounds_failures else emit,
            progress_interval=config.progress_interval,
            content_of=setup.caller.content if store.compares_content else None,
            most_unsaved=min(most_unsaved, MOST_UNSAVED),
            on_error=lambda error: self._pool.fail(error),  # noqa: PLW0108 - it is made later
        )
        self._pool = Pool(
            self._gate.wanted,
            config.most_in_flight * PARKED_PER_WORKER,
            self._pipeline.handle,
            lambda worker_id: self._note(ProcessingEvent.WORKER_STARTED, worker_id=worker_id),
            lambda worker_id: self._note(ProcessingEvent.WORKER_STOPPED, worker_id=worker_id),
        )

    def _skip_what_is_kept(self) -> None:
        """Pass over items with a result, many at a time, where showing them takes no time."""
        source, store = self._source, self._store
        if (
            isinstance(source, IterableSource)
            and source.is_sync
            and isinstance(store, Keeper)
            and store.has_results
            and not self._has_post_processor
        ):
            self._source = SkippingSource(
                source, store, self._content_of, self._pipeline.show_kept_now
            )

    def _make_gate(self, setup: Setup) -> Gate:
        gate, config = self._make_gate_of_lanes(setup), self._config
        if config.max_cost_usd is None and config.max_tokens_total is None:
            return gate
        cap = config.max_cost_usd
        purse = Purse(None if cap is None else Decimal(str(cap)), config.max_tokens_total)
        return SpendingGate(gate, setup.caller, purse, config.prices, self._stop_at)

    def _make_gate_of_lanes(self, setup: Setup) -> Gate:
        if setup.lanes is None:
            assert setup.rate_limit_strategy is not None  # noqa: S101 - one of the two is given
            most = setup.config.most_in_flight
            return CooldownGate(most, setup.rate_limit_strategy, self._events.emit)
        pause = setup.config.longest_pause_seconds
        return AdmissionGate(
            setup.lanes,
            self._events.emit,
            lambda: self._pool.fill(),  # noqa: PLW0108 - the pool is made later
            weight=self._weight,
            longest_pause_seconds=math.inf if pause is None else pause,
        )

    def _make_calls(self, setup: Setup) -> Calls:
        return Calls(
            caller=setup.caller,
            gate=self._gate,
            classifier=setup.error_classifier,
            counts=self._counts,
            meter=Meter(setup.caller, self._counts.usage),
            events=self._events,
            log_level=logging.INFO if self._config.enable_detailed_logging else logging.DEBUG,
            book=self._book,
            size_of=size_of,
        )

    def _make_retrier(self, make_call: MakeCall) -> Retrier:
        config = self._config
        return Retrier(
            make_call=make_call,
            gate=self._gate,
            rules=Rules(
                config=config.retry,
                timeout_seconds=config.timeout_per_item,
                stops=self._stops,
                fallbacks=config.fallbacks,
            ),
            counts=self._counts,
            stops=self._stops,
        )

    def _watched(self, emit: Emit) -> Emit:
        """Return ``emit`` that also looks whether too much failed; the counts are new by then."""

        def watch(result: WorkItemResult[Any, Any]) -> Awaitable[None] | None:
            shown = emit(result)
            counts, config = self._counts, self._config
            most, share = config.max_failed, config.max_failed_share
            failed = counts.failed - counts.failures_by_code[ErrorCode.CANCELLED.value]
            if most is not None and failed > most:
                self._stop_at("max_failed", f"{failed:,} items have failed")
            finished = counts.succeeded + failed
            if share is not None and failed > share * finished and finished >= _enough_for(share):
                percent = f"{100 * failed / finished:.3g} %"
                reason = f"{failed:,} of {finished:,} finished items have failed ({percent})"
                self._stop_at("max_failed_share", reason)
            return shown

        return watch

    def _stop_at(self, setting: str, reason: str) -> None:
        """Send nothing any more, because a setting says so; what is in flight is waited for."""
        if self._counts.stopped_by is None and not self._is_draining:
            self._counts.stopped_by, self._counts.stop_reason = setting, reason
            self.stop(drain=True, retry=False)

    def _make_sharing(self, setup: Setup, retrier: Retrier) -> Sharing | None:
        repeats, dedupes = setup.repeats, self._config.dedupe
        if repeats is None or not (dedupes or setup.cache is not None):
            return None
        return Sharing(retrier, repeats, self._counts, dedupes=dedupes, cache=setup.cache)

    def _make_hedging(self, calls: Calls) -> Hedging:
        return Hedging(
            make_call=calls.make,
            gate=self._gate,
            counts=self._counts,
            can_send=self._has_nothing_else_to_send,
        )

    def _has_nothing_else_to_send(self) -> bool:
        if self._pool.is_cancelling or self._gate.waiting:
            return False
        return self._pool.is_draining or self._source.is_empty

    def _note(self, event: ProcessingEvent, **data: Any) -> None:
        if self._events.is_active:
            self._events.emit(event, data)

    async def execute(self) -> None:
        """Process everything that the source gives.

        Raises:
            LedgerError: The store cannot be used; nothing was done.
            Exception: What ended the run early; the items in work were finished first.
            asyncio.CancelledError: All work was cancelled and has ended.
        """
        if self._cache is not None:
            self._cache.begin_run()
        begun = self._store.begin_run(keeps_ids=self._keeps_ids)
        if begun is not None:
            await begun
        if self._book is not None:
            self._before, self._has_begun = self._book.spent(), True
            if isinstance(self._gate, SpendingGate):
                self._gate.begin_with(self._before)
        self._skip_what_is_kept()
        self._note(ProcessingEvent.BATCH_STARTED)
        timer = None
        if (seconds := self._config.deadline_seconds) is not None:
            reason = f"{seconds:g} s have gone by since its start"
            timer = self._loop.call_later(seconds, self._stop_at, "deadline_seconds", reason)
        try:
            with collecting_less():
                try:
                    await self._pool.run(self._source)
                finally:
                    await self._pipeline.show_all()
            self._stops.conclude()
            self._pool.raise_error()
        finally:
            self._store.end_run()
            self._before = self._spent_before()  # the store may go on with another run
            self.is_finished = True
            if timer is not None:
                timer.cancel()
            self._ended_at = self._loop.time()
            if self._hedging is not None:
                self._hedging.close()
            await self._gate.close()
            counts = self._counts
            self._note(
                ProcessingEvent.BATCH_COMPLETED,
                duration=self._ended_at - counts.started_at,
                tokens=counts.tokens,
            )
            await self._events.close()

    def stop(self, *, drain: bool, retry: bool = True) -> None:
        """Take no more items; finish those in work, or cancel them too."""
        self._is_draining = True
        if drain and retry:
            self._pool.drain()
            return
        self._pipeline.is_abandoned = True
        if drain:
            self._pool.finish_calls()
        else:
            self._pool.abandon()

    def owns_current_task(self) -> bool:
        """Whether the caller runs in one of the run's workers: in a call or a hook."""
        return current_pool.get() is self._pool

    def statistics(self, queued: int) -> Statistics:
        """Return the numbers of this moment.

        Args:
            queued: Items that are known and were not taken yet, where the source is a queue.
        """
        if self.is_finished:
            state = "finished"
        elif self._is_draining:
            state = "draining"
        else:
            state = "cooling" if self._gate.is_cooling else "running"
        is_queue = isinstance(self._source, QueueSource)
        now = self._ended_at if self._ended_at is not None else self._loop.time()
        gate = self._gate
        pauses = gate.pauses()
        following = 0 if self._sharing is None else self._sharing.following
        return self._counts.snapshot(
            total=self._counts.started + queued if is_queue else None,
            state=state,
            concurrency=gate.most,
            elapsed_seconds=now - self._counts.started_at,
            in_flight=gate.in_flight,
            waiting=gate.waiting,
            retrying=self._pool.parked - following,
            following=following,
            cooldown_seconds=gate.cooldown_seconds,
            cooldown_remaining_seconds=gate.cooldown_remaining_seconds,
            cooldown_reason=self._cooldown_reason(pauses) if gate.is_cooling else None,
            pauses=pauses,
            limits=gate.limits(),
            before=self._spent_before(),
        )

    def _spent_before(self) -> Spent:
        """Return what earlier sessions of the run have spent, as is known by now."""
        if self._book is None or not self._has_begun or self.is_finished:
            return self._before
        return self._book.spent()

    def _cooldown_reason(self, pauses: list[LanePause]) -> str | None:
        """Tell why all wait: the words of the last refusal, or the limit that is used up."""
        if pauses:
            first = min(pauses, key=lambda one: one.seconds)
            if first.reason != "refused":
                return first.reason
        return self._counts.cooldown_reason


def _enough_for(share: float) -> float:
    """Return how many items must be finished before a share of failures counts."""
    return max(_LEAST_FINISHED, 1 / share) if share else 1
