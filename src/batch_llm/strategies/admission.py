"""Full speed under limits that nobody told us: when may the next call start?

A controller for one lane (provider, account, model family), without any I/O: the caller brings the
clock, asks ``wait`` before each call, and tells what became of it. Every operation is O(1).

Each dimension of the limits is a budget (``budgets.py``), and a call starts when all of them have
its cost. A refusal comes back in tenths of a second, an answer after seconds: so a call that has
not been refused for a moment counts as let in, and only so many calls may be in doubt at a time.
That makes a start fast and a refusal cheap. The first refusal among the calls sent under one belief
cuts the rates once, whatever comes late; then they grow again, fast while far from where the last
cut was, slowly near it (CUBIC, without a scale of its own). A Retry-After closes the gate for
exactly that long, longer when it proves too short. Headers with limits are believed over everything
else, and show what others use of the same key.

What it reaches on the test bench is in ``docs/admission.md``.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from batch_llm.strategies.budgets import REQUESTS, REQUESTS_PER_DAY, Budget, LimitHeader
from batch_llm.strategies.enclosure import CLOSED_SHARE, FEWEST_CALLS, Round, measured_rate
from batch_llm.strategies.noise import Noise
from batch_llm.strategies.overload import Overload
from batch_llm.strategies.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.core.config import Limits

TOKENS, INPUT, OUTPUT = "tokens", "input_tokens", "output_tokens"
#: Not counted per minute: how many calls may be in flight.
CONCURRENCY = "concurrency"
#: Kinds of tokens that a call's output counts in.
_WITH_OUTPUT = {TOKENS, OUTPUT}

#: The share of the rate that a cut leaves; the least that a second cut within moments leaves.
CUT, DEEPEST_CUT = 0.87, 0.5
#: And what it leaves when the bucket is too small to tell.
BLIND_CUT = 0.75
SECOND_CUT_SECONDS = 5.0
#: Of a rate that was measured between two refusals so much is used.
MEASURED_SHARE = 0.9
#: After so many seconds without a cut the rate is back where it was, and goes on from there.
RECOVERY_SECONDS = 28.0
#: Of the time that the gate was closed, so much counts as time without a cut.
CLOSED_CREDIT_SECONDS = 15.0
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
#: The first call that is let in after the first refusal shows the rate at which its cost came back;
#: so much of that is believed, because the bucket was not quite empty.
CLOSURE_SHARE = 0.5
#: A gate that was closed for less says nothing of a fixed window.
SHORTEST_CLOSURE_SECONDS = 5.0
#: Nor does one that was closed for no more than so many times what the guessed rate needs for the
#: largest call; or, where no Retry-After says it, for all that is still to be charged.
LONG_CLOSURES, OWED_CLOSURES = 3.0, 2.0
#: What is remembered with less trust than this is where a search begins; else it is kept to.
WELL_KNOWN_SHARE = 0.8
#: What is remembered is kept to for so long; when nothing was refused by then, it is searched on.
RECALLED_SECONDS, RECALLED_SPAN_SECONDS = 20.0, 4.0
#: A bucket that is fuller than this is not what holds the calls up: its rate does not grow.
UNUSED_SHARE = 0.9
#: How much a rate may grow in one step.
GROWTH_STEP = 0.25
#: Rates grow no more often than this.
SHORTEST_GROWTH_SECONDS = 0.002
#: A call that was not refused for so long counts as let in; learned from refusals within bounds.
DOUBT_SECONDS, SHORTEST_DOUBT_SECONDS, LONGEST_DOUBT_SECONDS = 0.5, 0.1, 2.0
#: Calls in doubt at a time: at the start, when headers show the limits, and at the most.
DOUBT_START, DOUBT_SEEN, DOUBT_MOST = 2.0, 32.0, 256.0
DOUBT_LEAST = 32.0
#: While a rate is searched so many, because they are refused when it is found.
DOUBT_SEARCH = 64.0
DOUBT_SHARE, DOUBT_TOLD_SHARE = 0.2, 0.05
#: Where many were let in and none refused, this share of them may be in doubt as well.
DOUBT_LATER_SHARE = 0.05
#: Of what a rate sends while a call is in doubt, so much may be in doubt.
DOUBT_OVER_PACED = 1.2
#: Without a Retry-After the closed gate is tried again after this, doubling up to the longest.
PROBE_SECONDS, LONGEST_PROBE_SECONDS = 0.25, 8.0
#: A call whose rate is known from no dimension: so many a second.
ASSUMED_RATE = 10.0
#: Calls sent after the first refusal, before it was known, that were answered: so many, and of all
#: of them so large a share, and the refusal did not mean that the bucket was empty.
FOLLOWERS, FOLLOWERS_SHARE = 8, 0.8


def _told(limits: Limits | None) -> dict[str, float]:
    if limits is None:
        return {}
    named = {
        REQUESTS: limits.requests_per_minute,
        TOKENS: limits.tokens_per_minute,
        INPUT: limits.input_tokens_per_minute,
        OUTPUT: limits.output_tokens_per_minute,
        REQUESTS_PER_DAY: limits.requests_per_day,
    }
    return {name: limit for name, limit in named.items() if limit}


class Cost(NamedTuple):
    """What a call is expected to take of each dimension.

    Attributes:
        requests: 1.
        tokens: Input and output as the provider will charge them together.
        input_tokens: Input alone.
        output_tokens: Output alone.
        pending: The part of the output that the provider charges only when the call ends.
    """

    requests: float = 1.0
    tokens: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    pending: float = 0.0


#: Which part of a call's cost each dimension counts.
_FIELDS = {name: Cost._fields.index(name) for name in (REQUESTS, TOKENS, INPUT, OUTPUT)}
_FIELDS[REQUESTS_PER_DAY] = _FIELDS[REQUESTS]


class Grant:
    """One call that was let in. It is closed once: taken, refused, failed or cancelled."""

    __slots__ = (
        "at",
        "cost",
        "epoch",
        "is_in_doubt",
        "is_open",
        "is_probe",
        "number",
        "others",
        "pending_then",
        "spent_then",
    )

    def __init__(self, at: float, epoch: int, cost: Cost, number: int, others: int) -> None:
        self.at = at
        self.epoch = epoch
        self.cost = cost
        self.number = number
        #: Calls in flight beside it when it was sent.
        self.others = others
        self.is_probe = False
        self.is_in_doubt = self.is_open = True
        #: By budget: what had been spent, this call included, and what was pending.
        self.spent_then: list[float] = []
        self.pending_then: list[float] = []


class Known(NamedTuple):
    """What is known of one dimension at the end of a run.

    Attributes:
        limit: Per minute or day, where the provider told it; None where it was learned.
        rate: Per second.
        capacity: What the bucket holds.
    """

    limit: float | None
    rate: float
    capacity: float


class Refusal(NamedTuple):
    """What follows from a refused call.

    Attributes:
        is_news: Whether the rates were cut and the gate was closed because of it.
        wait_seconds: What the call waits on its own before it comes again.
    """

    is_news: bool
    wait_seconds: float


class Admission:
    """Decides when the calls of one lane may start.

    Args:
        now: The time.
        limits: What is known of the limits: ceilings that are never passed. What they leave out is
            taken for unlimited.
        dimensions: What the provider counts, where no limit is known.
        burst_seconds: How many seconds of its rate a told limit may be used up at once.
        max_in_flight: Calls at a time at the most.
        dice: Spreads what would otherwise happen at the same moment everywhere.
    """

    def __init__(
        self,
        now: float,
        limits: Limits | None = None,
        *,
        dimensions: tuple[str, ...] = (REQUESTS, TOKENS),
        burst_seconds: float = 60.0,
        max_in_flight: float = 1000,
        dice: random.Random | None = None,
    ) -> None:
        told = _told(limits)
        self.budgets: dict[str, Budget] = {}
        for name in dict.fromkeys([REQUESTS, *(told or dimensions)]):
            self._add(name, told.get(name), now, burst_seconds)
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.refusals = 0
        self._is_told = bool(told)
        self._sees_headers = False
        self._dice = dice or random.Random()  # noqa: S311 - spreads load, protects nothing
        #: Before this time nobody starts.
        self.closed_until = 0.0
        #: Refusals in a row that came although the gate had been closed long enough.
        self._closed_again = 0
        #: Grants of an older epoch were sent before the last cut: their refusals say nothing new.
        self._epoch = self._number = self._number_at_cut = 0
        self._cut_at = self._open_at = self._grown_at = self._began_at = now
        #: When the first call was sent that was let in since the last cut.
        self._reopened_at = now
        #: The number of the refused call that the last cut was made for.
        self._number_when_empty = 0
        self._is_first = True
        self._is_searching = False
        #: Whether all that is known was remembered, and nothing has confirmed or refuted it.
        self._is_recalled = False
        self._accepted = self._accepted_since_cut = 0
        self._doubtful: deque[Grant] = deque()
        self._in_doubt = 0
        self._doubt_seconds = DOUBT_SECONDS
        self._doubt_limit = DOUBT_START
        self._doubt_share = DOUBT_TOLD_SHARE if told else DOUBT_SHARE
        self._doubt_told = self._doubt_share * told.get(REQUESTS, 0.0)
        self._noise = Noise()
        self._slots = Slots()
        self._overload = Overload(now, self._dice)
        self._search_cuts = 0
        #: When the first refusal closes the gate for longer, the limit is counted by the minute.
        self._longest_of_bucket = math.inf
        #: Whether the limits were found to be counted by the minute.
        self._is_by_window = False
        #: Whether the last refusal has enclosed the limit well enough.
        self._is_bracketed = False
        #: The first refusal's number, and what became of the calls sent after it under its belief.
        self._first_refused = 0
        self._followers_accepted = self._followers_refused = 0
        self._doubt_at_cut = DOUBT_START

    def _add(self, name: str, limit: float | None, now: float, burst_seconds: float) -> Budget:
        budget = Budget(name, limit, now, burst_seconds)
        budget.field, budget.number = _FIELDS[name], len(self.budgets)
        budget.counts_output = name in _WITH_OUTPUT
        self.budgets[name] = budget
        return budget

    def wait(self, now: float, cost: Cost) -> float:
        """Return the seconds until a call may start: 0 now, infinity when one must end first."""
        if now < self.closed_until:
            return self.closed_until - now
        overload, in_flight = self._overload, self.in_flight
        if overload.since is not None and (outage := overload.wait(now)) > 0:
            return outage
        if (
            in_flight >= self.max_in_flight
            or in_flight >= self._slots.tried
            or in_flight >= overload.concurrency
        ):
            return math.inf
        self._believe_silence(now)
        if self._in_doubt >= (1 if self._closed_again else self._doubt_limit):
            oldest = self._doubtful[0].at if self._doubtful else now
            return max(1e-3, oldest + self._doubt_seconds - now)
        if self._is_searching and not (self._accepted_since_cut or self._in_doubt):
            return (
                0.0  # the gate is open: what the first refusal left is a guess, no reason to wait
            )
        longest = 0.0
        for budget in self.budgets.values():
            amount = cost[budget.field]
            if amount > 0 and budget.capacity < math.inf:
                longest = max(longest, budget.wait(now, amount))
        return longest

    def start(self, now: float, cost: Cost) -> Grant:
        """Let a call in, and charge it. Whoever starts it closes the grant."""
        self._number = number = self._number + 1
        grant = Grant(now, self._epoch, cost, number, self.in_flight)
        grant.is_probe = self._overload.start()
        self.in_flight += 1
        spent_then, pending_then = grant.spent_then, grant.pending_then
        for budget in self.budgets.values():
            amount = cost[budget.field]
            if amount > budget.largest:  # noqa: PLR1730 - on the hot path: a call costs more
                budget.largest = amount
            budget.charge(now, amount)
            spent_then.append(budget.spent)
            if budget.counts_output:
                budget.pending += cost.pending
            pending_then.append(budget.pending)
        self._doubtful.append(grant)
        self._in_doubt += 1
        return grant

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
        self._leave(grant)
        self._overload.note_answer(now, is_probe=grant.is_probe)
        if self._epoch == 1 and grant.epoch == 0 and grant.number > self._first_refused:
            self._note_follower(was_accepted=True)
        self._confirm(now, grant)
        if used is not None:
            # What is searched from a guess is held up by no debt of calls from before.
            is_old = self._is_searching and grant.number <= self._number_at_cut
            for budget in self.budgets.values():
                difference = used[budget.field] - grant.cost[budget.field]
                if difference and budget.number < len(grant.spent_then):
                    if is_old and difference > 0:
                        budget.spent += difference
                    else:
                        budget.settle(now, difference, grant.at)
        if headers:
            self._sync(now, grant, headers)

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
        self._leave(grant)
        self.refusals += 1
        self._overload.note_answer(now, is_probe=grant.is_probe)
        self._take_back(now, grant, refund=False)
        if headers:
            self._sync(now, grant, headers)
        learned = max(0.7 * self._doubt_seconds + 0.6 * latency, 1.3 * latency)
        self._doubt_seconds = max(SHORTEST_DOUBT_SECONDS, min(LONGEST_DOUBT_SECONDS, learned))
        is_first = grant.epoch == self._epoch
        if self._explains_in_flight(grant, dimension, is_first=is_first):
            return Refusal(False, retry_after or 0.0)
        if is_first and self._noise.is_believed and not self._noise.note_refused():
            wait = PROBE_SECONDS * self._dice.uniform(0.5, 1.5)
            return Refusal(False, wait if retry_after is None else retry_after)
        if is_first:
            named = dimension or _used_up(grant.cost, headers)
            return Refusal(self._cut(now, grant, retry_after, named), 0.0)
        if grant.epoch == 0 and self._epoch == 1:
            self._note_follower(was_accepted=False)
        if retry_after is not None:
            self.closed_until = max(self.closed_until, now + retry_after)
        return Refusal(False, 0.0)

    def failed(self, now: float, grant: Grant, *, retry_after: float | None = None) -> None:
        """Close the grant of a call that the provider was too busy for."""
        self._leave(grant)
        self._take_back(now, grant, refund=True)
        self._overload.note_failure(
            now, self.in_flight, is_probe=grant.is_probe, retry_after=retry_after
        )

    def cancelled(self, now: float, grant: Grant, *, was_sent: bool) -> None:
        """Close the grant of a call that was given up; what was never sent costs nothing."""
        self._leave(grant)
        self._overload.note_cancelled(is_probe=grant.is_probe)
        if was_sent:
            self._settle_doubt(grant)
        else:
            self._take_back(now, grant, refund=True)

    def room(self, now: float) -> float:
        """Return the share of the tightest bucket that is there; 1 and less without limits."""
        shares = []
        for budget in self.budgets.values():
            if budget.is_limited:
                budget.refill(now)
                shares.append(budget.level / budget.capacity)
        return min(shares, default=1.0) - 1e-6 * self.in_flight

    def learned(self) -> dict[str, Known]:
        """Return what is worth knowing in the next run: not what was told."""
        return {
            name: Known(
                budget.limit if budget.source != "unknown" else None,
                budget.limit / budget.window_seconds if budget.limit else budget.rate,
                budget.capacity,
            )
            for name, budget in self.budgets.items()
            if self._is_known(budget) and budget.source != "told"
        }

    def recall(self, learned: Mapping[str, Known], *, share: float) -> None:
        """Start from what an earlier run learned.

        Args:
            learned: What ``learned`` returned there.
            share: Of the rates that the provider had not told, so much is believed still.

        What is told now leaves nothing to be recalled.
        """
        if self._is_told or not learned:
            return
        for name, (limit, rate, capacity) in learned.items():
            if name not in _FIELDS:  # another version counts it
                continue
            budget = self.budgets.get(name)
            if budget is None:
                budget = self._add(name, None, self._open_at, 0.0)
            budget.recall(limit, rate * share, capacity)
        self._is_first = False
        self._is_searching = share < WELL_KNOWN_SHARE and not self._knows_limits
        self._is_recalled = True
        most = 2 * self.requests_per_second * self._doubt_seconds
        self._doubt_limit = max(2.0, min(DOUBT_SEARCH, most))

    def known_limits(self) -> list[tuple[str, float, str]]:
        """Return dimension, limit and source of each limit that is known or believed.

        Limits are per minute; ``requests_per_day`` is per day, ``concurrency`` a number.
        """
        limits = [
            (
                name,
                budget.limit_believed,
                budget.shown_source,
            )
            for name, budget in self.budgets.items()
            if self._is_known(budget)
        ]
        if self._slots.is_known:
            limits.append((CONCURRENCY, self._slots.most, "learned"))
        return limits

    def _is_known(self, budget: Budget) -> bool:
        """Tell whether a rate means something: under a limit on calls in flight it floats."""
        return budget.rate < math.inf and not (budget.source == "unknown" and self._slots.is_known)

    @property
    def has_answered(self) -> bool:
        """Whether any call was ever dealt with."""
        return self._accepted > 0

    @property
    def overloaded_since(self) -> float | None:
        """When the provider stopped dealing with calls; None while it does."""
        return self._overload.since

    @property
    def requests_per_second(self) -> float:
        """The rate of calls that the limits allow, as far as they are known."""
        requests = self.budgets[REQUESTS]
        rate = requests.rate
        if rate == math.inf:
            per_call = (
                budget.rate / max(budget.spent / max(self._number, 1), 1.0)
                for budget in self.budgets.values()
                if budget is not requests and budget.rate < math.inf
            )
            rate = min(per_call, default=ASSUMED_RATE)
        return max(rate, 0.02)

    @property
    def _knows_limits(self) -> bool:
        return (
            self._is_told
            or self._sees_headers
            or self._is_by_window
            or (self._is_recalled and not self._is_searching)
        )

    def _leave(self, grant: Grant) -> None:
        grant.is_open = False
        self.in_flight -= 1
        pending = grant.cost.pending
        if not pending:
            return
        known_then = len(grant.pending_then)
        for budget in self.budgets.values():
            if budget.counts_output and budget.number < known_then:
                budget.pending -= pending

    def _settle_doubt(self, grant: Grant) -> None:
        if grant.is_in_doubt:
            grant.is_in_doubt = False
            self._in_doubt -= 1

    def _take_back(self, now: float, grant: Grant, *, refund: bool) -> None:
        """Forget the charge of a call that the provider did not take."""
        self._settle_doubt(grant)
        for budget in self.budgets.values():
            if budget.number >= len(grant.spent_then):
                continue  # it was not known when the call was charged
            amount = grant.cost[budget.field]
            budget.uncharge(now, amount, grant.at, refund=refund)
            if grant.number <= self._number_at_cut:
                budget.spent_at_cut -= amount
            if grant.number < self._number_when_empty:
                budget.spent_when_empty -= amount

    def _believe_silence(self, now: float) -> None:
        doubtful, limit = self._doubtful, now - self._doubt_seconds
        while doubtful:
            if doubtful[0].is_in_doubt:
                if doubtful[0].at > limit:
                    return
                self._confirm(now, doubtful[0])
            doubtful.popleft()

    def _confirm(self, now: float, grant: Grant) -> None:
        """Count a call as let in."""
        if not grant.is_in_doubt:
            return
        grant.is_in_doubt = False
        self._in_doubt -= 1
        self._accepted += 1
        if self.refusals:  # else neither has anything to compare with
            self._slots.note_accepted(now, grant.others)
            if self._noise.is_believed:
                self._noise.note_accepted()
        if grant.number > self._number_at_cut:
            if not self._accepted_since_cut:
                self._open_at = self._grown_at = now
                self._reopened_at = grant.at
                self._explain_closure(now, grant)
                if self._is_searching:
                    self._learn_from_closure(grant)
            self._accepted_since_cut += 1
            self._closed_again = 0
            if not self._is_first:
                self._grow(now)
        if not (self._is_first or self._knows_limits):
            return
        most = max(DOUBT_MOST, self._doubt_told, DOUBT_LATER_SHARE * self._accepted)
        if self._doubt_limit < most:
            share = max(DOUBT_LEAST, min(most, self._doubt_share * self._accepted))
            aim = min(max(share, self._doubt_told), self._doubt_limit + 1)
            self._doubt_limit = max(self._doubt_limit, aim)

    def _explain_closure(self, now: float, grant: Grant) -> None:
        """Recognise a limit per fixed minute: it was closed for longer than a bucket ever is."""
        if self._is_first:
            return
        longest = max(
            (
                (budget.largest + budget.pending) / budget.rate
                for budget in self.budgets.values()
                if budget.is_limited
            ),
            default=math.inf,
        )
        closed_seconds = grant.at - self._cut_at
        is_long = closed_seconds > max(SHORTEST_CLOSURE_SECONDS, 1.5 * longest + 1)
        if not self._is_told and not self._sees_headers:
            is_long = closed_seconds > self._longest_of_bucket
            self._longest_of_bucket = math.inf
        for budget in self.budgets.values():
            budget.explain_opening(
                now, self._began_at, grant.at, is_long=is_long, others=len(self.budgets) > 1
            )
        if is_long and not self._knows_limits:
            self._is_searching = False
            self._is_by_window = True
        if closed_seconds > max(SHORTEST_CLOSURE_SECONDS, 3 * longest + 1):
            for budget in self.budgets.values():
                budget.seems_a_window(now, grant.at)

    def _learn_from_closure(self, grant: Grant) -> None:
        """Take the time since the first refusal for what this call's cost needs to come back."""
        seconds = max(grant.at - self._cut_at, self._doubt_seconds)
        for budget in self.budgets.values():
            if budget.source == "unknown" and budget.rate < math.inf:
                came_back = CLOSURE_SHARE * grant.cost[budget.field] / seconds
                budget.level = max(budget.level, 0.0)
                budget.learn_rate(max(budget.rate, came_back))

    def _cut(
        self, now: float, grant: Grant, retry_after: float | None, dimension: str | None
    ) -> bool:
        """Take the first refusal of an epoch for what it is: we were too fast, by how much?

        Returns:
            Whether the gate was closed because of it.
        """
        self._epoch += 1
        self._is_recalled = False
        named = dimension if dimension in self.budgets else None
        seconds = max(grant.at - self._cut_at, 1e-3)
        if dimension == REQUESTS_PER_DAY and named is None:
            # That says nothing about the minute's rate; but the gate is tried ever more rarely.
            self._closed_again = 0 if self._accepted_since_cut else self._closed_again + 1
            self._number_at_cut, self._accepted_since_cut = self._number, 0
            self._close_gate(now, retry_after)
            return True
        if not self._accepted_since_cut and not self._is_first:
            self._closed_again += 1  # still closed, which says nothing about the rate
        else:
            self._closed_again = 0
            cuts = self._search_cuts + 1 if self._is_searching else 0
            self._is_bracketed = (
                cuts > SEARCH_CUTS or self._ends_search(grant, seconds)
            ) and not self._is_first
            if not self._is_first and self._is_noise(now, grant, seconds):
                return False
            if not (self._is_first and self._is_told and self._explains_used_up(grant)):
                for name, budget in self.budgets.items():
                    if named is None or name == named:
                        self._cut_rate(now, budget, grant, seconds)
            self._search_cuts = cuts
            self._keep_in_step()
            # From the first refusal on the rate is searched upwards, until it is enclosed.
            goes_on = self._is_first or (self._is_searching and not self._is_bracketed)
            self._is_searching = goes_on and not self._knows_limits
            self._cut_at, self._number_when_empty = grant.at, grant.number
            for budget in self.budgets.values():
                budget.spent_when_empty = _spent_then(grant, budget) - grant.cost[budget.field]
        for name, budget in self.budgets.items():
            budget.distrust_window(now)
            budget.note_cut()
            if named is None or name == named:
                budget.drain(now, -budget.pending)
                if self._is_searching:  # one call probes whether the provider has room again
                    one_call = min(budget.capacity, grant.cost[budget.field])
                    budget.level = max(budget.level, one_call)
                if budget.is_window and retry_after is not None:
                    budget.opens_again(now, now + retry_after + 0.05)
        if self._is_first:
            self._longest_of_bucket = self._longest_closure(retry_after)
            self._first_refused = grant.number
            self._doubt_at_cut = self._doubt_limit
        self._is_first = False
        self._number_at_cut = self._number
        self._accepted_since_cut = 0
        self._grown_at = now
        self._close_gate(now, retry_after)
        self.budgets[REQUESTS].keep_empty(self.closed_until)
        if not self._knows_limits:
            self._doubt_limit = max(2.0, 2 * self.requests_per_second * self._doubt_seconds)
        return True

    def _longest_closure(self, retry_after: float | None) -> float:
        """Return for how long a bucket may refuse after the first refusal; infinity for any time.

        A bucket is asked for one call, and says when it has come back. Without its word it may
        refuse until all is charged that is pending.
        """
        longest = owed = 0.0
        for budget in self.budgets.values():
            if budget.is_limited:
                longest = max(longest, budget.largest / budget.rate)
                owed = max(owed, (budget.largest + budget.pending) / budget.rate)
        if retry_after is None:
            return max(SHORTEST_CLOSURE_SECONDS, OWED_CLOSURES * owed)
        is_long = retry_after > max(SHORTEST_CLOSURE_SECONDS, LONG_CLOSURES * longest)
        return SHORTEST_CLOSURE_SECONDS if is_long else math.inf

    def _explains_used_up(self, grant: Grant) -> bool:
        """Tell whether a told limit refused its first call because a minute's worth was used."""
        seconds = grant.at - self._began_at
        is_counted = [
            budget.seems_counted(_spent_then(grant, budget) - grant.cost[budget.field], seconds)
            for budget in self.budgets.values()
        ]
        if any(is_counted):
            return True
        requests = self.budgets[REQUESTS]
        held, spent = requests.capacity, _spent_then(grant, requests)
        requests.learn_capacity(spent, seconds)
        return requests.capacity < held

    def _explains_in_flight(self, grant: Grant, dimension: str | None, *, is_first: bool) -> bool:
        """Tell whether a limit on calls in flight refused a call: that says nothing of the rate."""
        was_known = self._slots.is_known
        if dimension == CONCURRENCY:
            is_so = self._slots.told(grant.others)
        else:
            is_so = self._slots.explains(grant.others, is_first=is_first)
        if is_so and not was_known:
            self._lift_rates()
        return is_so

    def _is_noise(self, now: float, grant: Grant, seconds: float) -> bool:
        """Tell whether refusals have turned out to come at random: no cut was due then."""
        if self._noise.is_believed:
            return False  # there are more of them now than chance brings
        rates, let_in = {}, 0.0
        for name, budget in self.budgets.items():
            amount = _spent_then(grant, budget) - budget.spent_when_empty
            rates[name] = amount / seconds
            if name == REQUESTS:
                let_in = amount - 1
        if not self._noise.note_episode(now, rates, int(let_in)):
            return False
        self._lift_rates()
        return True

    def _lift_rates(self) -> None:
        """Go back to the rates from before the cuts that a rate limit did not cause, and beyond."""
        self._is_searching = not self._knows_limits
        for name, budget in self.budgets.items():
            if budget.rate < math.inf:
                budget.peak = max(budget.peak, budget.rate, self._noise.best_rate(name))
                budget.learn_rate(budget.ceiling if budget.limit else budget.peak)

    def _note_follower(self, *, was_accepted: bool) -> None:
        """See from the calls after the first refusal whether it meant that the bucket was empty.

        When it was, hardly any of them is let in; else it was no minute's burst that was used up.
        """
        if was_accepted:
            self._followers_accepted += 1
        else:
            self._followers_refused += 1
        accepted = self._followers_accepted
        if accepted < FOLLOWERS or self._accepted_since_cut:
            return
        if accepted < FOLLOWERS_SHARE * (accepted + self._followers_refused):
            return
        for budget in self.budgets.values():
            if budget.source == "unknown" and budget.rate < math.inf:
                per_call = budget.spent / max(self._number, 1)
                budget.peak = max(budget.peak, self._doubt_at_cut * per_call / self._doubt_seconds)
                budget.learn_rate(budget.peak)

    def _cut_rate(self, now: float, budget: Budget, grant: Grant, seconds: float) -> None:
        let_in = _spent_then(grant, budget) - grant.cost[budget.field]
        let_in = max(0.0, let_in - budget.spent_when_empty)
        if self._is_first and budget.source == "unknown":
            # All of a minute's burst may have been eaten: start low, search upwards.
            let_in = let_in or grant.cost[budget.field]
            if let_in > 0:
                budget.peak = let_in / (60 + seconds)
                budget.burst = let_in
                budget.learn_rate(budget.peak)
                budget.rate_at_start = budget.rate
            return
        if self._is_by_window and budget.source == "unknown" and budget.limit:
            budget.fit_window(now, is_refused=True)
            return
        if budget.rate == math.inf or budget.is_sliding:
            return
        if self._is_first and budget.source == "header":
            return  # calls in flight were more than was left, which headers tell from now on
        budget.refill(now)
        this = Round(let_in, seconds, grant.at - self._reopened_at)
        last, budget.round = budget.round, this
        per_call = budget.spent / max(self._number, 1)
        if self._is_searching:
            measured = self._trusted(budget, last, this)
            if measured is not None:
                budget.learn_rate(MEASURED_SHARE * measured)
                budget.peak = budget.rate / CUT
            else:
                least = self._least(budget, grant, seconds)
                least = max(least, self._overtaken(budget, let_in))
                # What it is at least; where a long closure may have filled the bucket to the brim,
                # between that and what it is at most.
                is_sure = self._is_bracketed or seconds - this.open_seconds < CLOSED_SHARE * seconds
                budget.peak = least if is_sure else math.sqrt(least * budget.rate)
                budget.learn_rate(budget.peak * CUT)
            budget.rate_at_start = budget.rate
            return
        budget.peak = budget.rate
        share = CUT
        # A burst was refused, and no rate, where fewer were sent than the rate allows.
        is_paced = let_in >= PACED_SHARE * budget.rate * this.open_seconds
        if seconds < SECOND_CUT_SECONDS and let_in > 0 and is_paced:
            measured = measured_rate(last, this, per_call)
            if measured is not None:
                share = min(CUT, MEASURED_SHARE * measured / budget.rate)
                if share < CUT:
                    budget.peak = budget.rate * max(DEEPEST_CUT, share) / CUT
                    share = CUT
            else:
                # The bucket was empty then and is empty now: what was let in between came back.
                least = let_in / seconds
                closed = seconds - this.open_seconds
                if let_in < FEWEST_CALLS * per_call:
                    share = max(DEEPEST_CUT, min(CUT, least / budget.peak))
                elif budget.burst >= closed * least:  # the bucket may have held all of it
                    share = max(DEEPEST_CUT, CUT * min(1, math.sqrt(least / budget.peak)))
                else:
                    share = BLIND_CUT
        budget.learn_rate(budget.peak * share)

    def _least(self, budget: Budget, grant: Grant, seconds: float) -> float:
        """Return the rate that was let in since the last refusal, or since an earlier one.

        The bucket was empty then and is empty now, so the limit's rate is no lower.
        """
        let_in = _spent_then(grant, budget) - grant.cost[budget.field]
        budget.least = max(budget.least, (let_in - budget.spent_when_empty) / seconds)
        return budget.least

    def _overtaken(self, budget: Budget, let_in: float) -> float:
        """Return the limit's rate that a growing one has overtaken; 0 where that can't be told."""
        if let_in < BURSTS_TO_OVERTAKE * budget.burst:
            return 0.0  # all of it may have been in the bucket
        return _overtaken(budget.rate, budget.burst / self._span)

    def _trusted(self, budget: Budget, last: Round | None, this: Round) -> float | None:
        """Return the rate that a round of the search has measured, if it has."""
        measured = measured_rate(last, this, budget.spent / max(self._number, 1))
        if measured is None or budget.rate_at_start < TRUSTED_SHARE * measured:
            return None  # the bucket may have run over while the rate was below the limit's
        if measured < PACED_SHARE * budget.rate_at_start:
            return None  # or because there were not as many calls to send
        return measured

    def _ends_search(self, grant: Grant, seconds: float) -> bool:
        """Tell whether the limit is known well enough: estimated, or between close bounds."""
        for budget in self.budgets.values():
            if budget.rate == math.inf:
                continue
            let_in = _spent_then(grant, budget) - grant.cost[budget.field]
            this = Round(let_in - budget.spent_when_empty, seconds, grant.at - self._reopened_at)
            if self._trusted(budget, budget.round, this) is not None:
                return True
            least = self._least(budget, grant, seconds)
            least = max(least, self._overtaken(budget, this.let_in))
            if SEARCH_ENDS_WITHIN * least >= budget.rate:
                return True
        return False

    @property
    def _span(self) -> float:
        """The time in which a rate that is searched doubles and more."""
        if self._is_recalled:  # what is remembered is likely to hold still
            return RECALLED_SPAN_SECONDS
        span = SEARCH_SPANS * self._doubt_seconds
        span = max(SHORTEST_SPAN_SECONDS, min(LONGEST_SPAN_SECONDS, span))
        return span * SEARCH_SLOWER ** min(self._search_cuts, SEARCH_CUTS)

    def _keep_in_step(self) -> None:
        """Let no unknown dimension allow fewer calls than the requests': it was hardly in use."""
        requests = self.budgets[REQUESTS]
        if requests.source != "unknown" or requests.rate == math.inf:
            return
        for budget in self.budgets.values():
            if budget is not requests and budget.source == "unknown" and budget.rate < math.inf:
                per_call = budget.spent / max(requests.spent, 1.0)
                budget.peak = max(budget.peak, requests.peak * per_call)
                if budget.rate < requests.rate * per_call:
                    budget.learn_rate(requests.rate * per_call)

    def _close_gate(self, now: float, retry_after: float | None) -> None:
        again = self._closed_again
        if retry_after is not None:
            # Refused again after having waited as told: it was too short.
            stretch = (
                min(5.0, 0.5 * retry_after * again + 0.05 * 2 ** min(again, 6)) if again else 0
            )
            wait = retry_after + stretch + self._dice.uniform(0, 0.02)
        elif again:
            # The rate that the first refusal left is a guess, and no reason to wait.
            usual = 1 / self.requests_per_second if self._epoch > again + 1 else 0.0
            longest = max(LONGEST_PROBE_SECONDS, 2 * usual)
            wait = min(longest, max(PROBE_SECONDS, 0.5 * usual) * 2 ** min(again, 10))
            wait *= self._dice.uniform(0.8, 1.2)
        else:
            wait = min(PROBE_SECONDS, 1 / self.requests_per_second) * self._dice.uniform(0.8, 1.2)
        self.closed_until = max(self.closed_until, now + wait)

    def _grow(self, now: float) -> None:
        if self._is_first:
            return
        elapsed = now - self._grown_at
        if elapsed < SHORTEST_GROWTH_SECONDS:
            return
        self._grown_at = now
        if self._is_recalled and now - self._began_at > RECALLED_SECONDS:
            self._is_searching = True  # for all that we know the limit is a higher one now
        closed = min(CLOSED_CREDIT_SECONDS, self._open_at - self._cut_at)
        age = now - self._open_at + closed
        # While a rate is searched its bucket grows as fast as it fills.
        unused_share = UNUSED_SHARE * (0.5 if self._is_searching else 1.0)
        for budget in self.budgets.values():
            is_unused = (
                budget.level > unused_share * budget.capacity or budget.level < -budget.largest
            )
            if budget.source == "unknown" and budget.limit:
                budget.fit_window(now, is_refused=False)
                continue
            if budget.rate >= budget.ceiling or is_unused:
                continue
            budget.refill(now)
            if self._is_searching:
                rate = budget.rate * (1 + min(SEARCH_GROWTH * elapsed / self._span, SEARCH_STEP))
            else:
                distance = age / RECOVERY_SECONDS - 1
                aim = budget.peak * (1 + (1 - CUT) * distance**3)
                rate = min(
                    max(budget.rate, aim), budget.rate * (1 + GROWTH_STEP * max(elapsed, 0.2))
                )
            budget.learn_rate(rate)
        self._keep_in_step()
        if not self._knows_limits:
            paced = self.requests_per_second * self._doubt_seconds
            bound = DOUBT_SEARCH if self._is_searching else DOUBT_MOST
            self._doubt_limit = max(2.0, min(2 * paced, bound), DOUBT_OVER_PACED * paced)

    def _sync(self, now: float, grant: Grant, headers: Mapping[str, LimitHeader]) -> None:
        is_told = False
        for name, header in headers.items():
            if not _says_something(header):
                continue
            budget = self.budgets.get(name)
            if budget is None and name in _FIELDS:  # the provider counts what nobody told us of
                budget = self._add(name, None, now, 0.0)
            if budget is None or budget.number >= len(grant.spent_then):
                continue
            is_told = self._sees_headers = True
            spent, pending = grant.spent_then[budget.number], grant.pending_then[budget.number]
            is_news = budget.sync(now, grant.at, spent, pending, header)
            if is_news or self._is_recalled:
                self._is_searching = self._is_recalled = False
        if not is_told:
            return
        for other in self.budgets.values():
            if other.source == "unknown" and other.name not in headers:
                other.release()  # who tells limits tells them all
        self._doubt_limit = max(self._doubt_limit, DOUBT_SEEN)
        self._doubt_told = self._doubt_share * (self.budgets[REQUESTS].limit or 0)


def _spent_then(grant: Grant, budget: Budget) -> float:
    """Return what had been spent when a call started; 0 of a limit that was not known then."""
    return grant.spent_then[budget.number] if budget.number < len(grant.spent_then) else 0.0


def _overtaken(rate: float, burst_per_span: float) -> float:
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


def _says_something(header: LimitHeader) -> bool:
    """Tell whether a header can be believed: servers that count nothing send -1 and 0."""
    return 0 < header.limit < math.inf and header.remaining >= 0 and header.reset_seconds >= 0


def _used_up(cost: Cost, headers: Mapping[str, LimitHeader] | None) -> str | None:
    """Return the dimension that a refusal's headers show to be used up, if it is one."""
    short = [
        name
        for name, header in (headers or {}).items()
        if _says_something(header) and name in _FIELDS and header.remaining < cost[_FIELDS[name]]
    ]
    return short[0] if len(short) == 1 else None
