"""The gate that a refusal closes for everyone: for as long as Retry-After says, or until probed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

#: Without a Retry-After the closed gate is tried again after so many seconds; after each refusal in
#: a row twice as many, up to the longest.
PROBE_SECONDS, LONGEST_PROBE_SECONDS = 0.25, 8.0
#: A Retry-After that proved too short is stretched by no more than so much.
LONGEST_STRETCH_SECONDS = 5.0


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
        self, now: float, retry_after: float | None, requests_per_second: float, *, is_guess: bool
    ) -> None:
        """Close it because of a refusal.

        Args:
            now: The time.
            retry_after: Seconds that the provider asked to wait.
            requests_per_second: The rate that is believed.
            is_guess: Whether that is only a guess, and no reason to wait.
        """
        again = self.closed_again
        if retry_after is not None:
            # Refused again after having waited as told: it was too short.
            stretch = 0.5 * retry_after * again + 0.05 * 2 ** min(again, 6) if again else 0
            stretch = min(LONGEST_STRETCH_SECONDS, stretch)
            wait = retry_after + stretch + self._dice.uniform(0, 0.02)
        elif again:
            usual = 0.0 if is_guess else 1 / requests_per_second
            longest = max(LONGEST_PROBE_SECONDS, 2 * usual)
            wait = min(longest, max(PROBE_SECONDS, 0.5 * usual) * 2 ** min(again, 10))
            wait *= self._dice.uniform(0.8, 1.2)
        else:
            wait = min(PROBE_SECONDS, 1 / requests_per_second) * self._dice.uniform(0.8, 1.2)
        self.keep_closed(now + wait)

    def keep_closed(self, until: float) -> None:
        """Keep it closed until then at least."""
        self.closed_until = max(self.closed_until, until)
