"""Make one call and settle it: with the gate, in the counts, in its item's history.

Whether there is another one is not decided here: that is ``retry.py``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from batch_llm._engine.clock import clock_of
from batch_llm._engine.deadlines import CallCutError
from batch_llm._engine.gate import Held
from batch_llm._engine.metering import may_have_cost
from batch_llm.core.text import described
from batch_llm.core.usage import usage_of_error
from batch_llm.exceptions import CallCancelledError
from batch_llm.observers.base import ProcessingEvent
from batch_llm.providers.base import DEPARTURE, Outcome
from batch_llm.providers.limit_headers import limits_of_error
from batch_llm.stores.base import Attempt
from batch_llm.strategies.errors import ErrorCode, ErrorInfo, code_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm._engine.deadlines import Deadline
    from batch_llm._engine.events import EventDispatcher
    from batch_llm._engine.gate import Gate
    from batch_llm._engine.metering import Meter
    from batch_llm._engine.progress import Progress
    from batch_llm._engine.statistics import Counts
    from batch_llm.base import LLMWorkItem
    from batch_llm.providers.base import Caller, Try
    from batch_llm.stores.base import CallBook, NotedCall
    from batch_llm.strategies.caps import Size
    from batch_llm.strategies.errors import ErrorClassifier

    Item = LLMWorkItem[Any, Any, Any]

logger = logging.getLogger("batch_llm.calls")

#: The verdict when a classifier itself fails.
_UNKNOWN = ErrorInfo(
    is_retryable=True, is_rate_limit=False, is_timeout=False, error_category="unknown"
)
_NOTHING = Outcome()
_GIVEN_UP = "CancelledError: the run was ended while the call was under way"
_CUT_SHORT = "CallCutError: the other copy of this call was answered first"


class Owner(Protocol):
    """Whose task a call is made in: a worker's, or that of a copy."""

    @property
    def id(self) -> int:
        """The worker's id."""
        ...

    @property
    def deadline(self) -> Deadline:
        """Bounds the task's calls."""
        ...

    @property
    def is_cancelled(self) -> bool:
        """Whether a ``CancelledError`` is ours, and not a call's that cancelled itself."""
        ...

    def take_back_cancellation(self) -> None:
        """Go on after a cancellation that has been dealt with."""
        ...


class Ended(msgspec.Struct):
    """How a call ended, and what was made of that.

    Attributes:
        outcome: What it brought; nothing when it was cut short.
        seconds: How long it took.
        usage: Tokens spent, or None where nobody knows.
        code: What failed; None after a success.
        verdict: What the failure means; None after a success, and when the call was cut short.
        held: What the gate does about the failure.
        wait_seconds: What a refused call's item waits on its own.
    """

    outcome: Outcome
    seconds: float
    usage: dict[str, int] | None
    code: ErrorCode | None = None
    verdict: ErrorInfo | None = None
    held: Held = Held.NO
    wait_seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether there is an answer."""
        return self.code is None

    @property
    def is_cut_short(self) -> bool:
        """Whether it was ended because nobody wanted its answer any more."""
        return self.verdict is None and self.code is not None


class MakeCall(Protocol):
    """Makes one call that was let in, and settles it."""

    async def __call__(
        self, item: Item, owner: Owner, ticket: Any, attempt: Try, progress: Progress, /
    ) -> Ended:
        """Return how it ended; the ticket was handed back by then.

        Raises:
            asyncio.CancelledError: The owner was cancelled; the ticket was handed back.
        """
        ...


class Calls:
    """Makes the calls of all workers.

    Args:
        caller: Makes the exchange itself.
        gate: Has let the calls in, and is told how they ended.
        classifier: Tells what errors mean.
        counts: Of the run.
        meter: Counts what they spend.
        events: Hears of refusals.
        log_level: Of failed calls.
        book: Where calls are noted before they are sent.
        size_of: Tells what is to be noted of them.
    """

    def __init__(
        self,
        *,
        caller: Caller,
        gate: Gate,
        classifier: ErrorClassifier,
        counts: Counts,
        meter: Meter,
        events: EventDispatcher,
        log_level: int,
        book: CallBook | None = None,
        size_of: Callable[[Item], Size] | None = None,
    ) -> None:
        self._book, self._size_of = book, size_of
        self._caller = caller
        self._tells_departures = getattr(caller, "tells_departures", False)
        self._gate = gate
        self._classifier = classifier
        self._counts = counts
        self._meter = meter
        self._events = events
        self._log_level = log_level
        self._time = clock_of(asyncio.get_running_loop())

    async def make(
        self, item: Item, owner: Owner, ticket: Any, attempt: Try, progress: Progress, /
    ) -> Ended:
        """Make one call, within its time, and settle it.

        Raises:
            asyncio.CancelledError: Passed on at once; the ticket was handed back.
        """
        self._counts.attempts += 1
        started_at, book = self._time(), self._book
        noted, billed_as, calls = None, None, 0
        if book is not None:
            billed_as = self._meter.billed_as(item)
            noted = self._note_call(item, attempt, progress, started_at, billed_as)
            if item.request is None:  # an agent may look up its model in the call
                billed_as = None
            calls = len(progress.history)
        try:
            try:
                outcome = await owner.deadline.bound(
                    self._caller.call(item, attempt), attempt.timeout_seconds, started_at
                )
            except asyncio.CancelledError:
                if owner.is_cancelled:
                    self._book_cancelled(item, attempt, progress, started_at, _GIVEN_UP)
                    raise
                owner.take_back_cancellation()
                outcome = Outcome(error=CallCancelledError())
            except CallCutError:
                return self._book_cancelled(item, attempt, progress, started_at, _CUT_SHORT)
            except Exception as error:  # noqa: BLE001 - whatever a call raises is its failure
                outcome = Outcome(
                    error=error, usage=usage_of_error(error), limits=limits_of_error(error)
                )
            seconds = self._time() - started_at
            if outcome.error is not None:
                return self._settle_failure(
                    item, owner, ticket, attempt, progress, started_at, seconds, outcome
                )
            # Everyone is told what became of it before its room is given to the next one.
            usage = self._meter.note(
                item, outcome, attempt, progress, billed_as, may_have_cost=True
            )
            self._gate.succeeded(ticket, item, outcome)
            self._counts.note_latency(seconds)
            progress.history.append(
                Attempt(
                    attempt.number,
                    started_at,
                    seconds,
                    usage,
                    None,
                    None,
                    progress.billed_as,
                    attempt.change,
                )
            )
            return Ended(outcome, seconds, usage)
        finally:
            # An error's traceback leads back to this frame. What the frame holds of the error would
            # keep the item alive until the garbage collector comes.
            outcome = None  # type: ignore[assignment]
            self._gate.leave(ticket)
            if noted is not None and book is not None:
                # Another copy's attempt cannot have come in between: that would take a step.
                made = progress.history[-1] if len(progress.history) > calls else None
                book.call_ended(progress.item_id, noted, made)

    def _note_call(
        self,
        item: Item,
        attempt: Try,
        progress: Progress,
        started_at: float,
        billed_as: tuple[str, str, str],
    ) -> NotedCall | None:
        """Have the call noted before it is sent, where the store keeps a book of that."""
        book = self._book
        if book is None or self._size_of is None:
            return None
        tells_departure = self._tells_departures and item.request is not None
        noted = book.call_begins(
            progress.item_id,
            attempt.number,
            started_at,
            billed_as,
            self._size_of(item),
            tells_departure,
        )
        if noted is not None and tells_departure:
            attempt.memory[DEPARTURE] = noted
        return noted

    def _settle_failure(
        self,
        item: Item,
        owner: Owner,
        ticket: Any,
        attempt: Try,
        progress: Progress,
        started_at: float,
        seconds: float,
        outcome: Outcome,
    ) -> Ended:
        """Tell everyone what a failure means."""
        error = outcome.error
        assert error is not None  # noqa: S101 - the caller has looked
        verdict = self._classify(error)
        code, held, wait = code_of(verdict.error_category), Held.NO, 0.0
        may_cost = not verdict.is_rate_limit and may_have_cost(error, code)
        usage = self._meter.note(item, outcome, attempt, progress, may_have_cost=may_cost)
        if usage is not outcome.usage:  # told while the call went on
            outcome = msgspec.structs.replace(outcome, usage=usage)
        if verdict.is_rate_limit:
            wait = self._refused(item, owner, ticket, verdict, outcome)
        else:
            held = self._gate.failed(ticket, item, outcome, code, verdict.suggested_wait)
        progress.history.append(
            Attempt(
                attempt.number,
                started_at,
                seconds,
                usage,
                code.value,
                described(error),
                progress.billed_as,
                attempt.change,
            )
        )
        self._log_failure(item, progress.history[-1])
        return Ended(outcome, seconds, usage, code, verdict, held, wait)

    def _book_cancelled(
        self, item: Item, attempt: Try, progress: Progress, started_at: float, why: str
    ) -> Ended:
        """Book a call that was ended from outside: it was made, and may have cost."""
        usage = self._meter.note(item, _NOTHING, attempt, progress, may_have_cost=True)
        seconds, code = self._time() - started_at, ErrorCode.CANCELLED
        progress.history.append(
            Attempt(
                attempt.number,
                started_at,
                seconds,
                usage,
                code.value,
                why,
                progress.billed_as,
                attempt.change,
            )
        )
        return Ended(_NOTHING, seconds, usage, code)

    def _log_failure(self, item: Item, attempt: Attempt) -> None:
        if logger.isEnabledFor(self._log_level):
            logger.log(
                self._log_level,
                "Attempt %d of item %r failed: %s",
                attempt.number,
                item.item_id,
                attempt.error,
                extra={"item_id": item.item_id, "error_code": attempt.error_code},
            )

    def _classify(self, error: Exception) -> ErrorInfo:
        """Return the classifier's verdict, as far as it is one."""
        try:
            verdict = self._classifier.classify(error)
            if not isinstance(verdict, ErrorInfo):
                raise TypeError(f"expected an ErrorInfo, got {type(verdict).__name__}")  # noqa: TRY301
            if not isinstance(verdict.error_category, str):
                raise TypeError(f"error_category is {verdict.error_category!r}")  # noqa: TRY301
            wait = verdict.suggested_wait
            if wait is not None and not _is_duration(wait):
                return dataclasses.replace(verdict, suggested_wait=None)
        except (
            Exception,
            asyncio.CancelledError,
        ):  # the user's code; the item must not be lost over it
            logger.exception("The error classifier failed on %s.", type(error).__name__)
            return _UNKNOWN
        return verdict

    def _refused(
        self, item: Item, owner: Owner, ticket: Any, verdict: ErrorInfo, outcome: Outcome
    ) -> float:
        """Tell the gate and the observers; return how long the item waits on its own."""
        error = outcome.error
        assert error is not None  # noqa: S101 - the caller has looked
        self._counts.rate_limit_count += 1
        wait = self._gate.refused(ticket, owner.id, verdict.suggested_wait, outcome)
        self._counts.cooldown_reason = described(error)
        if self._events.is_active:
            self._events.emit(
                ProcessingEvent.RATE_LIMIT_HIT,
                {
                    "item_id": item.item_id,
                    "worker_id": owner.id,
                    "error_type": type(error).__name__,
                    "consecutive": self._gate.consecutive,
                },
            )
        return wait


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf
