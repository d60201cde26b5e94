"""A limit in headers that is far below what is let in: it is somebody else's, or of another unit.

Who keeps to it never sees that. But calls are sent before the first answer tells any limit: when
far more of these are let in than the limit allows, it is not believed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_llm.strategies.dimensions import MINUTE

if TYPE_CHECKING:
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.admission.header_belief import LimitHeader

#: So many times what the limit allows, and so many calls, may be let in.
ALLOWED_TIMES, ALLOWED_CALLS = 2.0, 2.0


class Understated:
    """Counts the calls that were let in before a limit per minute was known."""

    __slots__ = ("_calls", "_first_at", "_known_at", "_limit")

    def __init__(self) -> None:
        #: The limit that was told first, and when.
        self._limit, self._known_at = 0.0, math.inf
        #: Calls sent before that, and when the first one of them was.
        self._calls, self._first_at = 0, math.inf

    def note_accepted(self, now: float, grant: Grant, header: LimitHeader) -> bool:
        """Take in an answer.

        Args:
            now: The time.
            grant: The call's.
            header: What it says of requests per minute.

        Returns:
            Whether more was let in than the limit can have allowed.
        """
        if not self._limit and header.is_sound:
            self._limit, self._known_at = header.limit, now
        if grant.at > self._known_at or header.limit != self._limit:
            return False
        self._calls += 1
        self._first_at = min(self._first_at, grant.at)
        minutes = (self._known_at - self._first_at) / MINUTE
        return self._calls > ALLOWED_TIMES * self._limit * (1 + minutes) + ALLOWED_CALLS
