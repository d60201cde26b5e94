"""Admission that learns: lets each lane's calls in as fast as its provider takes them.

The lanes (``lanes.py``) belong to the processor, and say when a call may start. This gate is one
run's view of them: it hands its calls in, waits, tells what became of them, and counts.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from batch_llm._engine.gate import Held
from batch_llm._engine.lanes import Flow, Lanes, Place, Ticket
from batch_llm._engine.statistics import LearnedLimit
from batch_llm.exceptions import TransportError
from batch_llm.observers.base import ProcessingEvent
from batch_llm.providers.limit_headers import named_limit
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm.base import LLMWorkItem
    from batch_llm.providers.base import Outcome

    Item = LLMWorkItem[Any, Any, Any]

#: A closed gate is worth an event, and a word to people, from this length on.
COOLDOWN_SECONDS = 1.0
#: An outage that lasts longer uses up attempts, so that a run ends.
LONGEST_OUTAGE_SECONDS = 1800.0
#: Errors of HTTP clients that never got a connection.
_NEVER_CONNECTED = {"ConnectError", "ConnectTimeout", "ClientConnectorError"}
#: Items beyond those in flight that wait in the building, so that none is missed when one may go.
LEAST_SLACK, SLACK_SHARE = 8, 0.25


class AdmissionGate:
    """Lets one run's attempts in, as the lanes of its processor say.

    Args:
        lanes: Those of the processor.
        emit: Receives the events of a closed gate.
        on_let_in: Called whenever an attempt was let in: there is room for one more item.
        weight: The run's share beside other runs of the processor.
        longest_pause_seconds: Calls that would have to wait longer for their lane fail instead.
    """

    def __init__(
        self,
        lanes: Lanes,
        emit: Callable[[ProcessingEvent, dict[str, Any]], None],
        on_let_in: Callable[[], None],
        *,
        weight: float = 1.0,
        longest_pause_seconds: float = math.inf,
    ) -> None:
        self.lanes = lanes
        self._emit = emit
        self._loop = lanes.loop
        self._flow = Flow(weight, on_let_in, longest_pause_seconds)
        self._cooldown_timer: asyncio.TimerHandle | None = None
        self._cooled_seconds = 0.0
        self._cooling_since = self._cooling_until = 0.0
        self.in_flight = self.waiting = 0
        self.consecutive = 0

    @property
    def is_cooling(self) -> bool:
        """Whether a gate is closed for long enough to speak of it."""
        return self._loop.time() < self._cooling_until

    @property
    def cooldown_remaining_seconds(self) -> float:
        """Seconds until it opens; 0 when it is open."""
        return max(0.0, self._cooling_until - self._loop.time())

    @property
    def cooldown_seconds(self) -> float:
        """Seconds spent behind closed gates so far."""
        latest = min(self._loop.time(), self._cooling_until) - self._cooling_since
        return self._cooled_seconds + latest

    @property
    def overloaded_seconds(self) -> float:
        """Seconds since a provider stopped dealing with calls; 0 while all do."""
        now = self._loop.time()
        return max(
            (
                now - since
                for lane in self.lanes.by_name.values()
                for place in lane.places
                if (since := place.admission.overloaded_since) is not None
            ),
            default=0.0,
        )

    @property
    def wanted(self) -> int:
        """Items that should be in the building: those in flight, and some that wait to be."""
        slack = max(LEAST_SLACK, int(SLACK_SHARE * self.in_flight))
        return min(self.lanes.most, self.in_flight + slack)

    def limits(self) -> list[LearnedLimit]:
        """Return what is known of the provider's limits, lane by lane and place by place."""
        return [
            LearnedLimit(
                lane.name if len(lane.places) == 1 else f"{lane.name} #{place.number + 1}",
                dimension,
                limit,
                source,
            )
            for lane in self.lanes.by_name.values()
            for place in lane.places
            for dimension, limit, source in place.admission.known_limits()
        ]

    async def enter(self, item: Item, /, *, is_retry: bool) -> Ticket:
        """Wait to be let in.

        Returns:
            The ticket: the caller owes it a ``leave``.

        Raises:
            asyncio.CancelledError: The place in the queue was given back.
            LimitPauseError: The wait would be longer than is wanted.
        """
        if (ticket := self.enter_now(item)) is not None:
            self._flow.on_let_in()
            return ticket
        lane = self.lanes.of(item)
        cost = lane.cost_of(item)
        future: asyncio.Future[Ticket] = self._loop.create_future()
        lane.add(future, item, cost, self._flow, is_retry=is_retry)
        self.lanes.pump(lane)
        self.waiting += 1
        try:
            ticket = await future
        except asyncio.CancelledError:
            # Let in and cancelled in the same step.
            if not future.cancelled() and future.exception() is None:
                self.in_flight += 1
                self.leave(future.result(), was_sent=False)
            raise
        finally:
            self.waiting -= 1
        self.in_flight += 1
        return ticket

    def enter_now(self, item: Item, /) -> Ticket | None:
        """Return a ticket if a call may start at once and none waits for that, else None."""
        lane = self.lanes.of(item)
        cost = lane.cost_of(item)
        place, wait = lane.best_place(self._loop.time(), cost)
        if wait > 0 or lane.next() is not None or not self.lanes.may_start():
            return None
        self.in_flight += 1
        return self.lanes.start(lane, place, cost)

    def leave(self, ticket: Ticket, /, *, was_sent: bool = True) -> None:
        """Give the room to the next one; a call whose end nobody told was given up."""
        lane, place, grant = ticket
        self.in_flight -= 1
        if grant.is_open:
            place.ended(is_good=None)
            place.admission.cancelled(self._loop.time(), grant, was_sent=was_sent)
        self.lanes.leave(lane)

    @staticmethod
    def place(ticket: Ticket, /) -> int:
        """Return which of the lane's places was chosen."""
        return ticket.place.number

    def succeeded(self, ticket: Ticket, item: Item, outcome: Outcome, /) -> None:
        """Tell that a call was answered."""
        lane, place, grant = ticket
        place.ended(is_good=True)
        used = lane.learn(item, outcome.usage)
        place.admission.accepted(self._loop.time(), grant, used, outcome.limits)
        self.consecutive = 0

    def failed(self, ticket: Ticket, item: Item, outcome: Outcome, code: ErrorCode, /) -> Held:
        """Tell that a call failed, other than by a rate limit; learn whether it is held for it."""
        lane, place, grant = ticket
        now = self._loop.time()
        admission = place.admission
        if code is ErrorCode.OVERLOADED or code is ErrorCode.CONNECTION:
            is_held = code is ErrorCode.OVERLOADED or (
                admission.has_answered and is_absent(outcome.error)
            )
            admission.failed(now, grant)
            place.ended(is_good=None)
            lasts_long = self.overloaded_seconds > LONGEST_OUTAGE_SECONDS
            return Held.BY_LANE if is_held and not lasts_long else Held.NO
        # It took the call, whatever came of it.
        admission.accepted(now, grant, lane.learn(item, outcome.usage), outcome.limits)
        return Held.ELSEWHERE if lane.failed(now, place, code) else Held.NO

    def refused(
        self, ticket: Ticket, worker_id: int, suggested_seconds: float | None, outcome: Outcome, /
    ) -> float:
        """Tell that a call was refused by a rate limit. The lane holds its item with the others."""
        _lane, place, grant = ticket
        now = self._loop.time()
        place.ended(is_good=None)
        refusal = place.admission.refused(
            now,
            grant,
            latency=now - grant.at,
            retry_after=suggested_seconds,
            headers=outcome.limits,
            dimension=_named_limit(outcome.error),
        )
        if refusal.is_news:
            self.consecutive += 1
            self._note_closed(now, place, worker_id)
        return refusal.wait_seconds

    async def close(self) -> None:
        """Stop the timer; the lanes go on for other runs."""
        if self._cooldown_timer is not None:
            self._cooldown_timer.cancel()

    def _note_closed(self, now: float, place: Place, worker_id: int) -> None:
        """Tell the observers of a gate that is closed for long, and of its opening."""
        until = place.admission.closed_until
        if until - now < COOLDOWN_SECONDS or until <= self._cooling_until:
            return
        if not self.is_cooling:
            self._cooled_seconds = self.cooldown_seconds
            self._cooling_since = now
        self._cooling_until = until
        if self._cooldown_timer is None:
            self._cooldown_timer = self._loop.call_at(until, self._note_opened)
        self._emit(
            ProcessingEvent.COOLDOWN_STARTED,
            {"worker_id": worker_id, "consecutive": self.consecutive, "duration": until - now},
        )

    def _note_opened(self) -> None:
        self._cooldown_timer = None
        if self.is_cooling:  # closed again meanwhile
            self._cooldown_timer = self._loop.call_at(self._cooling_until, self._note_opened)
            return
        seconds = self._cooling_until - self._cooling_since
        self._emit(
            ProcessingEvent.COOLDOWN_ENDED,
            {"consecutive": self.consecutive, "duration": seconds},
        )


def is_absent(error: Exception | None) -> bool:
    """Tell whether nobody was there to take the call: it can have cost nothing."""
    seen = 0
    while error is not None and seen < 5:
        if isinstance(error, ConnectionRefusedError) or type(error).__name__ in _NEVER_CONNECTED:
            return True
        if isinstance(error, TransportError):
            return error.was_never_sent
        cause = error.__cause__ or error.__context__
        error, seen = cause if isinstance(cause, Exception) else None, seen + 1
    return False


def _named_limit(error: Exception | None) -> str | None:
    try:
        return named_limit(str(error))
    except Exception:  # noqa: BLE001 - a stranger's ``__str__``
        return None
