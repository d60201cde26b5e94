"""What a told ceiling has left beyond a smaller bucket that refused: tried now and then.

A told limit lets more in at once than the bucket that a provider really keeps. Its refusal shows
that bucket, and from then on calls come no faster than the limit fills it. What the ceiling has
beyond it is not used then, though the provider may let it in later: its limit has risen, or others
need theirs no more. So after some time without a refusal calls come a little faster than the
limit's rate, faster step by step while none is refused, and never beyond the ceiling's own bucket.
A refusal then says nothing of the rate: it ends the trial, and the next one comes after twice the
time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget

#: The first trial comes after so long without a refusal; and after so many times the pause that the
#: last refusal asked for, because the next one may cost as much.
PATIENCE_SECONDS, PATIENCE_PAUSES = 60.0, 100.0
#: Room is tried when it is worth so many seconds of the ceiling's rate, and so many calls; and
#: until fewer calls are left of it.
WORTH_SECONDS, WORTH_CALLS, LEAST_CALLS = 10.0, 8.0, 2.0
#: In each step calls come faster by so much of the ceiling's rate.
STEP_SHARE = 0.25
#: A step lasts so long, and the time of so many calls at least.
STEP_SECONDS, STEP_CALLS = 10.0, 8.0
#: Where there is nothing to try, it is asked again after so long.
RECHECK_SECONDS = 1.0
#: What a refused trial took is given back, so many seconds of the rate at the most: what calls take
#: is a guess, and the provider's bucket had that much left for wrong ones.
MOST_OWED_SECONDS = 1.0


class CeilingRoom:
    """Tries whether a provider lets the rest of a told ceiling in. Every operation is O(1).

    Args:
        belief: Where the limits are from.
    """

    __slots__ = ("_belief", "_extra", "_owed_seconds", "_patience", "_stepped_at", "_taken", "due")

    def __init__(self, belief: Belief) -> None:
        self._belief = belief
        #: When the next step is due; never before a told limit has refused a call.
        self.due = math.inf
        #: By so much of the ceiling's rate calls come faster; 0 while nothing is tried.
        self._extra = 0.0
        #: What the trial took up to its last step, in seconds of the ceiling's rate; when that was.
        self._taken, self._stepped_at = 0.0, -math.inf
        #: What the last refusal's trial is to give back.
        self._owed_seconds = 0.0
        self._patience = PATIENCE_SECONDS

    @property
    def was_refused(self) -> bool:
        """Whether the last refusal ended a trial."""
        return self._owed_seconds > 0

    def owed(self, budget: Budget) -> float:
        """Return what a budget is to give back after the last refusal."""
        return self._owed_seconds * budget.ceiling if self._owed_seconds else 0.0

    def note_refused(
        self, now: float, budgets: Collection[Budget], retry_after: float | None
    ) -> bool:
        """Note a refusal that rates may be cut for.

        Args:
            now: The time.
            budgets: Those of the lane.
            retry_after: Seconds that it asks to wait.

        Returns:
            Whether it ended a trial, and says nothing of the rates.
        """
        self._owed_seconds = 0.0
        if not self._belief.is_told:
            return False
        was_trying = self._extra > 0
        if was_trying:
            self._owed_seconds = min(MOST_OWED_SECONDS, self._taken_by(now))
            self._end(now, budgets)
            self._patience *= 2
        self.due = now + max(self._patience, PATIENCE_PAUSES * (retry_after or 0.0))
        return was_trying

    def step(self, now: float, budgets: Collection[Budget], calls_per_second: float) -> None:
        """Begin to try, go on faster, or end when there is no more room."""
        if self._belief.sees_headers:  # they tell what the provider has left
            self._end(now, budgets)
            self.due = math.inf
            return
        hiding = [budget for budget in budgets if _hides_room(budget, now)]
        is_in_use = any(budget.level < budget.largest for budget in hiding)
        if self._extra and not (is_in_use and _has_room(budgets)):
            self._end(now, budgets)
            self.due = now + self._patience
            return
        if not (self._extra or (is_in_use and all(map(_is_worth_it, hiding)))):
            self.due = now + RECHECK_SECONDS
            return
        self._taken, self._stepped_at = self._taken_by(now), now
        self._extra += STEP_SHARE
        self.due = now + max(STEP_SECONDS, STEP_CALLS / calls_per_second)
        for budget in hiding:
            budget.extra_rate = self._extra * budget.ceiling

    def _taken_by(self, now: float) -> float:
        return self._taken + self._extra * (now - self._stepped_at) if self._extra else 0.0

    def _end(self, now: float, budgets: Collection[Budget]) -> None:
        self._extra = self._taken = 0.0
        for budget in budgets:
            if budget.extra_rate:
                budget.refill(now)
                budget.extra_rate = 0.0
                budget.level = min(budget.level, budget.allowed)


def _hides_room(budget: Budget, now: float) -> bool:
    """Tell whether a told limit may have more left than is believed of the provider's bucket."""
    is_bucket = budget.source == "told" and not budget.windows.is_believed
    if not is_bucket or budget.rate < budget.ceiling:
        return False
    budget.refill(now)
    return budget.level < budget.allowed


def _has_room(budgets: Collection[Budget]) -> bool:
    """Tell whether the ceilings of all that is sped up have room for more calls."""
    return all(
        budget.allowed >= LEAST_CALLS * budget.largest for budget in budgets if budget.extra_rate
    )


def _is_worth_it(budget: Budget) -> bool:
    room = budget.allowed - max(0.0, budget.level)
    return room >= max(WORTH_SECONDS * budget.ceiling, WORTH_CALLS * budget.largest)
