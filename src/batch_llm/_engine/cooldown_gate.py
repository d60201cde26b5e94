"""Admission by cooldown: what runs when the user chose a rate limit strategy.

The gate holds three things that all workers share: how many calls may be in flight, the cooldown
after a refusal, and the ramp after the cooldown. Everything in it is synchronous between awaits,
so that no lock is needed: the event loop runs one step at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any

from batch_llm._engine.gate import Held
from batch_llm.observers.base import ProcessingEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm._engine.statistics import LanePause, LearnedLimit
    from batch_llm.base import LLMWorkItem
    from batch_llm.providers.base import Outcome
    from batch_llm.strategies.rate_limit import RateLimitStrategy

    Item = LLMWorkItem[Any, Any, Any]

logger = logging.getLogger("batch_llm.cooldown_gate")

#: A strategy only computes. One that takes longer than this is passed over.
STRATEGY_SECONDS = 10.0
#: The cooldown when the strategy failed to name one.
FALLBACK_COOLDOWN_SECONDS = 60.0
#: What the second refusal in a row waits at least, whatever the provider says; each further one
#: twice as long. A provider that says "0 seconds" for a minute is asked ten times, not thousands.
SECOND_COOLDOWN_SECONDS = 0.2
LONGEST_FLOOR_SECONDS = 60.0


class CooldownGate:
    """Lets ``limit`` attempts in at a time, and nobody during a cooldown.

    Args:
        limit: Attempts in flight at the most.
        strategy: Length of cooldowns, and the ramp after them.
        emit: Receives the events of the cooldown.
    """

    def __init__(
        self,
        limit: int,
        strategy: RateLimitStrategy,
        emit: Callable[[ProcessingEvent, dict[str, Any]], None],
    ) -> None:
        self._limit = limit
        self._strategy = strategy
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._retries: deque[asyncio.Future[None]] = deque()
        self._fresh: deque[asyncio.Future[None]] = deque()
        self._cooldown: asyncio.Task[None] | None = None
        self._cooldown_since = 0.0
        self._cooled_seconds = 0.0
        self._resume_at = 0.0
        self._is_ramping = False
        self._released_since_resume = 0
        self._next_release_at = 0.0
        self._release_timer: asyncio.TimerHandle | None = None
        #: Counts the episodes; an attempt belongs to the episode in which it was let in.
        self.episode = 0
        self.consecutive = 0
        self.in_flight = 0

    @property
    def is_cooling(self) -> bool:
        """Whether everyone waits for the end of a cooldown."""
        return self._cooldown is not None

    @property
    def cooldown_remaining_seconds(self) -> float:
        """Seconds until the cooldown ends; 0 outside of one."""
        return max(0.0, self._resume_at - self._loop.time()) if self.is_cooling else 0.0

    @property
    def cooldown_seconds(self) -> float:
        """Seconds spent in cooldowns so far."""
        current = self._loop.time() - self._cooldown_since if self.is_cooling else 0.0
        return self._cooled_seconds + current

    @property
    def waiting(self) -> int:
        """Attempts that wait to be let in."""
        return len(self._retries) + len(self._fresh)

    @property
    def most(self) -> int:
        """Calls in flight at the most."""
        return self._limit

    def wanted(self, _present: int, /) -> int:
        """Return how many items should be in work: as many as may be in flight."""
        return self._limit

    def pauses(self) -> list[LanePause]:
        """Return nothing: here everyone waits for the same."""
        return []

    def limits(self) -> list[LearnedLimit]:
        """Return nothing: a cooldown learns none."""
        return []

    async def enter(self, item: Item, /, *, is_retry: bool) -> int:
        """Wait to be let in, retries before fresh items and both in order of arrival.

        Returns:
            The episode, to be handed to ``succeeded`` or ``refused``. The caller owes a ``leave``.

        Raises:
            asyncio.CancelledError: Nothing is owed.
        """
        if (episode := self.enter_now(item)) is not None:
            return episode
        queue = self._retries if is_retry else self._fresh
        is_first_try = True
        while True:
            turn: asyncio.Future[None] = self._loop.create_future()
            if is_first_try:
                queue.append(turn)
                self._release()
            else:
                queue.appendleft(turn)
            try:
                await turn
            except asyncio.CancelledError:
                # One that was cancelled is dropped by `_release` when it comes to the front.
                if not turn.cancelled():  # let in and cancelled in the same step
                    self.leave(self.episode)
                raise
            if self._cooldown is None:
                return self.episode
            # Between being let in and waking up, somebody was refused: back to the front.
            self.in_flight -= 1
            is_first_try = False

    def enter_now(
        self,
        _item: Item,
        /,
        *,
        is_retry: bool = True,  # noqa: ARG002
        apart_from: int | None = None,  # noqa: ARG002
    ) -> int | None:
        """Return the episode if there is room at once and nobody waits for it, else None."""
        if (
            self.in_flight < self._limit
            and self._cooldown is None
            and not self._is_ramping
            and not self._retries
            and not self._fresh
        ):
            self.in_flight += 1
            return self.episode
        return None

    def leave(self, _episode: int, /, *, was_sent: bool = True) -> None:  # noqa: ARG002
        """Give the room to the next one."""
        self.in_flight -= 1
        if self._retries or self._fresh:
            self._release()

    def failed(self, *_: object) -> Held:
        """Hold nothing: a failure that is no refusal says nothing of the limits."""
        return Held.NO

    def is_overloaded(self, _item: Item, /) -> bool:
        """Return False: overload is a failure like any other here."""
        return False

    def has_answered(self, _item: Item, /) -> None:
        """Return None: a cooldown knows lanes by their refusals alone."""

    def place(self, _episode: int, /) -> None:
        """Choose nothing: whoever calls takes its places in turn."""

    def succeeded(self, episode: int, _item: Item, _outcome: Outcome, /) -> None:
        """Note a success: refusals are no longer consecutive.

        One that was let in before the last refusal says nothing about the time after it.
        """
        if episode == self.episode:
            self.consecutive = 0

    def refused(
        self, episode: int, worker_id: int, suggested_seconds: float | None, _outcome: Outcome, /
    ) -> float:
        """Start a cooldown, unless this refusal belongs to an episode that has had its own.

        The cooldown runs in a task of its own: it ends on time, whatever becomes of the caller.

        Returns:
            Seconds that the item waits on its own: what the provider asked for, when the refusal
            came after its episode's cooldown had ended.
        """
        now = self._loop.time()
        if episode != self.episode:
            if not self.is_cooling:
                return suggested_seconds or 0.0
            if suggested_seconds is not None:
                self._resume_at = max(self._resume_at, now + suggested_seconds)
            return 0.0
        self.episode += 1
        self.consecutive += 1
        self._is_ramping = False
        self._cooldown_since = now
        if suggested_seconds is not None:
            suggested_seconds = max(suggested_seconds, _floor(self.consecutive))
            self._resume_at = now + suggested_seconds
        self._cooldown = self._loop.create_task(
            self._cool_down(worker_id, self.consecutive, now, suggested_seconds)
        )
        return 0.0

    async def close(self) -> None:
        """Stop all timers."""
        if self._release_timer is not None:
            self._release_timer.cancel()
        if self._cooldown is not None:
            task, self._cooldown = self._cooldown, None
            task.cancel()
            await asyncio.wait([task])

    async def _cool_down(
        self, worker_id: int, consecutive: int, since: float, suggested_seconds: float | None
    ) -> None:
        seconds = await self._ask_strategy(worker_id, consecutive)
        if suggested_seconds is None:
            self._resume_at = max(self._resume_at, since + seconds)
        self._emit(
            ProcessingEvent.COOLDOWN_STARTED,
            {
                "worker_id": worker_id,
                "consecutive": consecutive,
                "duration": self._resume_at - since,
            },
        )
        # A later refusal of the same episode may ask for more while we sleep.
        while (remaining := self._resume_at - self._loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(remaining)
        self._cooled_seconds = self.cooldown_seconds
        self._cooldown = None
        self._is_ramping = True
        self._released_since_resume = 0
        self._next_release_at = self._loop.time()
        self._emit(
            ProcessingEvent.COOLDOWN_ENDED,
            {"consecutive": consecutive, "duration": self._loop.time() - since},
        )
        self._release()

    async def _ask_strategy(self, worker_id: int, consecutive: int) -> float:
        try:
            async with asyncio.timeout(STRATEGY_SECONDS):
                seconds = float(await self._strategy.on_rate_limit(worker_id, consecutive))
            if seconds < math.inf:
                return seconds
            raise ValueError(f"on_rate_limit returned {seconds}")  # noqa: TRY301
        except asyncio.CancelledError:
            if self._cooldown is None:  # the gate was closed
                raise
            logger.exception("on_rate_limit was cancelled")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # the user's code; everyone waits for its answer, so one is given
            logger.exception("on_rate_limit failed")
        logger.warning("Cooling down for %g s instead.", FALLBACK_COOLDOWN_SECONDS)
        return FALLBACK_COOLDOWN_SECONDS

    def _release(self) -> None:
        """Let in as many as may go now; on the ramp, one at a time."""
        while (
            (queue := self._retries or self._fresh)
            and self.in_flight < self._limit
            and self._cooldown is None
        ):
            if self._is_ramping and not self._is_release_due():
                return
            turn = queue.popleft()
            if turn.cancelled():
                continue
            self.in_flight += 1
            turn.set_result(None)
            if self._is_ramping:
                self._step_ramp()

    def _is_release_due(self) -> bool:
        if self._loop.time() >= self._next_release_at:
            return True
        if self._release_timer is None:
            self._release_timer = self._loop.call_at(self._next_release_at, self._release_on_time)
        return False

    def _release_on_time(self) -> None:
        # A timer may fire a hair before its time: `_release` must be able to set it again.
        self._release_timer = None
        self._release()

    def _step_ramp(self) -> None:
        now = self._loop.time()
        try:
            goes_on, seconds = self._strategy.should_apply_slow_start(self._released_since_resume)
            next_release_at = now + float(seconds)
            if goes_on and not next_release_at < math.inf:
                raise ValueError(f"should_apply_slow_start returned {seconds} seconds")  # noqa: TRY301
        except (Exception, asyncio.CancelledError):  # the user's code; the run goes on
            logger.exception("should_apply_slow_start failed; the ramp ends here")
            goes_on, next_release_at = False, now
        self._released_since_resume += 1
        if goes_on:
            self._next_release_at = next_release_at
        else:
            self._is_ramping = False


def _floor(consecutive: int) -> float:
    """Return what the ``consecutive``-th refusal in a row waits at least, in seconds."""
    if consecutive < 2:
        return 0.0
    return min(SECOND_COOLDOWN_SECONDS * 2.0 ** min(consecutive - 2, 30), LONGEST_FLOOR_SECONDS)
