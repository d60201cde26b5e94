"""Others who use the same limit, seen by what they leave.

Headers tell what is left; where that is less than we left, somebody else took it. Whoever then uses
up what is left leaves nothing to those who see it later, and refused calls to all. So each program
keeps to a pace that falls as what is left falls: all of them see the same bucket, and so come to
the same pace by themselves, with some of it left. Nobody else being there, nothing here changes
anything.
"""

from __future__ import annotations

import math

#: Others count who took so many calls in about the last so many seconds, or in the time of so many
#: answers, or of so many calls at the limit's rate, where that is longer.
TAKEN_CALLS, TAKEN_SECONDS = 1.5, 3.0
REMEMBERED_ANSWERS, REMEMBERED_CALLS = 2.0, 30.0
#: What others take a second is measured over so many seconds at least.
SHORTEST_SECONDS = 0.3
#: The whole limit's rate may be sent while so much is left: what comes back in so many times as
#: long as an answer takes, or so many calls, or all that the bucket holds.
LEFT_ANSWERS, LEFT_CALLS = 3.0, 8.0
#: The less is left, the lower the rate: with nothing left divided by e to this power. That is less
#: steep for a bucket that holds only a share of what comes back in those answers' time, as this
#: power of the share: what headers show of it is over when they arrive.
STEEP, LESS_STEEP = 3.0, 0.5
#: A bucket that holds less than this share of that is small: headers say too little of it.
SMALL_SHARE = 0.5
#: The pace is this share of the limit's rate at the least, and so many times at the most.
LEAST_PACE, MOST_PACE = 0.1, 4.0
#: So much of a limit, and so many calls, may be missing because calls arrive out of step.
MISSING_SHARE, MISSING_CALLS = 0.1, 2.0
#: A refusal where more was missing than that makes wary until so many seconds after the gate has
#: opened again; and any further one within so many seconds, for longer.
WARY_SECONDS, WARY_AGAIN_SECONDS, WARY_LONGER_SECONDS = 2.0, 30.0, 10.0
#: How long answers take is learned by this share of each one; and is that until one was seen.
ANSWER_SHARE, ANSWER_SECONDS = 0.1, 1.0


class Others:
    """What others have taken of one limit of late."""

    __slots__ = (
        "_answer_seconds",
        "_left",
        "_seconds",
        "_spent",
        "_taken",
        "_wary_until",
        "answers",
        "is_small",
        "seen_at",
    )

    def __init__(self) -> None:
        #: When the latest call was sent whose response is known; what was left then, and what had
        #: been spent with it.
        self.seen_at, self._left, self._spent = -math.inf, 0.0, 0.0
        #: What others took, and in how much time; both fade.
        self._taken = self._seconds = 0.0
        #: Answers seen, and how long they take.
        self.answers, self._answer_seconds = 0, 0.0
        self._wary_until = -math.inf
        #: Whether the bucket is too small for headers to show what is left of it in time.
        self.is_small = False

    def note_answer(self, seconds: float) -> None:
        """Learn how long answers take."""
        self.answers += 1
        known = self._answer_seconds or seconds
        self._answer_seconds = known + ANSWER_SHARE * (seconds - known)

    def note(self, sent_at: float, left: float, spent: float, holds: float, rate: float) -> None:
        """Take in what a response shows; late ones say nothing new.

        Args:
            sent_at: When its call was sent.
            left: What the provider had left then.
            spent: What we had spent, the call itself included.
            holds: What the bucket holds.
            rate: The limit, per second.
        """
        since = sent_at - self.seen_at
        if since <= 0:
            return
        if since < math.inf:
            remembered = max(TAKEN_SECONDS, REMEMBERED_ANSWERS * self._answer_seconds)
            fade = math.exp(-since / max(remembered, REMEMBERED_CALLS / rate))
            was_left = min(holds, self._left + rate * since)
            taken = was_left - left - (spent - self._spent)
            self._taken = fade * self._taken + taken
            self._seconds = fade * self._seconds + since
        self.seen_at, self._left, self._spent = sent_at, left, spent

    @property
    def rate(self) -> float:
        """What they take by the second."""
        return max(0.0, self._taken) / max(self._seconds, SHORTEST_SECONDS)

    def note_refused(self, now: float, until: float, thought: float, capacity: float) -> None:
        """Take in a refusal: it may be theirs where there seemed to be room.

        Args:
            now: The time.
            until: Until when the gate is closed because of it.
            thought: What was thought to be left when the refused call was sent.
            capacity: What the limit holds.
        """
        is_theirs = thought > MISSING_CALLS + MISSING_SHARE * capacity
        if now < self._wary_until + WARY_AGAIN_SECONDS:
            self._wary_until = until + WARY_LONGER_SECONDS
        elif is_theirs:
            self._wary_until = until + WARY_SECONDS

    def is_wary(self, now: float) -> bool:
        """Whether what is left is not to be sent for at once, because of a refusal."""
        return now < self._wary_until

    def are_there(self, rate: float, largest: float) -> bool:
        """Whether others take more than a rate per second, and more than a few calls.

        Args:
            rate: That rate.
            largest: What the largest call takes.
        """
        return self._taken > TAKEN_CALLS * largest and self.rate > rate

    def pace(self, now: float, spent: float, holds: float, rate: float, largest: float) -> float:
        """Return the share of the limit's rate to keep to; see whether the bucket is small.

        Args:
            now: The time.
            spent: What we have spent so far.
            holds: What the bucket holds.
            rate: The limit, per second.
            largest: What the largest call takes.
        """
        since = max(0.0, now - self.seen_at)
        left = self._left - (spent - self._spent) + (rate - self.rate) * since
        left = max(0.0, min(holds, left))
        comes_back = LEFT_ANSWERS * (self._answer_seconds or ANSWER_SECONDS) * rate
        enough = min(holds, max(comes_back, LEFT_CALLS * largest))
        self.is_small = enough < SMALL_SHARE * comes_back and self._answer_seconds > 0
        steep = STEEP * min(1.0, enough / comes_back) ** LESS_STEEP
        power = steep * (left / enough - 1)
        return max(LEAST_PACE, MOST_PACE if power > STEEP else min(MOST_PACE, math.exp(power)))
