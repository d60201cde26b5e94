"""The gate that a refusal closes for everyone: for as long as Retry-After says, or until probed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

#: Without a Retry-After the closed gate is tried again after so many seconds; after each refusal in
#: a row twice as many (doubled so many times), up to the longest.
PROBE_SECONDS, LONGEST_PROBE_SECONDS, MOST_DOUBLED = 0.25, 8.0, 10
#: After more calls than these a probe is a smaller part of them, and waiting a larger one of the
#: run: the longest time falls as they grow, to so many seconds.
MANY_CALLS, LONGEST_MANY_SECONDS = 500, 2.0
#: Where a minute may be what is counted, it opens a minute after the first call at the latest: one
#: probe comes so many seconds after that, and for some time others as often as this.
DUE_SECONDS, DUE_PROBE_SECONDS, DUE_FOR_SECONDS = 0.05, 1.0, 5.0
#: For a slow limit both are longer: so many times the seconds from call to call at its rate.
PROBE_CALLS, LONGEST_PROBE_CALLS = 0.5, 2.0
#: A Retry-After that proved too short is stretched: by this share of it with each refusal in a row,
#: and by so many seconds, which double with each (so many times); in all by no more than so much.
STRETCH_SHARE, STRETCH_SECONDS, STRETCH_MOST_DOUBLED = 0.5, 0.05, 6
LONGEST_STRETCH_SECONDS = 5.0
#: What was closed everywhere at one moment is opened a little apart: up to so many seconds late
#: where a Retry-After says when, else between these two shares of its time.
SPREAD_SECONDS, LEAST_SPREAD, MOST_SPREAD = 0.02, 0.8, 1.2


class ClosedGate:
    """Until when nobody starts.

    Args:
        dice: Spreads what would otherwise happen at the same moment everywhere.
    """

    __slots__ = ("_dice", "closed_again", "closed_until")

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.closed_until = 0.0
        #: Refusals in a row that came although the gate had been closed long enough.
        self.closed_again = 0

    def close(
        self,
        now: float,
        retry_after: float | None,
        calls_per_second: float,
        *,
        is_guess: bool,
        minute_at: float = math.inf,
        accepted: int = 0,
    ) -> None:
        """Close it because of a refusal.

        Args:
            now: The time.
            retry_after: Seconds that the provider asked to wait.
            calls_per_second: The rate of calls that is believed.
            is_guess: Whether that is only a guess, and no reason to wait.
            minute_at: When it opens at the latest, if what is counted is a minute.
            accepted: Calls let in so far.
        """
        again = self.closed_again
        if retry_after is not None:
            stretch = _stretch(retry_after, again) if again else 0.0
            wait = retry_after + stretch + self._dice.uniform(0, SPREAD_SECONDS)
        elif again:
            call_seconds = 0.0 if is_guess else 1 / calls_per_second
            most = LONGEST_PROBE_SECONDS * min(1.0, MANY_CALLS / max(1, accepted))
            longest = max(most, LONGEST_MANY_SECONDS, LONGEST_PROBE_CALLS * call_seconds)
            first = max(PROBE_SECONDS, PROBE_CALLS * call_seconds)
            wait = self._spread(min(longest, first * 2.0 ** min(again, MOST_DOUBLED)))
            due = minute_at + DUE_SECONDS
            if now < due < now + wait:
                wait = due - now
            elif due <= now < due + DUE_FOR_SECONDS:
                wait = min(wait, DUE_PROBE_SECONDS)
        else:
            wait = self._spread(min(PROBE_SECONDS, 1 / calls_per_second))
        self.keep_closed(now + wait)

    def _spread(self, seconds: float) -> float:
        return seconds * self._dice.uniform(LEAST_SPREAD, MOST_SPREAD)

    def keep_closed(self, until: float) -> None:
        """Keep it closed until then at least."""
        self.closed_until = max(self.closed_until, until)


def _stretch(retry_after: float, again: int) -> float:
    """Return how many seconds more to wait than is asked, which proved too short so often."""
    step = STRETCH_SECONDS * 2.0 ** min(again, STRETCH_MOST_DOUBLED)
    return min(LONGEST_STRETCH_SECONDS, STRETCH_SHARE * retry_after * again + step)
