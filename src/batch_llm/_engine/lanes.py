"""Lanes: what shares limits, and who waits in it for what.

A lane has one queue and one or more *places*: interchangeable keys or deployments of its model,
each with an admission of its own. A call goes where there is most room. A place that fails for good
(no credit, a wrong key) is set aside, and tried again with single calls.

All runs of a processor share its lanes. Between runs the calls of a lane are shared by weight. Of
one run's calls, retries go first, then those of higher priority, then those that came first; and
each tenth goes to the one that has waited longest, so that none waits for ever. The one whose turn
it is waits for its whole cost, and smaller ones do not overtake it.

Where only the number of calls in flight holds several lanes up, they take turns.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from batch_llm.core.text import safe
from batch_llm.core.usage import tokens
from batch_llm.exceptions import LimitPauseError
from batch_llm.providers.base import Capacity
from batch_llm.strategies.admission import CONCURRENCY, Admission, Cost, Grant
from batch_llm.strategies.budgets import MINUTE, REQUESTS
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.knee import FIRST_CALLS, Knee, work_of
from batch_llm.strategies.slots import with_margin

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm.base import LLMWorkItem
    from batch_llm.core.config import Limits
    from batch_llm.providers.base import Caller, LaneFacts
    from batch_llm.stores.limit_memory import LimitMemory
    from batch_llm.strategies.admission import Known

    Item = LLMWorkItem[Any, Any, Any]

logger = logging.getLogger("batch_llm.lanes")

#: Characters to a token, until answers tell better; and an answer's tokens until the first.
CHARACTERS_PER_TOKEN = 4.0
FIRST_OUTPUT_TOKENS = 400.0
#: How fast the estimates follow: the share of one answer.
LEARNING_SHARE = 0.03
#: Of a told limit's burst so many calls are not used, or this share.
CALLS_HELD_BACK, SHARE_HELD_BACK = 2.0, 0.2
#: Timers are not set for less: one lets in all that may go by then.
SHORTEST_WAIT_SECONDS = 1e-4
#: A place that failed is set aside for so long; twice as long each further time.
ASIDE_SECONDS, LONGEST_ASIDE_SECONDS = 30.0, 900.0
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
#: After a failure other places are preferred for so long; twice as long after each further one.
AVOIDED_SECONDS, LONGEST_AVOIDED_SECONDS = 2.0, 15.0
#: One in so many of a run's calls goes to the one that has waited longest, whatever its priority.
LONGEST_WAITING_EVERY = 10
#: Where the limit is known, so many seconds of it may be in flight.
KNOWN_SECONDS = 30.0
#: Where more than a few calls and a larger share of them were refused, nothing is remembered.
MOST_REFUSED_SHARE, FEW_REFUSED = 0.1, 20
#: A queue is cleaned of calls that have gone when there are more of them than of the others.
_LEAST_TO_CLEAN = 16


class Place:
    """One key or deployment of a lane."""

    def __init__(self, number: int, admission: Admission) -> None:
        self.number = number
        self.admission = admission
        self.aside_until = 0.0
        self._aside_seconds = ASIDE_SECONDS
        self._healed_at = -math.inf
        self._probe: Grant | None = None
        #: While there are others that have done nothing wrong, those are preferred.
        self.avoided_until = -math.inf
        self._failures = self._calls = 0
        #: What its server works on at once, where that was found out.
        self.capacity: Capacity | None = None
        #: Where the number of calls in flight is searched.
        self.knee: Knee | None = None

    def hold(self, capacity: Capacity, most: float) -> None:
        """Keep to what a server works on at once, and a little more in its queue."""
        self.capacity = capacity
        wanted = with_margin(capacity.slots) if capacity.source == "server" else capacity.slots
        self.admission.max_in_flight = min(most, wanted)

    def search(self, now: float, first: int, most: float, *, is_near: bool) -> None:
        """Search the number of calls in flight that gets most done."""
        self.knee = Knee(now, first, most, is_near=is_near)
        self.admission.max_in_flight = self.knee.concurrency

    @property
    def is_held(self) -> bool:
        """Whether its server, or a search, says how many calls may be in flight."""
        return self.capacity is not None or self.knee is not None

    def note_work(self, now: float, grant: Grant, usage: dict[str, int] | None) -> None:
        """Tell what a call brought that took its time; an empty usage says that nothing came.

        A call that was given up says nothing, and is not told.
        """
        if self.knee is None:
            return
        if usage is None:
            work = work_of(0, 0)
        elif usage:
            work = work_of(tokens(usage, "input_tokens"), tokens(usage, "output_tokens"))
        else:
            work = 0.0
        self.knee.note_end(now, grant.at, grant.others, work)
        self.admission.max_in_flight = self.knee.concurrency

    def known_limits(self) -> list[tuple[str, float, str]]:
        """Return dimension, limit and source of each limit that is known or believed."""
        limits = self.admission.known_limits()
        if any(dimension == CONCURRENCY for dimension, _, _ in limits):
            return limits  # refusals know better
        if self.knee is not None and self.knee.known is not None:
            limits.append((CONCURRENCY, self.knee.known, "learned"))
        elif self.capacity is not None:
            limits.append((CONCURRENCY, self.capacity.slots, self.capacity.source))
        return limits

    def wait(self, now: float, cost: Cost) -> float:
        """Return the seconds until a call may start here; infinity while a probe is out."""
        if self._probe is not None:
            return math.inf
        return max(self.aside_until - now, self.admission.wait(now, cost))

    def start(self, now: float, cost: Cost) -> Grant:
        """Let a call in; the first one after the place was set aside is a probe."""
        grant = self.admission.start(now, cost)
        self._calls += 1
        if self.aside_until > 0:
            self._probe = grant
        return grant

    def ended(self, now: float, grant: Grant, *, is_good: bool | None) -> None:
        """Note that a call ended; None when it says nothing of the place.

        Of a place that is set aside only the probe's end says something: answers to calls from
        before may still come in.
        """
        is_probe = grant is self._probe
        if is_probe:
            self._probe = None
        if not is_good:
            return
        self.avoided_until, self._failures = -math.inf, 0
        if is_probe:
            self.aside_until, self._aside_seconds, self._healed_at = 0.0, ASIDE_SECONDS, now

    def set_aside(self, now: float, grant: Grant) -> bool:
        """Let no calls in for a while; return whether that is news."""
        if now < self.aside_until or grant.at < self._healed_at:
            return False
        self.aside_until = now + self._aside_seconds
        self._aside_seconds = min(LONGEST_ASIDE_SECONDS, 2 * self._aside_seconds)
        return True

    def avoid(self, now: float) -> None:
        """Prefer others for a while: a call found it busy, broken or gone."""
        seconds = min(LONGEST_AVOIDED_SECONDS, AVOIDED_SECONDS * 2 ** min(self._failures, 10))
        self._failures += 1
        self.avoided_until = now + seconds

    def worth_knowing(self) -> dict[str, Known]:
        """Return what the next run is to start from; nothing where it would be misled.

        A limit that an earlier run was told of, and that no answer of this one confirmed, may be
        none any more. Rates at which many calls were refused are too high.
        """
        admission = self.admission
        if admission.refusals > max(FEW_REFUSED, MOST_REFUSED_SHARE * self._calls):
            return {}
        return {
            name: known
            for name, known in admission.learned().items()
            if admission.budgets[name].source != "remembered"
        }

    def is_well(self, now: float) -> bool:
        """Whether nothing speaks against it: calls that failed elsewhere may go here."""
        return (
            self.aside_until <= now
            and self.avoided_until <= now
            and self.admission.overloaded_since is None
        )


class Flow:
    """One run's share of a lane's calls.

    Args:
        weight: How many calls it may start for each one of a run of weight 1.
        on_room: Called whenever there may be room for one more item.
        longest_pause_seconds: A call that would have to wait longer for its lane fails instead.
    """

    __slots__ = (
        "all_waiting",
        "finish",
        "longest_pause_seconds",
        "on_room",
        "taken",
        "waiting",
        "weight",
    )

    def __init__(
        self, weight: float, on_room: Callable[[], None], longest_pause_seconds: float = math.inf
    ) -> None:
        self.weight = weight
        self.on_room = on_room
        self.longest_pause_seconds = longest_pause_seconds
        #: By lane: the virtual time at which its last call's share ends (start-time fair queueing).
        self.finish: dict[str, float] = {}
        #: By lane: its calls that were taken out of the queue, and those that are in it.
        self.taken: dict[str, int] = {}
        self.waiting: dict[str, int] = {}
        self.all_waiting = 0


class Ticket(NamedTuple):
    """A call that was let in."""

    lane: Lane
    place: Place
    grant: Grant


class Waiting(NamedTuple):
    """A call that waits. The order of the fields is the order among those of its run."""

    is_fresh: bool
    minus_priority: int
    arrival: int
    future: asyncio.Future[Ticket]
    cost: Cost
    flow: Flow


class _Line:
    """One run's calls that wait in a lane.

    Calls that have gone, by whatever way, stay until they come to the front: their future is done.
    """

    __slots__ = ("by_arrival", "by_rank")

    def __init__(self) -> None:
        self.by_rank: list[Waiting] = []
        self.by_arrival: deque[Waiting] = deque()

    def add(self, waiting: Waiting, live: int) -> None:
        if len(self.by_rank) + len(self.by_arrival) > 4 * (live + _LEAST_TO_CLEAN):
            self.by_rank = [one for one in self.by_rank if not one.future.done()]
            heapq.heapify(self.by_rank)
            self.by_arrival = deque(one for one in self.by_arrival if not one.future.done())
        heapq.heappush(self.by_rank, waiting)
        self.by_arrival.append(waiting)

    def next(self, taken: int) -> Waiting | None:
        by_rank, by_arrival = self.by_rank, self.by_arrival
        while by_rank and by_rank[0].future.done():
            heapq.heappop(by_rank)
        while by_arrival and by_arrival[0].future.done():
            by_arrival.popleft()
        if not by_rank:
            return None
        is_for_longest = taken % LONGEST_WAITING_EVERY == LONGEST_WAITING_EVERY - 1
        return by_arrival[0] if is_for_longest else by_rank[0]


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
        self._lines: dict[Flow, _Line] = {}
        self._virtual_time = 0.0
        self._arrivals = 0
        self._input_per_character = 1 / CHARACTERS_PER_TOKEN
        self._output = FIRST_OUTPUT_TOKENS

    def cost_of(self, item: Item) -> Cost:
        """Estimate what a call of the item takes."""
        told_sent, told_got = item.estimated_input_tokens, item.estimated_output_tokens
        sent = _characters(item) * self._input_per_character if told_sent is None else told_sent
        got = self._output if told_got is None else told_got
        asked = item.request.settings.max_tokens if item.request is not None else None
        if asked is not None:
            got = min(got, asked)
        if self.facts.charges_asked:
            return Cost(1.0, max(asked or 0.0, sent), sent, got)
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
        if self.facts.charges_asked:
            return None
        if not self.facts.charges_cache_reads:
            sent = max(0, sent - tokens(usage, "cache_read_tokens"))
        return Cost(1.0, sent + got, sent, got)

    def best_place(self, now: float, cost: Cost) -> tuple[Place, float]:
        """Return the place where a call may start first, of several the one with most room."""
        places = self.places
        if self.asking is not None:
            return places[0], math.inf
        if len(places) == 1:
            return places[0], places[0].wait(now, cost)
        best, shortest, most_room = places[0], math.inf, -math.inf
        for place in places:
            wait = place.wait(now, cost)
            room = place.admission.room(now) if wait <= 0 else 0.0
            if place.avoided_until > now:
                room -= 2.0  # more than all that a room can be
            if wait < shortest or (wait == shortest and room > most_room):
                best, shortest, most_room = place, wait, room
        return best, shortest

    @property
    def is_waited_for(self) -> bool:
        """Whether calls wait in the queue; gone ones may still be in it."""
        return bool(self._lines)

    def add(
        self, future: asyncio.Future[Ticket], item: Item, cost: Cost, flow: Flow, *, is_retry: bool
    ) -> None:
        """Put a call into the queue."""
        line = self._lines.get(flow)
        if line is None:
            line = self._lines[flow] = _Line()
        self._arrivals += 1
        live = flow.waiting.get(self.name, 0)
        line.add(Waiting(not is_retry, -item.priority, self._arrivals, future, cost, flow), live)
        flow.waiting[self.name] = live + 1
        flow.all_waiting += 1

    def give_up(self, flow: Flow) -> None:
        """Note that one of a run's calls in the queue was cancelled."""
        flow.waiting[self.name] -= 1
        flow.all_waiting -= 1

    def next(self) -> Waiting | None:
        """Return the call whose turn it is, and drop those that were given up."""
        best: Waiting | None = None
        earliest = (math.inf, 0)
        for flow in list(self._lines):
            head = self._lines[flow].next(flow.taken.get(self.name, 0))
            if head is None:
                del self._lines[flow]
                continue
            start = self._start_of(flow), head.arrival
            if start < earliest:
                best, earliest = head, start
        return best

    def take(self, waiting: Waiting) -> None:
        """Take a call out of the queue; its future is to be set before the next look."""
        flow, name = waiting.flow, self.name
        flow.waiting[name] -= 1
        flow.all_waiting -= 1
        flow.taken[name] = flow.taken.get(name, 0) + 1
        self._virtual_time = self._start_of(flow)
        flow.finish[name] = self._virtual_time + 1 / flow.weight

    def _start_of(self, flow: Flow) -> float:
        """Return the virtual time at which a run's next call would start."""
        return max(self._virtual_time, flow.finish.get(self.name, 0.0))

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

    def failed(
        self, now: float, place: Place, grant: Grant, code: ErrorCode, error: object
    ) -> bool:
        """Note a failure; return whether another place may take the call instead.

        The last place is never set aside: when all fail, that is to be seen at once.
        """
        place.ended(now, grant, is_good=True if code in _OF_THE_CALL else None)
        if code not in _OF_THE_PLACE:
            if code in {ErrorCode.TIMEOUT, ErrorCode.SERVER_ERROR}:
                place.avoid(now)
            return False
        if not any(other.aside_until <= now for other in self.places if other is not place):
            return False
        if place.set_aside(now, grant):
            logger.warning(
                "%s%d of %d is set aside: %s",
                f"{safe(self.name)} #" if self.name else "Key or server #",
                place.number + 1,
                len(self.places),
                safe(error),
            )
        return True

    def pause(self, now: float) -> Pause | None:
        """Return why nobody is let in, when calls wait for the lane and none may go."""
        waiting = self.next()
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
        self._memory = memory

    def of(self, item: Item) -> Lane:
        """Return an item's lane."""
        name = self._caller.lane(item)
        lane = self.by_name.get(name)
        if lane is None:
            lane = self.by_name[name] = self._make(name, self._caller.facts(item))
        if not lane.was_asked:
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
        return Ticket(lane, place, place.start(now, cost))

    def leave(self, lane: Lane) -> None:
        """Give the room of a call that ended to the next one."""
        self.in_flight -= 1
        if self.in_flight != self.most - 1:
            if lane.is_waited_for:
                self.pump(lane)
            return
        self._pump_all()

    def _pump_all(self) -> None:
        """Share out the room between all lanes that wait for it, in turn."""
        waited_for = [one for one in self.by_name.values() if one.is_waited_for]
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
        while (waiting := lane.next()) is not None:
            if not self.may_start():
                return  # the next one that leaves comes back here
            now = self.loop.time()
            place, wait = lane.best_place(now, waiting.cost)
            if waiting.flow.longest_pause_seconds < wait < math.inf:
                reason = _reason(place, now, wait, waiting.cost)
                lane.take(waiting)
                waiting.future.set_exception(LimitPauseError(lane.name, wait, reason))
                continue
            if wait > 0:
                lane.shut_until = now + wait
                if wait < math.inf:
                    at = now + max(wait, SHORTEST_WAIT_SECONDS)
                    lane.timer = self.loop.call_at(at, self.pump, lane)
                return
            lane.take(waiting)
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


def _characters(item: Item) -> int:
    if item.request is None:
        return len(item.prompt)
    return sum(
        len(message.content) if isinstance(message.content, str) else 0
        for message in item.request.messages
    )
