"""Refusals at random: a provider that refuses a share of all calls, however few they are.

A limit refuses what is beyond it, and nothing once the rate is well below. So when call after call
is refused at rates far below those that were let in a moment ago, and the share of refused calls
stays small, the refusals say nothing about the rate: slowing down for them would only starve the
run. A limit that has fallen refuses far below those rates as well, but not again once the rate is
cut to what it lets in: so the rates must fall from refusal to refusal. Those at random are answered
one by one then, and the rate is cut only when they become many more than they were.
"""

from __future__ import annotations

import math
from collections import deque

#: Refusals in a row that no limit explains, until they are taken for random.
UNEXPLAINED_IN_A_ROW = 4
#: A trial that no bucket explains weighs as much as so many of them.
UNEXPLAINED_PER_PROOF = 2
#: A refusal is unexplained below this share of the rate that was let in shortly before.
IMPOSSIBLE_SHARE = 0.93
#: What was let in counts for so long, and for so many refusals at least.
MEMORY_SECONDS, MEMORY_LEAST = 120.0, 3
#: Fewer calls between two refusals prove nothing.
FEWEST_CALLS = 8
#: When there are too many within so few calls of coming to believe it, it was a limit after all;
#: and twice as many refusals are asked for next time.
CALLS_TO_REFUTE = 60
#: A larger share of refused calls is never taken for random.
LARGEST_CHANCE = 0.15
#: How fast the estimated share of refusals follows; and how far it may rise above what it was when
#: it came to be believed, because a limit that is reached slowly raises it too.
LEARNING_SHARE, LARGEST_RISE = 0.01, 2.0
#: The change detector (CUSUM): what each call takes off it, and where it rings.
TOLERATED_FACTOR, TOLERATED_SHARE, ALARM = 1.5, 0.02, 5.0
#: When so many random refusals should have come since the last one, there are none any more.
MISSING = 20.0


class Noise:
    """Tells refusals at random from those of a limit. Every operation is O(1)."""

    __slots__ = (
        "_alarm",
        "_asked",
        "_calls",
        "_calls_since",
        "_calm_chance",
        "_chance_most",
        "_episodes",
        "_fallen_at",
        "_in_a_row",
        "_refusals",
        "_silent",
        "_silent_most",
        "chance",
    )

    def __init__(self) -> None:
        #: The share of calls that is refused at random; 0 while none are believed to be.
        self.chance = 0.0
        #: When each of the last episodes ended, and the rates by dimension that were let in.
        self._episodes: deque[tuple[float, dict[str, float]]] = deque(maxlen=8)
        #: Since when the limit may be a lower one: what was let in before explains nothing.
        self._fallen_at = -math.inf
        self._chance_most = LARGEST_CHANCE
        #: What it was when there were last no more refusals than it explains.
        self._calm_chance = 0.0
        self._asked = UNEXPLAINED_IN_A_ROW
        self._in_a_row = 0
        self._calls = self._refusals = 0
        self._alarm = 0.0
        self._silent = self._calls_since = 0
        #: So many calls without a refusal are too many.
        self._silent_most = 0.0

    @property
    def is_believed(self) -> bool:
        """Whether refusals come at random."""
        return self.chance > 0

    @property
    def proofs_asked(self) -> int:
        """Trials with two calls (``second_calls.py``) that weigh as much as the row."""
        return self._asked // UNEXPLAINED_PER_PROOF

    def note_episode(self, now: float, rates: dict[str, float], calls: int) -> bool:
        """Take a refusal into account that followed ``calls`` calls let in at ``rates``.

        Returns:
            Whether refusals are believed to be random from now on.
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
        if self._in_a_row < self._asked:
            return False
        self.believe(self._refusals / self._calls)
        return True

    def believe(self, share: float) -> None:
        """Take refusals for random from now on, ``share`` of all calls."""
        self.chance = self._calm_chance = min(LARGEST_CHANCE, share)
        self._chance_most = min(LARGEST_CHANCE, LARGEST_RISE * self.chance)
        self._in_a_row = self._calls = self._refusals = 0
        self._alarm, self._silent, self._calls_since = 0.0, 0, 0
        self._silent_most = MISSING / self.chance

    def best_rate(self, dimension: str) -> float:
        """Return the highest rate that was let in lately."""
        return max((rates.get(dimension, 0.0) for _, rates in self._episodes), default=0.0)

    def note_accepted(self) -> None:
        """Count a call that was let in, while refusals are believed to be random."""
        self.chance *= 1 - LEARNING_SHARE
        self._alarm = max(0.0, self._alarm - TOLERATED_FACTOR * self.chance - TOLERATED_SHARE)
        if not self._alarm:
            self._calm_chance = self.chance
        self._silent += 1
        self._calls_since += 1
        if self._silent > self._silent_most:
            self.chance = 0.0

    def note_refused(self) -> bool:
        """Count a refusal, while they are believed to be random.

        Returns:
            Whether there are too many now: a limit refuses as well.
        """
        self.chance = min(self._chance_most, self.chance + LEARNING_SHARE * (1 - self.chance))
        self._silent, self._silent_most = 0, MISSING / self.chance
        self._alarm += 1 - TOLERATED_FACTOR * self.chance - TOLERATED_SHARE
        if self._alarm < ALARM:
            return False
        self._alarm, self.chance = 0.0, self._calm_chance
        if self._calls_since < CALLS_TO_REFUTE:
            self._asked *= 2
            self.chance = 0.0
        return True

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
