"""Whose turn it is, of the calls that wait in a lane.

Between runs the calls of a lane are shared by weight. Of one run's calls, retries go first, then
those of higher priority, then those that came first; and each tenth goes to the one that has waited
longest, so that none waits for ever.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from batch_llm._engine.lane import Ticket
    from batch_llm.strategies.costs import Cost

#: One in so many of a run's calls goes to the one that has waited longest, whatever its priority.
LONGEST_WAITING_EVERY = 10
#: A queue is cleaned of calls that have gone when there are more of them than of the others.
_LEAST_TO_CLEAN = 16


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


class Queue:
    """The calls of all runs that wait in one lane.

    Args:
        lane: Its name, under which the runs count their calls.
    """

    __slots__ = ("_arrivals", "_lane", "_virtual_time", "lines")

    def __init__(self, lane: str) -> None:
        self._lane = lane
        #: By run. None of them is empty, but the calls in it may all have gone.
        self.lines: dict[Flow, _Line] = {}
        self._virtual_time = 0.0
        self._arrivals = 0

    def add(
        self,
        future: asyncio.Future[Ticket],
        cost: Cost,
        flow: Flow,
        *,
        priority: int,
        is_retry: bool,
    ) -> None:
        """Put a call into the queue."""
        line = self.lines.get(flow)
        if line is None:
            line = self.lines[flow] = _Line()
        self._arrivals += 1
        live = flow.waiting.get(self._lane, 0)
        line.add(Waiting(not is_retry, -priority, self._arrivals, future, cost, flow), live)
        flow.waiting[self._lane] = live + 1
        flow.all_waiting += 1

    def give_up(self, flow: Flow) -> None:
        """Note that one of a run's calls in the queue was cancelled."""
        flow.waiting[self._lane] -= 1
        flow.all_waiting -= 1

    def next(self) -> Waiting | None:
        """Return the call whose turn it is, and drop those that were given up."""
        best: Waiting | None = None
        earliest = (math.inf, 0)
        for flow in list(self.lines):
            head = self.lines[flow].next(flow.taken.get(self._lane, 0))
            if head is None:
                del self.lines[flow]
                continue
            start = self._start_of(flow), head.arrival
            if start < earliest:
                best, earliest = head, start
        return best

    def take(self, waiting: Waiting) -> None:
        """Take a call out of the queue; its future is to be set before the next look."""
        flow, name = waiting.flow, self._lane
        flow.waiting[name] -= 1
        flow.all_waiting -= 1
        flow.taken[name] = flow.taken.get(name, 0) + 1
        self._virtual_time = self._start_of(flow)
        flow.finish[name] = self._virtual_time + 1 / flow.weight

    def _start_of(self, flow: Flow) -> float:
        """Return the virtual time at which a run's next call would start."""
        return max(self._virtual_time, flow.finish.get(self._lane, 0.0))
