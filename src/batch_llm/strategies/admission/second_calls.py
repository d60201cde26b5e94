"""Two calls sent together right after a refusal: an empty bucket cannot let both of them in.

A bucket that refused a call held less than its cost. So what is let in next is no more than that
and what has come back meanwhile. Where it is more, no bucket refused the call: it was chance. Tried
where rates are low, because there it takes minutes to see the same from rates
(``chance_belief.py``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.grants import Grant

#: At higher rates refusals at random are seen soon enough without.
FASTEST_TRIED = 10.0
#: Not tried where more than this share of the refused call's cost comes back meanwhile.
MOST_BACK = 0.7


class Bound(NamedTuple):
    """The rate at which one budget is refilled at the most: calls at that rate were refused."""

    budget: Budget
    rate: float


class SecondCalls:
    """Has two calls tried after some refusals, and judges what becomes of them."""

    __slots__ = ("_bounds", "_first", "_proofs", "_refused", "_rest", "_rests")

    def __init__(self) -> None:
        #: Trials in a row that no bucket explains.
        self._proofs = 0
        #: Refusals to pass over until the next trial; and after the next one that failed.
        self._rest, self._rests = 0, 1
        #: Of the trial under way: the refused call, the first one let in after it, and the bounds.
        self._refused: Grant | None = None
        self._first: Grant | None = None
        self._bounds: list[Bound] = []

    @property
    def are_tried(self) -> bool:
        """Whether two calls were sent together, of which a limit refuses the second."""
        return self._refused is not None

    def begin(self, until: float, refused: Grant, bounds: list[Bound]) -> bool:
        """Note a refusal that rates were cut for.

        Args:
            until: When the next call may be sent.
            refused: The call.
            bounds: The rates before the cut; none where two calls are not to be tried.

        Returns:
            Whether two calls are to be sent now. Their budgets have room for them then.
        """
        if self._refused is not None:  # one of the two was refused
            self._refused, self._proofs = None, 0
            self._rest, self._rests = self._rests, 2 * self._rests
        if not bounds or not _is_telling(until, refused, bounds):
            return False
        if self._rest:
            self._rest -= 1
            return False
        self._refused, self._first, self._bounds = refused, None, bounds
        for budget, _ in bounds:
            two = 2 * max(refused.cost[budget.field], budget.largest)
            budget.capacity = max(budget.capacity, two)
            budget.level = max(budget.level, two)
        return True

    def note_accepted(self, grant: Grant, proofs_asked: int) -> bool:
        """Note one of the first two calls let in after a refusal.

        Returns:
            Whether as many trials in a row as are asked for say that it is chance.
        """
        refused, first = self._refused, self._first
        if refused is None:
            return False
        if first is None:
            self._first = grant
            return False
        self._refused = None
        if grant.beside < refused.beside:
            return False  # calls in flight may be what is limited
        seconds = grant.at - refused.at
        for budget, rate in self._bounds:
            cost = refused.cost[budget.field]
            let_in = first.cost[budget.field] + grant.cost[budget.field]
            if cost and let_in <= cost + rate * seconds:
                return False
        self._proofs += 1
        self._rest, self._rests = 0, 1
        return self._proofs >= proofs_asked


def bounds_of(budgets: Iterable[Budget]) -> list[Bound]:
    """Return the rates that were too fast; none where a limit is known or counted by the minute."""
    bounds = [Bound(budget, budget.rate) for budget in budgets if budget.rate < math.inf]
    is_learned = all(budget.source == "unknown" and budget.limit is None for budget, _ in bounds)
    return bounds if is_learned else []


def _is_telling(until: float, refused: Grant, bounds: list[Bound]) -> bool:
    """Tell whether so little comes back until then that a second call tells chance from a limit."""
    seconds = until - refused.at
    costs = [(refused.cost[budget.field], rate) for budget, rate in bounds]
    return all(rate * seconds <= MOST_BACK * cost for cost, rate in costs if cost)
