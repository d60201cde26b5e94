"""What was charged in the last minute, for limits that count exactly that (a sliding window)."""

from __future__ import annotations

import math
from collections import deque


class MinuteLog:
    """Charges by the second: a charge leaves the window up to a second late, never early.

    Args:
        seconds: The window's length.
    """

    __slots__ = ("_charges", "_total", "newest", "newest_until", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: [the second's number, what was charged in it], oldest first, without the newest one.
        self._charges: deque[list[float]] = deque()
        self._total = 0.0
        #: What was charged in the newest second, and when that ends. Public for the hot path, which
        #: adds to it as long as it lasts.
        self.newest, self.newest_until = 0.0, -math.inf

    def charge(self, now: float, amount: float) -> None:
        """Note a charge."""
        if now < self.newest_until:
            self.newest += amount
            return
        if self.newest_until > -math.inf:
            self._charges.append([self.newest_until - 1, self.newest])
            self._total += self.newest
        self.newest, self.newest_until = amount, math.floor(now) + 1
        self._forget(now)

    def take_back(self, charged_at: float, amount: float) -> None:
        """Take back from what was charged at that time; it may have left the window."""
        if charged_at >= self.newest_until - 1:
            if charged_at < self.newest_until:
                self.newest -= amount
            return
        for entry in reversed(self._charges):
            if entry[0] <= charged_at:
                if charged_at < entry[0] + 1:
                    entry[1] -= amount
                    self._total -= amount
                return

    def wait(self, now: float, room: float) -> float:
        """Return the seconds until no more than ``room`` of the window's charges is left."""
        surplus = self.used(now) - room
        if surplus <= 1e-9:
            return 0.0
        for second, amount in self._charges:
            surplus -= amount
            if surplus <= 1e-9:
                return second + 1 + self.seconds - now
        surplus -= self.newest
        return self.newest_until + self.seconds - now if surplus <= 1e-9 else self.seconds

    def used(self, now: float) -> float:
        """Return what was charged within the window."""
        self._forget(now)
        return self._total + self.newest

    def _forget(self, now: float) -> None:
        charges = self._charges
        while charges and charges[0][0] + 1 + self.seconds <= now:
            self._total -= charges.popleft()[1]
        if not charges:
            self._total = 0.0
            if self.newest_until + self.seconds <= now:
                self.newest, self.newest_until = 0.0, -math.inf
