"""A lane in virtual time: drives an ``Admission`` against a provider that a test wrote by hand."""

from __future__ import annotations

import heapq
import math
import random
from typing import NamedTuple

from batch_llm.strategies.costs import Cost


class Reply(NamedTuple):
    """What becomes of a call.

    Attributes:
        end: ``taken``, ``refused`` or ``failed``.
        seconds: From its start until the caller knows.
        retry_after: What a refusal asks for.
        dimension: What a refusal names.
        headers: What it says of the limits.
    """

    end: str
    seconds: float
    retry_after: float | None = None
    dimension: str | None = None
    headers: dict | None = None


class Lane:
    """Calls without end, as fast as the admission lets them in; a refused one waits as it is told.

    Args:
        admission: What decides.
        reply: The provider: called with the time when a call arrives, returns its reply.
    """

    def __init__(self, admission, reply, *, cost=None):
        self.admission = admission
        self.reply = reply
        self.cost = cost or Cost()
        self.now = 0.0
        #: When calls were started; when they ended, by their end.
        self.starts = []
        self.ends = {"taken": [], "refused": [], "failed": []}
        self.most_in_flight = 0
        self._under_way = []
        self._number = 0

    def run(self, until):
        """Go on until a time."""
        while self.now < until:
            wait = self._start_all()
            ends_at = self._under_way[0][0] if self._under_way else math.inf
            self.now = min(self.now + max(wait, 1e-3), max(ends_at, self.now))
            assert self.now < math.inf, "nothing in flight, and nobody may start"
            while self._under_way and self._under_way[0][0] <= self.now:
                self._end(*heapq.heappop(self._under_way)[2:])
        return self

    def count(self, end, start, stop):
        """Return how many calls ended so between two times."""
        return sum(start <= at < stop for at in self.ends[end])

    def _start_all(self):
        while (wait := self.admission.wait(self.now, self.cost)) <= 0:
            grant = self.admission.start(self.now, self.cost)
            self.starts.append(self.now)
            self.most_in_flight = max(self.most_in_flight, self.admission.in_flight)
            reply = self.reply(self.now)
            self._number += 1
            heapq.heappush(self._under_way, (self.now + reply.seconds, self._number, grant, reply))
        return wait

    def _end(self, grant, reply):
        self.ends[reply.end].append(self.now)
        if reply.end == "taken":
            self.admission.accepted(self.now, grant, None, reply.headers)
        elif reply.end == "failed":
            self.admission.failed(self.now, grant, retry_after=reply.retry_after)
        else:
            self.admission.refused(
                self.now,
                grant,
                latency=reply.seconds,
                retry_after=reply.retry_after,
                dimension=reply.dimension,
                headers=reply.headers,
            )


class Bucket:
    """Lets in a rate and a burst, and refuses a share of all calls at random."""

    def __init__(
        self, seed, *, rate=1e9, burst=1e9, chance=0.0, retry_after=None, seconds=(0.5, 1.5)
    ):
        self.dice = random.Random(seed)
        self.rate, self.burst, self.level, self.at = rate, burst, burst, 0.0
        self.chance, self.retry_after, self.seconds = chance, retry_after, seconds

    def __call__(self, now):
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.dice.random() < self.chance or self.level < 1:
            return Reply("refused", min(0.1, self.seconds[0]), self.retry_after)
        self.level -= 1
        return Reply("taken", self.dice.uniform(*self.seconds))


class ExactBucket:
    """A bucket of calls that says when it has room again: to the fraction of a second, or not."""

    def __init__(self, rate, burst, *, is_whole=False):
        self.rate, self.burst, self.is_whole = rate, burst, is_whole
        self.level, self.at = burst, 0.0

    def __call__(self, now):
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < 1:
            wait = (1 - self.level) / self.rate
            return Reply("refused", 0.1, math.ceil(wait) if self.is_whole else wait)
        self.level -= 1
        return Reply("taken", 0.3)
