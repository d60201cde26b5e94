"""What a lane's answers and refusals say of its limits, and whether that is believed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.strategies.admission.overstated import Overstated
from batch_llm.strategies.admission.understated import Understated
from batch_llm.strategies.costs import FIELDS
from batch_llm.strategies.dimensions import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.chance_belief import ChanceBelief
    from batch_llm.strategies.admission.doubt import Doubt
    from batch_llm.strategies.admission.evidence import Evidence
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.admission.header_belief import LimitHeader
    from batch_llm.strategies.admission.lane_budgets import LaneBudgets


class LaneHeaders:
    """Believes limit headers over everything else, unless what is let in contradicts them.

    Args:
        budgets: Those of the lane.
        belief: Where the limits are from.
        doubt: The calls in doubt.
        evidence: What the refusals tell.
        chance_belief: Whether they are chance.
    """

    __slots__ = (
        "_belief",
        "_budgets",
        "_chance_belief",
        "_doubt",
        "_evidence",
        "_understated",
        "overstated",
    )

    def __init__(
        self,
        budgets: LaneBudgets,
        belief: Belief,
        doubt: Doubt,
        evidence: Evidence,
        chance_belief: ChanceBelief,
    ) -> None:
        self._budgets = budgets
        self._belief = belief
        self._doubt = doubt
        self._evidence = evidence
        self._chance_belief = chance_belief
        self._understated = Understated()
        self.overstated = Overstated(doubt)

    def note_accepted(
        self, now: float, grant: Grant, headers: Mapping[str, LimitHeader], accepted: int
    ) -> None:
        """Take in what an answer says, ``accepted`` calls having been let in so far."""
        requests = headers.get(REQUESTS)
        if requests is not None and self._understated.note_accepted(now, grant, requests):
            self._set_aside(now)
        self.sync(now, grant, headers)
        self.overstated.note_accepted(grant, headers)
        if self._belief.sees_headers:
            self._doubt.note_accepted(accepted, is_seen=True)

    def note_silent(self, now: float) -> None:
        """Take in an answer that says nothing, though others did."""
        for budget in self._budgets.in_order:
            budget.headers.note_silent(now)

    def note_refused(
        self,
        now: float,
        grant: Grant,
        headers: Mapping[str, LimitHeader] | None,
        *,
        is_first: bool,
    ) -> None:
        """See whether headers have promised too much once more than chance would explain.

        Args:
            now: The time.
            grant: The refused call's.
            headers: What the refusal says.
            is_first: Whether it is the first one of its epoch.
        """
        if (
            self._belief.sees_headers
            and not self._chance_belief.is_believed
            and self.overstated.note_refused(
                self._budgets.by_name, grant, headers, is_first=is_first
            )
        ):
            self._set_aside(now)

    def _set_aside(self, now: float) -> None:
        self.overstated.set_aside(now, self._budgets.by_name, self._belief, self._evidence)

    def sync(
        self,
        now: float,
        grant: Grant,
        headers: Mapping[str, LimitHeader],
        *,
        is_refused: bool = False,
    ) -> None:
        """Bring the budgets in step with what a response says."""
        if self.overstated.is_set_aside:
            return
        belief, doubt, is_told = self._belief, self._doubt, False
        is_shared = any(budget.headers.shows_others for budget in self._budgets.in_order)
        for name, header in headers.items():
            if not header.is_sound:
                continue
            budget = self._budgets.by_name.get(name)
            if budget is None and name in FIELDS:  # the provider counts what nobody told us of
                budget = self._budgets.add(name, None, now, 0.0)
            if budget is None or budget.number >= len(grant.spent_then):
                continue
            is_told = belief.sees_headers = True
            spent, pending = grant.spent_then[budget.number], grant.pending_then[budget.number]
            is_news = budget.headers.sync(
                now, grant.at, spent, pending, header, is_refused=is_refused, is_shared=is_shared
            )
            if is_news or belief.is_recalled:
                belief.is_searching = belief.is_recalled = False
        if not is_told:
            return
        for other in self._budgets.in_order:
            if other.source == "unknown" and other.name not in headers:
                other.release()  # who tells limits tells them all
        requests = self._budgets.by_name[REQUESTS]
        doubt.note_headers(requests.limit or 0)
        if requests.headers.is_shared or requests.headers.others.is_wary(now):
            doubt.keep_to(requests.rate * requests.pace, requests.level)
