"""Rates that grow again after a cut, fast while far from where they were refused.

What a cut leaves: ``cuts.py``. From there they grow as in CUBIC, without a scale of its own: back
where they were after half a minute, and on from there. What is unknown is searched first
(``rate_search.py``), and back sooner, as soon as the calls and the pause that a refusal costs are
few beside what was let in; when nothing is refused well beyond where it was, it is searched on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_llm.strategies.admission.cuts import CUT
from batch_llm.strategies.admission.doubt import TRIED_CALLS
from batch_llm.strategies.dimensions import MINUTE, REQUESTS

if TYPE_CHECKING:
    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.epochs import Epoch
    from batch_llm.strategies.admission.evidence import Evidence
    from batch_llm.strategies.admission.exact_rate import ExactRate
    from batch_llm.strategies.admission.overstated import Overstated
    from batch_llm.strategies.admission.rate_search import RateSearch
    from batch_llm.strategies.admission.scarce import Scarce

#: After so many seconds without a refusal the rate is back where it was, and goes on from there.
RECOVERY_SECONDS = 28.0
#: That of an unknown limit is back after the time of so many calls, up to so many seconds, or so
#: many times the pause where that is longer; but no sooner than this, and no later than
#: ``RECOVERY_SECONDS``. A slow limit may be slow only because others use it at the moment.
RECOVERY_CALLS, RECOVERY_CALLS_SECONDS = 150.0, 15.0
RECOVERY_PAUSES, SHORTEST_RECOVERY_SECONDS = 10.0, 8.0
#: One that was measured to the fraction of a call is back after the time of so many calls; but no
#: sooner than the first of these, and no later than the second.
MEASURED_RECOVERY_CALLS = 100.0
MEASURED_RECOVERY_SECONDS, LONGEST_RECOVERY_SECONDS = 28.0, 50.0
#: When nothing is refused up to so many times the rate that was refused, the limit is not there:
#: the search goes on, as slowly as after so many refusals.
REFUTED_FACTOR, REFUTED_CUTS = 1.15, 2
#: The same of a limit that many refusals show.
REFUTED_FACTOR_FOUND = 2.0
#: Of the time that the gate was closed, so much at the most counts as time without a refusal.
CLOSED_CREDIT_SECONDS = 15.0
#: What is remembered is kept to for so long; when nothing was refused by then, it is searched on.
RECALLED_SECONDS = 20.0
#: A bucket that is fuller than this is not what holds the calls up: its rate does not grow. While a
#: rate is searched its bucket grows as fast as it fills.
UNUSED_SHARE, UNUSED_SHARE_SEARCHED = 0.9, 0.45
#: A rate that is less than this share of what was let in so far is searched on, once a minute, when
#: nothing was refused for so many seconds.
FAR_SHARE, QUIET_SECONDS = 0.25, 5.0
#: A rate grows by no more than this share in a second; a step counts as so many seconds at least.
GROWTH_STEP, SHORTEST_STEP_SECONDS = 0.25, 0.2
#: Rates grow no more often than this.
SHORTEST_GROWTH_SECONDS = 0.002
#: Calls per second that are assumed where nothing is known; and the fewest that are believed.
ASSUMED_RATE, FEWEST_PER_SECOND = 10.0, 0.02


class Rates:
    """The rates of a lane's budgets.

    Args:
        now: The time.
        budgets: By dimension; some may be added later.
        belief: Where the limits are from.
        epoch: What was seen since the last cut.
        search: The search for what is unknown.
        evidence: What the refusals tell.
        exact: The rate that was measured to the fraction of a call.
        overstated: Headers that promised too much, or were thought to.
        scarce: Which dimension refuses.
    """

    __slots__ = (
        "_belief",
        "_budgets",
        "_epoch",
        "_evidence",
        "_exact",
        "_overstated",
        "_scarce",
        "_search",
        "_tried_at",
        "grown_at",
    )

    def __init__(
        self,
        now: float,
        budgets: dict[str, Budget],
        belief: Belief,
        epoch: Epoch,
        search: RateSearch,
        evidence: Evidence,
        exact: ExactRate,
        overstated: Overstated,
        scarce: Scarce,
    ) -> None:
        self._budgets = budgets
        self._belief = belief
        self._epoch = epoch
        self._search = search
        self._evidence = evidence
        self._exact = exact
        self._overstated = overstated
        self._scarce = scarce
        #: When rates far below what was let in were last searched on.
        self._tried_at = now
        self.grown_at = now

    @property
    def calls_per_second(self) -> float:
        """The rate of calls that the limits allow, as far as they are known."""
        requests = self._budgets[REQUESTS]
        rate = requests.rate
        if rate == math.inf or self._scarce.is_spared(requests):
            per_call = (
                budget.rate / max(self._epoch.per_call(budget), 1.0)
                for budget in self._budgets.values()
                if budget is not requests and budget.rate < math.inf
            )
            rate = min(rate, min(per_call, default=ASSUMED_RATE))
        return max(rate, FEWEST_PER_SECOND)

    def lift(self) -> None:
        """Take back cuts that were made for refusals of no rate limit.

        Rates go back to where they were before, or to the best that was let in, and are searched on
        as at first.
        """
        self._overstated.believe()
        evidence = self._evidence
        self._belief.is_searching = not self._belief.knows_limits
        best = evidence.best_rate()
        for name, budget in self._budgets.items():
            if budget.rate < math.inf:
                budget.peak = max(budget.peak, budget.rate, best * evidence.per_call(name))
                budget.learn_rate(budget.ceiling if budget.limit else budget.peak)
        self._search.begin_anew()
        evidence.clear()

    def search_on(self) -> None:
        """Search as fast as at first, from where the rates are: no limit refused the last call."""
        self._belief.is_searching = not self._belief.knows_limits
        self._search.begin_anew()

    def land(self) -> None:
        """Go back to rates that were tried: what grew under a limit on calls in flight was not."""
        for budget in self._budgets.values():
            if budget.has_learned_rate:
                budget.learn_rate(min(budget.rate, budget.peak))

    def grow(self, now: float) -> bool:
        """Let the rates grow by what is due; return whether anything was."""
        elapsed = now - self.grown_at
        if elapsed < SHORTEST_GROWTH_SECONDS:
            return False
        self.grown_at = now
        belief, epoch = self._belief, self._epoch
        if belief.is_recalled and now - epoch.began_at > RECALLED_SECONDS:
            belief.is_searching = True  # for all that we know the limit is a higher one now
        is_searching = belief.is_searching
        closed = min(CLOSED_CREDIT_SECONDS, epoch.open_at - epoch.cut_at)
        distance = (now - epoch.open_at + closed) / self._recovery_seconds() - 1
        unused_share = UNUSED_SHARE_SEARCHED if is_searching else UNUSED_SHARE
        is_large = self._budgets[REQUESTS].capacity >= TRIED_CALLS
        for budget in self._budgets.values():
            is_unused = budget.level > unused_share * budget.capacity
            if budget.source == "unknown" and budget.limit:
                budget.windows.fit(now, is_large=is_large)
                continue
            if budget.rate >= budget.ceiling or is_unused:
                continue
            budget.refill(now)
            if is_searching:
                rate = self._searched(budget, now, elapsed)
            else:
                aim = budget.peak * (1 + (1 - CUT) * distance**3)
                step = 1 + GROWTH_STEP * max(elapsed, SHORTEST_STEP_SECONDS)
                rate = min(max(budget.rate, aim), budget.rate * step)
            budget.learn_rate(rate)
        self.keep_in_step()
        if not (is_searching or belief.knows_limits) and distance > 0 and self._is_refuted():
            belief.is_searching = True
            self._search.note_refuted(REFUTED_CUTS)
        elif not (is_searching or belief.knows_limits) and self._is_far_below(now):
            belief.is_searching = True
            self._search.begin_anew()
            self._tried_at = now
        return True

    def _searched(self, budget: Budget, now: float, elapsed: float) -> float:
        """Return the rate at which the search goes on, ``elapsed`` seconds after the last time."""
        requests, epoch = self._budgets[REQUESTS], self._epoch
        let_in = requests.spent - requests.spent_when_empty
        most = self._search.most_tried(let_in, now - epoch.cut_at)
        most *= budget.spent / max(requests.spent, 1.0)
        return max(budget.rate, min(most, self._search.grown(budget.rate, elapsed)))

    def _recovery_seconds(self) -> float:
        """Return how long after a cut a rate is back where it was."""
        if self._belief.knows_limits:
            return RECOVERY_SECONDS
        if self._exact.is_known:
            calls = MEASURED_RECOVERY_CALLS / self.calls_per_second
            return max(MEASURED_RECOVERY_SECONDS, min(LONGEST_RECOVERY_SECONDS, calls))
        calls = min(RECOVERY_CALLS_SECONDS, RECOVERY_CALLS / self.calls_per_second)
        pauses = RECOVERY_PAUSES * (self._epoch.open_at - self._epoch.cut_at)
        return max(SHORTEST_RECOVERY_SECONDS, min(RECOVERY_SECONDS, max(calls, pauses)))

    def _is_far_below(self, now: float) -> bool:
        """Tell whether the rate is far below what was let in so far, and that may be let in again.

        Where a minute is used up the rates fall from refusal to refusal; no refusal tells that the
        next one has begun.
        """
        epoch = self._epoch
        if (
            now - epoch.open_at < QUIET_SECONDS
            or now - max(self._tried_at, epoch.began_at) < MINUTE
        ):
            return False
        let_in = self._budgets[REQUESTS].spent / (now - epoch.began_at)
        return self.calls_per_second < FAR_SHARE * let_in

    def _is_refuted(self) -> bool:
        """Tell whether calls are let in well beyond the rate where they were refused."""
        requests = self._budgets[REQUESTS]
        if self._scarce.is_found:
            return all(
                budget.rate > REFUTED_FACTOR_FOUND * budget.peak
                for budget in self._budgets.values()
                if budget.has_learned_rate and not self._scarce.is_spared(budget)
            )
        is_learned = requests.source == "unknown" and requests.limit is None
        return is_learned and requests.rate > REFUTED_FACTOR * requests.peak

    def keep_in_step(self) -> None:
        """Let no unknown dimension allow fewer calls than the requests': it was hardly in use."""
        requests = self._budgets[REQUESTS]
        if requests.source != "unknown" or requests.rate == math.inf:
            return
        for budget in self._budgets.values():
            if self._exact.is_of(budget) or self._scarce.is_found:
                continue
            if budget is not requests and budget.source == "unknown" and budget.rate < math.inf:
                per_call = budget.spent / max(requests.spent, 1.0)
                budget.peak = max(budget.peak, requests.peak * per_call)
                if budget.rate < requests.rate * per_call:
                    budget.learn_rate(requests.rate * per_call)
