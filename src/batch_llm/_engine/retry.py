"""Try one item until it has an answer, is hopeless, or is out of attempts.

This layer decides *whether* and *when* to try again. It does not know what a call does; when an
attempt may start is the gate's business.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from batch_llm._engine.exchange import describe
from batch_llm._engine.gate import Held
from batch_llm.exceptions import LimitPauseError, RateLimitedTooOftenError, UnknownPriceError
from batch_llm.providers.base import Outcome, Try
from batch_llm.strategies.backoff import Uniform, wait_before_retry
from batch_llm.strategies.errors import ErrorCode, ErrorInfo

if TYPE_CHECKING:
    from batch_llm._engine.exchange import Exchange, Progress
    from batch_llm._engine.gate import Gate
    from batch_llm._engine.pool import Worker
    from batch_llm._engine.statistics import Counts
    from batch_llm.base import LLMWorkItem
    from batch_llm.core.config import RetryConfig

#: How long an item stays away from an overloaded provider at the most, where that does not say: it
#: may be back any moment.
LONGEST_BUSY_SECONDS = 8.0


class Retrier:
    """Makes the attempts of items, one item at a time per worker."""

    def __init__(
        self,
        *,
        exchange: Exchange,
        gate: Gate,
        config: RetryConfig,
        timeout_seconds: float,
        counts: Counts,
        uniform: Uniform = random.uniform,
    ) -> None:
        self._exchange = exchange
        self._gate = gate
        self._config = config
        self._timeout_seconds = timeout_seconds
        self._counts = counts
        self._uniform = uniform

    async def answer(
        self, item: LLMWorkItem[Any, Any, Any], worker: Worker, progress: Progress
    ) -> Outcome:
        """Return the first good outcome, or the last bad one.

        Raises:
            asyncio.CancelledError: Passed on at once; the gate's ticket was handed back.
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
                place = self._gate.place(ticket)
                attempt = Try(number, self._timeout_seconds, previous, memory, place)
                ended = await self._exchange(item, worker, ticket, attempt, progress)
                previous = ended.outcome.error
                if previous is None:
                    return ended.outcome
                verdict, code, wait = ended.verdict, ended.code, ended.wait_seconds
                assert verdict is not None and code is not None  # noqa: S101, PT018 - it failed
                progress.error_code = code
                if verdict.is_rate_limit:
                    refusals += 1
                    if self._config.max_rate_limits and refusals > self._config.max_rate_limits:
                        return Outcome(error=_too_often(refusals, previous))
                elif ended.held is not Held.NO:
                    overloads += 1
                    if self._config.max_rate_limits and overloads > self._config.max_rate_limits:
                        return ended.outcome
                    if ended.held is Held.BY_LANE:
                        wait = self._wait_after(overloads, code, verdict)
                        if verdict.suggested_wait is None:
                            wait = min(wait, LONGEST_BUSY_SECONDS)
                else:
                    if not verdict.is_retryable or number >= self._config.max_attempts:
                        return ended.outcome
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
        except UnknownPriceError as error:
            progress.error_code = ErrorCode.BAD_REQUEST
            return Outcome(error=error)
        finally:
            worker.is_waiting = False
            # An error's traceback leads back to this frame. What the frame holds of the error would
            # keep the item alive until the garbage collector comes.
            attempt = ended = previous = None  # type: ignore[assignment]

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
