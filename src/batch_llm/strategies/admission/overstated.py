"""Headers that promise more than is let in: set aside, and the limit is learned.

What headers tell is believed over everything else: after a refusal has shown a bucket to be empty,
the headers of each answer fill it again. A refusal whose own headers show plenty left does not come
from the limits that they tell: something else refuses, of which they know nothing. Once or twice
that may be chance. Where such refusals come thick, in one epoch after another, the limits are
learned as if nobody told them, from what was let in between the refusals so far. Where it turns
out that chance refused, or a limit on calls in flight, the headers are believed again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_llm.strategies.costs import FIELDS
from batch_llm.strategies.dimensions import MINUTE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.doubt import Doubt
    from batch_llm.strategies.admission.evidence import Evidence
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.admission.header_belief import LimitHeader
    from batch_llm.strategies.costs import Cost

#: Plenty is so many times the refused call's cost, and this share of what the limit lets in at
#: once; where the refusal has no headers, this share in those of an answer whose call was sent so
#: few seconds before.
PLENTY_TIMES, PLENTY_SHARE = 2.0, 0.1
PLENTY_BEFORE, SECONDS_BEFORE = 0.5, 2.0
#: Headers are set aside after so many such refusals more than this share of the calls answered
#: meanwhile, in so many epochs at least.
REFUSALS, CHANCE_SHARE, EPOCHS = 8.0, 0.1, 2


class Overstated:
    """Counts refusals that came although headers show plenty left.

    Args:
        doubt: The calls in doubt: fewer are allowed where such refusals come thick.
    """

    __slots__ = (
        "_doubt",
        "_epoch",
        "_epochs",
        "_latest",
        "_latest_at",
        "_refusals",
        "is_set_aside",
    )

    def __init__(self, doubt: Doubt) -> None:
        self._doubt = doubt
        #: Whether headers are not believed for now.
        self.is_set_aside = False
        #: The headers of the newest answer, and when its call was sent.
        self._latest: Mapping[str, LimitHeader] = {}
        self._latest_at = -math.inf
        self.believe()

    def believe(self) -> None:
        """Believe headers: nothing speaks against them."""
        self.is_set_aside = False
        self._refusals, self._epochs, self._epoch = 0.0, 0, -1

    def note_accepted(self, grant: Grant, headers: Mapping[str, LimitHeader]) -> None:
        """Take in that a call was answered."""
        self._latest, self._latest_at = headers, grant.at
        if self._refusals:
            self._refusals = max(0.0, self._refusals - CHANCE_SHARE)
            if not self._refusals:
                self._epochs = 0

    def note_refused(
        self,
        budgets: Mapping[str, Budget],
        grant: Grant,
        headers: Mapping[str, LimitHeader] | None,
        *,
        is_first: bool,
    ) -> bool:
        """Take in a refusal.

        Args:
            budgets: By dimension.
            grant: The refused call's.
            headers: What the refusal says of the limits.
            is_first: Whether it is the first one of its epoch.

        Returns:
            Whether headers are to be set aside because of it.
        """
        if self.is_set_aside or not self._are_plenty(budgets, grant, headers):
            return False
        self._refusals += 1
        if grant.epoch != self._epoch:
            self._epoch = grant.epoch
            self._epochs += 1
        if self._refusals < REFUSALS:
            return False
        self._doubt.keep_small()
        return is_first and self._epochs >= EPOCHS

    def _are_plenty(
        self,
        budgets: Mapping[str, Budget],
        grant: Grant,
        headers: Mapping[str, LimitHeader] | None,
    ) -> bool:
        if headers:
            return _show_plenty(budgets, headers, grant.cost, PLENTY_SHARE)
        is_late = grant.at > self._latest_at + SECONDS_BEFORE
        return not is_late and _show_plenty(budgets, self._latest, grant.cost, PLENTY_BEFORE)

    def set_aside(
        self, now: float, budgets: Mapping[str, Budget], belief: Belief, evidence: Evidence
    ) -> None:
        """Search the limits from what was let in; where they were told too, keep to that."""
        self.is_set_aside, self._latest = True, {}
        belief.sees_headers = belief.is_by_window = False
        is_unlimited = belief.is_told or belief.is_first  # but for what is told
        calls = 0.0 if is_unlimited else evidence.calls_let_in() or evidence.best_rate()
        for name, budget in budgets.items():
            is_by_minute = budget.window_seconds == MINUTE
            budget.disbelieve_header(now, calls * evidence.per_call(name) * is_by_minute)
        belief.is_searching = not is_unlimited


def _show_plenty(
    budgets: Mapping[str, Budget], headers: Mapping[str, LimitHeader], cost: Cost, share: float
) -> bool:
    """Tell whether headers show plenty left of all that they tell."""
    sound = [(name, one) for name, one in headers.items() if one.is_sound and name in FIELDS]
    return bool(sound) and all(
        one.remaining >= max(PLENTY_TIMES * cost[FIELDS[name]], share * _held(budgets, name, one))
        for name, one in sound
    )


def _held(budgets: Mapping[str, Budget], name: str, header: LimitHeader) -> float:
    """Return what a limit lets in at once: a bucket may hold a small part of a minute's."""
    budget = budgets.get(name)
    is_bucket = budget is not None and not (budget.is_window or budget.is_sliding)
    return min(header.limit, budget.holds) if budget is not None and is_bucket else header.limit
