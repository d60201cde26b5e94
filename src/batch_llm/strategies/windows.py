"""What was charged in the last minute, for limits that count exactly that (a sliding window)."""

from __future__ import annotations

import math
from collections import deque


class MinuteLog:
    """Charges by the second: a charge leaves the window up to a second late, never early.

    Args:
        seconds: The window's length.
    """

    __slots__ = ("_charges", "_total", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: [the second's number, what was charged in it], oldest first.
        self._charges: deque[list[float]] = deque()
        self._total = 0.0

    def charge(self, now: float, amount: float) -> None:
        """Note a charge."""
        charges = self._charges
        if charges and now < charges[-1][0] + 1:
            charges[-1][1] += amount
        else:
            charges.append([math.floor(now), amount])
            self._forget(now)
        self._total += amount

    def take_back(self, charged_at: float, amount: float) -> None:
        """Take back from what was charged at that time; it may have left the window."""
        for entry in reversed(self._charges):
            if entry[0] <= charged_at:
                if charged_at < entry[0] + 1:
                    entry[1] -= amount
                    self._total -= amount
                return

    def wait(self, now: float, room: float) -> float:
        """Return the seconds until no more than ``room`` of the window's charges is left."""
        self._forget(now)
        surplus = self._total - room
        if surplus <= 1e-9:
            return 0.0
        for second, amount in self._charges:
            surplus -= amount
            if surplus <= 1e-9:
                return second + 1 + self.seconds - now
        return self.seconds

    def used(self, now: float) -> float:
        """Return what was charged within the window."""
        self._forget(now)
        return self._total

    def _forget(self, now: float) -> None:
        charges = self._charges
        while charges and charges[0][0] + 1 + self.seconds <= now:
            self._total -= charges.popleft()[1]
        if not charges:
            self._total = 0.0
