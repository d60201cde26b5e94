"""The search for an unknown limit's rate: upwards from the first refusal, until it is enclosed.

Each refusal in it shows what the rate is at least: what was let in since the last one. How soon the
growing rate used up a small bucket shows which rate it has overtaken. Two refusals may measure it
(``enclosure.py``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_llm.strategies.enclosure import CLOSED_SHARE, Round, measured_rate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.strategies.belief import Belief
    from batch_llm.strategies.budgets import Budget
    from batch_llm.strategies.doubt import Doubt
    from batch_llm.strategies.epochs import Epoch
    from batch_llm.strategies.grants import Grant

#: The share of the rate that a cut leaves.
CUT = 0.87
#: Of a rate that was measured between two refusals so much is used.
MEASURED_SHARE = 0.9
#: A rate is searched upwards after the first cut: by so much in each span, and per step at the
#: most. A span is so many times as long as a call is in doubt, within bounds.
SEARCH_GROWTH, SEARCH_STEP = 1.0, 1.0
SEARCH_SPANS, SHORTEST_SPAN_SECONDS, LONGEST_SPAN_SECONDS = 4.0, 0.3, 1.0
#: The search goes on until the limit's rate is known up to this factor.
SEARCH_ENDS_WITHIN = 1.5
#: A round of the search that began at less than this share of what was let in has measured nothing:
#: the bucket may have run over meanwhile.
TRUSTED_SHARE = 0.9
#: One in which less than this share of the rate was sent has measured how many there were to send.
PACED_SHARE = 0.6
#: Less than so many bursts let in may have been in the bucket: the growing rate overtook nothing.
BURSTS_TO_OVERTAKE = 1.5
#: After each refusal the search is so much slower, so that the next one is closer to the limit.
SEARCH_SLOWER = 4.0
#: And it goes on for no more than so many refusals.
SEARCH_CUTS = 3
#: What is remembered is searched on so slowly.
RECALLED_SPAN_SECONDS = 4.0


class RateSearch:
    """Searches the rates of all unknown budgets at once.

    Args:
        belief: Whether there is a search, and from what.
        epoch: What was seen since the last cut.
        doubt: How long calls are in doubt.
    """

    __slots__ = ("_belief", "_cuts", "_doubt", "_epoch", "_is_bracketed")

    def __init__(self, belief: Belief, epoch: Epoch, doubt: Doubt) -> None:
        self._belief = belief
        self._epoch = epoch
        self._doubt = doubt
        #: Refusals in the search so far.
        self._cuts = 0
        #: Whether the last refusal has enclosed the limit well enough.
        self._is_bracketed = False

    @property
    def goes_on(self) -> bool:
        """Whether there is still something to search."""
        is_on = self._belief.is_searching and not self._is_bracketed
        return (self._belief.is_first or is_on) and not self._belief.knows_limits

    @property
    def span_seconds(self) -> float:
        """The time in which a rate that is searched doubles and more."""
        if self._belief.is_recalled:  # what is remembered is likely to hold still
            return RECALLED_SPAN_SECONDS
        span = SEARCH_SPANS * self._doubt.seconds
        span = max(SHORTEST_SPAN_SECONDS, min(LONGEST_SPAN_SECONDS, span))
        return span * SEARCH_SLOWER ** min(self._cuts, SEARCH_CUTS)

    def grown(self, rate: float, elapsed: float) -> float:
        """Return a rate that is searched, after ``elapsed`` more seconds."""
        return rate * (1 + min(SEARCH_GROWTH * elapsed / self.span_seconds, SEARCH_STEP))

    def judge(self, grant: Grant, seconds: float, budgets: Iterable[Budget]) -> int:
        """See at a refusal whether the limit is enclosed well enough.

        Returns:
            Refusals in the search with this one, for ``note_cut`` once the rates are cut.
        """
        cuts = self._cuts + 1 if self._belief.is_searching else 0
        self._is_bracketed = (
            cuts > SEARCH_CUTS or self._is_enclosed(grant, seconds, budgets)
        ) and not self._belief.is_first
        return cuts

    def note_cut(self, cuts: int) -> None:
        """Go on more slowly."""
        self._cuts = cuts

    def cut(self, budget: Budget, grant: Grant, last: Round | None, this: Round) -> None:
        """Set the rate to go on with after a refusal.

        Args:
            budget: Whose.
            grant: The refused call's.
            last: What was let in between the two refusals before, if there were.
            this: What was let in until this one.
        """
        measured = self._trusted(budget, last, this)
        if measured is not None:
            budget.learn_rate(MEASURED_SHARE * measured)
            budget.peak = budget.rate / CUT
        else:
            least = self._least(budget, grant, this.seconds)
            least = max(least, self._overtaken(budget, this.let_in))
            # What it is at least; where a long closure may have filled the bucket to the brim,
            # between that and what it is at most.
            closed_seconds = this.seconds - this.open_seconds
            is_sure = self._is_bracketed or closed_seconds < CLOSED_SHARE * this.seconds
            budget.peak = least if is_sure else math.sqrt(least * budget.rate)
            budget.learn_rate(budget.peak * CUT)
        budget.rate_at_start = budget.rate

    def _trusted(self, budget: Budget, last: Round | None, this: Round) -> float | None:
        """Return the rate that a round of the search has measured, if it has."""
        measured = measured_rate(last, this, self._epoch.per_call(budget))
        if measured is None or budget.rate_at_start < TRUSTED_SHARE * measured:
            return None  # the bucket may have run over while the rate was below the limit's
        if measured < PACED_SHARE * budget.rate_at_start:
            return None  # or because there were not as many calls to send
        return measured

    def _least(self, budget: Budget, grant: Grant, seconds: float) -> float:
        """Return the rate that was let in since the last refusal, or since an earlier one.

        The bucket was empty then and is empty now, so the limit's rate is no lower.
        """
        let_in = grant.spent_before(budget) - budget.spent_when_empty
        budget.least = max(budget.least, let_in / seconds)
        return budget.least

    def _overtaken(self, budget: Budget, let_in: float) -> float:
        """Return the limit's rate that a growing one has overtaken; 0 where that can't be told."""
        if let_in < BURSTS_TO_OVERTAKE * budget.burst:
            return 0.0  # all of it may have been in the bucket
        return overtaken(budget.rate, budget.burst / self.span_seconds)

    def _is_enclosed(self, grant: Grant, seconds: float, budgets: Iterable[Budget]) -> bool:
        """Tell whether the limit is known well enough: estimated, or between close bounds."""
        for budget in budgets:
            if budget.rate == math.inf:
                continue
            let_in = grant.spent_before(budget) - budget.spent_when_empty
            this = Round(let_in, seconds, grant.at - self._epoch.reopened_at)
            if self._trusted(budget, budget.round, this) is not None:
                return True
            least = self._least(budget, grant, seconds)
            least = max(least, self._overtaken(budget, this.let_in))
            if SEARCH_ENDS_WITHIN * least >= budget.rate:
                return True
        return False


def overtaken(rate: float, burst_per_span: float) -> float:
    """Return the limit's rate that a growing one has overtaken when the bucket is used up.

    A rate R that grows e-fold in a span S and passed the limit's rate r takes
    S * (R - r - r * ln(R / r)) out of the bucket meanwhile: as much as the burst that it holds.

    Args:
        rate: R.
        burst_per_span: The burst, divided by S.
    """
    if rate <= burst_per_span or rate == math.inf:
        return 0.0
    low, high = 0.0, rate
    for _ in range(20):
        middle = (low + high) / 2
        if rate - middle - middle * math.log(rate / middle) > burst_per_span:
            low = middle
        else:
            high = middle
    return low
