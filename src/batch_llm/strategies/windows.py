"""What was charged in the last minute, for limits that count exactly that (a sliding window)."""

from __future__ import annotations

import math
from collections import deque

#: Charges within so short a time are one entry.
ENTRY_SECONDS = 0.25
#: What has left the window is known for so long.
REMEMBERED_SECONDS = 1.0


class MinuteLog:
    """The charges of a minute: one leaves the window a moment late, never early.

    Args:
        seconds: The window's length.
    """

    __slots__ = ("_charges", "_left", "_total", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: [when it began, what was charged in it], oldest first.
        self._charges: deque[list[float]] = deque()
        self._total = 0.0
        #: [when it left, what was charged], of the last moments.
        self._left: deque[tuple[float, float]] = deque()

    def charge(self, now: float, amount: float) -> None:
        """Note a charge."""
        charges = self._charges
        if charges and now < charges[-1][0] + ENTRY_SECONDS:
            charges[-1][1] += amount
        else:
            charges.append([ENTRY_SECONDS * math.floor(now / ENTRY_SECONDS), amount])
            self._forget(now)
        self._total += amount

    def take_back(self, charged_at: float, amount: float) -> None:
        """Take back from what was charged at that time; it may have left the window."""
        for entry in reversed(self._charges):
            if entry[0] <= charged_at:
                if charged_at < entry[0] + ENTRY_SECONDS:
                    entry[1] -= amount
                    self._total -= amount
                return

    def wait(self, now: float, room: float) -> float:
        """Return the seconds until no more than ``room`` of the window's charges is left."""
        self._forget(now)
        surplus = self._total - room
        if surplus <= 1e-9:
            return 0.0
        for began_at, amount in self._charges:
            surplus -= amount
            if surplus <= 1e-9:
                return began_at + ENTRY_SECONDS + self.seconds - now
        return self.seconds

    def used(self, now: float) -> float:
        """Return what was charged within the window."""
        self._forget(now)
        return self._total

    def used_then(self, now: float, then: float) -> float:
        """Return what was charged by now and within the window at a moment in the last second."""
        self._forget(now)
        return self._total + sum(amount for left_at, amount in self._left if left_at > then)

    def _forget(self, now: float) -> None:
        charges, left = self._charges, self._left
        while charges and (left_at := charges[0][0] + ENTRY_SECONDS + self.seconds) <= now:
            amount = charges.popleft()[1]
            self._total -= amount
            left.append((left_at, amount))
        while left and left[0][0] < now - REMEMBERED_SECONDS:
            left.popleft()
        if not charges:
            self._total = 0.0
