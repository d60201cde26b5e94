"""Limits per minute, as a provider keeps them. Pure: the time is an argument."""

from __future__ import annotations

MINUTE = 60.0


class Bucket:
    """A limit that refills continuously.

    Args:
        per_minute: How much may pass in a minute.
        burst_seconds: How many seconds of it the bucket holds.
        now: The time in seconds.
    """

    def __init__(self, per_minute: float, burst_seconds: float, now: float) -> None:
        self.limit = per_minute
        self._rate = per_minute / MINUTE
        self._size = max(1.0, self._rate * burst_seconds)
        self._level = self._size
        self._at = now

    def wait_for(self, amount: float, now: float) -> float:
        """Return the seconds until ``amount`` may pass, or until full if it is more; 0 for now."""
        self._refill(now)
        missing = min(amount, self._size) - self._level
        return missing / self._rate if missing > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Let ``amount`` pass; the level may go below zero."""
        self._refill(now)
        self._level -= amount

    def charge(self, amount: float, now: float) -> None:
        """Take ``amount`` for a call that was refused, but no more than there is."""
        self._refill(now)
        self._level -= min(amount, max(0.0, self._level))

    def remaining(self) -> int:
        """Return what may pass now."""
        return max(0, int(self._level))

    def reset_seconds(self) -> float:
        """Return the seconds until the bucket is full."""
        return max(0.0, (self._size - self._level) / self._rate)

    def _refill(self, now: float) -> None:
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now


class FixedWindow:
    """A limit that starts anew each minute.

    Args:
        per_minute: How much may pass in a minute.
        now: The time in seconds; windows are counted from here.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.limit = per_minute
        self._used = 0.0
        self._ends = now + MINUTE
        self._now = now

    def wait_for(self, amount: float, now: float) -> float:
        """Return the seconds until ``amount`` may pass; 0 for now."""
        self._turn(now)
        fits = self._used + amount <= self.limit or self._used == 0
        return 0.0 if fits else self._ends - now

    def take(self, amount: float, now: float) -> None:
        """Let ``amount`` pass."""
        self._turn(now)
        self._used += amount

    def charge(self, amount: float, now: float) -> None:
        """Take ``amount`` for a call that was refused; the window's end forgives it."""
        self.take(amount, now)

    def remaining(self) -> int:
        """Return what may pass in this window."""
        return max(0, int(self.limit - self._used))

    def reset_seconds(self) -> float:
        """Return the seconds until the next window."""
        return self._ends - self._now

    def _turn(self, now: float) -> None:
        self._now = now
        if now >= self._ends:
            self._used = 0.0
            self._ends = now + MINUTE - (now - self._ends) % MINUTE


Limit = Bucket | FixedWindow


def make_limit(per_minute: float, window: str, burst_seconds: float, now: float) -> Limit | None:
    """Return the limit, or None when there is none (0)."""
    if not per_minute:
        return None
    if window == "fixed":
        return FixedWindow(per_minute, now)
    return Bucket(per_minute, burst_seconds, now)
