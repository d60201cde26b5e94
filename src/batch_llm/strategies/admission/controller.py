"""When may a lane's next call start? How its parts work together is said by the package."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from batch_llm.strategies.admission import headroom
from batch_llm.strategies.admission.belief import Belief
from batch_llm.strategies.admission.blame import emptied_by
from batch_llm.strategies.admission.ceiling_room import CeilingRoom
from batch_llm.strategies.admission.chance import Chance
from batch_llm.strategies.admission.chance_belief import ChanceBelief
from batch_llm.strategies.admission.closed_gate import PROBE_SECONDS, ClosedGate
from batch_llm.strategies.admission.closure import (
    SHORTEST_CLOSURE_SECONDS,
    Closure,
    learn_from_closure,
)
from batch_llm.strategies.admission.cuts import SECOND_CUT_SECONDS, Cuts
from batch_llm.strategies.admission.doubt import Doubt
from batch_llm.strategies.admission.epochs import Epoch
from batch_llm.strategies.admission.evidence import Evidence
from batch_llm.strategies.admission.first_refusal import (
    FirstRefusal,
    expect_tiny,
    explains_used_up,
    start_higher,
)
from batch_llm.strategies.admission.grants import Grant, Refusal
from batch_llm.strategies.admission.header_belief import used_up
from batch_llm.strategies.admission.known_limits import (
    limits_to_remember,
    shown_limits,
    told_limits,
)
from batch_llm.strategies.admission.lane_budgets import LaneBudgets
from batch_llm.strategies.admission.lane_headers import LaneHeaders
from batch_llm.strategies.admission.overload import Overload
from batch_llm.strategies.admission.rate_search import RateSearch
from batch_llm.strategies.admission.rates import Rates
from batch_llm.strategies.admission.retry_after import RetryAfter
from batch_llm.strategies.admission.scarce import Scarce
from batch_llm.strategies.admission.slots import Slots
from batch_llm.strategies.costs import FIELDS, NOTHING, PENDING, Cost
from batch_llm.strategies.dimensions import (
    CONCURRENCY,
    MINUTE,
    REQUESTS,
    REQUESTS_PER_DAY,
    TOKENS,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from batch_llm.core.config import Limits
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.header_belief import LimitHeader
    from batch_llm.strategies.admission.known_limits import Known
    from batch_llm.strategies.admission.second_calls import Bound

#: A window that refused a call is taken to open so many seconds later than its Retry-After says.
LATE_SECONDS = 0.05
#: A rate that is remembered with a smaller share than this is where a search begins; else it is
#: kept to.
WELL_KNOWN_SHARE = 0.8


class Admission:
    """Decides when the calls of one lane may start.

    A call's way is ``wait``, ``start``, and one of ``accepted``, ``refused``, ``failed`` and
    ``cancelled``. It counts as let in (``_confirm``) when it is answered, or silent for long
    enough. What the first refusal of an epoch means is worked out in ``_cut``, ``_cut_rates`` and
    ``_begin_epoch``; the first call let in after it ends its closure (``_reopen``).

    Args:
        now: The time.
        limits: What the user tells of the limits: ceilings that are never passed. What they leave
            out is taken for unlimited, until headers show it.
        dimensions: What the provider counts, where no limit is told.
        burst_seconds: How many seconds of its rate a told limit may be used up at once.
        max_in_flight: Calls at a time at the most.
        is_given: Whether somebody chose that number, or a server works on so many.
        dice: Spreads what would otherwise happen at the same moment everywhere.
    """

    __slots__ = (
        "_accepted",
        "_belief",
        "_ceiling_room",
        "_chance",
        "_chance_belief",
        "_closure",
        "_cuts",
        "_dice",
        "_doubt",
        "_epoch",
        "_evidence",
        "_first",
        "_gate",
        "_headers",
        "_lane",
        "_overload",
        "_rates",
        "_retry_after",
        "_scarce",
        "_search",
        "_slots",
        "_uncounted",
        "budgets",
        "in_flight",
        "is_unlimited",
        "max_in_flight",
        "refusals",
    )

    def __init__(
        self,
        now: float,
        limits: Limits | None = None,
        *,
        dimensions: tuple[str, ...] = (REQUESTS, TOKENS),
        burst_seconds: float = 60.0,
        max_in_flight: float = 1000,
        is_given: bool = False,
        dice: random.Random | None = None,
    ) -> None:
        told = told_limits(limits)
        self._lane = LaneBudgets()
        for name in dict.fromkeys([REQUESTS, *(told or dimensions)]):
            self._lane.add(name, told.get(name), now, burst_seconds)
        self.budgets = self._lane.by_name
        self.max_in_flight = max_in_flight
        self.in_flight = self.refusals = 0
        #: Whether nothing is known of any limit, and no call was ever refused: what calls take
        #: decides nothing as long as it is so.
        self.is_unlimited = not told
        #: Calls let in.
        self._accepted = 0
        #: Of them, those answered while unlimited, that have not let more be in doubt yet.
        self._uncounted = 0
        self._dice = dice or random.Random()  # noqa: S311 - spreads load, protects nothing
        self._belief = Belief(is_told=bool(told))
        self._doubt = Doubt(told.get(REQUESTS, 0.0), is_told=bool(told), is_given=is_given)
        self._epoch = Epoch(now)
        self._gate = ClosedGate(self._dice)
        self._ceiling_room = CeilingRoom(self._belief)
        self._closure = Closure()
        self._first = FirstRefusal()
        self._evidence = Evidence(self.budgets, now)
        self._scarce = Scarce(self.budgets)
        self._chance_belief = ChanceBelief()
        self._retry_after = RetryAfter(
            self.budgets, self._belief, self._epoch, self._evidence, self._chance_belief
        )
        hints, exact = self._retry_after.hints, self._retry_after.exact
        self._search = RateSearch(self._belief, self._doubt, self._evidence, hints, exact)
        self._headers = LaneHeaders(
            self._lane, self._belief, self._doubt, self._evidence, self._chance_belief
        )
        self._rates = Rates(
            now,
            self.budgets,
            self._belief,
            self._epoch,
            self._search,
            self._evidence,
            exact,
            self._headers.overstated,
            self._scarce,
        )
        self._cuts = Cuts(self._belief, self._epoch, self._search, self._evidence, self._scarce)
        self._chance = Chance(
            self._chance_belief,
            self.budgets,
            self._belief,
            self._epoch,
            self._evidence,
            self._rates,
            self._retry_after,
        )
        self._slots = Slots()
        self._overload = Overload(now, self._dice)

    @property
    def closed_until(self) -> float:
        """Before this time nobody starts."""
        return self._gate.closed_until

    def keep_in_flight(self, calls: float) -> None:
        """Let no more calls be in flight than a server works on, or than are searched for."""
        self.max_in_flight = calls
        self._doubt.note_given()

    def wait(self, now: float, cost: Cost) -> float:
        """Return the seconds until a call may start: 0 now, infinity when one must end first."""
        gate = self._gate
        if now < gate.closed_until:
            return gate.closed_until - now
        overload, in_flight = self._overload, self.in_flight
        if overload.since is not None and (outage := overload.wait(now)) > 0:
            return outage
        if (
            in_flight >= self.max_in_flight
            or in_flight >= self._slots.tried
            or in_flight >= overload.concurrency
        ):
            return math.inf
        doubt = self._doubt
        if doubt.calls:
            if self._uncounted:
                self._count()
            self._confirm_silent(now)
            if doubt.calls >= (1 if gate.closed_again else doubt.limit):
                return doubt.wait(now)
        if self.is_unlimited:
            return 0.0
        if self._belief.is_searching and not (self._epoch.accepted or doubt.calls):
            return (
                0.0  # the gate is open: what the first refusal left is a guess, no reason to wait
            )
        longest = 0.0
        for budget in self._lane.in_order:
            if budget.capacity < math.inf and (amount := cost[budget.field]) > 0:
                pending = cost[PENDING] if budget.counts_output else 0.0
                wait = budget.wait(now, amount, pending)
                if wait > longest:
                    if budget.windows.is_tried(now):
                        wait = doubt.wait_to_try(now, wait, self.budgets[REQUESTS].capacity)
                    longest = max(longest, wait)
        return longest

    def start(self, now: float, cost: Cost) -> Grant:
        """Let a call in, and charge it. Whoever starts it closes the grant."""
        grant = self.begin(now)
        self._lane.charge(grant, cost)
        return grant

    def begin(self, now: float) -> Grant:
        """Let a call in that is charged later, while unlimited, before anything but ``end``."""
        epoch, in_flight = self._epoch, self.in_flight
        epoch.calls = number = epoch.calls + 1
        if number >= self._evidence.next_call:
            self._evidence.note_call(now, number)
        self.in_flight = in_flight + 1
        grant = Grant(now, epoch.number, NOTHING, number, in_flight, self._overload.start())
        self._doubt.add(grant)
        return grant

    def charge(self, grant: Grant, cost: Cost) -> None:
        """Charge a call that was let in; in the order in which they were."""
        self._lane.charge(grant, cost)

    def charge_all(self, now: float, used: Sequence[Cost]) -> None:
        """Charge calls that have ended since they were let in, all within the same second."""
        self._lane.charge_all(now, used)

    def accepted(
        self,
        now: float,
        grant: Grant,
        used: Cost | None = None,
        headers: Mapping[str, LimitHeader] | None = None,
    ) -> None:
        """Close the grant of a call that was answered.

        Args:
            now: The time.
            grant: The call's.
            used: What it really took; None when that is not known, or when the provider charges
                the estimate whatever happens.
            headers: What the answer says of the limits.
        """
        self._leave(now, grant)
        self._end(now, grant)
        if used is not None:
            self._correct(now, grant, used)
        if headers:
            self._end_unlimited()
            self._headers.note_accepted(now, grant, headers, self._accepted)
        elif self._belief.sees_headers:
            self._headers.note_silent(now)

    def end(self, now: float, grant: Grant) -> None:
        """Close the grant of a call that was answered, while unlimited: it is settled later."""
        grant.is_open = False
        self.in_flight -= 1
        epoch = self._epoch
        if not (epoch.accepted and grant.is_in_doubt):
            self._end(now, grant)
            return
        # As long as nothing is limited and nothing was refused, that is all.
        self._overload.note_answer(now, grant.is_probe)
        grant.is_in_doubt = False
        self._doubt.calls -= 1
        epoch.accepted += 1
        self._accepted += 1
        self._uncounted += 1

    def _end(self, now: float, grant: Grant) -> None:
        self._overload.note_answer(now, grant.is_probe)
        if grant.is_in_doubt:
            self._confirm(now, grant)

    def settle(self, now: float, grant: Grant, used: Cost | None) -> None:
        """Settle a call that has ended, when it was charged; in the order of such ends.

        Args:
            now: When it ended.
            grant: The call's.
            used: As for ``accepted``.
        """
        self._lane.release(now, grant)
        if used is not None:
            self._correct(now, grant, used)

    def _correct(self, now: float, grant: Grant, used: Cost) -> None:
        """Correct a charge by what was really used."""
        if self.refusals:
            self._scarce.correct(grant, used)
        # What is searched from a guess is held up by no debt of calls from before.
        is_debt = self._epoch.is_current(grant) or not self._belief.is_searching
        self._lane.correct(now, grant, used, is_debt=is_debt)

    def refused(
        self,
        now: float,
        grant: Grant,
        *,
        latency: float,
        retry_after: float | None = None,
        headers: Mapping[str, LimitHeader] | None = None,
        dimension: str | None = None,
    ) -> Refusal:
        """Close the grant of a call that was refused by a rate limit.

        Args:
            now: The time.
            grant: The call's.
            latency: Seconds from its start to the refusal.
            retry_after: Seconds that the provider asked to wait.
            headers: What the refusal says of the limits.
            dimension: The one that it names; ``concurrency`` is a limit on calls in flight.

        Returns:
            What follows from it.
        """
        if retry_after == 0:  # to ask for no time says as little as to ask for nothing
            retry_after = None
        self._leave(now, grant)
        self._end_unlimited()
        self.refusals += 1
        self._overload.note_answer(now, grant.is_probe)
        self._take_back(now, grant, refund=False)
        if headers:
            self._headers.sync(now, grant, headers, is_refused=True)
        self._doubt.note_refused(latency)
        if self._belief.knows_limits:
            self._confirm_silent(now)
        is_first = grant.epoch == self._epoch.number
        if is_first:
            self._retry_after.note_first(retry_after)
        empty = used_up(grant.cost, headers)  # no limit on calls in flight, if none is named
        may_be_in_flight = empty is None or dimension == CONCURRENCY
        if may_be_in_flight and self._explains_in_flight(grant, dimension, is_first=is_first):
            return Refusal(False, retry_after or 0.0)
        self._headers.note_refused(now, grant, headers, is_first=is_first)
        if is_first and self._chance_belief.is_believed and not self._chance_belief.note_refused():
            wait = PROBE_SECONDS * self._dice.uniform(0.5, 1.5)
            return Refusal(False, wait if retry_after is None else retry_after)
        if is_first:
            is_early = (
                headers is not None
                and not self._belief.is_first
                and headroom.explains(self.budgets, grant, headers)
            )
            is_cut = self._cut(now, grant, retry_after, dimension or empty, is_early=is_early)
            return Refusal(is_cut, 0.0)
        self._retry_after.note(grant, retry_after, self._accepted)
        if grant.epoch == 0 and self._epoch.number == 1:
            self._first.hold_less(self.budgets[REQUESTS], grant)
            if not self._epoch.accepted:
                self._retry_after.raise_to_likely()
        if retry_after is not None:
            self._gate.keep_closed(now + retry_after)
            self.budgets[REQUESTS].keep_empty(self._gate.closed_until)
        return Refusal(False, 0.0)

    def failed(self, now: float, grant: Grant, *, retry_after: float | None = None) -> None:
        """Close the grant of a call that the provider was too busy for."""
        self._leave(now, grant)
        self._take_back(now, grant, refund=True)
        self._overload.note_failure(
            now, self.in_flight, is_probe=grant.is_probe, retry_after=retry_after
        )

    def cancelled(self, now: float, grant: Grant, *, was_sent: bool) -> None:
        """Close the grant of a call that was given up; what was never sent costs nothing."""
        self._leave(now, grant)
        self._overload.note_cancelled(is_probe=grant.is_probe)
        if was_sent:
            self._doubt.settle(grant)
        else:
            self._take_back(now, grant, refund=True)

    def room(self, now: float) -> float:
        """Return how full the tightest bucket is, 1 at the most: a pool compares its keys by it.

        Of equally full ones the one with fewer calls in flight has a little more.
        """
        shares = []
        for budget in self.budgets.values():
            if budget.is_limited:
                budget.refill(now)
                shares.append(budget.level / budget.capacity)
        return min(shares, default=1.0) - 1e-6 * self.in_flight

    def learned(self) -> dict[str, Known]:
        """Return what is worth knowing in the next run: not what was told."""
        return limits_to_remember(self.budgets.values(), self._slots)

    def recall(self, learned: Mapping[str, Known], *, share: float) -> None:
        """Start from what an earlier run learned.

        Args:
            learned: What ``learned`` returned there.
            share: Of the rates that the provider had not told, so much is believed still.

        What is told now leaves nothing to be recalled.
        """
        if self._belief.is_told or not learned:
            return
        self._end_unlimited()
        for name, (limit, rate, capacity) in learned.items():
            if name not in FIELDS:  # another version counts it
                continue
            budget = self.budgets.get(name)
            if budget is None:
                budget = self._lane.add(name, None, self._epoch.open_at, 0.0)
            budget.recall(limit, rate * share, capacity)
        belief = self._belief
        belief.is_first = False
        belief.is_searching = share < WELL_KNOWN_SHARE and not belief.knows_limits
        belief.is_recalled = True
        self._doubt.fit_to_memory(self.calls_per_second)

    def known_limits(self) -> list[tuple[str, float, str]]:
        """Return dimension, limit and source of each limit that is known or believed.

        Limits are per minute; ``requests_per_day`` is per day, ``concurrency`` a number.
        """
        return shown_limits(self.budgets.values(), self._slots)

    @property
    def calls(self) -> int:
        """Calls started so far."""
        return self._epoch.calls

    @property
    def has_answered(self) -> bool:
        """Whether any call was ever dealt with."""
        return self._overload.has_answered

    @property
    def overloaded_since(self) -> float | None:
        """When the provider stopped dealing with calls; None while it does."""
        return self._overload.since

    @property
    def calls_per_second(self) -> float:
        """The rate of calls that the limits allow, as far as they are known."""
        return self._rates.calls_per_second

    def _leave(self, now: float, grant: Grant) -> None:
        grant.is_open = False
        self.in_flight -= 1
        self._lane.release(now, grant)

    def _take_back(self, now: float, grant: Grant, *, refund: bool) -> None:
        """Forget the charge of a call that the provider did not take."""
        self._doubt.settle(grant)
        for budget in self.budgets.values():
            if budget.number >= len(grant.spent_then):
                continue  # it was not known when the call was charged
            amount = grant.cost[budget.field]
            late = grant.cost[PENDING] if budget.counts_output else 0.0
            budget.uncharge(now, amount, grant.at, refund=refund, late=late)
            self._epoch.forget(grant, budget, amount)
        self._evidence.forget(grant)
        self._scarce.forget(grant)
        self._retry_after.forget(grant)

    def _confirm_silent(self, now: float) -> None:
        """Count the calls as let in that have been silent for long enough."""
        while (grant := self._doubt.silent(now)) is not None:
            self._confirm(now, grant)

    def _confirm_passed(self, now: float, refused: Grant, retry_after: float | None) -> None:
        """Count calls as let in that were sent before one refused right after the gate opened."""
        epoch, doubt, is_guess = self._epoch, self._doubt, retry_after is None
        while (grant := doubt.passed(now, refused, is_guess=is_guess)) is not None:
            self._confirm(now, grant)
        if epoch.accepted:
            self._evidence.note_reopened(epoch.reopened_at)

    def _confirm(self, now: float, grant: Grant) -> None:
        """Count a call in doubt as let in."""
        if self._uncounted:
            self._count()
        doubt, epoch, belief = self._doubt, self._epoch, self._belief
        grant.is_in_doubt = False
        doubt.calls -= 1
        self._accepted += 1
        if self.refusals:  # else neither has anything to compare with
            self._slots.note_accepted(now, grant.beside)
            if self._chance_belief.is_believed:
                self._chance_belief.note_accepted()
        if grant.number > epoch.calls_at_cut:
            if not epoch.accepted:
                self._reopen(now, grant)
            if self.refusals and self._chance.tries_calls:
                self._chance.note_tried(grant, self.refusals)
            epoch.accepted += 1
            self._gate.closed_again = 0
            if not (self.is_unlimited or belief.knows_limits):
                self._evidence.note(now)
            if not belief.is_first and self._rates.grow(now) and not belief.knows_limits:
                doubt.fit(self.calls_per_second, is_searching=belief.is_searching)
        if belief.is_first or belief.knows_limits:
            doubt.note_accepted(self._accepted)
        if now >= self._ceiling_room.due:
            self._ceiling_room.step(now, self._lane.in_order, self.calls_per_second)

    def _count(self) -> None:
        """Allow more in doubt for the calls that were answered while unlimited."""
        if self._uncounted:
            self._doubt.note_accepted(self._accepted, self._uncounted)
            self._uncounted = 0

    def _end_unlimited(self) -> None:
        """Count what calls take from now on: some limit may be known."""
        self._count()
        self.is_unlimited = False

    def _reopen(self, now: float, grant: Grant) -> None:
        """Take in that the first call since a cut was let in."""
        epoch, belief, budgets = self._epoch, self._belief, self.budgets.values()
        epoch.open_at = self._rates.grown_at = now
        epoch.reopened_at = grant.at
        if not belief.is_first:
            knew_limits = belief.knows_limits
            self._closure.explain(now, grant, budgets, belief, epoch)
            if belief.is_by_window and not knew_limits:
                requests = self.budgets[REQUESTS]
                self._doubt.fit_to_minute(requests.limit or 0, is_fixed=requests.is_window)
        self._retry_after.measure()
        if belief.is_searching:
            self._search.correct(budgets)
            learn_from_closure(grant, budgets, epoch.refused_at, self._doubt.seconds)

    def _cut(
        self,
        now: float,
        grant: Grant,
        retry_after: float | None,
        dimension: str | None,
        *,
        is_early: bool,
    ) -> bool:
        """Work out what the first refusal of an epoch means: which rates are cut, and how far.

        Args:
            now: The time.
            grant: The refused call's.
            retry_after: Seconds that it asks to wait.
            dimension: The one that refused, where that is known.
            is_early: Whether the call came a moment too soon: no rate is cut.

        Returns:
            Whether the gate was closed because of it.
        """
        epoch, belief, gate = self._epoch, self._belief, self._gate
        if not (epoch.accepted or belief.is_first or self._chance.tries_calls):
            self._confirm_passed(now, grant, retry_after)
        epoch.number += 1
        belief.is_recalled = False
        named = dimension if dimension in self.budgets else None
        is_day = dimension == REQUESTS_PER_DAY and named is None
        is_unheard = self._was_used_up(retry_after)
        # Still closed, which says nothing about the rate; nor does a day's limit, that is tried
        # ever more rarely.
        was_closed = is_day or not belief.is_first or (is_unheard and self.refusals > 1)
        is_closed_still = was_closed and not epoch.accepted
        gate.closed_again = gate.closed_again + 1 if is_closed_still else 0
        if is_day or is_unheard:
            epoch.close()
            self._close_gate(now, retry_after)
            return True
        if retry_after is not None or not is_closed_still:
            epoch.refused_at = grant.at
        bounds = [] if is_closed_still else self._chance.bounds(retry_after)
        is_of_told = belief.is_first and belief.is_told
        is_used_up = is_of_told and explains_used_up(
            self.budgets, grant, now, grant.at - epoch.began_at
        )
        emptied = emptied_by(self.budgets, now, named, belief, is_closed_still=is_closed_still)
        seconds = self._seconds_since_cut(grant)
        is_trial = self._ceiling_room.note_refused(now, self._lane.in_order, retry_after)
        cut = () if is_used_up or is_trial or is_early else emptied
        if not is_closed_still and not self._cut_rates(now, grant, retry_after, cut, seconds):
            return False
        self._begin_epoch(now, grant, retry_after, emptied, bounds)
        return True

    def _begin_epoch(
        self,
        now: float,
        grant: Grant,
        retry_after: float | None,
        emptied: Collection[Budget],
        bounds: list[Bound],
    ) -> None:
        """Begin to count anew with empty budgets and a closed gate."""
        epoch, belief, gate = self._epoch, self._belief, self._gate
        requests = self.budgets[REQUESTS]
        thought = requests.thought_at(now, grant)
        is_explained = any(budget.windows.is_used_up(now) for budget in self.budgets.values())
        for budget in self.budgets.values():
            if not is_explained:
                budget.windows.distrust(now)
            if budget in emptied:
                self._drain(now, budget, grant, retry_after)
        was_first, belief.is_first = belief.is_first, False
        if was_first:
            self._closure.expect(self.budgets.values(), retry_after)
            self._first.note(now, grant, requests)
        epoch.close()
        self._rates.grown_at = now
        tried = self._chance.try_calls(now, retry_after, grant, bounds)
        if not tried or retry_after is not None:
            self._close_gate(now, retry_after)
        requests.keep_empty(gate.closed_until)
        if belief.sees_headers:
            requests.headers.others.note_refused(now, gate.closed_until, thought, requests.capacity)
        self._fit_doubt(emptied)
        self._doubt.limit = max(self._doubt.limit, tried)

    def _was_used_up(self, retry_after: float | None) -> bool:
        """Tell whether a limit was used up before the first call.

        That says when it opens, and nothing of how much it is.
        """
        is_unheard = self._belief.is_first and not (self._accepted or self._belief.is_told)
        is_closed = (retry_after or 0.0) > SHORTEST_CLOSURE_SECONDS or self._epoch.number > 1
        return is_unheard and is_closed

    def _fit_doubt(self, emptied: Iterable[Budget]) -> None:
        """Allow fewer calls in doubt after a refusal."""
        if not self._belief.knows_limits:
            self._doubt.fit_to_cut(self.calls_per_second)
        elif self._belief.is_told:
            is_counted = any(budget.windows.may_be_counted for budget in emptied)
            self._doubt.fit_to_told(is_counted=is_counted)

    def _seconds_since_cut(self, grant: Grant) -> float:
        """Return the seconds since the last cut, as far as they tell how much is refilled in them.

        Where that was for a trial, less was let in since than could be.
        """
        shortest = SECOND_CUT_SECONDS if self._ceiling_room.was_refused else 1e-3
        return max(grant.at - self._epoch.cut_at, shortest)

    def _cut_rates(
        self,
        now: float,
        grant: Grant,
        retry_after: float | None,
        cut: Collection[Budget],
        seconds: float,
    ) -> bool:
        """Cut the rates of some budgets; of none when it was chance."""
        epoch, belief, budgets = self._epoch, self._belief, self.budgets
        self._evidence.end(now, grant, epoch.calls)
        if not belief.is_first and self._chance.explains(now, grant, retry_after):
            return False
        if not belief.knows_limits:
            self._scarce.note(grant, retry_after)
        self._retry_after.begin(now, grant)
        self._retry_after.note(grant, retry_after, self._accepted)
        is_whole = self._retry_after.is_whole(retry_after)
        is_fast = self._chance_belief.is_suspected and is_whole
        cuts = self._search.judge(is_fast=is_fast, is_whole=is_whole)
        is_explained = any(budget.windows.explains(now) for budget in cut)
        for budget in cut:
            self._cuts.cut(now, budget, grant, seconds, is_explained=is_explained)
        if belief.is_first:
            if retry_after is not None:
                if is_whole:
                    start_higher(budgets.values(), retry_after, seconds)
                expect_tiny(budgets.values(), grant)
            self._retry_after.raise_to_likely()
        self._search.note_cut(cuts)
        self._rates.keep_in_step()
        belief.is_searching = self._search.goes_on
        epoch.note_empty(now, grant, retry_after or 0.0, budgets.values())
        return True

    def _drain(self, now: float, budget: Budget, grant: Grant, retry_after: float | None) -> None:
        """Take a budget for empty, because it refused a call."""
        budget.drain(now, -self._scarce.owed(budget) - self._ceiling_room.owed(budget))
        if self._belief.is_searching:  # one call probes whether the provider has room again
            one_call = min(budget.capacity, grant.cost[budget.field])
            budget.level = max(budget.level, one_call)
        if budget.is_window and retry_after is not None:
            budget.windows.opens_again(now, now + retry_after + LATE_SECONDS)

    def _close_gate(self, now: float, retry_after: float | None) -> None:
        # Until a call is let in after the first refusal the rate is a guess, and no reason to wait.
        is_guess = self._epoch.number <= self._gate.closed_again + 1
        self._gate.close(
            now,
            retry_after,
            self.calls_per_second,
            is_guess=is_guess,
            minute_at=self.budgets[REQUESTS].charged_at + MINUTE,
            accepted=self._accepted,
        )

    def _explains_in_flight(self, grant: Grant, dimension: str | None, *, is_first: bool) -> bool:
        """Tell whether a limit on calls in flight refused a call: that says nothing of the rate."""
        was_known = self._slots.is_known
        if dimension == CONCURRENCY:
            is_so = self._slots.told(grant.beside)
        elif self._retry_after.exact.is_known and not was_known:
            return False  # the limit of a rate explains it
        else:
            is_so = self._slots.explains(grant.beside, is_first=is_first)
        if is_so and not was_known:
            self._rates.lift()
        elif was_known and not self._slots.is_known:
            self._rates.land()
        return is_so
