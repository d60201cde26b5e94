"""Admission that learns: lets each lane's calls in as fast as its provider takes them.

The lanes (``lanes.py``) belong to the processor, and say when a call may start. This gate is one
run's view of them: it hands its calls in, waits, tells what became of them, and counts.
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from batch_llm._engine.clock import clock_of
from batch_llm._engine.gate import Held
from batch_llm._engine.lane import Ticket
from batch_llm._engine.statistics import LanePause, LearnedLimit
from batch_llm._engine.turns import Flow
from batch_llm.exceptions import TransportError
from batch_llm.observers.base import ProcessingEvent
from batch_llm.providers.limit_headers import named_limit
from batch_llm.strategies.costs import NOTHING
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm._engine.lane import Lane
    from batch_llm._engine.lanes import Lanes
    from batch_llm._engine.places import Place
    from batch_llm.base import LLMWorkItem
    from batch_llm.providers.base import Outcome

    Item = LLMWorkItem[Any, Any, Any]

#: A closed gate is worth an event, and a word to people, from this length on.
COOLDOWN_SECONDS = 1.0
#: An outage that lasts longer uses up attempts, so that a run ends.
LONGEST_OUTAGE_SECONDS = 1800.0
#: Errors of HTTP clients that never got a connection.
_NEVER_CONNECTED = {"ConnectError", "ConnectTimeout", "ClientConnectorError"}
#: Items in work that wait, so that none is missed when one may go.
LEAST_SLACK, SLACK_SHARE = 8, 0.25
#: None of them leaves before there are so many times as many: else, with every call that starts or
#: ends, a worker would come or go.
SLACK_KEPT = 2
#: Items that may wait for lanes that are shut while items of others are looked for: beyond them the
#: source is read no further. Each takes some 5 kB and what it holds itself.
MOST_HELD = 10_000
#: A lane that is shut for so long is a reason to look for others, though none is known yet.
SHUT_SECONDS = 5.0


class AdmissionGate:
    """Lets one run's attempts in, as the lanes of its processor say.

    Args:
        lanes: Those of the processor.
        emit: Receives the events of a closed gate.
        on_room: Called whenever there may be room for one more item.
        weight: The run's share beside other runs of the processor.
        longest_pause_seconds: Calls that would have to wait longer for their lane fail instead.
    """

    def __init__(
        self,
        lanes: Lanes,
        emit: Callable[[ProcessingEvent, dict[str, Any]], None],
        on_room: Callable[[], None],
        *,
        weight: float = 1.0,
        longest_pause_seconds: float = math.inf,
    ) -> None:
        self.lanes = lanes
        self._emit = emit
        self._loop = lanes.loop
        self._time = clock_of(lanes.loop)
        self._on_room = on_room
        self._flow = Flow(weight, on_room, longest_pause_seconds)
        self._cooldown_timer: asyncio.TimerHandle | None = None
        self._cooled_seconds = 0.0
        self._cooling_since = self._cooling_until = 0.0
        self.in_flight = 0
        self.consecutive = 0

    @property
    def waiting(self) -> int:
        """Attempts that wait to be let in."""
        return self._flow.all_waiting

    @property
    def is_cooling(self) -> bool:
        """Whether all that this run does is to wait, for long enough to speak of it."""
        if self.waiting and not self.in_flight:
            return len(self.pauses()) == len(self._waited_for())
        return self._is_closed and not any(self._is_open(lane) for lane in self._lanes_of_run())

    @property
    def cooldown_remaining_seconds(self) -> float:
        """Seconds until it ends; 0 when there is nothing to wait for."""
        if not self.is_cooling:
            return 0.0
        if not self.waiting:
            return self._cooling_until - self._time()
        return min((pause.seconds for pause in self.pauses()), default=0.0)

    @property
    def _is_closed(self) -> bool:
        """Whether refusals have closed one of the lanes."""
        return self._time() < self._cooling_until

    def _lanes_of_run(self) -> list[Lane]:
        return [self.lanes.by_name[name] for name in self._flow.waiting]

    def _waited_for(self) -> list[Lane]:
        return [self.lanes.by_name[name] for name, count in self._flow.waiting.items() if count]

    def _is_open(self, lane: Lane) -> bool:
        now = self._time()
        return any(
            max(place.admission.closed_until, place.aside_until) <= now for place in lane.places
        )

    def pauses(self) -> list[LanePause]:
        """Return the lanes for which this run's calls wait, where that takes long."""
        now, found = self._time(), []
        for lane in self._waited_for():
            pause, waiting = lane.pause(now), self._flow.waiting[lane.name]
            seconds = pause.seconds if pause is not None else 0.0
            if (outage := lane.overloaded_seconds(now)) >= COOLDOWN_SECONDS:
                since = datetime.now(UTC) - timedelta(seconds=outage)
                found.append(LanePause(lane.name, seconds, "overloaded", waiting, outage, since))
            elif pause is not None and seconds >= COOLDOWN_SECONDS:
                found.append(LanePause(lane.name, seconds, pause.reason, waiting))
        return found

    @property
    def cooldown_seconds(self) -> float:
        """Seconds spent behind closed gates so far."""
        latest = min(self._time(), self._cooling_until) - self._cooling_since
        return self._cooled_seconds + latest

    @property
    def most(self) -> int:
        """Calls in flight at the most, over all lanes and runs of the processor."""
        return int(self.lanes.allowed)

    def wanted(self, present: int) -> int:
        """Return how many items should be in work.

        So many that some wait to be let in, and no more than may be in flight. Those that wait for
        a lane that is shut do not count while another lane may have room: the source is read on,
        past them.

        Args:
            present: Items in work, those between two attempts not counted.
        """
        lanes, waiting = self.lanes, self._flow.all_waiting
        if not waiting and present + LEAST_SLACK >= lanes.most:
            return lanes.most  # whatever the slack is
        slack = max(int(SLACK_SHARE * self.in_flight), LEAST_SLACK)
        if not waiting:
            return min(lanes.most, present + slack)
        held = self._held()
        kept = min(max(waiting - held, slack), SLACK_KEPT * slack)
        return min(lanes.most, present - waiting + kept) + min(held, MOST_HELD)

    def _held(self) -> int:
        """Count the items that wait for lanes that are shut, while others may have room."""
        now, by_name = self._time(), self.lanes.by_name
        waiting = self._flow.waiting
        if len(waiting) < 2:
            name = next(iter(waiting), "")
            # Others may be still to come, where lanes have names. One that only waits for a call of
            # its own to end is not shut for long.
            is_shut = bool(name) and SHUT_SECONDS < by_name[name].shut_until - now < math.inf
            return waiting[name] if is_shut else 0
        shut = [name for name in waiting if by_name[name].shut_until > now]
        if len(shut) == len(waiting):
            return 0
        return sum(waiting[name] for name in shut)

    def limits(self) -> list[LearnedLimit]:
        """Return what is known of the provider's limits, lane by lane and place by place."""
        return [
            LearnedLimit(
                _name_of(lane, place),
                dimension,
                limit,
                source,
            )
            for lane in self.lanes.by_name.values()
            for place in lane.places
            for dimension, limit, source in place.known_limits()
        ]

    async def enter(self, item: Item, /, *, is_retry: bool) -> Ticket:
        """Wait to be let in.

        Returns:
            The ticket: the caller owes it a ``leave``.

        Raises:
            asyncio.CancelledError: The place in the queue was given back.
            LimitPauseError: The wait would be longer than is wanted.
        """
        lane = self.lanes.of(item)
        if lane.name not in self._flow.waiting:
            self._flow.waiting[lane.name] = 0
        if (ticket := self._start_now(lane, item)) is not None:
            return ticket
        cost = lane.cost_of(item)
        future: asyncio.Future[Ticket] = self._loop.create_future()
        queue = lane.queue
        queue.add(future, cost, self._flow, priority=item.priority, is_retry=is_retry)
        self.lanes.pump(lane)
        self._on_room()  # it may be that it waits for a lane of its own
        try:
            ticket = await future
        except asyncio.CancelledError:
            if future.cancelled():
                queue.give_up(self._flow)
                self.lanes.pump(lane)  # the one behind it may have to wait for less
            elif future.exception() is None:  # let in and cancelled in the same step
                self.in_flight += 1
                self.leave(future.result(), was_sent=False)
            raise
        self.in_flight += 1
        return ticket

    def enter_now(
        self,
        item: Item,
        /,
        *,
        is_retry: bool = True,  # noqa: ARG002 - who comes first is no question where nobody waits
        apart_from: Ticket | None = None,
    ) -> Ticket | None:
        """Return a ticket if a call may start at once and none waits for that, else None."""
        lanes = self.lanes
        name = lanes.name_of(item)
        lane = lanes.by_name.get(name)
        if lane is None or not lane.was_asked:
            lane = lanes.of(item)
        waiting = self._flow.waiting
        if name not in waiting:
            waiting[name] = 0  # it is one of the run's lanes from now on
        return self._start_now(lane, item, None if apart_from is None else apart_from.place)

    def is_overloaded(self, item: Item, /) -> bool:
        """Whether the item's lane deals with no calls, and no call is due to find out."""
        lane, now = self.lanes.of(item), self._time()
        if lane.overloaded_seconds(now) <= 0:
            return False
        return lane.best_place(now, lane.cost_of(item))[1] > 0

    def has_answered(self, item: Item, /) -> bool:
        """Whether anybody in the item's lane ever dealt with a call."""
        return self.lanes.of(item).has_answered

    def _start_now(self, lane: Lane, item: Item, other: Place | None = None) -> Ticket | None:
        lanes = self.lanes
        if lanes.in_flight >= lanes.most or (lane.queue.lines and lane.queue.next() is not None):
            return None
        now, place = self._time(), lane.only
        if place is not None and not place.aside_until and lane.asking is None:
            # As most lanes are.
            admission, uncharged = place.admission, lane.uncharged
            if admission.is_unlimited and uncharged is not None:
                if admission.wait(now, NOTHING) > 0:
                    return None
                self.in_flight += 1
                lanes.in_flight += 1
                ticket = Ticket(lane, place, admission.begin(now), False, item)
                uncharged.put_down(ticket)
                return ticket
            cost = lane.sizes.cost_of(item)
            if admission.wait(now, cost) > 0:
                return None
            grant = admission.start(now, cost)
        else:
            cost = lane.cost_of(item)
            place, wait = lane.best_place(now, cost, other)
            if wait > 0:
                return None
            grant = place.start(now, cost)
        self.in_flight += 1
        lanes.in_flight += 1
        return Ticket(lane, place, grant)

    def leave(self, ticket: Ticket, /, *, was_sent: bool = True) -> None:
        """Give the room to the next one; a call whose end nobody told was given up."""
        self.in_flight -= 1
        grant = ticket.grant
        if grant.is_open:
            now = self._time()
            ticket.lane.book()
            ticket.place.ended(now, grant, is_good=None)
            ticket.place.admission.cancelled(now, grant, was_sent=was_sent)
        self.lanes.leave(ticket.lane)

    @staticmethod
    def place(ticket: Ticket, /) -> int:
        """Return which of the lane's places was chosen."""
        return ticket.place.number

    def succeeded(self, ticket: Ticket, item: Item, outcome: Outcome, /) -> None:
        """Tell that a call was answered."""
        place, grant = ticket.place, ticket.grant
        now = self._time()
        if place.is_in_doubt:
            ticket.lane.ended(now, place, grant, is_good=True)
        lane, admission = ticket.lane, place.admission
        if admission.is_unlimited and not outcome.limits and lane.uncharged is not None:
            admission.end(now, grant)
            lane.uncharged.note_end(ticket, item, now, outcome.usage)
        else:
            lane.book()
            used = lane.sizes.learn(item, outcome.usage)
            admission.accepted(now, grant, used, outcome.limits)
        if place.knee is not None:
            place.note_work(now, grant, outcome.usage or None)
        if outcome.limits:
            self.lanes.note_known(place)
        self.consecutive = 0

    def failed(
        self,
        ticket: Ticket,
        item: Item,
        outcome: Outcome,
        code: ErrorCode,
        suggested_seconds: float | None = None,
        /,
    ) -> Held:
        """Tell that a call failed, other than by a rate limit; learn whether it is held for it."""
        lane, place, grant = ticket.lane, ticket.place, ticket.grant
        now = self._time()
        lane.book()
        if code is ErrorCode.OVERLOADED or code is ErrorCode.CONNECTION:
            is_away = code is ErrorCode.OVERLOADED or is_absent(outcome.error)
            if code is ErrorCode.OVERLOADED or lane.has_answered:
                place.admission.failed(now, grant, retry_after=suggested_seconds)
            else:  # nobody was ever there: that is no outage, and each row uses up its attempts
                place.admission.cancelled(now, grant, was_sent=False)
            place.ended(now, grant, is_good=None)
            place.avoid(now)
            if is_away and lane.has_other(now, place):
                return Held.ELSEWHERE
            # Who was never there is not waited for: the address may be wrong.
            is_held = code is ErrorCode.OVERLOADED or (is_away and lane.has_answered)
            lasts_long = lane.overloaded_seconds(now) > LONGEST_OUTAGE_SECONDS
            return Held.BY_LANE if is_held and not lasts_long else Held.NO
        # It took the call, whatever came of it.
        place.admission.accepted(now, grant, lane.sizes.learn(item, outcome.usage), outcome.limits)
        if code is ErrorCode.TIMEOUT:
            place.note_work(now, grant, {})
        elif outcome.usage:  # a bad answer is work as well
            place.note_work(now, grant, outcome.usage)
        is_elsewhere = lane.failed(now, place, grant, code, outcome.error)
        return Held.ELSEWHERE if is_elsewhere else Held.NO

    def refused(
        self, ticket: Ticket, worker_id: int, suggested_seconds: float | None, outcome: Outcome, /
    ) -> float:
        """Tell that a call was refused by a rate limit. The lane holds its item with the others."""
        place, grant = ticket.place, ticket.grant
        now = self._time()
        ticket.lane.book()
        ticket.lane.ended(now, place, grant, is_good=True)  # whom it knows it refuses
        refusal = place.admission.refused(
            now,
            grant,
            latency=now - grant.at,
            retry_after=suggested_seconds,
            headers=outcome.limits,
            dimension=_named_limit(outcome.error),
        )
        if outcome.limits:
            self.lanes.note_known(place)
        if refusal.is_news:
            self.consecutive += 1
            self._note_closed(now, place, worker_id)
        return refusal.wait_seconds

    async def close(self) -> None:
        """Stop the timer, which ends what was told of a closed gate; the lanes go on."""
        if self._cooldown_timer is None:
            return
        self._cooldown_timer.cancel()
        self._cooldown_timer = None
        self._emit_opened(min(self._time(), self._cooling_until))

    def _note_closed(self, now: float, place: Place, worker_id: int) -> None:
        """Tell the observers of a gate that is closed for long, and of its opening."""
        until = place.admission.closed_until
        if until - now < COOLDOWN_SECONDS or until <= self._cooling_until:
            return
        if not self._is_closed:
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
        if self._is_closed:  # closed again meanwhile
            self._cooldown_timer = self._loop.call_at(self._cooling_until, self._note_opened)
            return
        self._emit_opened(self._cooling_until)

    def _emit_opened(self, at: float) -> None:
        seconds = at - self._cooling_since
        self._emit(
            ProcessingEvent.COOLDOWN_ENDED,
            {"consecutive": self.consecutive, "duration": seconds},
        )


def _name_of(lane: Lane, place: Place) -> str:
    return lane.name if len(lane.places) == 1 else f"{lane.name} #{place.number + 1}".strip()


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
