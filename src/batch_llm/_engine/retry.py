"""Try one item until it has an answer, is hopeless, or is out of attempts.

This layer decides *whether* and *when* to try again. It does not know what a call does; when an
attempt may start is the gate's business.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm._engine.escalation import Ceilings, Escalation, with_agent
from batch_llm._engine.exchange import describe
from batch_llm._engine.gate import Held
from batch_llm.exceptions import (
    LaneStoppedError,
    LimitPauseError,
    RateLimitedTooOftenError,
    SettingRefusedError,
    UnknownPriceError,
)
from batch_llm.providers.base import Outcome, Try
from batch_llm.strategies.backoff import Uniform, wait_before_retry
from batch_llm.strategies.errors import ErrorCode, ErrorInfo
from batch_llm.strategies.policies import fallback_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batch_llm._engine.exchange import Ended, Exchange, Progress
    from batch_llm._engine.gate import Gate
    from batch_llm._engine.pool import Worker
    from batch_llm._engine.statistics import Counts
    from batch_llm._engine.stops import Stops
    from batch_llm.base import LLMWorkItem
    from batch_llm.core.config import RetryConfig
    from batch_llm.core.protocols import AgentLike

#: How long an item stays away from an overloaded provider at the most, where that does not say: it
#: may be back any moment.
LONGEST_BUSY_SECONDS = 8.0


class Retrier:
    """Makes the attempts of items, one item at a time per worker.

    Args:
        exchange: Makes one call, and settles it.
        gate: Lets calls in.
        config: How often, and how far apart.
        timeout_seconds: For one call.
        counts: Of the run.
        stops: Knows the lanes to which nothing is sent any more.
        fallbacks: Who is asked in turn, for items that name none themselves.
        uniform: Source of jitter.
    """

    def __init__(
        self,
        *,
        exchange: Exchange,
        gate: Gate,
        config: RetryConfig,
        timeout_seconds: float,
        counts: Counts,
        stops: Stops,
        fallbacks: Sequence[str] = (),
        uniform: Uniform = random.uniform,
    ) -> None:
        self._exchange = exchange
        self._gate = gate
        self._config = config
        self._timeout_seconds = timeout_seconds
        self._counts = counts
        self._stops = stops
        self._fallbacks = fallbacks
        self._falls_back_on = fallback_codes(config.fallback_on)
        self._leaves_overloaded = ErrorCode.OVERLOADED in self._falls_back_on
        self._ceilings = Ceilings()
        self._uniform = uniform

    async def answer(
        self, item: LLMWorkItem[Any, Any, Any], worker: Worker, progress: Progress
    ) -> Outcome:
        """Return the first good outcome, or the last bad one.

        Raises:
            asyncio.CancelledError: Passed on at once; the gate's ticket was handed back.
        """
        number, refusals, overloads = 1, 0, 0
        asked, stops = item, self._stops
        #: Of an item whose attempts have not failed yet: none.
        course: Escalation | None = None
        previous: Exception | None = None
        memory: dict[str, Any] = {}
        try:
            while True:
                if worker.is_cancelled:  # no further call is wanted
                    raise asyncio.CancelledError
                if item.agent_factory is not None and (course is None or course.model is None):
                    asked = with_agent(item, number, memory)
                if stops.stopped and (stopped := stops.of(asked)) is not None:
                    course = course or self._course(item)
                    if not course.leaves_lane(number, ErrorCode(stopped.code)):
                        progress.error_code = ErrorCode.CANCELLED
                        return Outcome(error=LaneStoppedError(*stopped.args))
                    asked = course.asked
                    continue
                if self._leaves_overloaded and self._gate.is_overloaded(asked):
                    course = course or self._course(item)
                    if course.leaves_lane(number, ErrorCode.OVERLOADED):
                        asked = course.asked
                        continue
                worker.is_waiting = True
                try:
                    ticket = await self._gate.enter(asked, is_retry=previous is not None)
                except LimitPauseError as error:
                    course = course or self._course(item)
                    if not course.leaves_lane(number, ErrorCode.QUOTA):
                        progress.error_code = ErrorCode.QUOTA
                        return Outcome(error=error)
                    asked = course.asked
                    continue
                worker.is_waiting = False
                if stops.stopped and stops.of(asked) is not None:  # while it waited
                    self._gate.leave(ticket, was_sent=False)
                    continue
                place = self._gate.place(ticket)
                if course is None:
                    attempt = Try(number, self._timeout_seconds, None, memory, place)
                else:
                    attempt = Try(
                        number,
                        self._timeout_seconds,
                        course.feedback,
                        memory,
                        place,
                        course.change,
                    )
                ended = await self._exchange(asked, worker, ticket, attempt, progress)
                previous = ended.outcome.error
                if previous is None:
                    if stops.in_a_row:
                        stops.note_success(asked)
                    if course is None:
                        return ended.outcome
                    progress.changes = course.changes
                    if course.model is None:
                        return ended.outcome
                    # What somebody else has answered is not to be kept as its own model's answer.
                    return msgspec.structs.replace(ended.outcome, answer=None)
                verdict, code, wait = ended.verdict, ended.code, ended.wait_seconds
                assert verdict is not None and code is not None  # noqa: S101, PT018 - it failed
                progress.error_code = code
                course = course or self._course(item)
                progress.changes = course.changes
                if verdict.is_rate_limit:
                    refusals += 1
                    if self._config.max_rate_limits and refusals > self._config.max_rate_limits:
                        return Outcome(error=_too_often(refusals, previous))
                elif isinstance(previous, SettingRefusedError):
                    wait = 0.0  # once for each place: it is never sent the setting again
                elif ended.held is not Held.NO:
                    overloads += 1
                    if self._config.max_rate_limits and overloads > self._config.max_rate_limits:
                        return ended.outcome
                    if ended.held is Held.BY_LANE:
                        wait = self._wait_after(overloads, code, verdict)
                        if verdict.suggested_wait is None:
                            wait = min(wait, LONGEST_BUSY_SECONDS)
                else:
                    before, model = course.asked, course.model
                    if not course.goes_on(number, code, verdict, previous):
                        return self._given_up(asked, course, code, ended, progress)
                    if course.asked is before:
                        wait = self._wait_after(number, code, verdict)
                    elif course.model is not model:
                        stops.note_failure(asked, code, previous)
                    asked = course.asked
                    number += 1
                self._counts.retries_by_code[code.value] += 1
                if wait > 0 and not worker.is_cancelled:
                    worker.is_waiting = True
                    with worker.parking():
                        await asyncio.sleep(wait)
        except UnknownPriceError as error:
            progress.error_code = ErrorCode.BAD_REQUEST
            return Outcome(error=error)
        finally:
            worker.is_waiting = False
            # An error's traceback leads back to this frame. What the frame holds of the error would
            # keep the item alive until the garbage collector comes.
            attempt = ended = previous = course = None  # type: ignore[assignment]

    def _course(self, item: LLMWorkItem[Any, Any, Any]) -> Escalation:
        fallbacks: Sequence[AgentLike | str] = item.fallbacks or ()
        if item.fallbacks is None and (item.request is not None or item.agent is not None):
            fallbacks = self._fallbacks
        return Escalation(item, self._config, self._falls_back_on, fallbacks, self._ceilings)

    def _given_up(
        self,
        asked: LLMWorkItem[Any, Any, Any],
        course: Escalation,
        code: ErrorCode,
        ended: Ended,
        progress: Progress,
    ) -> Outcome:
        """Return what an item failed with for good."""
        error = ended.outcome.error
        assert error is not None  # noqa: S101 - it failed
        self._stops.note_failure(asked, code, error)
        original = course.original(error)
        if original is error:
            return ended.outcome
        progress.error_code = ErrorCode.TRUNCATED
        return msgspec.structs.replace(ended.outcome, error=original)

    def _wait_after(self, failures: int, code: ErrorCode, verdict: ErrorInfo) -> float:
        # A bad answer is no sign of trouble at the provider: the next attempt changes what is
        # asked, and waiting would change nothing.
        if code is ErrorCode.BAD_OUTPUT and verdict.suggested_wait is None:
            return 0.0
        return wait_before_retry(
            failures, self._config, uniform=self._uniform, suggested=verdict.suggested_wait
        )


def _too_often(refusals: int, last: Exception) -> RateLimitedTooOftenError:
    error = RateLimitedTooOftenError(refusals, describe(last))
    error.__cause__ = last
    return error
