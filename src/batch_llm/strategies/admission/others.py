"""Others who use the same limit, seen by what they leave.

Headers tell what is left; where that is less than we left, somebody else took it, and where a call
is refused although there seemed to be room, too. What is left of a limit that is shared may be gone
when a call arrives: so it is not used at once, and more of it is not believed in right after a
refusal. Nobody else being there, nothing here changes anything.
"""

from __future__ import annotations

import math

#: Others count from this share of the limit on, in about the last so many seconds.
TAKEN_SHARE, TAKEN_SECONDS = 0.1, 10.0
#: So much of a bucket, and so many calls, may be missing because calls arrive out of step.
MISSING_SHARE, MISSING_CALLS = 0.1, 2.0
#: For so long after the gate has opened again more room than thought is not believed in.
WARY_SECONDS = 2.0
#: For so long a further refusal is taken for theirs, too.
REMEMBERED_SECONDS = 30.0


class Others:
    """What others have taken of one limit of late."""

    __slots__ = ("_taken", "_taken_at", "_wary_until")

    def __init__(self) -> None:
        self._taken = 0.0
        self._taken_at = self._wary_until = -math.inf

    def note(self, now: float, missing: float) -> None:
        """Take in that so much was missing of what was thought to be left; negative: was over."""
        taken = self._taken * math.exp((self._taken_at - now) / TAKEN_SECONDS) + missing
        self._taken, self._taken_at = max(0.0, taken), now

    def note_refused(
        self, now: float, until: float, thought: float, capacity: float, rate: float
    ) -> None:
        """Take in a refusal.

        Args:
            now: The time.
            until: Until when the gate is closed because of it.
            thought: What was thought to be left when the refused call was sent.
            capacity: What the bucket holds.
            rate: The limit, per second.
        """
        is_theirs = thought > MISSING_CALLS + MISSING_SHARE * capacity
        if is_theirs or now < self._wary_until + REMEMBERED_SECONDS or self.are_there(now, rate):
            self._wary_until = until + WARY_SECONDS

    def is_wary(self, now: float) -> bool:
        """Whether more room than thought is not to be believed in."""
        return now < self._wary_until

    def are_there(self, now: float, rate: float) -> bool:
        """Whether others take so much that what is left is not ours to be used at once.

        Args:
            now: The time.
            rate: The limit, per second.
        """
        if now < self._wary_until:
            return True
        taken = self._taken * math.exp((self._taken_at - now) / TAKEN_SECONDS)
        return taken > TAKEN_SHARE * TAKEN_SECONDS * rate
