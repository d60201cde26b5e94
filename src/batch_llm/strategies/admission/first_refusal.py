"""What the first refusal means: a minute's burst may be used up, or a told limit is small.

Of an unknown limit all that was let in may have been a full bucket's, so its rate starts low.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.strategies.dimensions import MINUTE, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.grants import Grant

#: A told limit's bucket is taken to hold this share of what was let in before the first refusal.
HELD_SHARE = 0.8
#: Where a refusal asks for no more than so many whole seconds, all that was let in is taken for a
#: bucket that fills in so many: the pause is short beside the time to come up from a minute's.
SOON_SECONDS, FILLED_SECONDS = 1.0, 5.0
#: A limit that refuses the first call or the second has a bucket that holds about one.
TINY_CALLS = 2


class FirstRefusal:
    """What was used of a told limit when the first call was refused."""

    __slots__ = ("_refused_at", "_spent_when_full")

    def __init__(self) -> None:
        #: When it was sent; what would have been spent by then of a bucket that was full still.
        self._refused_at = self._spent_when_full = 0.0

    def note(self, now: float, grant: Grant, requests: Budget) -> None:
        """Note which call was refused first."""
        self._refused_at = grant.at
        self._spent_when_full = grant.spent_with(requests) - requests.drawn_at(now, grant)

    def hold_less(self, requests: Budget, grant: Grant) -> None:
        """Learn from another call refused with the first that a small bucket holds even less.

        Args:
            requests: Told, else nothing is learned.
            grant: The call's.
        """
        if requests.capacity < requests.told_capacity and requests.windows.can_be_counted:
            came_back = (grant.at - self._refused_at) * requests.rate
            drawn = requests.spent - self._spent_when_full - came_back
            requests.hold_at_most(HELD_SHARE * drawn)


def start_low(budget: Budget, grant: Grant, let_in: float, seconds: float) -> None:
    """Take all that an unknown limit let in for its bucket, that a minute fills."""
    let_in = let_in or grant.cost[budget.field]
    if let_in > 0:
        budget.peak = let_in / (MINUTE + seconds)
        budget.let_in_at_start = let_in
        budget.learn_rate(budget.peak)


def start_higher(budgets: Iterable[Budget], retry_after: float, seconds: float) -> None:
    """Take unknown buckets for small, when a refusal asks to come back soon.

    Args:
        budgets: Those that were taken for a minute's.
        retry_after: Whole seconds that it asks to wait; fractions tell more (``retry_hints.py``).
        seconds: From the start until the refused call was sent.
    """
    if retry_after > SOON_SECONDS:
        return
    for budget in budgets:
        if budget.has_learned_rate:
            budget.peak = max(budget.peak, budget.let_in_at_start / (FILLED_SECONDS + seconds))
            budget.learn_rate(budget.peak)


def expect_tiny(budgets: Iterable[Budget], grant: Grant) -> None:
    """Take unknown buckets for tiny, when the first call or the second is asked to wait."""
    if grant.number <= TINY_CALLS:
        for budget in budgets:
            if budget.source == "unknown":
                budget.let_in_at_start = 0.0


def explains_used_up(
    budgets: Mapping[str, Budget], grant: Grant, now: float, seconds: float
) -> bool:
    """Tell whether a told limit refused its first call because a minute's worth was used.

    Args:
        budgets: By dimension.
        grant: The refused call's.
        now: The time.
        seconds: From the start until it was sent.
    """
    is_counted = [
        budget.windows.seems_counted(grant.spent_before(budget), budget.spent, seconds)
        for budget in budgets.values()
    ]
    if any(is_counted):
        return True
    requests = budgets[REQUESTS]
    held = requests.capacity
    if requests.windows.can_be_counted:
        requests.hold_at_most(HELD_SHARE * requests.drawn_at(now, grant))
    if requests.capacity >= held:
        return False
    hold_alike(budgets.values(), now, grant)
    return True


def hold_alike(budgets: Iterable[Budget], now: float, grant: Grant) -> None:
    """Take the buckets of all told limits for no larger than the one that refused a call first.

    That is the one of which the most seconds of its rate were used, and a provider keeps buckets of
    as many seconds for all its limits.
    """
    told = [budget for budget in budgets if budget.windows.can_be_counted]
    used = ((budget.drawn_at(now, grant) - budget.pending) / budget.rate for budget in told)
    held_seconds = HELD_SHARE * max(used, default=0.0)
    for budget in told:
        budget.hold_at_most(held_seconds * budget.rate)
