"""Lanes: what shares limits.

A lane has one queue (``turns.py``) and one or more *places* (``places.py``): interchangeable keys
or deployments of its model, each with an admission of its own. A call goes where most room is. A
place that fails for good (no credit, a wrong key) is set aside, and tried again with single
calls. The call whose turn it is waits for its whole cost, and smaller ones do not overtake it.

All runs of a processor share its lanes. Where only the number of calls in flight holds several
lanes up, they take turns.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batch_llm._engine.places import Place
from batch_llm._engine.sizes import Sizes
from batch_llm._engine.turns import Queue
from batch_llm._engine.uncharged import Uncharged
from batch_llm.core.text import safe
from batch_llm.exceptions import LimitPauseError
from batch_llm.providers.base import Capacity
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.header_belief import CALLS_HELD_BACK, SHARE_HELD_BACK
from batch_llm.strategies.admission.slots import with_margin
from batch_llm.strategies.dimensions import MINUTE, REQUESTS
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.knee import FIRST_CALLS

if TYPE_CHECKING:
    from batch_llm.base import LLMWorkItem
    from batch_llm.core.config import Limits
    from batch_llm.providers.base import Caller, LaneFacts
    from batch_llm.stores.limit_memory import LimitMemory
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.costs import Cost

    Item = LLMWorkItem[Any, Any, Any]

logger = logging.getLogger("batch_llm.lanes")

#: Timers are not set for less: one lets in all that may go by then.
SHORTEST_WAIT_SECONDS = 1e-4
#: Failures that are the place's and not the call's, where there are other places.
_OF_THE_PLACE = {ErrorCode.AUTH, ErrorCode.QUOTA, ErrorCode.NOT_FOUND}
#: Failures that show that a place takes our key and has the model.
_OF_THE_CALL = {
    ErrorCode.BAD_OUTPUT,
    ErrorCode.TRUNCATED,
    ErrorCode.CONTENT_FILTER,
    ErrorCode.CONTEXT_LENGTH,
    ErrorCode.BAD_REQUEST,
}
#: Where the limit is known, so many seconds of it may be in flight.
KNOWN_SECONDS = 30.0
#: What a place's room loses when it is avoided, and when another one is asked for: each is more
#: than all that a room can be.
_AVOIDED, _NOT_WANTED = 2.0, 4.0


class Ticket(msgspec.Struct):
    """A call that was let in.

    Attributes:
        lane: Its lane.
        place: Where it goes.
        grant: What its place's admission knows of it.
        is_charged: Whether the admission was told what it takes (else: ``Uncharged``).
        item: What is asked, as long as it is there.
        ended_at: When it was answered; kept until it is charged.
        usage: The tokens that it took then.
    """

    lane: Lane
    place: Place
    grant: Grant
    is_charged: bool = True
    item: Item | None = None
    ended_at: float | None = None
    usage: dict[str, int] | None = None


class Pause(NamedTuple):
    """Why a lane lets nobody in, and for how long.

    Attributes:
        seconds: Until the next call.
        reason: ``refused``, ``overloaded``, ``set aside``, or the dimension that is used up.
    """

    seconds: float
    reason: str


class Lane:
    """What shares limits: its places, its queue, what is known of its calls' sizes."""

    def __init__(self, name: str, facts: LaneFacts, places: list[Place]) -> None:
        self.name = name
        self.facts = facts
        self.places = places
        self.timer: asyncio.TimerHandle | None = None
        #: Until when the next call waits for the lane's own limits, as far as that can be told;
        #: not later than now when none waits for them.
        self.shut_until = -math.inf
        #: When its turn was, of the lanes that wait for calls in flight to end.
        self.turn = 0
        #: Whether its servers were asked what they work on at once; and the task that asks them.
        #: Nobody is let in before it has ended.
        self.was_asked = False
        self.asking: asyncio.Task[None] | None = None
        self.queue = Queue(name)
        self.sizes = Sizes(facts.charges)
        #: The one place, where there are no others to choose from.
        self.only = places[0] if len(places) == 1 else None
        #: What is not charged there yet.
        self.uncharged = None if self.only is None else Uncharged(self.only.admission, self.sizes)

    def book(self) -> None:
        """Charge all that was put down for later: whatever comes now may depend on it."""
        if self.uncharged is not None:
            self.uncharged.book()

    def cost_of(self, item: Item) -> Cost:
        """Estimate what a call of the item takes."""
        self.book()
        return self.sizes.cost_of(item)

    def best_place(
        self, now: float, cost: Cost, apart_from: Place | None = None
    ) -> tuple[Place, float]:
        """Return the place where a call may start first, and the seconds until then.

        Of several it is the one with most room; ``apart_from`` only where no other has any.
        """
        places = self.places
        if self.asking is not None:
            return places[0], math.inf
        if self.only is not None:
            return self.only, self.only.wait(now, cost)
        best, shortest, most_room = places[0], math.inf, -math.inf
        for place in places:
            wait = place.wait(now, cost)
            room = place.admission.room(now) if wait <= 0 else 0.0
            if place.avoided_until > now:
                room -= _AVOIDED
            if place is apart_from:
                room -= _NOT_WANTED
            if wait < shortest or (wait == shortest and room > most_room):
                best, shortest, most_room = place, wait, room
        return best, shortest

    def overloaded_seconds(self, now: float) -> float:
        """Return the seconds since all places stopped dealing with calls; 0 while one does."""
        since = [place.admission.overloaded_since for place in self.places]
        return min(now - at if at is not None else 0.0 for at in since)

    @property
    def has_answered(self) -> bool:
        """Whether any place ever dealt with a call."""
        return any(place.admission.has_answered for place in self.places)

    def has_other(self, now: float, place: Place) -> bool:
        """Whether a call that found a place busy or gone may try another one at once."""
        return any(other.is_well(now) for other in self.places if other is not place)

    def ended(self, now: float, place: Place, grant: Grant, *, is_good: bool | None) -> None:
        """Note that a call ended; None when it says nothing of its place."""
        if place.ended(now, grant, is_good=is_good):
            logger.warning("%s is used again", self._called(place))

    def failed(
        self, now: float, place: Place, grant: Grant, code: ErrorCode, error: object
    ) -> bool:
        """Note a failure; return whether another place may take the call instead.

        The last place is never set aside: when all fail, that is to be seen at once.
        """
        self.ended(now, place, grant, is_good=True if code in _OF_THE_CALL else None)
        if code not in _OF_THE_PLACE:
            if code in {ErrorCode.TIMEOUT, ErrorCode.SERVER_ERROR}:
                place.avoid(now)
            return False
        if not any(other.aside_until <= now for other in self.places if other is not place):
            return False
        if place.set_aside(now, grant):
            logger.warning("%s is set aside: %s", self._called(place), safe(error))
        return True

    def _called(self, place: Place) -> str:
        """Return what a place is called for people."""
        kind = safe(self.name) if self.name else "Key or server"
        called = f"{kind} #{place.number + 1} of {len(self.places)}"
        label = self.facts.labels[place.number] if place.number < len(self.facts.labels) else ""
        return f"{called} ({safe(label)})" if label else called

    def pause(self, now: float) -> Pause | None:
        """Return why nobody is let in, when calls wait for the lane and none may go."""
        waiting = self.queue.next()
        if waiting is None:
            return None
        place, wait = self.best_place(now, waiting.cost)
        return Pause(wait, _reason(place, now, wait, waiting.cost)) if 0 < wait < math.inf else None


def _reason(place: Place, now: float, wait: float, cost: Cost) -> str:
    """Say what a call waits for."""
    admission = place.admission
    if place.aside_until - now >= wait:
        return "set aside"
    if admission.closed_until - now >= wait:
        return "refused"
    if admission.overloaded_since is not None:
        return "overloaded"
    longest, reason = -1.0, ""
    for name, budget in admission.budgets.items():
        seconds = budget.wait(now, cost[budget.field])
        if seconds > longest:
            longest, reason = seconds, name
    return reason


class Lanes:
    """The lanes of a processor, for all its runs.

    Args:
        most: Calls in flight at the most, over all lanes, as long as nothing is known of them.
        ceiling: The same, whatever the provider's limits and the servers' slots allow. None is
            ``most``.
        is_auto: Whether the number of calls in flight is found: then what is assumed of servers
            counts too, and is searched where nothing is known of them.
        seeks_knee: Whether it is searched in every lane.
        limits: Of each lane, as far as they are told: ceilings that are never passed.
        caller: Knows an item's lane and what is to be known of it.
        memory: What was learned in earlier runs.
        loop: Gives the time.
    """

    def __init__(
        self,
        most: int,
        limits: Limits | None,
        caller: Caller,
        memory: LimitMemory | None,
        loop: asyncio.AbstractEventLoop,
        *,
        ceiling: int | None = None,
        is_auto: bool = False,
        seeks_knee: bool = False,
    ) -> None:
        self.most = self._most_unknown = most
        self._ceiling = most if ceiling is None else ceiling
        self._is_auto = is_auto
        self._seeks_knee = seeks_knee
        #: By place: how many calls are known to have somewhere to go.
        self._room: dict[Place, int] = {}
        self._turns = 0
        self.loop = loop
        self.in_flight = 0
        self.by_name: dict[str, Lane] = {}
        self._limits = limits
        self._caller = caller
        #: Names an item's lane.
        self.name_of = caller.lane
        self._memory = memory

    def of(self, item: Item) -> Lane:
        """Return an item's lane."""
        name = self.name_of(item)
        lane = self.by_name.get(name)
        if lane is None or not lane.was_asked:
            if lane is None:
                lane = self.by_name[name] = self._make(name, self._caller.facts(item))
            self._ask(lane)
        return lane

    def _ask(self, lane: Lane) -> None:
        """Ask the lane's servers, once, what they work on at a time."""
        lane.was_asked = True
        if any(lane.facts.ask):
            lane.asking = self.loop.create_task(self._learn_capacities(lane))

    async def _learn_capacities(self, lane: Lane) -> None:
        asked = [
            (place, ask)
            for place, ask in zip(lane.places, lane.facts.ask, strict=False)
            if ask is not None
        ]
        try:
            found = await asyncio.gather(*(ask() for _, ask in asked), return_exceptions=True)
            for (place, _), capacity in zip(asked, found, strict=True):
                if isinstance(capacity, Capacity):
                    self._use(place, capacity)
                    logger.info(
                        "A server of %r works on %d calls at once (%s).",
                        lane.name,
                        capacity.slots,
                        capacity.source,
                    )
                elif isinstance(capacity, Exception):
                    logger.warning("A server could not be asked: %s", type(capacity).__name__)
        finally:
            if lane.asking is asyncio.current_task():  # else `close` was faster
                lane.asking = None
                self.pump(lane)

    def _use(self, place: Place, capacity: Capacity) -> None:
        """Fit a place to its server: what the server tells counts, what is assumed may."""
        now, is_told = self.loop.time(), capacity.source == "server"
        if is_told:
            self._make_room(place, with_margin(capacity.slots))
        if is_told or (capacity.source == "assumed" and self._is_auto):
            place.hold(capacity, self._ceiling)
        if self._seeks_knee:
            first = with_margin(capacity.slots) if is_told else capacity.slots
            place.search(now, first, self.most, is_near=is_told)
        elif capacity.source == "searched" and self._is_auto:
            place.search(now, capacity.slots, self.most, is_near=False)

    @property
    def allowed(self) -> float:
        """Calls in flight that the places allow now, as far as they were asked or searched."""
        places = [place for lane in self.by_name.values() for place in lane.places]
        if not places:
            return self.most
        return min(self.most, sum(place.admission.max_in_flight for place in places))

    def may_start(self) -> bool:
        """Whether there is room for one more call, in whatever lane."""
        return self.in_flight < self.most

    def start(self, lane: Lane, place: Place, cost: Cost, now: float) -> Ticket:
        """Let a call in."""
        self.in_flight += 1
        lane.book()
        return Ticket(lane, place, place.start(now, cost))

    def leave(self, lane: Lane) -> None:
        """Give the room of a call that ended to the next one."""
        self.in_flight = in_flight = self.in_flight - 1
        if in_flight == self.most - 1:
            self._pump_all()
        elif lane.queue.lines:
            self.pump(lane)

    def _pump_all(self) -> None:
        """Share out the room between all lanes that wait for it, in turn."""
        waited_for = [one for one in self.by_name.values() if one.queue.lines]
        if len(waited_for) > 1:
            waited_for.sort(key=lambda one: one.turn)
        for one in waited_for:
            before = self.in_flight
            self.pump(one)
            if self.in_flight > before:
                self._turns += 1
                one.turn = self._turns

    def pump(self, lane: Lane) -> None:
        """Let in as many as may go now; set the timer for the next."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        lane.shut_until = -math.inf
        queue = lane.queue
        while (waiting := queue.next()) is not None:
            if not self.may_start():
                return  # the next one that leaves comes back here
            now = self.loop.time()
            place, wait = lane.best_place(now, waiting.cost)
            if waiting.flow.longest_pause_seconds < wait < math.inf:
                reason = _reason(place, now, wait, waiting.cost)
                queue.take(waiting)
                waiting.future.set_exception(LimitPauseError(lane.name, wait, reason))
                continue
            if wait > 0:
                lane.shut_until = now + wait
                if wait < math.inf:
                    at = now + max(wait, SHORTEST_WAIT_SECONDS)
                    lane.timer = self.loop.call_at(at, self.pump, lane)
                return
            queue.take(waiting)
            waiting.future.set_result(self.start(lane, place, waiting.cost, now))
            waiting.flow.on_room()

    def note_known(self, place: Place) -> None:
        """Let more calls be in flight where the provider's limit turns out to be known."""
        limit = place.admission.budgets[REQUESTS].limit
        if limit and not place.is_held:
            most = min(self._ceiling, int(limit / MINUTE * KNOWN_SECONDS))
            place.admission.max_in_flight = max(place.admission.max_in_flight, most)
            self._make_room(place, most)

    def _make_room(self, place: Place, calls: int) -> None:
        """Let more calls be in flight in all: so many are known to have somewhere to go."""
        self._room[place] = calls
        most = min(self._ceiling, sum(self._room.values()))
        if most <= self.most:
            return
        self.most = most
        self._pump_all()

    def close(self) -> None:
        """Stop all timers, and remember what was learned."""
        for lane in self.by_name.values():
            lane.book()
            if lane.asking is not None:  # the run was given up at once; the next one asks anew
                lane.asking.cancel()
                lane.asking, lane.was_asked = None, False
            if lane.timer is not None:
                lane.timer.cancel()
                lane.timer = None
        self.remember()

    def remember(self) -> None:
        """Write down what was learned, for the next run."""
        if self._memory is None:
            return
        known = {
            key: place.worth_knowing()
            for lane in self.by_name.values()
            for key, place in zip(lane.facts.remembered_as, lane.places, strict=False)
            if key and place.admission.has_answered
        }
        self._memory.forget(key for key, found in known.items() if not found)
        self._memory.save(known)

    def _make(self, name: str, facts: LaneFacts) -> Lane:
        places = []
        for number in range(facts.places):
            admission = Admission(
                self.loop.time(),
                self._limits,
                burst_seconds=_burst_seconds(self._limits, facts),
                max_in_flight=self._most_unknown,
                is_given=not self._is_auto,
            )
            if self._memory is not None and number < len(facts.remembered_as):
                key = facts.remembered_as[number]
                if key and (found := self._memory.recall(key)) is not None:
                    learned, share = found
                    admission.recall(learned, share=share)
            place = Place(number, admission)
            self.note_known(place)
            if self._seeks_knee:
                place.search(self.loop.time(), FIRST_CALLS, self.most, is_near=False)
            places.append(place)
        return Lane(name, facts, places)


def _burst_seconds(limits: Limits | None, facts: LaneFacts) -> float:
    """Return how much of a told limit is used at once: a little less than the provider allows.

    Calls arrive closer together than they were sent, now and then.
    """
    if limits is None:
        return facts.burst_seconds
    allowed = limits.burst_seconds or facts.burst_seconds
    if not limits.requests_per_minute:
        return allowed
    return allowed - min(
        CALLS_HELD_BACK * 60 / limits.requests_per_minute, SHARE_HELD_BACK * allowed
    )
