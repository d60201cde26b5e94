"""A limit's rate that was measured to the fraction of a call, and what is used of it.

The dimension that refuses goes on a little below what was measured; the others, of which the same
calls tell nothing, are left room beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.ready_points import Measured

#: The share that is used of the measured rate; the other dimensions may let in so many times as
#: many calls.
KEPT_SHARE, ROOM_BESIDE = 0.99, 2.0


class ExactRate:
    """The rate that was measured last, as long as nothing speaks against it."""

    __slots__ = ("_name",)

    def __init__(self) -> None:
        #: The dimension whose rate it is, if any.
        self._name = ""

    @property
    def is_known(self) -> bool:
        """Whether there is one."""
        return bool(self._name)

    def is_of(self, budget: Budget) -> bool:
        """Tell whether it is a budget's, which is not kept in step with others then."""
        return budget.name == self._name

    def take(
        self,
        measured: Measured,
        budgets: Iterable[Budget],
        per_call: Callable[[Budget], float],
    ) -> None:
        """Take over a rate that was measured; leave the other dimensions room beside it.

        Args:
            measured: The rate.
            budgets: Those of the lane.
            per_call: What a call takes of each.
        """
        self._name = measured.name
        for budget in budgets:
            if not budget.has_learned_rate:
                continue
            if budget.name == measured.name:
                budget.peak = measured.rate
                budget.learn_rate(KEPT_SHARE * measured.rate)
            else:
                budget.peak = ROOM_BESIDE * measured.calls * per_call(budget)
                budget.learn_rate(budget.peak)

    def forget(self) -> None:
        """Forget it: later refusals, or that there are none, contradict it."""
        self._name = ""
