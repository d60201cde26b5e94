"""What the time tells for which calls were refused: a minute's count stays closed for longer.

A bucket has room for the next call after what that costs has come back. A gate that stays closed
for longer shows a limit that counts minutes; else the time shows how fast a cost comes back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.epochs import Epoch
    from batch_llm.strategies.admission.grants import Grant

#: The first call that is let in after the first refusal shows the rate at which its cost came back;
#: this share of it is believed, because the bucket was not quite empty.
CLOSURE_SHARE = 0.5
#: A gate that was closed for fewer seconds says nothing of a fixed window.
SHORTEST_CLOSURE_SECONDS = 5.0
#: Nor does one that was closed for no more than so many times what the guessed rate needs for the
#: largest call; or, where no Retry-After says it, for all that is still to be charged.
LONG_CLOSURES, OWED_CLOSURES = 3.0, 2.0
#: The same where the rate is known: so many times, and a second. For a told limit, that is not
#: risked, a window is believed after as many again.
KNOWN_CLOSURES, SURE_CLOSURES = 1.5, 3.0


class Closure:
    """Recognises limits that are counted by the minute."""

    __slots__ = ("_longest_of_bucket",)

    def __init__(self) -> None:
        #: When the first refusal closes the gate for longer, the limit is counted by the minute.
        self._longest_of_bucket = math.inf

    def expect(self, budgets: Collection[Budget], retry_after: float | None) -> None:
        """Work out for how long a bucket may refuse after the first refusal.

        A bucket is asked for one call, and says when it has come back. Without its word it may
        refuse until all is charged that is pending.
        """
        longest = owed = 0.0
        for budget in budgets:
            if budget.is_limited:
                longest = max(longest, budget.largest / budget.rate)
                owed = max(owed, (budget.largest + budget.pending) / budget.rate)
        if retry_after is None:
            self._longest_of_bucket = max(SHORTEST_CLOSURE_SECONDS, OWED_CLOSURES * owed)
            return
        is_long = retry_after > max(SHORTEST_CLOSURE_SECONDS, LONG_CLOSURES * longest)
        self._longest_of_bucket = SHORTEST_CLOSURE_SECONDS if is_long else math.inf

    def explain(
        self, now: float, grant: Grant, budgets: Collection[Budget], belief: Belief, epoch: Epoch
    ) -> None:
        """Tell a limit per minute from a bucket when the first call is let in again."""
        longest = max(
            (
                (budget.largest + budget.pending) / budget.rate
                for budget in budgets
                if budget.is_limited
            ),
            default=math.inf,
        )
        closed_seconds = grant.at - epoch.cut_at
        is_long = closed_seconds > max(SHORTEST_CLOSURE_SECONDS, KNOWN_CLOSURES * longest + 1)
        if not belief.is_told and not belief.sees_headers:
            is_long = closed_seconds > self._longest_of_bucket
            self._longest_of_bucket = math.inf
        # A provider counts all its limits alike.
        is_counted = any(budget.windows.may_be_counted for budget in budgets)
        for budget in budgets:
            budget.windows.may_be_counted = is_counted and budget.windows.can_be_counted
            budget.windows.explain_opening(
                now,
                epoch.began_at,
                grant,
                is_long=is_long,
                is_one_of_several=len(budgets) > 1,
            )
        if is_long and not belief.knows_limits:
            belief.is_searching = False
            belief.is_by_window = True
        if closed_seconds > max(SHORTEST_CLOSURE_SECONDS, SURE_CLOSURES * longest + 1):
            for budget in budgets:
                is_asked = epoch.pause_seconds > 0
                budget.windows.seems_a_window(now, grant, is_asked=is_asked)


def learn_from_closure(
    grant: Grant, budgets: Collection[Budget], cut_at: float, doubt_seconds: float
) -> None:
    """Take the time since the first refusal for what this call's cost needs to come back."""
    seconds = max(grant.at - cut_at, doubt_seconds)
    for budget in budgets:
        if budget.has_learned_rate:
            came_back = CLOSURE_SHARE * grant.cost[budget.field] / seconds
            budget.level = max(budget.level, 0.0)
            budget.learn_rate(max(budget.rate, came_back))
