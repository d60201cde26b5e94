"""Try one item until it has an answer, is hopeless, or is out of attempts.

This layer decides *whether* and *when* to try again. It does not know what a call does; when an
attempt may start is the gate's business.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import random
from typing import TYPE_CHECKING, Any

from batch_llm._engine.gate import Held
from batch_llm.core.usage import add_usage, no_usage, read_usage, usage_of_error
from batch_llm.exceptions import CallCancelledError, LimitPauseError, RateLimitedTooOftenError
from batch_llm.observers.base import ProcessingEvent
from batch_llm.providers.base import SPENT, Outcome, Try
from batch_llm.providers.limit_headers import limits_of_error
from batch_llm.stores.base import Attempt
from batch_llm.strategies.backoff import Uniform, wait_before_retry
from batch_llm.strategies.errors import ErrorCode, ErrorInfo, code_of

if TYPE_CHECKING:
    from batch_llm._engine.events import EventDispatcher
    from batch_llm._engine.gate import Gate
    from batch_llm._engine.pool import Worker
    from batch_llm._engine.statistics import Counts
    from batch_llm.base import LLMWorkItem
    from batch_llm.core.config import RetryConfig
    from batch_llm.providers.base import Caller
    from batch_llm.strategies.errors import ErrorClassifier

logger = logging.getLogger("batch_llm.retry")

#: How long an item stays away from an overloaded provider at the most: it may be back any moment.
LONGEST_BUSY_SECONDS = 8.0
#: The verdict when a classifier itself fails.
_UNKNOWN = ErrorInfo(
    is_retryable=True, is_rate_limit=False, is_timeout=False, error_category="unknown"
)


class Progress:
    """What has happened to one item so far."""

    __slots__ = ("error_code", "error_type", "history", "usage")

    def __init__(self) -> None:
        self.history: list[Attempt] = []
        self.usage = no_usage()
        self.error_code: ErrorCode | None = None
        self.error_type: str | None = None


class Retrier:
    """Makes the attempts of items, one item at a time per worker."""

    def __init__(
        self,
        *,
        caller: Caller,
        gate: Gate,
        classifier: ErrorClassifier,
        config: RetryConfig,
        timeout_seconds: float,
        counts: Counts,
        events: EventDispatcher,
        log_level: int,
        uniform: Uniform = random.uniform,
    ) -> None:
        self._caller = caller
        self._gate = gate
        self._classifier = classifier
        self._config = config
        self._timeout_seconds = timeout_seconds
        self._counts = counts
        self._events = events
        self._log_level = log_level
        self._uniform = uniform
        self._time = asyncio.get_running_loop().time

    async def answer(
        self, item: LLMWorkItem[Any, Any, Any], worker: Worker, progress: Progress
    ) -> Outcome:
        """Return the first good outcome, or the last bad one.

        Raises:
            asyncio.CancelledError: Passed on at once; the gate's place was given back.
        """
        number, refusals, overloads = 1, 0, 0
        previous: Exception | None = None
        memory: dict[str, Any] = {}
        try:
            while True:
                if worker.is_cancelled:  # no further call is wanted
                    raise asyncio.CancelledError
                worker.is_waiting = True
                ticket = await self._gate.enter(item, is_retry=previous is not None)
                worker.is_waiting = False
                held = Held.NO
                try:
                    place = self._gate.place(ticket)
                    attempt = Try(number, self._timeout_seconds, previous, memory, place)
                    started_at = self._time()
                    outcome = await self._call(item, worker, attempt)
                    seconds = self._time() - started_at
                    usage = self._note_usage(outcome, attempt, progress)
                    previous = outcome.error
                    if previous is None:
                        self._gate.succeeded(ticket, item, outcome)
                        self._counts.note_latency(seconds)
                        progress.history.append(Attempt(number, started_at, seconds, usage))
                        return outcome
                    verdict = self._classify(previous)
                    code, wait = code_of(verdict.error_category), 0.0
                    # Before the place is left: nobody may slip in between.
                    if verdict.is_rate_limit:
                        wait = self._refused(item, worker, ticket, verdict, outcome)
                    else:
                        held = self._gate.failed(ticket, item, outcome, code)
                finally:
                    self._gate.leave(ticket)
                progress.error_code = code
                self._note_failure(
                    item,
                    Attempt(number, started_at, seconds, usage, code.value, describe(previous)),
                    progress,
                )
                if verdict.is_rate_limit:
                    refusals += 1
                    if self._config.max_rate_limits and refusals > self._config.max_rate_limits:
                        return Outcome(error=_too_often(refusals, previous))
                elif held is not Held.NO:
                    overloads += 1
                    if self._config.max_rate_limits and overloads > self._config.max_rate_limits:
                        return outcome
                    if held is Held.BY_LANE:
                        wait = min(self._wait_after(overloads, code, verdict), LONGEST_BUSY_SECONDS)
                else:
                    if not verdict.is_retryable or number >= self._config.max_attempts:
                        return outcome
                    wait = self._wait_after(number, code, verdict)
                    number += 1
                self._counts.retries_by_code[code.value] += 1
                if wait > 0 and not worker.is_cancelled:
                    worker.is_waiting = True
                    with worker.parking():
                        await asyncio.sleep(wait)
        except LimitPauseError as error:
            progress.error_code = ErrorCode.QUOTA
            return Outcome(error=error)
        finally:
            worker.is_waiting = False
            # An error's traceback leads back to this frame. What the frame holds of the error would
            # keep the item alive until the garbage collector comes.
            attempt = outcome = previous = None  # type: ignore[assignment]

    async def _call(
        self, item: LLMWorkItem[Any, Any, Any], worker: Worker, attempt: Try
    ) -> Outcome:
        """Make one call, within its time. Its frame too must hold no outcome."""
        self._counts.attempts += 1
        try:
            return await worker.deadline.bound(
                self._caller.call(item, attempt), self._timeout_seconds
            )
        except asyncio.CancelledError:
            if worker.is_cancelled:
                raise
            worker.take_back_cancellation()
            return Outcome(error=CallCancelledError())
        except Exception as error:  # noqa: BLE001 - whatever a call raises is the attempt's failure
            limits = limits_of_error(error)
            return Outcome(error=error, usage=usage_of_error(error), limits=limits)

    def _note_usage(
        self, outcome: Outcome, attempt: Try, progress: Progress
    ) -> dict[str, int] | None:
        usage = outcome.usage
        if attempt.memory:
            spent = attempt.memory.pop(SPENT, None)
            if usage is None:
                usage = read_usage(spent)
        if usage:
            add_usage(progress.usage, usage)
            self._counts.input_tokens += usage.get("input_tokens", 0)
            self._counts.output_tokens += usage.get("output_tokens", 0)
        return usage

    def _note_failure(
        self, item: LLMWorkItem[Any, Any, Any], attempt: Attempt, progress: Progress
    ) -> None:
        progress.history.append(attempt)
        if logger.isEnabledFor(self._log_level):
            logger.log(
                self._log_level,
                "Attempt %d of item %r failed: %s",
                attempt.number,
                item.item_id,
                attempt.error,
                extra={"item_id": item.item_id, "error_code": attempt.error_code},
            )

    def _wait_after(self, failures: int, code: ErrorCode, verdict: ErrorInfo) -> float:
        # A bad answer is no sign of trouble at the provider: the next attempt changes what is
        # asked, and waiting would change nothing.
        if code is ErrorCode.BAD_OUTPUT and verdict.suggested_wait is None:
            return 0.0
        return wait_before_retry(
            failures, self._config, uniform=self._uniform, suggested=verdict.suggested_wait
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
        self,
        item: LLMWorkItem[Any, Any, Any],
        worker: Worker,
        ticket: Any,
        verdict: ErrorInfo,
        outcome: Outcome,
    ) -> float:
        """Tell the gate and the observers; return how long the item waits on its own."""
        error = outcome.error
        assert error is not None  # noqa: S101 - the caller has looked
        self._counts.rate_limit_count += 1
        wait = self._gate.refused(ticket, worker.id, verdict.suggested_wait, outcome)
        self._counts.cooldown_reason = describe(error)
        if self._events.is_active:
            self._events.emit(
                ProcessingEvent.RATE_LIMIT_HIT,
                {
                    "item_id": item.item_id,
                    "worker_id": worker.id,
                    "error_type": type(error).__name__,
                    "consecutive": self._gate.consecutive,
                },
            )
        return wait


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


def _too_often(refusals: int, last: Exception) -> RateLimitedTooOftenError:
    error = RateLimitedTooOftenError(refusals, describe(last))
    error.__cause__ = last
    return error


def describe(error: BaseException) -> str:
    """Return ``ExceptionType: message``, whatever the exception does when it is printed."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a stranger's ``__str__``
        return f"{type(error).__name__}: (its message cannot be printed)"
