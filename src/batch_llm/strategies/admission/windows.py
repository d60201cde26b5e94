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

    __slots__ = ("_charges", "_left", "_total", "newest", "newest_until", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: [when it ended, what was charged in it], oldest first, without the newest one.
        self._charges: deque[list[float]] = deque()
        self._total = 0.0
        #: (when it left, what was charged in it), of the last moments.
        self._left: deque[tuple[float, float]] = deque()
        #: What was charged in the newest entry, and when that ends. Public for the hot path, which
        #: adds to it as long as it lasts.
        self.newest, self.newest_until = 0.0, -math.inf

    def charge(self, now: float, amount: float) -> None:
        """Note a charge."""
        if now < self.newest_until:
            self.newest += amount
            return
        if self.newest_until > -math.inf:
            self._charges.append([self.newest_until, self.newest])
            self._total += self.newest
        self.newest, self.newest_until = amount, _end(now)
        self._forget(now)

    def take_back(self, charged_at: float, amount: float) -> None:
        """Take back from what was charged at that time; it may have left the window."""
        ends_at = _end(charged_at)
        if ends_at >= self.newest_until:
            if ends_at == self.newest_until:
                self.newest -= amount
            return
        for entry in reversed(self._charges):
            if entry[0] <= ends_at:
                if entry[0] == ends_at:
                    entry[1] -= amount
                    self._total -= amount
                return

    def wait(self, now: float, room: float) -> float:
        """Return the seconds until no more than ``room`` of the window's charges is left."""
        surplus = self.used(now) - room
        if surplus <= 1e-9:
            return 0.0
        for ended_at, amount in self._charges:
            surplus -= amount
            if surplus <= 1e-9:
                return ended_at + self.seconds - now
        surplus -= self.newest
        return self.newest_until + self.seconds - now if surplus <= 1e-9 else self.seconds

    def used(self, now: float) -> float:
        """Return what was charged within the window."""
        self._forget(now)
        return self._total + self.newest

    def used_then(self, now: float, then: float) -> float:
        """Return what was charged by now and within the window at a moment in the last second."""
        return self.used(now) + sum(amount for left_at, amount in self._left if left_at > then)

    def _forget(self, now: float) -> None:
        charges, left = self._charges, self._left
        while charges and charges[0][0] + self.seconds <= now:
            ended_at, amount = charges.popleft()
            self._total -= amount
            left.append((ended_at + self.seconds, amount))
        while left and left[0][0] < now - REMEMBERED_SECONDS:
            left.popleft()
        if not charges:
            self._total = 0.0
            if self.newest_until + self.seconds <= now:
                self.newest, self.newest_until = 0.0, -math.inf


def _end(at: float) -> float:
    """Return when the entry ends that holds a charge made at that time."""
    return ENTRY_SECONDS * (math.floor(at / ENTRY_SECONDS) + 1)
