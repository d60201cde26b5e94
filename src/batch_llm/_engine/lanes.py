"""The lanes of a processor: who is let in next, and how many calls there may be in all.

What a lane is, and which of its places a call goes to, is in ``lane.py``. The call whose turn it is
waits for its whole cost, and smaller ones do not overtake it.

All runs of a processor share its lanes. Where only the number of calls in flight holds several
lanes up, they take turns.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

from batch_llm._engine.lane import Lane, Ticket, waits_for
from batch_llm._engine.places import Place
from batch_llm.exceptions import LimitPauseError
from batch_llm.providers.base import Capacity
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.header_belief import CALLS_HELD_BACK, SHARE_HELD_BACK
from batch_llm.strategies.admission.slots import with_margin
from batch_llm.strategies.dimensions import MINUTE, REQUESTS
from batch_llm.strategies.knee import FIRST_CALLS

if TYPE_CHECKING:
    from batch_llm.base import LLMWorkItem
    from batch_llm.core.config import Limits
    from batch_llm.providers.base import Caller, LaneFacts
    from batch_llm.stores.limit_memory import LimitMemory
    from batch_llm.strategies.costs import Cost

    Item = LLMWorkItem[Any, Any, Any]

logger = logging.getLogger("batch_llm.lanes")

#: Timers are not set for less: one lets in all that may go by then.
SHORTEST_WAIT_SECONDS = 1e-4
#: Where the limit is known, so many seconds of it may be in flight.
KNOWN_SECONDS = 30.0


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
                reason = waits_for(place, now, wait, waiting.cost)
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
