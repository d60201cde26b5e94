"""The search for an unknown limit's rate: upwards from the first refusal, until it is enclosed.

Each refusal leaves fewer rates that explain all of them (``evidence.py``). The search goes on in
the middle of those, more slowly each time, until they are close together; but when a refusal may
have been chance (``noise.py``, or few calls since the last one), as fast as before.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_llm.strategies.dimensions import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.doubt import Doubt
    from batch_llm.strategies.admission.evidence import Evidence
    from batch_llm.strategies.admission.ready_points import Measured
    from batch_llm.strategies.admission.retry_hints import RetryHints
    from batch_llm.strategies.admission.stretches import Explained

#: The share of the rate that a cut leaves.
CUT = 0.87
#: Of a rate that was measured between two refusals so much is used.
MEASURED_SHARE = 0.9
#: A rate is searched upwards after the first cut: by so much in each span, and per step at the
#: most. A span is so many times as long as a call is in doubt, within bounds.
SEARCH_GROWTH, SEARCH_STEP = 1.0, 1.0
SEARCH_SPANS, SHORTEST_SPAN_SECONDS, LONGEST_SPAN_SECONDS = 4.0, 0.3, 1.0
#: Until the second refusal no more is tried than so many times the rate that was let in since the
#: first, once that were enough calls: the bucket is empty when that is the limit's rate.
FIRST_TIMES = 3.5
#: After many calls between two refusals the search goes on at so many times their rate at the most.
MOST_TIMES = 2.0
#: The search goes on until the limit's rate is known up to this factor.
SEARCH_ENDS_WITHIN = 1.5
#: Fewer calls between two refusals do not enclose a rate: they may be chance. But when rates within
#: this factor explain so many refusals in a row, it is a limit that lets few calls in.
FEWEST_CALLS = 32
SURE_REFUSALS, SURE_WITHIN = 4, 2.0
#: After each refusal the search is so much slower, so that the next one is closer to the limit.
SEARCH_SLOWER = 4.0
#: And it goes on for no more than so many refusals that ask for no whole seconds, or followed
#: many calls: after few calls the next one costs little, and may be chance.
SEARCH_CUTS = 3
#: Of a rate that was measured to the fraction of a call so much is used; the other dimensions have
#: so many times as much.
KEPT_SHARE, ROOM_BESIDE = 0.99, 2.0
#: Of the least that the rate may be so much is used, where it is slow: faster ones are searched up
#: again soon, and may be others' limits too.
LEAST_SHARE, FASTEST_LEAST = 0.95, 2.0
#: What is remembered is searched on so slowly.
RECALLED_SPAN_SECONDS = 4.0


class RateSearch:
    """Searches the rates of all unknown budgets at once.

    Args:
        belief: Whether there is a search, and from what.
        doubt: How long calls are in doubt.
        evidence: What the refusals tell.
    """

    __slots__ = (
        "_belief",
        "_cuts",
        "_doubt",
        "_evidence",
        "_found",
        "_hints",
        "_is_enclosed",
        "_is_fast",
        "_measured",
    )

    def __init__(self, belief: Belief, doubt: Doubt, evidence: Evidence, hints: RetryHints) -> None:
        self._belief = belief
        self._doubt = doubt
        self._evidence = evidence
        self._hints = hints
        #: Refusals in the search so far.
        self._cuts = 0
        #: The rates of calls that explain the last refusals.
        self._found: Explained | None = None
        #: Whether the last refusal may have been chance.
        self._is_fast = False
        #: Whether the last refusal has enclosed the limit well enough.
        self._is_enclosed = False
        #: The dimension whose rate was measured, if any.
        self._measured = ""

    @property
    def goes_on(self) -> bool:
        """Whether there is still something to search."""
        is_on = self._belief.is_searching and not self._is_enclosed
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

    def most_tried(self, let_in: float, seconds: float) -> float:
        """Return the highest rate of calls that is tried until the second refusal.

        Args:
            let_in: Calls since the first refusal.
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
        is_close = found is not None and found.most <= SEARCH_ENDS_WITHIN * found.least
        may_be_chance = has_few and not _is_sure(found)
        is_over = cuts > SEARCH_CUTS and not (may_be_chance and is_whole)
        is_found = (is_close and not has_few) or _is_sure(found)
        self._is_enclosed = not belief.is_first and (is_over or is_found)
        return min(cuts, 1) if may_be_chance and is_whole else cuts

    def start(self, budgets: Iterable[Budget], per_call: Callable[[Budget], float]) -> None:
        """Start from what Retry-After tells, where that is more than is believed."""
        for budget in budgets:
            if budget.source == "unknown" and budget.rate < math.inf:
                budget.learn_rate(max(budget.peak, self._hints.least * per_call(budget)))

    def keep_to_least(self, budgets: Iterable[Budget], least: Mapping[str, float]) -> None:
        """Go on at no less than what came back since the refusal before the last."""
        if least.get(REQUESTS, 0.0) > FASTEST_LEAST:
            return
        for budget in budgets:
            rate = LEAST_SHARE * least.get(budget.name, 0.0)
            if budget.source == "unknown" and budget.rate < rate:
                budget.peak = max(budget.peak, rate)
                budget.learn_rate(rate)

    def take(
        self,
        measured: Measured,
        budgets: Iterable[Budget],
        per_call: Callable[[Budget], float],
    ) -> None:
        """Take over a rate that was measured; leave the other dimensions room beside it."""
        self._measured = measured.name
        for budget in budgets:
            if budget.source != "unknown" or budget.rate == math.inf:
                continue
            if budget.name == measured.name:
                budget.peak = measured.rate
                budget.learn_rate(KEPT_SHARE * measured.rate)
            else:
                budget.peak = ROOM_BESIDE * measured.calls * per_call(budget)
                budget.learn_rate(budget.peak)

    def forget_measured(self) -> None:
        """Forget what was measured, because the last refusal says something else."""
        self._measured = ""

    @property
    def has_measured(self) -> bool:
        """Whether a limit's rate was measured to the fraction of a call."""
        return bool(self._measured)

    def is_measured(self, budget: Budget) -> bool:
        """Tell whether a budget's rate was measured: it is not kept in step with others."""
        return budget.name == self._measured

    def begin_anew(self) -> None:
        """Search as fast as at first."""
        self._cuts = 0
        self._measured = ""

    def note_cut(self, cuts: int) -> None:
        """Go on more slowly."""
        self._cuts = cuts

    def note_refuted(self, cuts: int) -> None:
        """Search on as after so many refusals: the limit is a higher one than it was."""
        self._cuts = cuts
        self._measured = ""
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
            if budget.source == "unknown" and budget.rate < math.inf:
                self.cut(budget)


def _is_sure(found: Explained | None) -> bool:
    """Tell whether so many refusals are explained so closely that they are not chance."""
    if found is None or found.refusals < SURE_REFUSALS:
        return False
    return found.most <= SURE_WITHIN * found.least
