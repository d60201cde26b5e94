"""What does a refusal leave of a rate that it shows to be too high?

Seven eighths as a rule. Where the refusal before was a moment ago, what was let in between the two
measures the limit's rate (``enclosure.py``); a long pause between them counts as time in which the
bucket filled. Unknown limits: ``first_refusal.py`` at the first refusal, and ``rate_search.py`` as
long as they are searched. Those of which many refusals were seen: ``scarce.py``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_llm.strategies.admission.enclosure import (
    CLOSED_SHARE,
    FEWEST_CALLS,
    Round,
    came_back,
    measured_rate,
)
from batch_llm.strategies.admission.first_refusal import start_low

if TYPE_CHECKING:
    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.epochs import Epoch
    from batch_llm.strategies.admission.evidence import Evidence
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.admission.rate_search import RateSearch
    from batch_llm.strategies.admission.scarce import Scarce

#: The share of the rate that a cut leaves.
CUT = 0.87
#: The share that is left of a rate that is known from many refusals.
SCARCE_SHARE = 0.95
#: The share that is used of a rate that was measured by what was let in between two refusals.
MEASURED_SHARE = 0.9
#: The smallest share that a cut leaves.
DEEPEST_CUT = 0.5
#: A cut that comes sooner than this after the one before is a second one; else it is a first one.
SECOND_CUT_SECONDS = 5.0
#: A round in which less than this share of the rate was sent says nothing about it.
PACED_SHARE = 0.6
#: A round (the time between two refusals) that is longer than ``SECOND_CUT_SECONDS`` measures an
#: unknown limit that refused before the rate was back where it was: if it is no longer than this,
#: and let in so many calls at least.
LONGEST_BELOW_SECONDS, FEWEST_BELOW_CALLS = 15.0, 100.0
#: A round that is shorter than this measures the rate with the pause in it, where the pause took
#: the time of many calls.
PAUSED_SECONDS = 8.0
#: Of the calls let in in such a round, so many times their square root may be chance.
CHANCE_CALLS = 0.8
#: When a limit has fallen below this share of the rate, what was let in before tells nothing of it.
FALLEN_SHARE = 0.6
#: The smallest share that a cut leaves where fewer calls than this tell how far the limit has
#: fallen.
DEEPEST_CUT_OF_FEW, TELLING_CALLS = 0.65, 32


class Cuts:
    """Cuts the rates of a lane's budgets.

    Args:
        belief: Where the limits are from.
        epoch: What was seen since the last cut.
        search: The search for what is unknown.
        evidence: What the refusals tell.
        scarce: Which dimension refuses.
    """

    __slots__ = ("_belief", "_epoch", "_evidence", "_scarce", "_search")

    def __init__(
        self,
        belief: Belief,
        epoch: Epoch,
        search: RateSearch,
        evidence: Evidence,
        scarce: Scarce,
    ) -> None:
        self._belief = belief
        self._epoch = epoch
        self._search = search
        self._evidence = evidence
        self._scarce = scarce

    def cut(
        self,
        now: float,
        budget: Budget,
        grant: Grant,
        seconds: float,
        *,
        is_explained: bool = False,
    ) -> None:
        """Cut one budget's rate because of a refused call.

        Args:
            now: The time.
            budget: The one to cut.
            grant: The refused call's.
            seconds: Since the last refusal for which rates were cut.
            is_explained: Whether a learned minute, this one's or another's, explains the refusal.
        """
        is_first = self._belief.is_first
        let_in = max(0.0, grant.spent_before(budget) - budget.spent_when_empty)
        if is_first and budget.source == "unknown":
            start_low(budget, grant, let_in, seconds)
            return
        if self._belief.is_by_window and budget.source == "unknown" and budget.limit:
            budget.windows.fit(now, grant, is_explained=is_explained)
            return
        if budget.rate == math.inf or budget.is_sliding or budget.headers.keeps_pace:
            return
        if is_first and budget.source == "header":
            return  # calls in flight were more than was left, which headers tell from now on
        budget.refill(now)
        this = Round(let_in, seconds, grant.at - self._epoch.reopened_at)
        if self._belief.is_searching:
            self._search.cut(budget)
            return
        if self._scarce.is_found and budget.source == "unknown":
            self._cut_scarce(budget)
            return
        fallen_to = self._fallen_to(budget, this)
        was_below = budget.rate < budget.peak
        budget.peak = budget.rate
        if fallen_to is not None:
            budget.peak = min(budget.rate, fallen_to)
            budget.learn_rate(min(CUT * budget.rate, MEASURED_SHARE * fallen_to))
            return
        budget.learn_rate(self._share_left(budget, this, was_below=was_below) * budget.peak)

    def _cut_scarce(self, budget: Budget) -> None:
        """Cut the dimension that refuses below its rate; leave the others room beside it."""
        scarce = self._scarce
        if scarce.is_spared(budget):
            budget.peak = max(budget.rate, scarce.room(budget))
            budget.learn_rate(budget.peak)
        else:
            budget.peak = scarce.rate(budget)
            budget.learn_rate(SCARCE_SHARE * budget.peak)

    def _share_left(self, budget: Budget, this: Round, *, was_below: bool) -> float:
        """Return the share that a cut leaves of the peak, which may be lowered first.

        Args:
            budget: The one to cut.
            this: The round that has just ended.
            was_below: Whether the rate was not yet back where it was cut before.
        """
        let_in, seconds, open_seconds = this
        # A burst was refused, and no rate, where fewer were sent than the rate allows.
        is_paced = let_in >= PACED_SHARE * budget.rate * open_seconds
        if let_in <= 0 or not is_paced:
            return CUT
        measured = self._measured_in_pauses(budget, this)
        if measured is None and seconds >= SECOND_CUT_SECONDS:
            if was_below and self._is_telling(budget, this):
                budget.peak = min(budget.peak, let_in / seconds / CUT)
            return CUT
        per_call = self._epoch.per_call(budget)
        measured = measured or measured_rate(this, per_call)
        if measured is not None:
            share = min(CUT, MEASURED_SHARE * measured / budget.rate)
            if share < CUT:
                budget.peak = budget.rate * max(DEEPEST_CUT, share) / CUT
            return CUT
        # The bucket was empty then and is empty now: what was let in between came back.
        least = let_in / seconds
        if let_in < FEWEST_CALLS * per_call:
            return max(DEEPEST_CUT, min(CUT, least / budget.peak))
        # The bucket may have run over meanwhile.
        return max(DEEPEST_CUT, CUT * min(1, math.sqrt(least / budget.peak)))

    def _is_telling(self, budget: Budget, this: Round) -> bool:
        """Tell whether a longer round measures an unknown limit that refused sooner than before.

        It does when the limit hardly changed in it, no bucket can have run over for long, and so
        much was let in that refusals at random would have come sooner.
        """
        is_short = this.seconds <= LONGEST_BELOW_SECONDS
        is_open = this.seconds - this.open_seconds <= CLOSED_SHARE * this.seconds
        is_much = this.let_in >= FEWEST_BELOW_CALLS * self._epoch.per_call(budget)
        return budget.source == "unknown" and is_short and is_open and is_much

    def _measured_in_pauses(self, budget: Budget, this: Round) -> float | None:
        """Return a told limit's rate where a refusal costs a long pause, so that few are to follow.

        The bucket was empty then and is empty now: what was let in came back while calls were sent,
        the gate not closed yet, and while it was, until the bucket was full.
        """
        let_in, seconds, open_seconds = this
        epoch = self._epoch
        fewest = FEWEST_CALLS * epoch.per_call(budget)
        is_costly = seconds < PAUSED_SECONDS and epoch.pause_seconds * budget.rate >= fewest
        if budget.told is None or not is_costly or let_in < fewest:
            return None
        sent_seconds = open_seconds + epoch.closed_at - epoch.cut_at
        return came_back(this, sent_seconds, budget.capacity / budget.ceiling)

    def _fallen_to(self, budget: Budget, this: Round) -> float | None:
        """Return the rate of an unknown limit that turns out to be lower after a long pause.

        How long its bucket takes to fill is known from before. A few calls more or less are let in
        by chance: so it is taken for as high as it may be, because a rate that is too high is
        refused soon, and one that is too low is not seen.
        """
        let_in, seconds, open_seconds = this
        epoch = self._epoch
        per_call = epoch.per_call(budget)
        is_paced = let_in >= PACED_SHARE * budget.rate * open_seconds
        has_many = let_in >= FEWEST_CALLS * per_call
        if budget.source != "unknown" or seconds >= PAUSED_SECONDS or not (is_paced and has_many):
            return None
        closed = seconds - open_seconds
        if closed <= CLOSED_SHARE * seconds or closed * budget.rate < FEWEST_CALLS * per_call:
            return None
        evidence = self._evidence
        fills_in = evidence.fills_in(budget.name, budget.rate)
        most = this._replace(let_in=let_in + CHANCE_CALLS * math.sqrt(let_in * per_call))
        rate = came_back(most, open_seconds + epoch.closed_at - epoch.cut_at, fills_in)
        if rate < FALLEN_SHARE * budget.rate:
            evidence.clear(last=1)  # of another limit
        deepest = DEEPEST_CUT if let_in >= TELLING_CALLS * per_call else DEEPEST_CUT_OF_FEW
        return max(rate, deepest / MEASURED_SHARE * budget.rate)
