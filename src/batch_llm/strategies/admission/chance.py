"""Are refusals chance? All that tells refusals at random from a limit's is asked here.

Refusals that one bucket cannot explain (``evidence.py``) are weighed (``chance_belief.py``). Where
a limit is known or found, refusals that go on however far the rates fall are chance
(``fallen_rates.py``). Where rates are low, calls sent together right after a refusal tell
(``second_calls.py``). As soon as refusals are believed to be chance, the cuts that were made for
them are taken back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.strategies.admission.fallen_rates import FallenPace, FallenRates
from batch_llm.strategies.admission.second_calls import (
    FASTEST_PAUSED,
    FASTEST_TRIED,
    Bound,
    SecondCalls,
    bounds_of,
)
from batch_llm.strategies.dimensions import REQUESTS

if TYPE_CHECKING:
    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.chance_belief import ChanceBelief
    from batch_llm.strategies.admission.epochs import Epoch
    from batch_llm.strategies.admission.evidence import Evidence
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.admission.rates import Rates
    from batch_llm.strategies.admission.retry_after import RetryAfter

#: A refusal whose Retry-After was worked out from a limit weighs so many times as much as others
#: when it speaks for chance.
WORKED_OUT_WEIGHT = 0.5
#: One that asks for whole seconds weighs so many times as much, as long as there is a search:
#: chance costs a pause each time. A limit that was found may have changed.
WHOLE_WEIGHT = 2.0
#: What was let in before a longer stretch is not compared with what came after: limits change.
LONGEST_COMPARED_SECONDS = 60.0
#: So many trials of calls sent together, one after the other, must speak for chance.
PROOFS_ASKED = 2
#: After a pause so many calls may be tried at once, as a share of those let in so far: a limit
#: refuses some of them.
TRIED_SHARE = 0.05


class Chance:
    """Judges at each refusal whether it was chance.

    Args:
        chance_belief: Whether refusals are believed to come at random.
        budgets: By dimension; some may be added later.
        belief: Where the limits are from.
        epoch: What was seen since the last cut.
        evidence: What the refusals tell.
        rates: The rates that were cut for refusals that turn out to be chance.
        asked: What Retry-After tells.
    """

    __slots__ = (
        "_asked",
        "_belief",
        "_budgets",
        "_chance_belief",
        "_epoch",
        "_evidence",
        "_fallen_pace",
        "_fallen_rates",
        "_rates",
        "_second_calls",
        "_was_searching",
    )

    def __init__(
        self,
        chance_belief: ChanceBelief,
        budgets: dict[str, Budget],
        belief: Belief,
        epoch: Epoch,
        evidence: Evidence,
        rates: Rates,
        asked: RetryAfter,
    ) -> None:
        self._chance_belief = chance_belief
        self._budgets = budgets
        self._belief = belief
        self._epoch = epoch
        self._evidence = evidence
        self._rates = rates
        self._asked = asked
        self._fallen_pace = FallenPace()
        self._fallen_rates = FallenRates()
        self._second_calls = SecondCalls()
        #: Whether there was a search when the last call was refused: a found limit is believed in.
        self._was_searching = False

    def explains(self, now: float, grant: Grant, retry_after: float | None) -> bool:
        """Tell whether refusals have turned out to come at random: no cut is due then.

        Args:
            now: The time.
            grant: The refused call's, which has just ended a stretch of the evidence.
            retry_after: Seconds that it asks to wait.
        """
        chance, evidence, belief = self._chance_belief, self._evidence, self._belief
        if chance.is_believed:
            return False  # there are more of them now than chance brings
        worked_out = self._asked.is_worked_out(retry_after)
        if belief.knows_limits or not (worked_out or belief.is_searching):
            share = self._share_unexplained(now, grant)
            if share:
                self._believe(share)
            if share or belief.knows_limits:
                return share > 0
        if evidence.last_seconds > LONGEST_COMPARED_SECONDS:
            evidence.clear(last=1)
            chance.forget()
            return False
        unexplained: float = evidence.unexplained()
        if worked_out:
            unexplained *= WORKED_OUT_WEIGHT
        elif belief.is_searching and self._asked.is_whole(retry_after):
            unexplained *= WHOLE_WEIGHT
        if not chance.weigh(unexplained, int(max(0, evidence.last_calls)), evidence.behind):
            return False
        self._rates.lift()
        return True

    def _share_unexplained(self, now: float, grant: Grant) -> float:
        """Return the share of calls that is refused although known or found limits were kept to."""
        times = self._chance_belief.times_asked
        if not self._belief.sees_headers:
            rate, calls = self._rates.calls_per_second, int(max(0, self._evidence.last_calls))
            share = self._fallen_pace.note(now, rate, calls, times=times)
            if share or not self._belief.knows_limits:
                return share
        seconds = max(grant.at - self._epoch.cut_at, 1e-3)
        rates, let_in = {}, 0.0
        for name, budget in self._budgets.items():
            amount = grant.spent_with(budget) - budget.spent_when_empty
            rates[name] = amount / seconds
            if name == REQUESTS:
                let_in = amount - 1
        return self._fallen_rates.note(now, rates, int(let_in), times=times)

    def _believe(self, share: float) -> None:
        """Take refusals for chance, and take back what was cut for them."""
        self._chance_belief.believe(share)
        self._rates.lift()

    @property
    def tries_calls(self) -> bool:
        """Whether calls were sent together, of which a limit refuses the last."""
        return self._second_calls.are_tried

    def bounds(self, retry_after: float | None) -> list[Bound]:
        """Return the rates that calls right after a refusal are to be compared with."""
        self._was_searching = self._belief.is_searching
        fastest = FASTEST_PAUSED if self._asked.is_whole(retry_after) else FASTEST_TRIED
        is_tried = not (
            self._belief.is_first
            or self._asked.is_worked_out(retry_after)
            or self._belief.knows_limits
            or self._chance_belief.is_believed
            or self._rates.calls_per_second > fastest
        )
        return bounds_of(self._budgets.values()) if is_tried else []

    def try_calls(
        self, now: float, retry_after: float | None, refused: Grant, bounds: list[Bound]
    ) -> int:
        """Note a refusal that rates were cut for.

        Args:
            now: The time.
            retry_after: Seconds that it asks to wait.
            refused: The call.
            bounds: From before the cut.

        Returns:
            How many calls are to be sent together as soon as the gate is open; or 0.
        """
        most = 2
        may_be_chance = self._was_searching or self._chance_belief.is_suspected
        if bounds and may_be_chance and self._asked.is_whole(retry_after):
            most = max(most, int(TRIED_SHARE * self._budgets[REQUESTS].spent))
            bounds = self._explained(bounds)
        return self._second_calls.begin(now + (retry_after or 0.0), refused, bounds, most)

    def _explained(self, bounds: list[Bound]) -> list[Bound]:
        """Return bounds that are no higher than rates that explain the last refusals."""
        evidence = self._evidence
        found = evidence.calls_explained()
        if found is None:
            return bounds
        most = [(bound, found.most * evidence.per_call(bound.budget.name)) for bound in bounds]
        return [Bound(one.budget, min(one.rate, rate)) if rate else one for one, rate in most]

    def note_tried(self, grant: Grant, refusals: int) -> None:
        """See from the first calls let in since a refusal whether it was chance.

        Args:
            grant: One of those that were sent together.
            refusals: So many there were so far.
        """
        proofs = self._second_calls.note_accepted(grant)
        if not proofs or self._chance_belief.is_believed:
            return
        if proofs >= PROOFS_ASKED:
            self._believe(refusals / self._epoch.calls)
        else:
            self._rates.search_on()
