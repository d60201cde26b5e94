"""What Retry-After tells of a limit that nobody told.

Each one bounds the rate from above, and many of them make a rate likely (``retry_hints.py``). Where
they are exact they measure the rate (``ready_points.py``, ``exact_rate.py``). For how long they
close the gate: ``closed_gate.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.strategies.admission.exact_rate import ExactRate
from batch_llm.strategies.admission.ready_points import ReadyPoints
from batch_llm.strategies.admission.retry_hints import Asked, RetryHints
from batch_llm.strategies.dimensions import MINUTE, REQUESTS

if TYPE_CHECKING:
    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.chance_belief import ChanceBelief
    from batch_llm.strategies.admission.epochs import Epoch
    from batch_llm.strategies.admission.evidence import Evidence
    from batch_llm.strategies.admission.grants import Grant


class RetryAfter:
    """Takes in each Retry-After, and what it tells of a rate.

    Args:
        budgets: By dimension; some may be added later.
        belief: Where the limits are from.
        epoch: What was seen since the last cut.
        evidence: What the refusals tell.
        chance_belief: Whether they are chance.
    """

    __slots__ = (
        "_asked",
        "_belief",
        "_budgets",
        "_chance_belief",
        "_epoch",
        "_evidence",
        "_ready",
        "exact",
        "hints",
    )

    def __init__(
        self,
        budgets: dict[str, Budget],
        belief: Belief,
        epoch: Epoch,
        evidence: Evidence,
        chance_belief: ChanceBelief,
    ) -> None:
        self._budgets = budgets
        self._belief = belief
        self._epoch = epoch
        self._evidence = evidence
        self._chance_belief = chance_belief
        self._asked = Asked()
        self.hints = RetryHints()
        self.exact = ExactRate()
        self._ready = ReadyPoints(budgets)

    def note_first(self, retry_after: float | None) -> None:
        """Take in what the first refusal of a volley asks for."""
        self._asked.note(retry_after)

    def is_whole(self, retry_after: float | None) -> bool:
        """Tell whether whole seconds, or always the same time, are asked for: it may be chance."""
        return self._asked.is_whole(retry_after) and not self.hints.vary

    def is_worked_out(self, retry_after: float | None) -> bool:
        """Tell whether what is asked for was worked out from a limit."""
        return self._asked.is_worked_out(retry_after) or self.hints.vary

    def begin(self, now: float, grant: Grant) -> None:
        """Begin a volley of refusals with a refused call."""
        self.hints.begin()
        self._ready.begin(now, grant, self._epoch.calls, is_first=self._belief.is_first)

    def note(self, grant: Grant, retry_after: float | None, accepted: int) -> None:
        """Take in what a refused call is asked to wait.

        Args:
            grant: The call's.
            retry_after: In seconds; None where the refusal does not say.
            accepted: Calls let in so far.
        """
        if retry_after is None or self._belief.knows_limits:
            return
        if self._asked.is_same(retry_after):
            self.hints.forget()
            return
        requests = self._budgets[REQUESTS]
        calls = max(requests.spent, 1.0)
        sizes = [
            grant.charged(budget) * calls / budget.spent
            for budget in self._budgets.values()
            if budget is not requests and budget.spent > 0
        ]
        least = accepted / (MINUTE + grant.at - self._epoch.began_at)
        self.hints.note(grant.at, retry_after, max(sizes, default=1.0), least)
        self._ready.note(grant, retry_after, is_whole=self._asked.is_whole(retry_after))

    def forget(self, grant: Grant) -> None:
        """Take back the charge of a call that was not let in."""
        self._ready.forget(grant)

    def measure(self) -> None:
        """Go on at the rate that exact Retry-Afters measure, once a volley is over."""
        if self._belief.knows_limits or self._chance_belief.is_believed:
            self._ready.clear()
            return
        measured = self._ready.measure(self._evidence)
        if measured is not None and not self._chance_belief.is_suspected:
            self._belief.is_searching = False
            self.exact.take(measured, self._budgets.values(), self._epoch.per_call)
        elif self._ready.has_measured:
            self.exact.forget()

    def raise_to_likely(self) -> None:
        """Go on at the rate that this volley makes likely, where that is more than is believed."""
        for budget in self._budgets.values():
            if budget.has_learned_rate:
                likely = self.hints.least * self._epoch.per_call(budget)
                budget.learn_rate(max(budget.peak, likely))
