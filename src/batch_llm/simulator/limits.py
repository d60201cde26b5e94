"""Limits per minute, as a provider keeps them. Pure: the time is an argument."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

MINUTE = 60.0
#: For times whose difference is a window's length but for the last bit.
_INSTANT = 1e-9


class Bucket:
    """A limit that refills continuously.

    Args:
        per_minute: How much may pass in a minute.
        burst_seconds: How many seconds of it the bucket holds.
        now: The time in seconds.
    """

    def __init__(self, per_minute: float, burst_seconds: float, now: float) -> None:
        self._burst_seconds = burst_seconds
        self._set(per_minute)
        self._level = self._size
        self._at = now

    def change(self, per_minute: float, now: float) -> None:
        """Go on with another limit; a larger bucket fills up at its new rate."""
        self._refill(now)
        self._set(per_minute)
        self._level = min(self._level, self._size)

    def _set(self, per_minute: float) -> None:
        self.limit = per_minute
        self._rate = per_minute / MINUTE
        self._size = max(1.0, self._rate * self._burst_seconds)

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

    def give(self, amount: float, since: float, now: float) -> None:  # noqa: ARG002
        """Give back what a call took and did not need."""
        self._refill(now)
        self._level = min(self._size, self._level + amount)

    def refresh(self, now: float) -> None:
        """Bring what is told up to this moment."""
        self._refill(now)

    @property
    def most(self) -> float:
        """What may pass at once at the most."""
        return self._size

    def remaining(self) -> int:
        """Return what may pass now."""
        return max(0, int(self._level))

    def reset_seconds(self) -> float:
        """Return the seconds until the bucket is full."""
        return max(0.0, (self._size - self._level) / self._rate)

    def _refill(self, now: float) -> None:
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now


def _size(per_minute: float, seconds: float) -> float:
    # Rounded: a product that should be 3 may be 2.9999999999999996, and let only 2 pass.
    return round(per_minute * seconds / MINUTE, 6)


class FixedWindow:
    """A limit that starts anew with each window.

    Args:
        per_minute: How much may pass in a minute.
        now: The time in seconds; windows are counted from here.
        seconds: How long a window is.
    """

    def __init__(self, per_minute: float, now: float, seconds: float = MINUTE) -> None:
        self._seconds = seconds
        self._set(per_minute)
        self._used = 0.0
        self._ends = now + seconds
        self._now = now

    def change(self, per_minute: float, now: float) -> None:
        """Go on with another limit; what has passed in this window counts against it."""
        self._turn(now)
        self._set(per_minute)

    def wait_for(self, amount: float, now: float) -> float:
        """Return the seconds until ``amount`` may pass; 0 for now."""
        self._turn(now)
        fits = self._used + amount <= self._size or self._used == 0
        return 0.0 if fits else self._ends - now

    def take(self, amount: float, now: float) -> None:
        """Let ``amount`` pass."""
        self._turn(now)
        self._used += amount

    def charge(self, amount: float, now: float) -> None:
        """Take ``amount`` for a call that was refused; the window's end forgives it."""
        self.take(amount, now)

    def give(self, amount: float, since: float, now: float) -> None:
        """Give back what a call took and did not need, unless its window is over."""
        self._turn(now)
        if since >= self._ends - self._seconds - _INSTANT:
            self._used = max(0.0, self._used - amount)

    def refresh(self, now: float) -> None:
        """Bring what is told up to this moment."""
        self._turn(now)

    @property
    def most(self) -> float:
        """What may pass at once at the most."""
        return self._size

    def remaining(self) -> int:
        """Return what may pass in this window."""
        return max(0, int(self._size - self._used))

    def reset_seconds(self) -> float:
        """Return the seconds until the next window."""
        return self._ends - self._now

    def _set(self, per_minute: float) -> None:
        self.limit = per_minute
        self._size = _size(per_minute, self._seconds)

    def _turn(self, now: float) -> None:
        self._now = now
        if now >= self._ends:
            self._used = 0.0
            self._ends = now + self._seconds - (now - self._ends) % self._seconds


class SlidingWindow:
    """A limit on what passes in any stretch of time of one length.

    Args:
        per_minute: How much may pass in a minute.
        seconds: How long the stretch is.
    """

    def __init__(self, per_minute: float, seconds: float = MINUTE) -> None:
        self._seconds = seconds
        self._set(per_minute)
        #: What passed and is not forgotten: when, and how much had passed with it in all.
        self._times: list[float] = []
        self._totals: list[float] = []
        self._forgotten = 0.0
        self._now = 0.0

    def change(self, per_minute: float, now: float) -> None:
        """Go on with another limit; what passed lately counts against it."""
        self._forget(now)
        self._set(per_minute)

    def wait_for(self, amount: float, now: float) -> float:
        """Return the seconds until ``amount`` may pass, or until all is forgotten; 0 for now."""
        self._forget(now)
        excess = self._used() + amount - self._size
        if excess <= 0 or not self._times:
            return 0.0
        freeing = bisect_left(self._totals, self._forgotten + excess)
        return self._times[min(freeing, len(self._times) - 1)] + self._seconds - now

    def take(self, amount: float, now: float) -> None:
        """Let ``amount`` pass."""
        self._forget(now)
        self._totals.append((self._totals[-1] if self._totals else self._forgotten) + amount)
        self._times.append(now)

    def charge(self, amount: float, now: float) -> None:
        """Take ``amount`` for a call that was refused; it is forgotten like any other."""
        self.take(amount, now)

    def give(self, amount: float, since: float, now: float) -> None:
        """Give back what a call took and did not need, unless that is forgotten already."""
        self._forget(now)
        first, end = bisect_left(self._times, since), bisect_right(self._times, since)
        if first == end:
            return
        before = self._totals[first - 1] if first else self._forgotten
        given = min(amount, self._totals[end - 1] - before)
        # Of several calls at the same moment, whose it was makes no difference.
        self._totals[first:] = [max(before, total - given) for total in self._totals[first:]]

    def refresh(self, now: float) -> None:
        """Bring what is told up to this moment."""
        self._forget(now)

    @property
    def most(self) -> float:
        """What may pass at once at the most."""
        return self._size

    def remaining(self) -> int:
        """Return what may pass now."""
        return max(0, int(self._size - self._used()))

    def reset_seconds(self) -> float:
        """Return the seconds until all is forgotten."""
        return self._times[-1] + self._seconds - self._now if self._times else 0.0

    def _used(self) -> float:
        return self._totals[-1] - self._forgotten if self._totals else 0.0

    def _set(self, per_minute: float) -> None:
        self.limit = per_minute
        self._size = _size(per_minute, self._seconds)

    def _forget(self, now: float) -> None:
        self._now = now
        count = bisect_right(self._times, now - self._seconds + _INSTANT)
        if count:
            self._forgotten = self._totals[count - 1]
            del self._times[:count], self._totals[:count]


Limit = Bucket | FixedWindow | SlidingWindow


def make_limit(per_minute: float, window: str, burst_seconds: float, now: float) -> Limit | None:
    """Return the limit, or None when there is none (0)."""
    if not per_minute:
        return None
    if window == "bucket":
        return Bucket(per_minute, burst_seconds, now)
    seconds = max(burst_seconds, MINUTE / per_minute)
    if window == "fixed":
        return FixedWindow(per_minute, now, seconds)
    return SlidingWindow(per_minute, seconds)
