"""Admission that learns: lets each lane's calls in as fast as its provider takes them.

One ``Admission`` (``strategies/admission.py``) per lane says when; this file makes the calls wait
for it, in order of arrival and retries first, and tells it what became of them. A lane has one
timer at the most, and a waiting call costs one future.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from batch_llm._engine.statistics import LearnedLimit
from batch_llm.core.usage import tokens
from batch_llm.observers.base import ProcessingEvent
from batch_llm.strategies.admission import Admission, Cost, Grant
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm.base import LLMWorkItem
    from batch_llm.core.config import Limits
    from batch_llm.providers.base import Outcome

    Item = LLMWorkItem[Any, Any, Any]

#: A closed gate is worth an event, and a word to people, from this length on.
COOLDOWN_SECONDS = 1.0
#: Characters to a token, until answers tell better; and an answer's tokens until the first.
CHARACTERS_PER_TOKEN = 4.0
FIRST_OUTPUT_TOKENS = 400.0
#: How fast the estimates follow: the share of one answer.
LEARNING_SHARE = 0.03
#: Items beyond those in flight that wait in the building, so that none is missed when one may go.
LEAST_SLACK, SLACK_SHARE = 8, 0.25
_TOO_BUSY = {ErrorCode.OVERLOADED, ErrorCode.CONNECTION}


class Ticket(NamedTuple):
    """A call that was let in: its lane, its grant, and when it started."""

    lane: Lane
    grant: Grant


class Lane:
    """What shares limits: its admission, its waiting calls, what is known of its sizes."""

    def __init__(self, name: str, admission: Admission) -> None:
        self.name = name
        self.admission = admission
        self.retries: deque[tuple[asyncio.Future[Grant], Cost]] = deque()
        self.fresh: deque[tuple[asyncio.Future[Grant], Cost]] = deque()
        self.timer: asyncio.TimerHandle | None = None
        self._input_per_character = 1 / CHARACTERS_PER_TOKEN
        self._output = FIRST_OUTPUT_TOKENS

    def cost_of(self, item: Item) -> Cost:
        """Estimate what a call of the item takes."""
        sent = _characters(item) * self._input_per_character
        got = self._output
        return Cost(1.0, sent + got, sent, got, got)

    def learn(self, item: Item, usage: dict[str, int] | None) -> Cost | None:
        """Take an answer's size into account; return what it cost, if that is known."""
        if not usage:
            return None
        sent, got = tokens(usage, "input_tokens"), tokens(usage, "output_tokens")
        self._output += LEARNING_SHARE * (got - self._output)
        if sent and (characters := _characters(item)):
            seen = sent / characters
            self._input_per_character += LEARNING_SHARE * (seen - self._input_per_character)
        return Cost(1.0, sent + got, sent, got)


class AdmissionGate:
    """Lets attempts in as each lane's admission says.

    Args:
        most: Attempts in flight at the most, over all lanes.
        limits: Of each lane, as far as they are told: ceilings that are never passed.
        lane_of: Names an item's lane.
        emit: Receives the events of a closed gate.
    """

    holds_overload = True

    def __init__(
        self,
        most: int,
        limits: Limits | None,
        lane_of: Callable[[Item], str],
        emit: Callable[[ProcessingEvent, dict[str, Any]], None],
    ) -> None:
        self._most = most
        self._limits = limits
        self._lane_of = lane_of
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._cooldown_timer: asyncio.TimerHandle | None = None
        self._cooled_seconds = 0.0
        self._cooling_since = self._cooling_until = 0.0
        self.lanes: dict[str, Lane] = {}
        #: Called whenever an attempt was let in: there is room for one more item.
        self.on_let_in: Callable[[], None] = lambda: None
        self.in_flight = 0
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
    def waiting(self) -> int:
        """Attempts that wait to be let in."""
        return sum(len(lane.retries) + len(lane.fresh) for lane in self.lanes.values())

    @property
    def wanted(self) -> int:
        """Items that should be in the building: those in flight, and some that wait to be."""
        slack = max(LEAST_SLACK, int(SLACK_SHARE * self.in_flight))
        return min(self._most, self.in_flight + slack)

    def limits(self) -> list[LearnedLimit]:
        """Return what is known of the provider's limits, lane by lane."""
        return [
            LearnedLimit(lane.name, name, rate * 60, source)
            for lane in self.lanes.values()
            for name, rate, source in lane.admission.known_limits()
        ]

    async def enter(self, item: Item, /, *, is_retry: bool) -> Ticket:
        """Wait to be let in, retries before fresh items and both in order of arrival.

        Returns:
            The ticket: the caller owes it a ``leave``.

        Raises:
            asyncio.CancelledError: The place was given back.
        """
        lane = self._lane(item)
        cost = lane.cost_of(item)
        queue = lane.retries if is_retry else lane.fresh
        if not lane.retries and not lane.fresh and self._may_start(lane, cost):
            return Ticket(lane, self._start(lane, cost))
        place: asyncio.Future[Grant] = self._loop.create_future()
        queue.append((place, cost))
        self._pump(lane)
        try:
            return Ticket(lane, await place)
        except asyncio.CancelledError:
            if not place.cancelled():  # let in and cancelled in the same step
                self.leave(Ticket(lane, place.result()), was_sent=False)
            raise

    def leave(self, ticket: Ticket, /, *, was_sent: bool = True) -> None:
        """Give the place to the next one; a call whose end nobody told was given up."""
        lane, grant = ticket
        self.in_flight -= 1
        if grant.is_open:
            lane.admission.cancelled(self._loop.time(), grant, was_sent=was_sent)
        for one in self.lanes.values() if self.in_flight == self._most - 1 else (lane,):
            if one.retries or one.fresh:
                self._pump(one)

    def succeeded(self, ticket: Ticket, item: Item, outcome: Outcome, /) -> None:
        """Tell that a call was answered."""
        lane, grant = ticket
        used = lane.learn(item, outcome.usage)
        lane.admission.accepted(self._loop.time(), grant, used, outcome.limits)
        self.consecutive = 0

    def failed(self, ticket: Ticket, item: Item, outcome: Outcome, code: ErrorCode, /) -> None:
        """Tell that a call failed, other than by a rate limit."""
        lane, grant = ticket
        now = self._loop.time()
        if code in _TOO_BUSY:
            lane.admission.failed(now, grant)
        else:  # the provider took the call, whatever came of it
            lane.admission.accepted(now, grant, lane.learn(item, outcome.usage), outcome.limits)

    def refused(
        self, ticket: Ticket, worker_id: int, suggested_seconds: float | None, outcome: Outcome, /
    ) -> float:
        """Tell that a call was refused by a rate limit. The lane holds its item with the others."""
        lane, grant = ticket
        now = self._loop.time()
        refusal = lane.admission.refused(
            now,
            grant,
            latency=now - grant.at,
            retry_after=suggested_seconds,
            headers=outcome.limits,
        )
        if refusal.is_news:
            self.consecutive += 1
            self._note_closed(now, lane.admission.closed_until, worker_id)
        return refusal.wait_seconds

    async def close(self) -> None:
        """Stop all timers."""
        for timer in [self._cooldown_timer, *(lane.timer for lane in self.lanes.values())]:
            if timer is not None:
                timer.cancel()

    def _lane(self, item: Item) -> Lane:
        name = self._lane_of(item)
        lane = self.lanes.get(name)
        if lane is None:
            admission = Admission(self._loop.time(), self._limits, max_in_flight=self._most)
            lane = self.lanes[name] = Lane(name, admission)
        return lane

    def _may_start(self, lane: Lane, cost: Cost) -> bool:
        return self.in_flight < self._most and lane.admission.wait(self._loop.time(), cost) <= 0

    def _start(self, lane: Lane, cost: Cost) -> Grant:
        self.in_flight += 1
        grant = lane.admission.start(self._loop.time(), cost)
        self.on_let_in()
        return grant

    def _pump(self, lane: Lane) -> None:
        """Let in as many as may go now; set the timer for the next."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        while queue := lane.retries or lane.fresh:
            place, cost = queue[0]
            if place.cancelled():
                queue.popleft()
                continue
            if self.in_flight >= self._most:
                return  # the next one that leaves comes back here
            now = self._loop.time()
            wait = lane.admission.wait(now, cost)
            if wait > 0:
                if wait < math.inf:
                    lane.timer = self._loop.call_at(now + wait, self._pump, lane)
                return
            queue.popleft()
            place.set_result(self._start(lane, cost))

    def _note_closed(self, now: float, until: float, worker_id: int) -> None:
        """Tell the observers of a gate that is closed for long, and of its opening."""
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


def _characters(item: Item) -> int:
    if item.request is None:
        return len(item.prompt)
    return sum(
        len(message.content) if isinstance(message.content, str) else 0
        for message in item.request.messages
    )
