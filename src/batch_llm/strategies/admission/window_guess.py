"""Guesses whether a limit counts what was used in a minute, and in which one.

A limit of "600 a minute" is a bucket, a count that starts anew with each minute on the provider's
clock (a fixed window), or a count of the last sixty seconds (a sliding one). When it refuses, how
long it stays closed and when it opens tell which; what it let in until then is what a limit that
nobody told of comes to.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_llm.strategies.dimensions import DAY, REQUESTS

if TYPE_CHECKING:
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.grants import Grant

#: Votes for a fixed window and against it are counted between these; at the fewest it is none, for
#: good.
FEWEST_VOTES, MOST_VOTES = -50, 5
#: How far two openings may be from whole minutes apart: probes find them late.
OPENING_SLACK_SECONDS = 6.0
#: A sliding window may seem to open so much too soon.
SLIDING_SLACK_SECONDS = 2.0
#: A minute's limit may be used up when this share of it was charged: what an answer takes is a
#: guess. It was no bucket's when less was let in than the limit and this share of what has filled.
COUNTED_SHARE, FILLED_SHARE = 0.7, 0.5
#: A refusal with less than this used refutes a window.
REFUTING_SHARE = 0.7
#: A learned window of which this share was used explains a refusal.
EXPLAINING_SHARE = 0.97
#: The share that is used of what a window let in before it refused; and by which share the limit of
#: one that did not refuse for a minute is raised, doubled each time.
WINDOW_SHARE, WINDOW_GROWTH = 0.99, 0.05
#: A learned sliding window that refused nothing for so many times as long as it is may let in more.
#: They are no whole number: its refusals would come whole minutes apart, as a fixed one's do.
TRIED_WINDOWS = 1.5
#: Where tokens may be what is counted, the next minute may let in more calls, because they are
#: smaller by chance: by one over the square root of their number, and so many times that.
REQUESTS_SPREAD = 1.0
#: A learned sliding window refuses little; one that is closed for this share of it or longer and
#: opens again so many times, each whole minutes after the last, is a fixed one in whose first
#: moment the calls began. An opening at another time speaks against it as much as these for it.
OPENINGS, CLOSED_SHARE = 4, 0.5


class WindowGuess:
    """What speaks for a budget's being counted by the minute; changes the budget accordingly."""

    __slots__ = (
        "_budget",
        "_counted",
        "_fitted_at",
        "_growth",
        "_most",
        "_opened_at",
        "_openings",
        "_refused_at",
        "may_be_counted",
        "votes",
    )

    def __init__(self, budget: Budget, now: float) -> None:
        self._budget = budget
        #: What headers showed: above 0 for a fixed window, below for a bucket.
        self.votes = 0
        #: Whether the first refusal came sooner than a bucket's that holds a minute's worth would.
        self.may_be_counted = False
        #: When calls were last let in again after a long closure.
        self._opened_at = -math.inf
        #: So many openings came whole minutes after the last.
        self._openings = 0
        #: When a learned window was last found too small or large; how much it grows next.
        self._fitted_at = now
        self._growth = WINDOW_GROWTH
        #: When a learned window last refused a call; what it had counted then, if it was fitted to
        #: that, and to how much at the most.
        self._refused_at, self._counted, self._most = now, 0.0, math.inf

    @property
    def can_be_counted(self) -> bool:
        """Whether it is a told limit per minute."""
        return self._budget.source == "told" and self._budget.window_seconds < DAY

    def seems_counted(self, least: float, most: float, seconds: float) -> bool:
        """Tell from the first refusal whether a told limit may count what was used in a minute.

        A bucket that holds a minute's worth lets more in, because it fills again meanwhile.

        Args:
            least: Spent since the start until the refused call was sent.
            most: Spent until now: what is in doubt may have been let in.
            seconds: From the start until that call was sent.
        """
        budget = self._budget
        if not self.can_be_counted or budget.told is None:
            return False
        if seconds >= budget.window_seconds:
            return False
        filled = FILLED_SHARE * seconds / budget.window_seconds
        is_enough = most - budget.pending >= COUNTED_SHARE * budget.told
        self.may_be_counted = is_enough and least - budget.pending < (1 + filled) * budget.told
        return self.may_be_counted

    def seems_a_window(self, now: float, opening: Grant, *, is_asked: bool = False) -> None:
        """Take the limit for one per fixed minute, of which one began just before a call.

        It must have happened before, a whole number of minutes ago: a told limit is not risked.

        Args:
            now: The time.
            opening: The first call that was let in when it opened.
            is_asked: Whether a refusal had said when: a sliding minute that waits for that opens
                whole minutes apart too.
        """
        budget = self._budget
        if budget.limit is None or budget.is_window or self.votes <= FEWEST_VOTES:
            return
        if budget.is_sliding and (is_asked or budget.source != "unknown"):
            return
        half = budget.window_seconds / 2
        ago, self._opened_at = opening.at - self._opened_at, opening.at
        closed_seconds = opening.at - self._refused_at
        if budget.is_sliding and closed_seconds < CLOSED_SHARE * budget.window_seconds:
            ago = 0.0
        off = abs((ago + half) % budget.window_seconds - half)
        if not (ago > half and off < OPENING_SLACK_SECONDS):
            if ago < math.inf:
                self._openings -= OPENINGS
            return
        self._openings += 1
        if budget.is_sliding and self._openings < OPENINGS:
            return
        budget.refill(now)
        budget.is_sliding = False
        self._become_window(opening)

    def explain_opening(
        self,
        now: float,
        began_at: float,
        opening: Grant,
        *,
        is_long: bool,
        is_one_of_several: bool = False,
    ) -> None:
        """Tell how a limit is counted that was used up: its first opening shows it.

        A sliding window opens when the first charge is a minute old, a fixed one sooner; a bucket
        as soon as it has filled enough.

        Args:
            now: The time.
            began_at: When the first call may have been charged.
            opening: The first call that was let in again.
            is_long: Whether that was later than a bucket would have let it in.
            is_one_of_several: Whether another dimension may be what was used up.
        """
        budget = self._budget
        is_counted = (self.may_be_counted or self._may_be_learned) and is_long
        self.may_be_counted = False
        if not is_counted:
            if budget.source == "unknown" and budget.limit is None:
                budget.log = None  # it is a bucket
            return
        if budget.source == "unknown":
            self._learn_window(now, is_one_of_several=is_one_of_several)
        budget.refill(now)
        if opening.at - began_at < budget.window_seconds - SLIDING_SLACK_SECONDS:
            self._become_window(opening)
        else:
            budget.is_sliding = True
            budget.level = min(budget.capacity, budget.allowed)
            if budget.source == "unknown" and budget.log is not None:
                budget.level = budget.capacity - budget.log.used(now)

    @property
    def _may_be_learned(self) -> bool:
        """Whether this may be the first opening of a window that nobody told us of.

        A dimension that no refusal was blamed on has no limit to learn.
        """
        budget = self._budget
        is_new = budget.source == "unknown" and budget.limit is None
        return is_new and budget.is_limited and budget.log is not None

    def _learn_window(self, now: float, *, is_one_of_several: bool) -> None:
        """Take what was let in before the first refusal for the limit of a minute."""
        budget = self._budget
        self._fitted_at = now
        slack = 1.0
        if budget.name == REQUESTS and is_one_of_several:
            slack += REQUESTS_SPREAD / math.sqrt(max(1.0, budget.charged_when_empty))
        self._set_window(max(budget.largest, self._share * slack * budget.charged_when_empty))
        budget.pending_let_in = budget.pending_when_empty

    @property
    def _share(self) -> float:
        return 1.0 if self._budget.name == REQUESTS else WINDOW_SHARE

    def _set_window(self, limit: float) -> None:
        budget = self._budget
        budget.limit = budget.capacity = limit
        budget.rate = budget.peak = limit / budget.window_seconds

    def explains(self, now: float) -> bool:
        """Tell whether a learned window was used up, as far as is known, before a refused call."""
        budget = self._budget
        if budget.limit is None or budget.source != "unknown" or not self.is_believed:
            return False
        return self._counted_by(now) >= EXPLAINING_SHARE * budget.limit

    def fit(
        self,
        now: float,
        refused: Grant | None = None,
        *,
        is_explained: bool = False,
        is_large: bool = False,
    ) -> None:
        """Fit a learned window to what it let in until it refused a call, or to more without one.

        Args:
            now: The time.
            refused: The call, if one was refused.
            is_explained: Whether some limit's window explains it: then one with room left does not.
            is_large: Whether it lets in so many calls that more are tried. A sliding one grows by
                those that were let in: a larger step would be sent and refused at once.
        """
        budget = self._budget
        if budget.limit is None or budget.source != "unknown":
            return
        if refused is not None:
            self._refused_at, self._counted = now, 0.0
            counted = self._counted_by(now)
            least = EXPLAINING_SHARE if is_explained else REFUTING_SHARE
            if counted > least * budget.limit:
                self._counted = counted
                self._most = math.inf if budget.is_window else budget.limit
                self._fit_to_counted()
                budget.pending_let_in = budget.pending
            self._fitted_at, self._growth = now, WINDOW_GROWTH
        elif budget.is_sliding and is_large and budget.log is not None:
            if self.is_tried(now):
                self._set_window(max(budget.limit, budget.log.used(now)))
        elif now - self._fitted_at > budget.window_seconds:
            self._fitted_at = now
            self._set_window(budget.limit + max(1.0, self._growth * budget.limit))
            self._growth = min(1.0, 2 * self._growth)

    def forget(self, grant: Grant) -> None:
        """Count a call no more that was refused, too: it was sent before that was known."""
        budget = self._budget
        if self._counted and grant.at <= self._refused_at and self.is_believed:
            charged = grant.charged(budget)
            self._counted -= charged
            self._fit_to_counted()
            budget.pending_let_in -= grant.cost[budget.field] - charged

    def _fit_to_counted(self) -> None:
        fitted = min(self._most, self._share * self._counted)
        self._set_window(max(self._budget.largest, fitted))

    def _counted_by(self, now: float) -> float:
        """Return what had been counted of the minute when a call was found to be refused.

        With all calls sent by then, because some of those sent together overtake others; those that
        will be refused, too, are forgotten later.
        """
        budget = self._budget
        if budget.is_sliding and budget.log is not None:
            return budget.log.used(now)
        return budget.charged - budget.charged_at_reset

    def _become_window(self, opening: Grant) -> None:
        budget = self._budget
        budget.is_window = True
        if budget.ceiling < math.inf:
            budget.rate = budget.ceiling
        budget.capacity = budget.limit or budget.capacity
        budget.full_at = opening.at
        # Calls were sent since it opened, before that was known.
        budget.charged_at_reset = opening.charged_before(budget)
        budget.level = budget.capacity - max(0.0, budget.charged - budget.charged_at_reset)
        budget.reset_at = opening.at + budget.window_seconds

    def opens_again(self, now: float, at: float) -> None:
        """Note when a window that refused a call opens, as its Retry-After says."""
        budget = self._budget
        earliest = budget.full_at + budget.window_seconds - SLIDING_SLACK_SECONDS
        if budget.told is not None and at < earliest and now > budget.full_at:
            self.votes = FEWEST_VOTES  # sooner than a window can: it is none
            self.become_bucket()
        else:
            budget.reset_at = min(budget.reset_at, at)

    def become_bucket(self) -> None:
        """Give up the belief in a window."""
        budget = self._budget
        if budget.is_window:
            budget.level -= budget.pending  # a bucket is to have room for it
        budget.is_window = budget.is_sliding = False
        if budget.source == "unknown":
            budget.limit = budget.log = None
            budget.fit_capacity()
            return
        budget.rate = budget.ceiling
        budget.keep_to_told()

    def is_tried(self, now: float) -> bool:
        """Tell whether a few calls more are tried: a learned window may let in more.

        A fixed one is tried until it refuses; a sliding one when it has refused nothing for longer
        than it is, because it opens and refuses all the time.
        """
        budget = self._budget
        if budget.source != "unknown" or not self.is_believed:
            return False
        if budget.is_window:
            return not budget.is_shut
        return now - self._refused_at > TRIED_WINDOWS * budget.window_seconds

    @property
    def is_believed(self) -> bool:
        """Whether the limit is taken for one per minute."""
        return self._budget.is_window or self._budget.is_sliding

    def is_used_up(self, now: float) -> bool:
        """Tell whether so much of the minute was used that it may refuse a call."""
        budget = self._budget
        if budget.is_sliding and budget.log is not None and budget.limit is not None:
            return budget.log.used(now) >= REFUTING_SHARE * budget.limit
        if not budget.is_window:
            return False
        return budget.charged - budget.charged_at_reset >= REFUTING_SHARE * budget.capacity

    def distrust(self, now: float) -> None:
        """Give the belief in a window up for good, when a refusal came with room left in it."""
        budget = self._budget
        if not self.is_believed or self.is_used_up(now):
            return
        if budget.is_sliding:
            self.become_bucket()
            return
        age = now - (budget.reset_at - budget.window_seconds)
        is_early = 1 < age < budget.window_seconds - 1 or budget.source != "header"
        if budget.charged_at_reset > 0 and is_early:
            self.votes = FEWEST_VOTES
            self.become_bucket()
