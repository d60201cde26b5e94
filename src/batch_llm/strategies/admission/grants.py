"""Calls that may start, and what follows when one is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batch_llm.strategies.costs import PENDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.costs import Cost


class Grant:
    """One call that may start. It is closed once: answered, refused, failed or cancelled."""

    __slots__ = (
        "at",
        "beside",
        "cost",
        "epoch",
        "is_in_doubt",
        "is_open",
        "is_probe",
        "number",
        "pending_then",
        "spent_then",
    )

    def __init__(
        self,
        at: float,
        epoch: int,
        cost: Cost,
        number: int,
        beside: int,
        is_probe: bool = False,  # noqa: FBT001, FBT002 - on the hot path: a keyword costs more
    ) -> None:
        #: When it was sent, and in which epoch.
        self.at = at
        self.epoch = epoch
        self.cost = cost
        #: Its place among the lane's calls, from 1.
        self.number = number
        #: Calls in flight beside it when it was sent.
        self.beside = beside
        self.is_probe = is_probe
        self.is_in_doubt = self.is_open = True
        #: By budget: what had been spent, this call included, and what was pending.
        self.spent_then: Sequence[float] = ()
        self.pending_then: Sequence[float] = ()

    def spent_with(self, budget: Budget) -> float:
        """Return what had been spent with this call; 0 of a limit that was not known then."""
        return self.spent_then[budget.number] if budget.number < len(self.spent_then) else 0.0

    def spent_before(self, budget: Budget) -> float:
        """Return what had been spent when it started, itself not included."""
        return self.spent_with(budget) - self.cost[budget.field]

    def charged(self, budget: Budget) -> float:
        """Return what a provider charges for the call when it lets it in, as far as is known."""
        return self.cost[budget.field] - (self.cost[PENDING] if budget.counts_output else 0.0)

    def charged_before(self, budget: Budget) -> float:
        """Return what a provider had charged when it started, itself not included."""
        if budget.number >= len(self.pending_then):
            return 0.0
        then = self.spent_then[budget.number] - self.pending_then[budget.number]
        return then - self.charged(budget)


class Refusal(NamedTuple):
    """What follows from a refused call.

    Attributes:
        is_news: Whether the rates were cut and the gate was closed because of it.
        wait_seconds: What the call waits on its own before it comes again.
    """

    is_news: bool
    wait_seconds: float
