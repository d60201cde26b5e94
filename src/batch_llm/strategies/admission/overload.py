"""An overloaded or absent provider: fewer calls at a time, and a breaker that lets probes in.

Overload (503, 529, connection refused) is no limit: it says nothing of a rate. While fewer than
half of the calls get through, fewer are made at a time (Google's SRE rule); when none does, one
probe at a time is let in, ever more rarely, until one gets through.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

#: How long calls count, and the share of them that must get through.
MEMORY_SECONDS = 20.0
ACCEPTED_SHARE = 0.5
#: Calls grow older in steps of so long.
SHORTEST_SECONDS = 0.05
#: The number at a time changes no more often than this, so that a change can show its effect.
SETTLING_SECONDS = 1.0
#: It is multiplied by this when too few calls get through, and by this when one is answered.
SHRINK, GROWTH = 0.7, 1.25
#: More at a time than this is no restriction.
UNRESTRICTED = 100_000
#: So many failures, with nothing let in since, open the breaker; fewer where the provider asks for
#: time. A single one may come from one server of many that has too much to do.
FAILURES_TO_OPEN, FAILURES_TO_OPEN_TOLD = 10, 3
#: Seconds to the first probe; to each further one this share of the outage so far, within bounds.
FIRST_PROBE_SECONDS, PROBE_SHARE, LONGEST_PROBE_SECONDS = 0.5, 0.1, 15.0
#: After an outage so many calls may be made at a time at first, and so much faster they grow until
#: the provider is too busy again.
CALLS_AFTER_OUTAGE, GROWTH_AFTER_OUTAGE = 8.0, 2.0


class Overload:
    """What follows from failures that are no refusals."""

    __slots__ = (
        "_dice",
        "_failures",
        "_growth",
        "_is_probing",
        "_next_probe_at",
        "_noted_at",
        "_settled_until",
        "_told_until",
        "accepted",
        "calls",
        "concurrency",
        "has_answered",
        "since",
    )

    def __init__(self, now: float, dice: random.Random) -> None:
        self._dice = dice
        #: Calls sent, and those that the provider dealt with, be it by a refusal; old ones count
        #: less.
        self.calls = self.accepted = 0.0
        #: Whether it ever dealt with a call. One that is silent may still be connecting.
        self.has_answered = False
        #: Calls at a time.
        self.concurrency = math.inf
        #: When the breaker opened; None while it is closed.
        self.since: float | None = None
        self._failures = 0
        self._growth = GROWTH
        self._is_probing = False
        self._next_probe_at = 0.0
        self._noted_at = now
        self._settled_until = 0.0
        #: Until when the provider has asked for time, since it last dealt with a call.
        self._told_until = 0.0

    def wait(self, now: float) -> float:
        """Return the seconds until the breaker lets a call in: infinity while a probe is out."""
        if self.since is None:
            return 0.0
        return math.inf if self._is_probing else max(0.0, self._next_probe_at - now)

    def start(self) -> bool:
        """Count a call that starts; return whether it is a probe."""
        self.calls += 1
        if self.since is None:
            return False
        self._is_probing = True
        return True

    def note_answer(self, now: float, is_probe: bool) -> None:  # noqa: FBT001 - on the hot path
        """Note that the provider dealt with a call, be it by a refusal."""
        self.accepted += 1
        self.has_answered = True
        self._failures = 0
        self._told_until = 0.0
        if self.since is not None:
            if is_probe:  # calls from before may still be answered by one that takes no new ones
                self.since = None
                self._is_probing = False
                self.calls = self.accepted = 0.0
                self.concurrency, self._growth = CALLS_AFTER_OUTAGE, GROWTH_AFTER_OUTAGE
                self._settled_until = now + SETTLING_SECONDS
            return
        if now - self._noted_at > SHORTEST_SECONDS:
            self._forget(now)
        if self.concurrency < math.inf and now >= self._settled_until:
            self.concurrency = self.concurrency * self._growth + 1
            self._settled_until = now + SETTLING_SECONDS
            if self.concurrency > UNRESTRICTED:
                self.concurrency = math.inf

    def note_failure(
        self, now: float, in_flight: int, *, is_probe: bool, retry_after: float | None = None
    ) -> None:
        """Note that the provider was too busy for a call, or not there.

        Args:
            now: The time.
            in_flight: Calls under way.
            is_probe: Whether it was one that was let in to see whether the outage is over.
            retry_after: Seconds that the provider asked to wait. The next probe waits for them.
        """
        self._failures += 1
        self._forget(now)
        if retry_after is not None:
            self._told_until = max(self._told_until, now + retry_after)
        if self.since is not None:
            if is_probe:
                self._is_probing = False
                self._set_probe(now)
            elif retry_after is not None:
                self._next_probe_at = max(self._next_probe_at, self._told_until)
            return
        is_told = self._told_until > now
        if self._failures >= (FAILURES_TO_OPEN_TOLD if is_told else FAILURES_TO_OPEN):
            self.since = now
            self._set_probe(now)
            return
        if now < self._settled_until:
            return
        if (self.accepted + in_flight + 2) / (self.calls + 2) < ACCEPTED_SHARE:
            self.concurrency = max(1.0, min(self.concurrency, in_flight + 1) * SHRINK)
            self._growth = GROWTH
            self._settled_until = now + SETTLING_SECONDS

    def note_cancelled(self, *, is_probe: bool) -> None:
        """Note that a call was given up: it says nothing, and a probe is followed by another."""
        self.calls = max(0.0, self.calls - 1)
        if is_probe:
            self._is_probing = False

    def _set_probe(self, now: float) -> None:
        assert self.since is not None  # noqa: S101 - only called while the breaker is open
        seconds = PROBE_SHARE * (now - self.since) * self._dice.uniform(0.8, 1.2)
        wait = min(LONGEST_PROBE_SECONDS, max(FIRST_PROBE_SECONDS, seconds))
        self._next_probe_at = max(now + wait, self._told_until)

    def _forget(self, now: float) -> None:
        elapsed = now - self._noted_at
        if elapsed > SHORTEST_SECONDS:
            keep = math.exp(-elapsed / MEMORY_SECONDS)
            self.calls *= keep
            self.accepted *= keep
            self._noted_at = now
