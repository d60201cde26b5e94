"""A server that queues, in virtual time: it shares its speed among the calls in its slots."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque


class SharedServer:
    """Works on ``slots`` calls at once; together they get ``speed(in work, in the house)``.

    Args:
        slots: Calls in work; the others wait, first come first served.
        speed: Work per second for all calls together.
        seed: Of the calls' sizes, and of the noise.
        noise: Spread of what is seen of each call's seconds; 0 = exact.
    """

    def __init__(self, slots, speed, *, seed=1, noise=0.0):
        self.slots, self.speed, self.noise = slots, speed, noise
        self.dice = random.Random(seed)
        self.now = self.done = 0.0
        self.in_work, self.queue = [], deque()
        self.number = 0

    @property
    def in_house(self):
        return len(self.in_work) + len(self.queue)

    def add(self):
        """Take a call; its size is drawn."""
        self.number += 1
        work = self.dice.lognormvariate(math.log(300), 0.8)
        self.queue.append((work, self.number, self.now, self.in_house))
        self._fill()

    def step(self):
        """Go on until the next call ends; return its start, the others then, and its work."""
        per_call = self.speed(len(self.in_work), self.in_house) / len(self.in_work)
        ends_at = self.in_work[0][0]
        self.now += (ends_at - self.done) / per_call
        self.done = ends_at
        _, _, started_at, others, work = heapq.heappop(self.in_work)
        self._fill()
        return started_at, others, work

    def seen(self, started_at):
        """Return the start that a noisy clock makes of one."""
        if not self.noise:
            return started_at
        return self.now - (self.now - started_at) * self.dice.lognormvariate(0.0, self.noise)

    def _fill(self):
        while self.queue and len(self.in_work) < self.slots:
            work, number, started_at, others = self.queue.popleft()
            heapq.heappush(self.in_work, (self.done + work, number, started_at, others, work))


def seconds_for(server, calls, *, knee=None, fixed=None, watch=None):
    """Return how long so many calls take with a number in flight that is fixed or searched."""
    left = calls
    while left or server.in_house:
        allowed = fixed if knee is None else knee.concurrency
        while left and server.in_house < allowed:
            server.add()
            left -= 1
        started_at, others, work = server.step()
        if knee is not None:
            knee.note_end(server.now, server.seen(started_at), others, work)
        if watch is not None:
            watch(server.now)
    return server.now
