"""When does a bucket that refused have room again? From one such moment to the next: its rate.

A refused call's Retry-After tells the moment at which the bucket holds what the call costs. So what
was let in from one such moment to the next, with the difference of the two calls' costs, came back
in the time between them: that is the limit's rate, to the fraction of a call, as long as the bucket
was never full meanwhile. The dimension whose rate was the same twice is the one that refuses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from batch_llm.strategies.dimensions import REQUESTS

if TYPE_CHECKING:
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.evidence import Evidence
    from batch_llm.strategies.admission.grants import Grant

#: Nothing is measured from fewer calls, nor where more than this share of the rate is uncertain.
FEWEST_CALLS, MOST_UNKNOWN_SHARE = 4.0, 0.1
#: A moment may be wrong by so many seconds, because calls do not always take equally long to
#: arrive; and by so many more where Retry-After is in whole seconds.
JITTER_SECONDS, WHOLE_SECONDS = 0.03, 0.5
#: So many calls right behind a refused one do not count when it is estimated how fast calls were
#: sent: they may have been sent together with it.
FEW_BEHIND = 6
#: Two rates are the same when they differ by no more than this share and half of what is uncertain
#: in both.
SAME_SHARE = 0.015
#: The dimension whose rates differ least is the one that refuses. So much of the earlier difference
#: is added to the newest one; and a further dimension is chosen only when its rates differ by so
#: much less than those of the one chosen before it.
MEMORY_SHARE, CLEARLY_LESS = 0.5, 0.005
#: A dimension whose rates differed by a larger share lately has a limit that changes.
MOST_DIFFER = 0.1


class Measured(NamedTuple):
    """A limit's rate per second.

    Attributes:
        name: The dimension.
        rate: In its unit, requests or tokens.
        calls: The same rate in calls.
    """

    name: str
    rate: float
    calls: float


class Point(NamedTuple):
    """A moment at which a bucket has room again.

    Attributes:
        at: The time.
        charged: By dimension, what was charged by then, with the call that has room.
        unknown_seconds: By so much it may have been sooner or later.
        unknown_calls: So many calls more or less may have been charged by then.
    """

    at: float
    charged: dict[str, float]
    unknown_seconds: float
    unknown_calls: float


class ReadyPoints:
    """The last moments at which the bucket had room again. Every operation is O(1).

    Args:
        budgets: By dimension; some may be added later.
    """

    __slots__ = (
        "_at",
        "_before",
        "_budgets",
        "_charged",
        "_cost",
        "_differ",
        "_is_first",
        "_newest",
        "_rates",
        "_unknown_calls",
        "_unknown_seconds",
        "_unknown_share",
    )

    def __init__(self, budgets: dict[str, Budget]) -> None:
        self._budgets = budgets
        #: When there is room again for the call that this volley of refusals is measured by; by how
        #: many seconds that may be wrong, and by how many calls what was charged; what the call
        #: costs, and what was charged before it.
        self._at, self._unknown_seconds, self._unknown_calls = -math.inf, 0.0, 0.0
        self._cost: dict[str, float] = {}
        self._charged: dict[str, float] = {}
        #: The number of the newest call that is in what was charged.
        self._newest = 0
        #: Whether it is the first volley: its calls were sent at once, and the last moment counts.
        self._is_first = True
        #: The earlier moment, from which the rate is measured to the newest one.
        self._before: Point | None = None
        #: The rates that were measured last, and the share by which they may be wrong.
        self._rates: dict[str, float] = {}
        self._unknown_share = 0.0
        #: By how much a dimension's rates differed lately.
        self._differ: dict[str, float] = {}

    def begin(self, now: float, grant: Grant, calls: int, *, is_first: bool) -> None:
        """Begin a volley of refusals with a refused call, when ``calls`` calls had been sent."""
        self._at, self._cost, self._is_first = -math.inf, {}, is_first
        # Calls that were sent at about the same time did not arrive in that order.
        per_second = max(0, calls - grant.number - FEW_BEHIND) / max(now - grant.at, JITTER_SECONDS)
        self._unknown_calls = 2 * JITTER_SECONDS * per_second
        if is_first:
            self._newest = calls
            self._charged = {name: budget.charged for name, budget in self._budgets.items()}
        else:
            self._newest = grant.number
            self._charged = {
                name: grant.charged_before(budget)
                for name, budget in self._budgets.items()
                if budget.number < len(grant.spent_then)
            }

    def note(self, grant: Grant, retry_after: float, *, is_whole: bool) -> None:
        """Take in when the bucket has room for a refused call: after ``retry_after`` seconds."""
        unknown = WHOLE_SECONDS if is_whole else 0.0
        at = grant.at + retry_after - unknown
        if at > self._at and (self._is_first or self._at == -math.inf):
            self._at, self._unknown_seconds = at, unknown + JITTER_SECONDS
            self._cost = {
                name: grant.charged(budget)
                for name, budget in self._budgets.items()
                if budget.number < len(grant.spent_then)
            }

    def forget(self, grant: Grant) -> None:
        """Take back a call of before the volley that turned out to be refused."""
        if grant.number <= self._newest:
            for name, budget in self._budgets.items():
                if name in self._charged and budget.number < len(grant.spent_then):
                    self._charged[name] -= grant.charged(budget)

    def clear(self) -> None:
        """Forget all: no bucket refused, or one of which the limit is known by other means."""
        self._at, self._before, self._rates = -math.inf, None, {}

    @property
    def has_measured(self) -> bool:
        """Whether there are rates between the last two moments, the same as before or not."""
        return bool(self._rates)

    def measure(self, evidence: Evidence) -> Measured | None:
        """Return the rate that was the same twice; once for each volley, when it is over.

        Args:
            evidence: Tells whether a bucket was full meanwhile.
        """
        if self._at == -math.inf:
            return None
        point = Point(
            self._at,
            {name: self._charged.get(name, 0.0) + cost for name, cost in self._cost.items()},
            self._unknown_seconds,
            self._unknown_calls,
        )
        self._at, before = -math.inf, self._before
        if before is None or point.at <= before.at:
            self._before = point
            return None
        seconds = point.at - before.at
        unknown_seconds = point.unknown_seconds + before.unknown_seconds
        amounts = {
            name: charged - before.charged[name]
            for name, charged in point.charged.items()
            if name in before.charged
        }
        calls = amounts.get(REQUESTS, 0.0)
        unknown_calls = point.unknown_calls + before.unknown_calls
        unknown_share = unknown_seconds / seconds + unknown_calls / max(calls, 1e-3)
        if calls < FEWEST_CALLS or unknown_share > MOST_UNKNOWN_SHARE:
            return None  # too little: it is measured from the same moment to a later one
        last, same = self._rates, SAME_SHARE + (unknown_share + self._unknown_share) / 2
        self._before, self._unknown_share = point, unknown_share
        self._rates = {name: amount / seconds for name, amount in amounts.items()}
        best, found = math.inf, None
        for name, rate in self._rates.items():
            most, least = max(rate, last.get(name, 0.0)), min(rate, last.get(name, 0.0))
            if least <= 0:
                continue
            differ = 1 - least / most
            self._differ[name] = MEMORY_SHARE * self._differ.get(name, differ) + differ
            if self._differ[name] > MOST_DIFFER:
                continue
            is_best = self._differ[name] < best - (CLEARLY_LESS if found else 0.0)
            if differ < same and is_best and evidence.was_never_full(name, most):
                best = self._differ[name]
                found = Measured(name, most, most * calls / amounts[name])
        return found
