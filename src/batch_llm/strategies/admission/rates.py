"""Rates that are cut at a refusal and grow again, fast while far from where they were refused.

A cut leaves an eighth less, or what was measured where the last refusal was a moment ago. Then they
grow as in CUBIC, without a scale of its own: back where they were after half a minute, and on from
there. What is unknown is searched first (``rate_search.py``), and back sooner, as soon as the calls
and the pause that a refusal costs are few beside what was let in; when nothing is refused well
beyond where it was, it is searched on.
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
from batch_llm.strategies.admission.rate_search import CUT, MEASURED_SHARE
from batch_llm.strategies.dimensions import MINUTE, REQUESTS

if TYPE_CHECKING:
    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.epochs import Epoch
    from batch_llm.strategies.admission.evidence import Evidence
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.admission.rate_search import RateSearch

#: The least that a second cut within moments leaves; and what it leaves when the bucket is too
#: small to tell.
DEEPEST_CUT, BLIND_CUT = 0.5, 0.75
SECOND_CUT_SECONDS = 5.0
#: Below such a share of the rate that was too fast the limit has fallen: what was let in before
#: tells nothing of it. Of calls let in the root may be chance, this many times.
FALLEN_SHARE, CHANCE_CALLS = 0.6, 0.5
#: The least that a cut leaves where fewer calls than so many tell how far the limit has fallen.
DEEPEST_CUT_OF_FEW, TELLING_CALLS = 0.65, 32
#: The same for a told limit where each refusal is followed by a pause of many calls' time.
PAUSED_SECONDS = 8.0
#: A longer round measures an unknown limit where the rate was not yet back: up to so many seconds,
#: and with so many calls at least.
LONGEST_BELOW_SECONDS, FEWEST_BELOW_CALLS = 15.0, 100.0
#: One in which less than this share of the rate was sent says nothing about it.
PACED_SHARE = 0.6
#: After so many seconds without a cut the rate is back where it was, and goes on from there.
RECOVERY_SECONDS = 28.0
#: Of an unknown limit after the time of so many calls, and so many times the pause, but no sooner
#: than this.
RECOVERY_CALLS, RECOVERY_PAUSES, SHORTEST_RECOVERY_SECONDS = 150.0, 10.0, 8.0
#: Of one that was measured to the fraction of a call; and no sooner, or later, than this.
MEASURED_RECOVERY_CALLS = 100.0
MEASURED_RECOVERY_SECONDS, LONGEST_RECOVERY_SECONDS = 28.0, 120.0
#: Nothing was refused up to so many times the rate where it was: the limit is not there. It is
#: searched on as after so many refusals.
REFUTED_FACTOR, REFUTED_CUTS = 1.15, 2
#: Of the time that the gate was closed, so much counts as time without a cut.
CLOSED_CREDIT_SECONDS = 15.0
#: What is remembered is kept to for so long; when nothing was refused by then, it is searched on.
RECALLED_SECONDS = 20.0
#: A bucket that is fuller than this is not what holds the calls up: its rate does not grow. While a
#: rate is searched its bucket grows as fast as it fills.
UNUSED_SHARE, UNUSED_SHARE_SEARCHED = 0.9, 0.45
#: A rate that is less than this share of what was let in so far is searched on, once a minute, when
#: nothing was refused for so many seconds.
FAR_SHARE, QUIET_SECONDS = 0.25, 5.0
#: How much a rate may grow in one step.
GROWTH_STEP = 0.25
#: Rates grow no more often than this.
SHORTEST_GROWTH_SECONDS = 0.002
#: A call whose rate is known from no dimension: so many a second; and the fewest that it may be.
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
    """

    __slots__ = (
        "_belief",
        "_budgets",
        "_epoch",
        "_evidence",
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
    ) -> None:
        self._budgets = budgets
        self._belief = belief
        self._epoch = epoch
        self._search = search
        self._evidence = evidence
        #: When rates far below what was let in were last searched on.
        self._tried_at = now
        self.grown_at = now

    @property
    def requests_per_second(self) -> float:
        """The rate of calls that the limits allow, as far as they are known."""
        requests = self._budgets[REQUESTS]
        rate = requests.rate
        if rate == math.inf:
            per_call = (
                budget.rate / max(self._epoch.per_call(budget), 1.0)
                for budget in self._budgets.values()
                if budget is not requests and budget.rate < math.inf
            )
            rate = min(per_call, default=ASSUMED_RATE)
        return max(rate, FEWEST_PER_SECOND)

    def cut(self, now: float, budget: Budget, grant: Grant, seconds: float) -> None:
        """Cut one budget's rate because of a refused call, ``seconds`` after the last one."""
        is_first = self._belief.is_first
        let_in = max(0.0, grant.spent_before(budget) - budget.spent_when_empty)
        if is_first and budget.source == "unknown":
            start_low(budget, grant, let_in, seconds)
            return
        if self._belief.is_by_window and budget.source == "unknown" and budget.limit:
            budget.windows.fit(now, is_refused=True)
            return
        if budget.rate == math.inf or budget.is_sliding:
            return
        if is_first and budget.source == "header":
            return  # calls in flight were more than was left, which headers tell from now on
        budget.refill(now)
        this = Round(let_in, seconds, grant.at - self._epoch.reopened_at)
        last, budget.round = budget.round, this
        if self._belief.is_searching:
            self._search.cut(budget)
            return
        fallen_to = self._fallen_to(budget, this)
        was_below = budget.rate < budget.peak
        budget.peak = budget.rate
        if fallen_to is not None:
            budget.peak = min(budget.rate, fallen_to)
            budget.learn_rate(min(CUT * budget.rate, MEASURED_SHARE * fallen_to))
            return
        budget.learn_rate(self._share_left(budget, last, this, was_below=was_below) * budget.peak)

    def _share_left(
        self, budget: Budget, last: Round | None, this: Round, *, was_below: bool
    ) -> float:
        """Return the share that a cut leaves of the peak, which may be lowered first.

        Args:
            budget: The one to cut.
            last: The round before.
            this: The one that has just ended.
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
        measured = measured or measured_rate(last, this, per_call)
        if measured is not None:
            share = min(CUT, MEASURED_SHARE * measured / budget.rate)
            if share < CUT:
                budget.peak = budget.rate * max(DEEPEST_CUT, share) / CUT
            return CUT
        # The bucket was empty then and is empty now: what was let in between came back.
        least = let_in / seconds
        closed = seconds - open_seconds
        if let_in < FEWEST_CALLS * per_call:
            return max(DEEPEST_CUT, min(CUT, least / budget.peak))
        if budget.burst >= closed * least:  # the bucket may have held all of it
            return max(DEEPEST_CUT, CUT * min(1, math.sqrt(least / budget.peak)))
        return BLIND_CUT

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

    def lift(self) -> None:
        """Go back to the rates from before the cuts that a rate limit did not cause, and beyond.

        They are searched on as at first: what the refusals told was of no rate.
        """
        evidence = self._evidence
        self._belief.is_searching = not self._belief.knows_limits
        best = evidence.best_rate()
        for name, budget in self._budgets.items():
            if budget.rate < math.inf:
                budget.peak = max(budget.peak, budget.rate, best * evidence.per_call(name))
                budget.learn_rate(budget.ceiling if budget.limit else budget.peak)
        self._search.begin_anew()
        evidence.clear()

    def land(self) -> None:
        """Go back to rates that were in use: what grew under another limit was never tried."""
        for budget in self._budgets.values():
            if budget.source == "unknown" and budget.rate < math.inf:
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
        for budget in self._budgets.values():
            is_unused = (
                budget.level > unused_share * budget.capacity or budget.level < -budget.largest
            )
            if budget.source == "unknown" and budget.limit:
                budget.windows.fit(now, is_refused=False)
                continue
            if budget.rate >= budget.ceiling or is_unused:
                continue
            budget.refill(now)
            if is_searching:
                rate = self._searched(budget, now, elapsed)
            else:
                aim = budget.peak * (1 + (1 - CUT) * distance**3)
                step = 1 + GROWTH_STEP * max(elapsed, 0.2)
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
        if self._search.has_measured:
            calls = MEASURED_RECOVERY_CALLS / self.requests_per_second
            return max(MEASURED_RECOVERY_SECONDS, min(LONGEST_RECOVERY_SECONDS, calls))
        calls = RECOVERY_CALLS / self.requests_per_second
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
        return self.requests_per_second < FAR_SHARE * let_in

    def _is_refuted(self) -> bool:
        """Tell whether calls are let in well beyond the rate where they were refused."""
        requests = self._budgets[REQUESTS]
        is_learned = requests.source == "unknown" and requests.limit is None
        return is_learned and requests.rate > REFUTED_FACTOR * requests.peak

    def keep_in_step(self) -> None:
        """Let no unknown dimension allow fewer calls than the requests': it was hardly in use."""
        requests = self._budgets[REQUESTS]
        if requests.source != "unknown" or requests.rate == math.inf:
            return
        for budget in self._budgets.values():
            if self._search.is_measured(budget):
                continue
            if budget is not requests and budget.source == "unknown" and budget.rate < math.inf:
                per_call = budget.spent / max(requests.spent, 1.0)
                budget.peak = max(budget.peak, requests.peak * per_call)
                if budget.rate < requests.rate * per_call:
                    budget.learn_rate(requests.rate * per_call)
