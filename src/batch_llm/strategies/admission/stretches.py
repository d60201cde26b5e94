"""What was let in from one refusal to the next, and the rates of a bucket that explain it.

A provider's bucket is full at the start, and empty when it refuses a call. So for each rate that it
may have, what was let in since the last refusal tells how much it held: either all that has come
back was let in again, or it was full at some moment, and what was let in beyond the rate since then
is its size. A rate explains the refusals when one size fits them all, and all that was let in
between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Calls arrive so many seconds sooner or later than as evenly as they were sent.
JITTER_SECONDS = 0.05
#: Further tolerance, as a share of what was let in, and of what the bucket holds.
LET_IN_SHARE, HELD_SHARE = 0.1, 0.2
#: The rate at the end of a stretch is that of this share of its calls, over so long at least.
ENDING_SHARE, SHORTEST_ENDING_SECONDS = 0.3, 0.2
#: Rates are tried at so many places between the least and the most, no closer than this factor;
#: and none that is lower than this.
MOST_RATES, CLOSEST, LOWEST_RATE = 24, 1.05, 1e-3


class Explained(NamedTuple):
    """The rates by the second that explain so many of the last refusals, the least and the most."""

    least: float
    most: float
    refusals: int = 1


class Stretch(NamedTuple):
    """What was let in of one dimension from one refusal, or the start, to the next.

    Attributes:
        is_first: Whether it began with a full bucket, at the start.
        seconds: When each point was, since the stretch began; the first is 0.
        let_in: What was let in up to each point, in requests or tokens; the last is the refusal.
        held: So much the bucket may still have held when it refused, in requests or tokens.
    """

    is_first: bool
    seconds: list[float]
    let_in: list[float]
    held: float

    def least(self, tolerance: float) -> float:
        """Return the lowest rate at which so much can have been let in."""
        if self.is_first:
            return 0.0
        slack = tolerance * self.slack
        return max(
            (let_in * (1 - tolerance * LET_IN_SHARE) - slack) / (seconds + JITTER_SECONDS)
            for seconds, let_in in zip(self.seconds, self.let_in, strict=True)
        )

    def most(self) -> float:
        """Return the highest rate that was exceeded before the refusal."""
        end, total = self.seconds[-1], self.let_in[-1]
        return max(
            (total - let_in - self.held / 2) / max(end - seconds, 1e-3)
            for seconds, let_in in zip(self.seconds, self.let_in, strict=True)
        )

    @property
    def slack(self) -> float:
        """How much may have been in the bucket when it refused, as far as can be told."""
        return self.held + JITTER_SECONDS * self.rate_at_end

    @property
    def rate_at_end(self) -> float:
        """How much was let in by the second before the refusal."""
        total, place = self.let_in[-1], len(self.let_in) - 1
        while place and self.let_in[place] > (1 - ENDING_SHARE) * total - self.held:
            place -= 1
        seconds = max(self.seconds[-1] - self.seconds[place], SHORTEST_ENDING_SECONDS)
        return (total - self.let_in[place]) / seconds

    def sizes(self, rate: float, tolerance: float) -> tuple[float, float, bool]:
        """Return what the bucket held at the least, and at the end, if it refilled at ``rate``.

        The third value tells whether it was full in between, so that the second is its size.
        """
        fullest = level = largest = 0.0
        for seconds, let_in in zip(self.seconds, self.let_in, strict=True):
            level = rate * seconds - let_in
            fullest = max(fullest, level)
            largest = max(largest, fullest - level)
        total = self.let_in[-1]
        was_full = self.is_first or level > tolerance * (self.slack + LET_IN_SHARE * total)
        return largest, fullest - level, was_full


def explaining_rates(stretches: list[Stretch], tolerance: float) -> Iterator[float]:
    """Yield the rates of one bucket that explain how stretches ended, from the least on.

    Args:
        stretches: Of one dimension.
        tolerance: So many times as much as usual.
    """
    if not stretches:
        return
    rate = max(LOWEST_RATE, *(one.least(tolerance) for one in stretches))
    most = min(one.most() for one in stretches)
    slack = max(one.slack for one in stretches)
    factor = max(CLOSEST, (most / rate) ** (1 / MOST_RATES)) if most > rate else CLOSEST
    while rate <= most:
        if _is_one_size(rate, stretches, slack, tolerance):
            yield rate
        rate *= factor


def _is_one_size(rate: float, stretches: list[Stretch], slack: float, tolerance: float) -> bool:
    """Tell whether one bucket with this rate explains how each stretch went and ended."""
    largest, smallest = 0.0, float("inf")
    for stretch in stretches:
        held, at_end, was_full = stretch.sizes(rate, tolerance)
        largest = max(largest, held)
        if was_full:
            smallest = min(smallest, at_end)
    return largest - smallest <= tolerance * (slack + HELD_SHARE * largest)
