"""The search for an unknown limit's rate: upwards from the first refusal, until it is enclosed.

Each refusal leaves fewer rates that explain the last ones (``evidence.py``). The search goes on in
the middle of those, more slowly each time, until they are close together; but when a refusal may
have been chance (``chance_belief.py``, or few calls since the last one), as fast as before.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_llm.strategies.admission.cuts import CUT, MEASURED_SHARE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.doubt import Doubt
    from batch_llm.strategies.admission.evidence import Evidence
    from batch_llm.strategies.admission.exact_rate import ExactRate
    from batch_llm.strategies.admission.retry_hints import RetryHints
    from batch_llm.strategies.admission.stretches import Explained

#: A rate is searched upwards after the first cut: it grows by this share of itself in each span,
#: and by no more than this share in one step.
SEARCH_GROWTH, SEARCH_STEP = 1.0, 1.0
#: A span is so many times as long as a call is in doubt, within bounds.
SEARCH_SPANS, SHORTEST_SPAN_SECONDS, LONGEST_SPAN_SECONDS = 4.0, 0.3, 1.0
#: Until the second refusal no more is tried than so many times the average rate let in since the
#: first one, as soon as ``FEWEST_CALLS`` were let in.
FIRST_TIMES = 3.5
#: After many calls between two refusals the search goes on at so many times their rate at the most.
MOST_TIMES = 2.0
#: The search goes on until the limit's rate is known up to this factor; and up to the second one
#: where refusals ask for whole seconds, because each costs a pause.
SEARCH_ENDS_WITHIN, ENDS_WITHIN_PAUSED = 1.5, 1.8
#: Fewer calls between two refusals do not enclose a rate: they may be chance.
FEWEST_CALLS = 32
#: But when rates that lie within this factor explain so many refusals in a row, it is a limit that
#: lets few calls in.
SURE_REFUSALS, SURE_WITHIN = 4, 2.0
#: After each refusal the search is so many times as slow, so that the next one is closer to the
#: limit.
SEARCH_SLOWER = 4.0
#: The search ends after so many refusals. One that asks for whole seconds after few calls does not
#: end it: it may be chance.
SEARCH_CUTS = 3
#: The span where the search starts from a remembered limit: that is likely to hold still.
RECALLED_SPAN_SECONDS = 4.0


class RateSearch:
    """Searches the rates of all unknown budgets at once.

    Args:
        belief: Whether there is a search, and from what.
        doubt: How long calls are in doubt.
        evidence: What the refusals tell.
        hints: The rates that Retry-After leaves possible.
        exact: The rate that Retry-After measured, which a new search forgets.
    """

    __slots__ = (
        "_belief",
        "_cuts",
        "_doubt",
        "_evidence",
        "_exact",
        "_found",
        "_hints",
        "_is_enclosed",
        "_is_fast",
    )

    def __init__(
        self,
        belief: Belief,
        doubt: Doubt,
        evidence: Evidence,
        hints: RetryHints,
        exact: ExactRate,
    ) -> None:
        self._belief = belief
        self._doubt = doubt
        self._evidence = evidence
        self._hints = hints
        self._exact = exact
        #: Refusals in the search so far.
        self._cuts = 0
        #: The rates of calls that explain the last refusals.
        self._found: Explained | None = None
        #: Whether the last refusal may have been chance.
        self._is_fast = False
        #: Whether the last refusal has enclosed the limit well enough.
        self._is_enclosed = False

    @property
    def goes_on(self) -> bool:
        """Whether there is still something to search."""
        is_on = self._belief.is_searching and not self._is_enclosed
        return (self._belief.is_first or is_on) and not self._belief.knows_limits

    @property
    def span_seconds(self) -> float:
        """The seconds in which a rate that is searched doubles at least."""
        if self._belief.is_recalled:
            return RECALLED_SPAN_SECONDS
        span = SEARCH_SPANS * self._doubt.seconds
        span = max(SHORTEST_SPAN_SECONDS, min(LONGEST_SPAN_SECONDS, span))
        return span * SEARCH_SLOWER ** min(self._cuts, SEARCH_CUTS)

    def grown(self, rate: float, elapsed: float) -> float:
        """Return a rate that is searched, after ``elapsed`` more seconds."""
        return rate * (1 + min(SEARCH_GROWTH * elapsed / self.span_seconds, SEARCH_STEP))

    def most_tried(self, let_in: float, seconds: float) -> float:
        """Return the highest rate of calls that is tried now.

        Args:
            let_in: Calls since the last refusal.
            seconds: Since then.
        """
        most = self._hints.most_tried(let_in, seconds)
        if self._cuts or self._belief.is_recalled or let_in < FEWEST_CALLS:
            return most
        return min(most, FIRST_TIMES * let_in / max(seconds, 1e-3))

    def judge(self, *, is_fast: bool, is_whole: bool) -> int:
        """See at a refusal whether the limit is enclosed well enough.

        Args:
            is_fast: Whether it may have been chance: the search goes on as fast as at first.
            is_whole: Whether it asks for whole seconds.

        Returns:
            Refusals in the search with this one, for ``note_cut`` once the rates are cut.
        """
        belief, evidence = self._belief, self._evidence
        cuts = self._cuts + 1 if belief.is_searching else 0
        if not belief.is_searching:  # what is told or was found once is not searched
            self._is_enclosed = self._is_fast = False
            return 0
        self._found = found = evidence.calls_explained()
        self._is_fast = is_fast and not belief.is_first
        if self._is_fast:
            self._is_enclosed = False
            return min(cuts, 1)
        has_few = evidence.last_calls < FEWEST_CALLS
        within = ENDS_WITHIN_PAUSED if is_whole else SEARCH_ENDS_WITHIN
        is_close = found is not None and found.most <= within * found.least
        may_be_chance = has_few and not _is_sure(found)
        is_over = cuts > SEARCH_CUTS and not (may_be_chance and is_whole)
        is_found = (is_close and not has_few) or _is_sure(found)
        self._is_enclosed = not belief.is_first and (is_over or is_found)
        return min(cuts, 1) if may_be_chance and is_whole else cuts

    def begin_anew(self) -> None:
        """Search as fast as at first."""
        self._cuts = 0
        self._exact.forget()

    def note_cut(self, cuts: int) -> None:
        """Go on more slowly."""
        self._cuts = cuts

    def note_refuted(self, cuts: int) -> None:
        """Search on as after so many refusals: the limit is a higher one than it was."""
        self._cuts = cuts
        self._exact.forget()
        self._hints.forget()

    def cut(self, budget: Budget) -> None:
        """Set the rate to go on with after a refusal."""
        found, evidence = self._found, self._evidence
        per_call = evidence.per_call(budget.name)
        if found is None or per_call <= 0:
            budget.peak = budget.rate
        else:
            let_in = evidence.calls_let_in()
            calls = max(math.sqrt(found.least * found.most), let_in)
            if let_in and evidence.last_calls >= FEWEST_CALLS:
                # A burst has no rate: what it leaves possible may be a hundred times too high.
                calls = min(calls, MOST_TIMES * max(found.least, let_in))
            if self._is_fast:
                calls = max(calls, evidence.best_rate())
            self._hints.refute(found.least)
            calls = min(calls, self._hints.most)
            budget.peak = calls * per_call
            if self._is_enclosed:
                budget.peak *= MEASURED_SHARE / CUT
        budget.learn_rate(budget.peak * CUT)

    def correct(self, budgets: Iterable[Budget]) -> None:
        """Set the rates anew, when calls turned out to be refused that were taken for let in."""
        if not self._evidence.is_corrected or not self._cuts:
            return
        self._found = self._evidence.calls_explained()
        for budget in budgets:
            if budget.has_learned_rate:
                self.cut(budget)


def _is_sure(found: Explained | None) -> bool:
    """Tell whether so many refusals are explained so closely that they are not chance."""
    if found is None or found.refusals < SURE_REFUSALS:
        return False
    return found.most <= SURE_WITHIN * found.least
