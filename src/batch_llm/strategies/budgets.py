"""One dimension of a provider's limits, as far as we know it: requests, or tokens of a kind.

A budget is a bucket: it refills at a rate up to its capacity, each call takes its cost out, and a
call may start when its cost is there. Where the limit is not known, rate and capacity are what was
learned. All amounts are requests or tokens, all times seconds on the caller's clock.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from batch_llm.strategies.windows import MinuteLog

if TYPE_CHECKING:
    from batch_llm.strategies.enclosure import Round

#: Limits are per minute, but for those per day.
MINUTE, DAY = 60.0, 86_400.0
REQUESTS, REQUESTS_PER_DAY = "requests", "requests_per_day"
#: The lowest rate that is ever learned: one in ten minutes.
LOWEST_RATE = 1 / 600
#: What an unknown bucket is taken to hold: so many seconds of its rate. Short for requests, whose
#: buckets are checked by the second; tokens come in larger pieces.
LEARNED_SECONDS = {REQUESTS: 1.0}
LEARNED_TOKEN_SECONDS = 5.0
#: Of what was let in before the first refusal so much is used of a told limit's burst.
HELD_SHARE = 0.8
#: Calls arrive closer together than they were sent, now and then: of a bucket that headers show so
#: many of the largest calls are not used, or this share.
CALLS_HELD_BACK, SHARE_HELD_BACK = 2.0, 0.2
#: Lateness that is granted to the provider's clock at the end of a fixed window.
RESET_SLACK_SECONDS = 0.1
#: Sightings of a reset that stands still while the remainder moves, until it is a fixed window.
_VOTES_FOR_WINDOW = 3
#: How far two openings may be from whole minutes apart: probes find them late.
_OPENING_SLACK_SECONDS = 6.0
#: A limit that was used up in no less than this may be told from a bucket's, by the share of it
#: that was let in.
SHORTEST_COUNT_SECONDS, COUNTED_SHARE = 3.0, 0.9
#: A refusal with less than this used refutes a window.
REFUTING_SHARE = 0.7
#: A sliding window may seem to open so much too soon.
_SLIDING_SLACK_SECONDS = 2.0
_MAX_VOTES, _MIN_VOTES = 5, -50
#: Of what a window let in before it refused so much is used; and so much more of one that did not
#: refuse for a minute, doubled each time.
WINDOW_SHARE, WINDOW_GROWTH = 0.97, 0.05
REQUESTS_SLACK = 1.15
VOTE_SECONDS, SLIDING_SECONDS = 0.7, 1.0


class LimitHeader(NamedTuple):
    """What a response says of one dimension.

    Attributes:
        limit: Per minute, or per day.
        remaining: Left at the provider when it answered.
        reset_seconds: Until the window ends, or until the bucket is full again.
    """

    limit: float
    remaining: float
    reset_seconds: float


class Budget:
    """What may be spent of one dimension, and when.

    Args:
        name: The dimension.
        limit: Per minute (or day), where it was told; None to learn it.
        now: The time.
        burst_seconds: How many seconds of its rate a told limit's bucket holds.
    """

    __slots__ = (
        "_allowed",
        "_allowed_full_at",
        "_charged_at",
        "_fitted_at",
        "_full_at",
        "_header_votes",
        "_is_shut",
        "_last_header",
        "_limit_sent_at",
        "_opened_at",
        "_told",
        "_told_capacity",
        "_window_growth",
        "burst",
        "capacity",
        "ceiling",
        "counts_output",
        "field",
        "is_sliding",
        "is_window",
        "largest",
        "least",
        "level",
        "limit",
        "log",
        "may_be_counted",
        "name",
        "number",
        "peak",
        "pending",
        "rate",
        "rate_at_start",
        "reset_at",
        "round",
        "source",
        "spent",
        "spent_at_cut",
        "spent_at_reset",
        "spent_when_empty",
        "updated_at",
        "window_seconds",
    )

    def __init__(self, name: str, limit: float | None, now: float, burst_seconds: float) -> None:
        self.name = name
        #: Which part of a cost it counts, its place among the lane's budgets, and whether output
        #: that is charged at the end of a call counts: set by whoever keeps it.
        self.field = self.number = 0
        self.counts_output = False
        self.window_seconds = DAY if name == REQUESTS_PER_DAY else MINUTE
        self.limit = limit
        self._told = limit
        self.source = "told" if limit else "unknown"
        self.rate = limit / self.window_seconds if limit else math.inf
        if name == REQUESTS_PER_DAY:
            burst_seconds = DAY
        self.ceiling = self.peak = self.rate
        self.capacity = self.level = self.rate * burst_seconds if limit else math.inf
        #: The told limit's own bucket: what headers say never lets more in than it holds.
        self._told_capacity = self._allowed = self.capacity
        self.updated_at = now
        #: When the bucket, and the told one, were last full or a window began.
        self._full_at = self._allowed_full_at = -math.inf
        #: All that was ever charged; and its value at the last cut, and at the last reset.
        self.spent = self.spent_at_cut = self.spent_at_reset = 0.0
        #: Its value when the call was sent for which the rate was last cut: the bucket was empty.
        self.spent_when_empty = 0.0
        #: What was let in between the last two cuts.
        self.round: Round | None = None
        self.rate_at_start = math.inf
        #: Output of the calls in flight that the provider will charge when they end.
        self.pending = 0.0
        self.largest = 1.0
        self.is_window = self.is_sliding = False
        #: Whether a minute's limit was used up sooner than a bucket's would have been.
        self.may_be_counted = False
        #: The charges of the last minute, where the limit was told.
        self.log = MinuteLog(MINUTE) if self.window_seconds == MINUTE else None
        #: When the first charge was made; when a learned window was last found too small or large.
        self._charged_at = math.inf
        self._fitted_at = now
        self._window_growth = WINDOW_GROWTH
        #: Whether this window is used up.
        self._is_shut = False
        self.reset_at = math.inf
        #: When the latest call was sent whose answer told the limit.
        self._limit_sent_at = -math.inf
        self._last_header: tuple[float, float, float] | None = None
        self._header_votes = 0
        #: What was let in before the first refusal of an unknown limit.
        self.burst = math.inf
        #: The highest rate that was seen to be let in between two refusals in the search.
        self.least = 0.0
        #: When calls were last let in again after a long closure.
        self._opened_at = -math.inf

    @property
    def is_limited(self) -> bool:
        """Whether anything is known of the limit."""
        return self.capacity < math.inf

    @property
    def shown_source(self) -> str:
        """How it is known: ``told``, ``header``, ``remembered`` or ``learned``."""
        is_learned = self.source == "unknown" or self._is_outgrown
        return "learned" if is_learned else self.source

    @property
    def limit_believed(self) -> float:
        """What is believed to be the limit: per minute, or per day."""
        is_known = self.limit is not None and not self._is_outgrown
        return self.limit if is_known and self.limit else self.rate * self.window_seconds

    @property
    def _is_outgrown(self) -> bool:
        """Whether a remembered limit was searched past."""
        limit = self.limit or math.inf
        return self.source == "remembered" and self.rate * self.window_seconds > limit

    def refill(self, now: float) -> None:
        """Bring the level up to date."""
        elapsed = now - self.updated_at
        if elapsed <= 0:
            return
        self.updated_at = now
        if self._told is not None:
            refilled = self._allowed + elapsed * self._told / self.window_seconds
            self._allowed = min(self._told_capacity, refilled)
            if refilled >= self._told_capacity:
                self._allowed_full_at = now
        if self.is_window:
            if now >= self.reset_at + RESET_SLACK_SECONDS:
                self.level = self.capacity
                self._is_shut = False
                self.spent_at_reset, self._full_at = self.spent, now
                windows = math.ceil((now - self.reset_at + 1e-6) / self.window_seconds)
                self.reset_at += self.window_seconds * windows
        elif self.rate < math.inf:
            self.level = min(self.capacity, self.level + elapsed * self.rate)
            if self.level >= self.capacity:
                self._full_at = now

    def charge(self, now: float, amount: float) -> None:
        """Take ``amount`` out."""
        self.spent += amount
        if self.log is not None:
            self.log.charge(now, amount)
            if self._charged_at == math.inf:
                self._charged_at = now
        if self.capacity < math.inf:
            self.refill(now)
            self.level -= amount
            self._allowed -= amount

    def settle(self, now: float, difference: float, charged_at: float) -> None:
        """Correct a charge by what was used more or, when negative, less than it."""
        if difference >= 0:
            self.charge(now, difference)
        else:
            self.uncharge(now, -difference, charged_at, refund=True)

    def uncharge(self, now: float, amount: float, charged_at: float, *, refund: bool) -> None:
        """Forget a charge that the provider did not make; with ``refund`` it is there again.

        A bucket that was full meanwhile would be no fuller without that charge.
        """
        self.spent -= amount
        if self.log is not None:
            self.log.take_back(charged_at, amount)
        if not self.is_limited:
            return
        self.refill(now)
        if self._allowed_full_at <= charged_at:
            self._allowed = min(self._told_capacity, self._allowed + amount)
        if refund and self._full_at <= charged_at:
            self.level = min(self.capacity, self.level + amount)

    def wait(self, now: float, amount: float) -> float:
        """Return the seconds until a call of this cost may start.

        A call that costs more than the bucket holds waits for a full one, and leaves a debt.
        """
        if self.capacity == math.inf:
            return 0.0
        self.refill(now)
        counted = 0.0
        if self.is_sliding and self.log is not None:
            counted = self.log.wait(now, max(0.0, self.capacity - amount))
            if self._told is None:
                return counted
        if self._told is not None and self.is_window:
            # Whatever the provider's window has, the told limit's own bucket is kept to.
            too_much = min(amount, self._told_capacity) - self._allowed
            if too_much > 1e-9:
                counted = max(counted, too_much * self.window_seconds / self._told)
        missing = min(amount, self.capacity) - self.level
        if missing <= 1e-9:
            return counted
        if self.is_window:
            return max(1e-3, self.reset_at + RESET_SLACK_SECONDS - now)
        return max(counted, missing / self.rate)

    def learn_rate(self, rate: float) -> None:
        """Take ``rate`` for the limit, as far as the ceiling allows."""
        self.rate = min(self.ceiling, max(LOWEST_RATE, rate))
        self.fit_capacity()

    def fit_capacity(self) -> None:
        """Fit the bucket to a learned rate: it must hold the largest call."""
        if self.source == "unknown" and self.limit is None:
            seconds = LEARNED_SECONDS.get(self.name, LEARNED_TOKEN_SECONDS)
            self.capacity = max(min(self.rate * seconds, self.burst), self.largest, 1.0)
            self.level = min(self.level, self.capacity)

    def seems_counted(self, spent: float, seconds: float) -> bool:
        """Tell from the first refusal whether a told limit may count what was used in a minute.

        A bucket that holds a minute's worth lets more in, because it fills again meanwhile.

        Args:
            spent: Since the start, the refused call not included.
            seconds: Since the start.
        """
        if self._told is None or self.source != "told" or self.window_seconds >= DAY:
            return False
        if not SHORTEST_COUNT_SECONDS <= seconds < self.window_seconds:
            return False
        share = (spent - self.pending) / self._told
        self.may_be_counted = COUNTED_SHARE <= share < 1 + 0.5 * seconds / self.window_seconds
        return self.may_be_counted

    def learn_capacity(self, spent: float, seconds: float) -> None:
        """Learn from the first refusal how much a told limit's bucket holds at the most.

        Args:
            spent: Since the start, when the bucket was full at best.
            seconds: Since the start.
        """
        if self.source == "told" and self.window_seconds < DAY:
            held = max(1.0, self.largest, HELD_SHARE * (spent - self.rate * seconds))
            self.capacity = min(self.capacity, held)
            self.level = min(self.level, self.capacity)

    def drain(self, now: float, level: float) -> None:
        """Believe that the provider's bucket holds no more than ``level``."""
        if self.is_limited and not self.is_sliding:
            self.refill(now)
            self.level = min(self.level, level)
            self._is_shut = self.is_window

    def keep_empty(self, until: float) -> None:
        """Let a bucket whose size is not told fill from ``until`` on only.

        What a closed gate saves up would come in one burst, and the provider's bucket may be small.
        """
        if (
            self.source == "unknown" and self.limit is None
        ) or self.capacity < self._told_capacity < math.inf:
            self.updated_at = max(self.updated_at, until)

    def release(self) -> None:
        """Take it for unlimited again."""
        self.rate = self.ceiling = self.peak = math.inf
        self.capacity = self.level = math.inf

    def recall(self, limit: float | None, rate: float, capacity: float) -> None:
        """Start from what was known at the end of an earlier run."""
        self.rate_at_start = rate
        if limit is None:
            self.peak = rate
            self.learn_rate(rate)
            return
        self.limit, self.source = limit, "remembered"
        self.rate = self.peak = limit / self.window_seconds
        self.capacity = self.level = capacity

    def note_cut(self) -> None:
        """Remember what was spent when the rate was cut."""
        self.spent_at_cut = self.spent

    def sync(
        self,
        now: float,
        sent_at: float,
        spent_then: float,
        pending_then: float,
        header: LimitHeader,
    ) -> bool:
        """Believe a response's headers, as far as they can be: they are as old as its call.

        Args:
            now: The time.
            sent_at: When the call was sent.
            spent_then: ``spent`` at that time, the call itself included.
            pending_then: ``pending`` at that time.
            header: What the response says.

        Returns:
            Whether the limit is news.
        """
        limit, remaining, reset = header
        if limit != self.limit and sent_at < self._limit_sent_at:
            return False  # a late answer: a call that was sent later has told another limit
        self._limit_sent_at = max(self._limit_sent_at, sent_at)
        spent_since = self.spent - spent_then
        if self._told is not None and limit > self._told:
            # The told limit is the ceiling; what the provider has left can only lower the level.
            self.drain(now, max(0.0, remaining - spent_since))
            return False
        is_news = self.source != "header" or self.limit != limit
        if is_news:
            was_known = self.source == "header"
            self.refill(now)
            self.limit, self.source = limit, "header"
            self.ceiling = self.rate = self.peak = limit / self.window_seconds
            self.capacity = limit
            if not was_known:
                self.level = remaining - spent_since - pending_then
            self.level = min(self.level, self.capacity)
        if not self.is_window and not self.is_sliding:
            # A bucket's reset is the time until it is full, which tells how much it holds.
            holds = remaining + reset * self.ceiling
            holds -= min(CALLS_HELD_BACK * self.largest, SHARE_HELD_BACK * holds)
            self.capacity = min(limit, max(holds, self.largest, 1.0))
            self.level = min(self.level, self.capacity)
        deadline = sent_at + reset
        self._vote(sent_at, deadline, remaining, limit)
        self.refill(now)
        if self.is_window:
            if now < deadline:
                self.reset_at = deadline
                room = min(self.capacity, remaining - spent_since)
                if room < self.level:
                    self.level += 0.5 * (room - self.level)
                elif room - pending_then > self.level and not self._is_shut:
                    self.level += 0.2 * (room - pending_then - self.level)
            return is_news
        if self.is_sliding and self.log is not None:
            self.capacity = limit
            if now - sent_at < 1.0:  # others use the same key
                foreign = limit - (self.log.used(now) - spent_since) - remaining - pending_then
                if foreign > 0.05 * limit:
                    self.log.charge(now, 0.5 * foreign)
            return is_news
        room = remaining - spent_since + self.rate * max(0.0, now - sent_at)
        room = min(self.capacity, room)
        if room < self.level:  # others use the same key: believed quickly
            self.level += 0.5 * (room - self.level)
        elif room - pending_then > self.level:  # more room than thought: believed slowly
            self.level += 0.2 * (room - pending_then - self.level)
        self._keep_to_told()
        return is_news

    def _vote(self, sent_at: float, deadline: float, remaining: float, limit: float) -> None:
        """Tell a fixed window from a bucket: its reset stands still while the remainder moves."""
        if self.is_sliding:
            return
        if self._last_header is None:
            self._last_header = (deadline, remaining, sent_at)
            return
        last_deadline, last_remaining, last_at = self._last_header
        # Since the last one a bucket's deadline moved by the time that what was taken needs to come
        # back, and a window's not at all, or by whole windows.
        as_bucket = (last_remaining - remaining) * self.window_seconds / limit + sent_at - last_at
        if abs(as_bucket) < VOTE_SECONDS:
            return
        moved = deadline - last_deadline
        half = self.window_seconds / 2
        off_window = abs((moved + half) % self.window_seconds - half)
        vote = 1 if off_window < abs(moved - as_bucket) else -1
        self._header_votes = max(_MIN_VOTES, min(_MAX_VOTES, self._header_votes + vote))
        self._last_header = (deadline, remaining, sent_at)
        if self._header_votes >= _VOTES_FOR_WINDOW:
            if abs(deadline - self._charged_at - self.window_seconds) < SLIDING_SECONDS:
                self.is_sliding = True
                return
            if not self.is_window:
                self.spent_at_reset = self.spent - max(0.0, limit - remaining)
                self.reset_at = deadline  # even a past one: the next refill moves it on
            self.is_window = True
        elif self._header_votes < 0 and self.is_window:
            self.become_bucket()

    def seems_a_window(self, now: float, opened_at: float) -> None:
        """Take the limit for one per fixed minute, of which one began at ``opened_at``.

        It must have happened before, a whole number of minutes ago: a told limit is not risked.
        """
        if self.limit is None or self.is_window or self._header_votes <= _MIN_VOTES:
            return
        ago, self._opened_at = opened_at - self._opened_at, opened_at
        off = abs((ago + self.window_seconds / 2) % self.window_seconds - self.window_seconds / 2)
        if not (ago > self.window_seconds / 2 and off < _OPENING_SLACK_SECONDS):
            return
        self.refill(now)
        self._become_window(opened_at)

    def explain_opening(
        self, now: float, began_at: float, opened_at: float, *, is_long: bool, others: bool = False
    ) -> None:
        """Tell how a limit is counted that was used up: its first opening shows it.

        A sliding window opens when the first charge is a minute old, a fixed one sooner; a bucket
        as soon as it has filled enough, which is not ``is_long`` after.
        """
        is_counted = (self.may_be_counted or self._may_be_learned) and is_long
        self.may_be_counted = False
        if not is_counted:
            if self.source == "unknown" and self.limit is None:
                self.log = None  # it is a bucket
            return
        if self.source == "unknown":
            self._learn_window(now, others=others)
        self.refill(now)
        if opened_at - began_at < self.window_seconds - _SLIDING_SLACK_SECONDS:
            self._become_window(opened_at)
        else:
            self.is_sliding = True
            self.level = min(self.capacity, self._allowed)
            if self.source == "unknown" and self.log is not None:
                self.level = self.capacity - self.log.used(now)

    @property
    def _may_be_learned(self) -> bool:
        """Whether this may be the first opening of a window that nobody told us of."""
        return self.source == "unknown" and self.limit is None and self.log is not None

    def _learn_window(self, now: float, *, others: bool) -> None:
        """Take what was let in before the first refusal for the limit of a minute."""
        self._fitted_at = now
        slack = REQUESTS_SLACK if self.name == REQUESTS and others else 1.0
        self._set_window(max(self.largest, self._share * slack * self.spent_at_cut))

    @property
    def _share(self) -> float:
        return 1.0 if self.name == REQUESTS else WINDOW_SHARE

    def _set_window(self, limit: float) -> None:
        self.limit = self.capacity = limit
        self.rate = self.peak = limit / self.window_seconds

    def fit_window(self, now: float, *, is_refused: bool) -> None:
        """Fit a learned window to what it let in until it refused, or to more when it did not."""
        if self.limit is None or self.source != "unknown":
            return
        if is_refused:
            used = (
                self.log.used(now)
                if self.is_sliding and self.log
                else self.spent - self.spent_at_reset
            )
            if used > REFUTING_SHARE * self.limit:
                self._set_window(max(self.largest, min(self.limit, self._share * used)))
            self._fitted_at, self._window_growth = now, WINDOW_GROWTH
        elif now - self._fitted_at > self.window_seconds:
            self._fitted_at = now
            self._set_window(self.limit + max(1.0, self._window_growth * self.limit))
            self._window_growth = min(1.0, 2 * self._window_growth)

    def _become_window(self, opened_at: float) -> None:
        self.is_window = True
        if self.ceiling < math.inf:
            self.rate = self.ceiling
        self.capacity = self.limit or self.capacity
        self._full_at = opened_at
        # Calls were sent since it opened, before that was known.
        self.spent_at_reset = self.spent_at_cut
        self.level = self.capacity - max(0.0, self.spent - self.spent_at_cut)
        self.reset_at = opened_at + self.window_seconds

    def opens_again(self, now: float, at: float) -> None:
        """Note when a window that refused a call opens, as its Retry-After says."""
        earliest = self._full_at + self.window_seconds - _SLIDING_SLACK_SECONDS
        if self._told is not None and at < earliest and now > self._full_at:
            self._header_votes = _MIN_VOTES  # sooner than a window can: it is none
            self.become_bucket()
        else:
            self.reset_at = min(self.reset_at, at)

    def become_bucket(self) -> None:
        """Give up the belief in a window."""
        self.is_window = self.is_sliding = False
        if self.source == "unknown":
            self.limit = self.log = None
            self.fit_capacity()
            return
        self.rate = self.ceiling
        self._keep_to_told()

    def _keep_to_told(self) -> None:
        self.capacity = min(self.capacity, self._told_capacity)
        self.level = min(self.level, self.capacity, self._allowed)

    def distrust_window(self, now: float) -> None:
        """Give the belief in a window up for good, when a refusal came with room left in it."""
        if self.is_sliding and self.log is not None and self.limit is not None:
            if self.log.used(now) < REFUTING_SHARE * self.limit:
                self.become_bucket()
            return
        if not self.is_window or self.spent_at_reset <= 0:
            return
        age = now - (self.reset_at - self.window_seconds)
        is_early = 1 < age < self.window_seconds - 1 or self.source != "header"
        if is_early and self.spent - self.spent_at_reset < REFUTING_SHARE * self.capacity:
            self._header_votes = _MIN_VOTES
            self.become_bucket()
