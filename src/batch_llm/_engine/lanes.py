"""Lanes: what shares limits, and who waits in it for what.

A lane has one queue and one or more *places*: interchangeable keys or deployments of its model,
each with an admission of its own. A call goes where there is most room. A place that fails for good
(no credit, a wrong key) is set aside, and tried again with single calls.

All runs of a processor share its lanes. The order in a lane's queue: retries, then priority, then
the fair share of each run, then arrival.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from batch_llm.core.usage import tokens
from batch_llm.exceptions import LimitPauseError
from batch_llm.providers.base import Capacity
from batch_llm.strategies.admission import CONCURRENCY, Admission, Cost, Grant
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.knee import FIRST_CALLS, Knee, work_of
from batch_llm.strategies.slots import with_margin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batch_llm.base import LLMWorkItem
    from batch_llm.core.config import Limits
    from batch_llm.providers.base import Caller, LaneFacts
    from batch_llm.stores.limit_memory import LimitMemory

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


class Place:
    """One key or deployment of a lane."""

    def __init__(self, number: int, admission: Admission) -> None:
        self.number = number
        self.admission = admission
        self.aside_until = 0.0
        self._aside_seconds = ASIDE_SECONDS
        self._is_probing = False
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

    def note_work(self, now: float, grant: Grant, usage: dict[str, int] | None) -> None:
        """Tell what a call brought that took its time; an empty usage says that nothing came."""
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
        if self._is_probing:
            return math.inf
        return max(self.aside_until - now, self.admission.wait(now, cost))

    def start(self, now: float, cost: Cost) -> Grant:
        """Let a call in; the first one after the place was set aside is a probe."""
        self._is_probing = self.aside_until > 0
        return self.admission.start(now, cost)

    def ended(self, *, is_good: bool | None) -> None:
        """Note that a call ended; None when it says nothing of the place."""
        self._is_probing = False
        if is_good:
            self.aside_until, self._aside_seconds = 0.0, ASIDE_SECONDS

    def set_aside(self, now: float) -> None:
        """Let no calls in for a while."""
        if now < self.aside_until:
            return
        self.aside_until = now + self._aside_seconds
        self._aside_seconds = min(LONGEST_ASIDE_SECONDS, 2 * self._aside_seconds)


class Flow:
    """One run's share of a lane's calls.

    Args:
        weight: How many calls it may start for each one of a run of weight 1.
        on_let_in: Called whenever one of its calls was let in: there is room for one more item.
        longest_pause_seconds: A call that would have to wait longer for its lane fails instead.
    """

    __slots__ = ("finish", "longest_pause_seconds", "on_let_in", "weight")

    def __init__(
        self, weight: float, on_let_in: Callable[[], None], longest_pause_seconds: float = math.inf
    ) -> None:
        self.weight = weight
        self.on_let_in = on_let_in
        self.longest_pause_seconds = longest_pause_seconds
        #: By lane: the virtual time at which its last call's share ends (start-time fair queueing).
        self.finish: dict[str, float] = {}


class Ticket(NamedTuple):
    """A call that was let in."""

    lane: Lane
    place: Place
    grant: Grant


class Waiting(NamedTuple):
    """A call that waits. The order of the fields is the order of the queue."""

    is_fresh: bool
    minus_priority: int
    virtual_start: float
    arrival: int
    future: asyncio.Future[Ticket]
    cost: Cost
    flow: Flow


class Lane:
    """What shares limits: its places, its queue, what is known of its calls' sizes."""

    def __init__(self, name: str, facts: LaneFacts, places: list[Place]) -> None:
        self.name = name
        self.facts = facts
        self.places = places
        self.queue: list[Waiting] = []
        self.timer: asyncio.TimerHandle | None = None
        #: Asks the servers what they work on at once; the first calls wait for it.
        self.asking: asyncio.Task[None] | None = None
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
        if len(places) == 1:
            return places[0], places[0].wait(now, cost)
        waits = [(place.wait(now, cost), place) for place in places]
        best, shortest, most_room = places[0], math.inf, -math.inf
        for wait, place in waits:
            room = place.admission.room(now) if wait <= 0 else 0.0
            if wait < shortest or (wait == shortest and room > most_room):
                best, shortest, most_room = place, wait, room
        return best, shortest

    def add(
        self, future: asyncio.Future[Ticket], item: Item, cost: Cost, flow: Flow, *, is_retry: bool
    ) -> None:
        """Put a call into the queue."""
        start = max(self._virtual_time, flow.finish.get(self.name, 0.0))
        if not is_retry:
            flow.finish[self.name] = start + 1 / flow.weight
        self._arrivals += 1
        heapq.heappush(
            self.queue,
            Waiting(not is_retry, -item.priority, start, self._arrivals, future, cost, flow),
        )

    def next(self) -> Waiting | None:
        """Return the call whose turn it is, and drop those that were given up."""
        queue = self.queue
        while queue and queue[0].future.cancelled():
            heapq.heappop(queue)
        return queue[0] if queue else None

    def take(self) -> None:
        """Take the next call out of the queue."""
        taken = heapq.heappop(self.queue)
        self._virtual_time = max(self._virtual_time, taken.virtual_start)

    def failed(self, now: float, place: Place, code: ErrorCode) -> bool:
        """Note a failure; return whether another place may take the call instead.

        The last place is never set aside: when all fail, that is to be seen at once.
        """
        place.ended(is_good=None)
        if code not in _OF_THE_PLACE:
            return False
        if not any(other.aside_until <= now for other in self.places if other is not place):
            return False
        place.set_aside(now)
        return True


class Lanes:
    """The lanes of a processor, for all its runs.

    Args:
        most: Calls in flight at the most, over all lanes.
        is_given: Whether somebody gave that number: then it stands above what is assumed of
            servers, and is not raised for what they tell.
        seeks_knee: Whether the number of calls in flight is searched in every lane.
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
        is_given: bool = True,
        seeks_knee: bool = False,
    ) -> None:
        self.most = most
        self._is_given = is_given
        self._seeks_knee = seeks_knee
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
            self._ask(lane)
        return lane

    def _ask(self, lane: Lane) -> None:
        """Ask the lane's servers, once, what they work on at a time."""
        asked = [
            (place, ask())
            for place, ask in zip(lane.places, lane.facts.ask, strict=False)
            if ask is not None
        ]
        if asked:
            lane.asking = self.loop.create_task(self._learn_capacity(lane, asked))

    async def _learn_capacity(
        self, lane: Lane, asked: list[tuple[Place, Awaitable[Capacity | None]]]
    ) -> None:
        found = await asyncio.gather(*(answer for _, answer in asked), return_exceptions=True)
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
        lane.asking = None

    def _use(self, place: Place, capacity: Capacity) -> None:
        """Fit a place to its server: what the server tells counts, what is assumed may."""
        now, is_told = self.loop.time(), capacity.source == "server"
        if is_told and not self._is_given:
            self.most = max(self.most, with_margin(capacity.slots))
        if is_told or (capacity.source == "assumed" and not self._is_given):
            place.hold(capacity, self.most)
        if self._seeks_knee:
            first = with_margin(capacity.slots) if is_told else capacity.slots
            place.search(now, first, self.most, is_near=is_told)
        elif capacity.source == "searched" and not self._is_given:
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

    def start(self, lane: Lane, place: Place, cost: Cost) -> Ticket:
        """Let a call in."""
        self.in_flight += 1
        return Ticket(lane, place, place.start(self.loop.time(), cost))

    def leave(self, lane: Lane) -> None:
        """Give the room of a call that ended to the next one."""
        self.in_flight -= 1
        if self.in_flight == self.most - 1:
            for one in self.by_name.values():
                if one.queue:
                    self.pump(one)
        elif lane.queue:
            self.pump(lane)

    def pump(self, lane: Lane) -> None:
        """Let in as many as may go now; set the timer for the next."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        while (waiting := lane.next()) is not None:
            if not self.may_start():
                return  # the next one that leaves comes back here
            now = self.loop.time()
            place, wait = lane.best_place(now, waiting.cost)
            if waiting.flow.longest_pause_seconds < wait < math.inf:
                lane.take()
                waiting.future.set_exception(LimitPauseError(lane.name, wait))
                continue
            if wait > 0:
                if wait < math.inf:
                    at = now + max(wait, SHORTEST_WAIT_SECONDS)
                    lane.timer = self.loop.call_at(at, self.pump, lane)
                return
            lane.take()
            waiting.future.set_result(self.start(lane, place, waiting.cost))

    def close(self) -> None:
        """Stop all timers, and remember what was learned."""
        for name, lane in list(self.by_name.items()):
            if lane.asking is not None:  # the run was given up at once; the next one asks anew
                lane.asking.cancel()
                del self.by_name[name]
            if lane.timer is not None:
                lane.timer.cancel()
                lane.timer = None
        self.remember()

    def remember(self) -> None:
        """Write down what was learned, for the next run."""
        if self._memory is None:
            return
        self._memory.save(
            {
                key: place.admission.learned()
                for lane in self.by_name.values()
                for key, place in zip(lane.facts.remembered_as, lane.places, strict=False)
                if key
            }
        )

    def _make(self, name: str, facts: LaneFacts) -> Lane:
        places = []
        for number in range(facts.places):
            admission = Admission(
                self.loop.time(),
                self._limits,
                burst_seconds=_burst_seconds(self._limits, facts),
                max_in_flight=self.most,
            )
            if self._memory is not None and number < len(facts.remembered_as):
                key = facts.remembered_as[number]
                if key and (found := self._memory.recall(key)) is not None:
                    learned, share = found
                    admission.recall(learned, share=share)
            place = Place(number, admission)
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
