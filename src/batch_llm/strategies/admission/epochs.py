"""The time between two cuts of the rates: refusals of calls from before a cut say nothing new."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.grants import Grant


class Epoch:
    """Counts the calls, and what became of them since the last cut."""

    __slots__ = (
        "accepted",
        "began_at",
        "calls",
        "calls_at_cut",
        "closed_at",
        "cut_at",
        "empty_at_call",
        "number",
        "open_at",
        "pause_seconds",
        "refused_at",
        "reopened_at",
    )

    def __init__(self, now: float) -> None:
        #: How many cuts there were: grants carry the number that was current when they were sent.
        self.number = 0
        #: Calls started, and how many were by the last cut.
        self.calls = self.calls_at_cut = 0
        #: The number of the refused call that the last cut was made for: the bucket was empty.
        self.empty_at_call = 0
        #: Calls let in since the last cut.
        self.accepted = 0
        #: When the first one of them counted as let in; and when it was sent.
        self.open_at = self.reopened_at = now
        #: When the call was sent that the last cut was made for.
        self.cut_at = now
        #: When the gate was closed because of it.
        self.closed_at = now
        #: For how long the provider asked then.
        self.pause_seconds = 0.0
        #: When the last call was sent that the gate was closed for as long as it asked.
        self.refused_at = now
        #: When the controller was made, whatever the epoch.
        self.began_at = now

    def is_current(self, grant: Grant) -> bool:
        """Whether a call was sent since the last cut was made."""
        return grant.number > self.calls_at_cut

    def note_empty(
        self, now: float, grant: Grant, pause_seconds: float, budgets: Iterable[Budget]
    ) -> None:
        """Remember the refused call that the rates are cut for."""
        self.cut_at, self.empty_at_call = grant.at, grant.number
        self.closed_at, self.pause_seconds = now, pause_seconds
        for budget in budgets:
            budget.spent_when_empty = grant.spent_before(budget)
            budget.charged_when_empty = budget.charged
            budget.pending_when_empty = budget.pending

    def close(self) -> None:
        """Begin to count anew: calls that are in flight belong to the time before."""
        self.calls_at_cut = self.calls
        self.accepted = 0

    def forget(self, grant: Grant, budget: Budget, amount: float) -> None:
        """Take back a charge that was not made from what was spent when the bucket was empty."""
        if grant.number < self.empty_at_call:
            budget.spent_when_empty -= amount
        budget.windows.forget(grant)
        if grant.at <= self.closed_at and self.empty_at_call:
            charged = grant.charged(budget)
            budget.charged_when_empty -= charged
            budget.pending_when_empty -= amount - charged

    def per_call(self, budget: Budget) -> float:
        """Return what a call has taken of a budget on average."""
        return budget.spent / max(self.calls, 1)
