"""Calls sent together right after a refusal: an empty bucket cannot let all of them in.

A bucket that refused a call held less than its cost. So what is let in next is no more than that
and what has come back meanwhile. Where it is more, no bucket refused the call: it was chance. Two
calls tell, or after a pause of a whole second as many as come back in it and two more. Tried where
rates are low, because there it takes minutes to see the same from rates (``chance_belief.py``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.grants import Grant

#: At higher rates refusals at random are seen soon enough without; and where each costs a pause.
FASTEST_TRIED, FASTEST_PAUSED = 10.0, 14.0
#: Two are not tried where more than this share of the refused call's cost comes back meanwhile.
MOST_BACK = 0.7
#: After a pause so many are sent beyond what comes back in it.
BEYOND = 2


class Bound(NamedTuple):
    """The rate at which one budget is refilled at the most: calls at that rate were refused."""

    budget: Budget
    rate: float


class SecondCalls:
    """Has two calls tried after some refusals, and judges what becomes of them."""

    __slots__ = ("_asked", "_bounds", "_proofs", "_refused", "_rest", "_rests", "_taken")

    def __init__(self) -> None:
        #: Trials in a row that no bucket explains.
        self._proofs = 0
        #: Refusals to pass over until the next trial; and after the next one that failed.
        self._rest, self._rests = 0, 1
        #: Of the trial under way: the refused call, those let in after it, how many are to be, and
        #: the bounds.
        self._refused: Grant | None = None
        self._taken: list[Grant] = []
        self._asked = 2
        self._bounds: list[Bound] = []

    @property
    def are_tried(self) -> bool:
        """Whether calls were sent together, of which a limit refuses the last."""
        return self._refused is not None

    def begin(self, until: float, refused: Grant, bounds: list[Bound], most: int = 2) -> int:
        """Note a refusal that rates were cut for.

        Args:
            until: When the next call may be sent.
            refused: The call.
            bounds: The rates before the cut; none where calls are not to be tried.
            most: So many may be tried.

        Returns:
            How many calls are to be sent now, or 0. Their budgets have room for them then.
        """
        if self._refused is not None:  # one of them was refused
            self._refused, self._proofs = None, 0
            self._rest, self._rests = self._rests, 2 * self._rests
        calls = _calls_that_tell(until, refused, bounds, most) if bounds else 0
        if not calls:
            return 0
        if self._rest:
            self._rest -= 1
            return 0
        self._refused, self._bounds = refused, bounds
        self._asked, self._taken = calls, []
        for budget, _ in bounds:
            room = calls * max(refused.cost[budget.field], budget.largest)
            budget.capacity = max(budget.capacity, room)
            budget.level = max(budget.level, room)
        return calls

    def note_accepted(self, grant: Grant) -> int:
        """Note one of the first calls let in after a refusal.

        Returns:
            How many trials in a row say that it is chance, when this call ends one that does;
            else 0.
        """
        refused, taken = self._refused, self._taken
        if refused is None:
            return 0
        taken.append(grant)
        if len(taken) < self._asked:
            return 0
        self._refused, self._taken = None, []
        if grant.beside < refused.beside:
            return 0  # calls in flight may be what is limited
        seconds = grant.at - refused.at
        for budget, rate in self._bounds:
            cost = refused.cost[budget.field]
            let_in = sum(call.cost[budget.field] for call in taken)
            if cost and let_in <= cost + rate * seconds:
                return 0
        self._proofs += 1
        self._rest, self._rests = 0, 1
        return self._proofs


def bounds_of(budgets: Iterable[Budget]) -> list[Bound]:
    """Return the rates that were too fast; none where a limit is known or counted by the minute."""
    bounds = [Bound(budget, budget.rate) for budget in budgets if budget.rate < math.inf]
    is_learned = all(budget.source == "unknown" and budget.limit is None for budget, _ in bounds)
    return bounds if is_learned else []


def _calls_that_tell(until: float, refused: Grant, bounds: list[Bound], most: int) -> int:
    """Return how many calls tell chance from a limit; 0 when too much comes back until then."""
    seconds = until - refused.at
    costs = [(refused.cost[budget.field], rate) for budget, rate in bounds]
    back = max((rate * seconds / cost for cost, rate in costs if cost), default=0.0)
    if back <= MOST_BACK:
        return 2
    calls = math.ceil(back) + BEYOND
    return calls if calls <= most else 0
