"""All budgets of a lane: what one call takes of each, and what is given back of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.strategies.admission.budgets import Budget
from batch_llm.strategies.costs import FIELDS, PENDING
from batch_llm.strategies.dimensions import WITH_OUTPUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.costs import Cost


class LaneBudgets:
    """The budgets, by dimension and in the order in which they came to be known."""

    __slots__ = ("_with_output", "by_name", "in_order")

    def __init__(self) -> None:
        self.by_name: dict[str, Budget] = {}
        #: The same, and those of them that count output at the end of a call: for the hot path.
        self.in_order: tuple[Budget, ...] = ()
        self._with_output: tuple[Budget, ...] = ()

    def add(self, name: str, limit: float | None, now: float, burst_seconds: float) -> Budget:
        """Add a dimension that the provider counts; arguments as for ``Budget``."""
        budget = Budget(name, limit, now, burst_seconds)
        budget.field, budget.number = FIELDS[name], len(self.in_order)
        budget.counts_output = name in WITH_OUTPUT
        self.by_name[name] = budget
        self.in_order += (budget,)
        if budget.counts_output:
            self._with_output += (budget,)
        return budget

    def charge(self, grant: Grant, cost: Cost) -> None:
        """Charge a call that was let in; in the order in which they were."""
        now, grant.cost = grant.at, cost
        spent_then: list[float] = []
        pending_then: list[float] = []
        for budget in self.in_order:
            amount = cost[budget.field]
            if amount > budget.largest:  # noqa: PLR1730 - on the hot path: a call costs more
                budget.largest = amount
            pending = cost[PENDING] if budget.counts_output else 0.0
            spent_then.append(budget.charge(now, amount, pending))
            pending_then.append(budget.pending)
        grant.spent_then, grant.pending_then = spent_then, pending_then

    def charge_all(self, now: float, used: Sequence[Cost]) -> None:
        """Charge calls that have ended since they were let in, all within the same second."""
        if not used:
            return
        by_field = list(zip(*used, strict=True))
        for budget in self.in_order:
            amounts = by_field[budget.field]
            budget.largest = max(budget.largest, *amounts)
            budget.charge(now, sum(amounts))

    def release(self, now: float, grant: Grant) -> None:
        """Count the output that was expected of a call: it has ended."""
        pending = grant.cost[PENDING]
        if not pending:
            return
        known_then = len(grant.pending_then)
        for budget in self._with_output:
            if budget.number < known_then:
                budget.note_end(now, pending)

    def correct(self, now: float, grant: Grant, used: Cost, *, is_debt: bool) -> None:
        """Correct a charge by what was really used.

        Args:
            now: The time.
            grant: The call's.
            used: What it took.
            is_debt: Whether what it took more than was thought leaves less room.
        """
        expected, known_then = grant.cost, len(grant.spent_then)
        for budget in self.in_order:
            field = budget.field
            difference = used[field] - expected[field]
            if budget.number >= known_then:
                continue
            if difference:
                if difference > 0 and not is_debt:
                    budget.spent += difference
                else:
                    late = expected[PENDING] if budget.counts_output else 0.0
                    budget.settle(now, difference, grant.at, late)
