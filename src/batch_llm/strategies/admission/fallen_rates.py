"""Refusals at random under known or found limits: they go on however far the rates have fallen.

Such a limit refuses nothing once the rate is well below: none goes on refusing at half the rate of
sending of a moment ago and less, unless it has fallen as far (``FallenPace``). Where headers tell
the limit this is not asked: others on the same key make the rate fall as far.

What was let in tells it sooner (``FallenRates``): when call after call is refused at rates far
below those that were let in a moment ago, the refusals say nothing about the rate. A limit that has
fallen refuses far below those rates as well, but not again once the rate is cut to what it lets in:
so the rates must fall from refusal to refusal. That goes for known limits only: of one that was
found, a small bucket runs over while a refusal stops all calls for a second. Unknown limits that
are still searched: ``evidence.py``.
"""

from __future__ import annotations

import math
from collections import deque

#: Refusals in a row that no limit explains, until they are taken for random.
UNEXPLAINED_IN_A_ROW = 4
#: A refusal is unexplained below this share of the rate that was let in shortly before.
IMPOSSIBLE_SHARE = 0.93
#: What was let in counts for so long, and for so many refusals at least.
MEMORY_SECONDS, MEMORY_LEAST = 120.0, 3
#: Fewer calls between two refusals prove nothing.
FEWEST_CALLS = 8
#: A larger share of refused calls is never taken for random.
LARGEST_SHARE = 0.15
#: Refusals are random when, one after the other, they have made the rate of sending fall below this
#: share of what it was: a limit that is halved makes it fall less.
FALLEN_SHARE = 0.45


class FallenRates:
    """The rates that were let in between the last refusals."""

    __slots__ = ("_calls", "_episodes", "_fallen_at", "_in_a_row", "_refusals")

    def __init__(self) -> None:
        #: When each of the last episodes ended, and the rates by dimension that were let in.
        self._episodes: deque[tuple[float, dict[str, float]]] = deque(maxlen=8)
        #: Since when the limit may be a lower one: what was let in before explains nothing.
        self._fallen_at = -math.inf
        self._in_a_row = self._calls = self._refusals = 0

    def note(self, now: float, rates: dict[str, float], calls: int, *, times: float) -> float:
        """Take a refusal into account that followed ``calls`` calls let in at ``rates``.

        Args:
            now: The time.
            rates: By dimension.
            calls: How many.
            times: How many times as many refusals as usual are asked for.

        Returns:
            The share of calls that is refused at random; 0 when they are not.
        """
        if not self._is_unexplained(now, rates, -math.inf):
            self._in_a_row = self._calls = self._refusals = 0
            self._fallen_at = -math.inf
        else:
            if calls >= FEWEST_CALLS and self._is_unexplained(now, rates, self._fallen_at):
                self._in_a_row += 1
                self._fallen_at = now
            self._calls += calls + 1
            self._refusals += 1
        self._episodes.append((now, rates))
        if self._in_a_row < UNEXPLAINED_IN_A_ROW * times:
            return 0.0
        share = self._refusals / self._calls
        self._in_a_row = self._calls = self._refusals = 0
        return min(LARGEST_SHARE, share)

    def _is_unexplained(self, now: float, rates: dict[str, float], since: float) -> bool:
        oldest_counted = len(self._episodes) - MEMORY_LEAST
        known: dict[str, float] = {}
        for position, (ended_at, let_in) in enumerate(self._episodes):
            if ended_at < since:
                continue
            if position >= oldest_counted or now - ended_at < MEMORY_SECONDS:
                for name, rate in let_in.items():
                    known[name] = max(known.get(name, 0.0), rate)
        return bool(known) and all(
            rate <= IMPOSSIBLE_SHARE * known.get(name, 0.0) for name, rate in rates.items()
        )


class FallenPace:
    """The rates at which calls were sent when they were refused, as long as they fall."""

    __slots__ = ("_calls", "_falls", "_highest", "_highest_at", "_lowest", "_refusals")

    def __init__(self) -> None:
        #: The rate from which they fell, and since when; and the lowest of them.
        self._highest = self._lowest = 0.0
        self._highest_at = -math.inf
        self._falls = self._calls = self._refusals = 0

    def note(self, now: float, rate: float, calls: int, *, times: float) -> float:
        """Take a refusal into account that followed ``calls`` calls, at a learned rate.

        Args:
            now: The time.
            rate: Of calls by the second, when the refused one was sent.
            calls: How many were let in since the refusal before.
            times: How many times as many refusals as usual are asked for.

        Returns:
            The share of calls that is refused at random; 0 when they are not.
        """
        is_old = now - self._highest_at > MEMORY_SECONDS
        if is_old or rate > IMPOSSIBLE_SHARE * self._highest:
            self._highest, self._lowest, self._highest_at = rate, rate, now
            self._falls = self._calls = self._refusals = 0
            return 0.0
        self._calls += calls + 1
        self._refusals += 1
        if calls >= FEWEST_CALLS and rate <= IMPOSSIBLE_SHARE * self._lowest:
            self._falls += 1
            self._lowest = rate
        is_few = self._falls < UNEXPLAINED_IN_A_ROW * times
        if is_few or rate > FALLEN_SHARE * self._highest:
            return 0.0
        share = self._refusals / self._calls
        self._highest = 0.0
        return min(LARGEST_SHARE, share)
