"""One dimension of a provider's limits, as far as we know it: requests, or tokens of a kind.

A budget is a bucket: it refills at a rate up to its capacity, each call takes its cost out, and a
call may start when its cost is there. Where the limit is not known, rate and capacity are what was
learned. All amounts are requests or tokens, all times seconds on the caller's clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

#: Limits are per minute, but for those per day.
MINUTE, DAY = 60.0, 86_400.0
REQUESTS, REQUESTS_PER_DAY = "requests", "requests_per_day"
#: The lowest rate that is ever learned: one in ten minutes.
LOWEST_RATE = 1 / 600
#: What an unknown bucket is taken to hold: so many seconds of its rate. Short for requests, whose
#: buckets are checked by the second; tokens come in larger pieces.
LEARNED_SECONDS = {REQUESTS: 1.0}
LEARNED_TOKEN_SECONDS = 5.0
#: Of what was let in before a refusal so much is tried next time; and how that grows again.
HELD_SHARE, HELD_GROWTH = 0.8, 1.25
#: Lateness that is granted to the provider's clock at the end of a fixed window.
RESET_SLACK_SECONDS = 0.1
#: Sightings of a reset that stands still while the remainder moves, until it is a fixed window.
_VOTES_FOR_WINDOW = 3
#: How far two openings may be from whole minutes apart: probes find them late.
_OPENING_SLACK_SECONDS = 6.0
_MAX_VOTES, _MIN_VOTES = 5, -50


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
        "_header_votes",
        "_last_header",
        "_opened_at",
        "_told",
        "_told_capacity",
        "capacity",
        "ceiling",
        "held",
        "is_window",
        "largest",
        "level",
        "limit",
        "name",
        "peak",
        "pending",
        "rate",
        "reset_at",
        "source",
        "spent",
        "spent_at_cut",
        "spent_at_reset",
        "updated_at",
        "window_seconds",
    )

    def __init__(self, name: str, limit: float | None, now: float, burst_seconds: float) -> None:
        self.name = name
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
        #: All that was ever charged; and its value at the last cut, and at the last reset.
        self.spent = self.spent_at_cut = self.spent_at_reset = 0.0
        #: Output of the calls in flight that the provider will charge when they end.
        self.pending = 0.0
        self.largest = 1.0
        self.is_window = False
        self.reset_at = math.inf
        self._last_header: tuple[float, float, float] | None = None
        self._header_votes = 0
        #: What an unknown limit's bucket was seen to hold.
        self.held = math.inf
        #: When calls were last let in again after a long closure.
        self._opened_at = -math.inf

    @property
    def is_limited(self) -> bool:
        """Whether anything is known of the limit."""
        return self.capacity < math.inf

    @property
    def shown_source(self) -> str:
        """How it is known: ``told``, ``header``, ``remembered`` or ``learned``."""
        return "learned" if self.source == "unknown" else self.source

    def refill(self, now: float) -> None:
        """Bring the level up to date."""
        elapsed = now - self.updated_at
        if elapsed <= 0:
            return
        self.updated_at = now
        if self._told is not None:
            refilled = self._allowed + elapsed * self._told / self.window_seconds
            self._allowed = min(self._told_capacity, refilled)
        if self.is_window:
            if now >= self.reset_at + RESET_SLACK_SECONDS:
                self.level = self.capacity
                self.spent_at_reset = self.spent
                windows = math.ceil((now - self.reset_at + 1e-6) / self.window_seconds)
                self.reset_at += self.window_seconds * windows
        elif self.rate < math.inf and self.level < self.capacity:
            self.level = min(self.capacity, self.level + elapsed * self.rate)

    def charge(self, now: float, amount: float) -> None:
        """Take ``amount`` out; a negative one gives back."""
        self.spent += amount
        if self.is_limited:
            self.refill(now)
            self.level = min(self.capacity, self.level - amount)
            self._allowed = min(self._told_capacity, self._allowed - amount)

    def uncharge(self, now: float, amount: float, *, refund: bool) -> None:
        """Forget a charge that the provider did not make; with ``refund`` it is there again."""
        self.spent -= amount
        if self.is_limited:
            self.refill(now)
            self._allowed = min(self._told_capacity, self._allowed + amount)
            if refund:
                self.level = min(self.capacity, self.level + amount)

    def wait(self, now: float, amount: float) -> float:
        """Return the seconds until a call of this cost may start.

        A call that costs more than the bucket holds waits for a full one, and leaves a debt.
        """
        if not self.is_limited:
            return 0.0
        self.refill(now)
        missing = min(amount, self.capacity) - self.level
        if missing <= 1e-9:
            return 0.0
        if self.is_window:
            return max(1e-3, self.reset_at + RESET_SLACK_SECONDS - now)
        return missing / self.rate

    def learn_rate(self, rate: float) -> None:
        """Take ``rate`` for the limit, as far as the ceiling allows."""
        self.rate = min(self.ceiling, max(LOWEST_RATE, rate))
        self.fit_capacity()

    def fit_capacity(self) -> None:
        """Fit the bucket to a learned rate: it must hold the largest call."""
        if self.source == "unknown":
            seconds = LEARNED_SECONDS.get(self.name, LEARNED_TOKEN_SECONDS)
            self.capacity = max(min(self.rate * seconds, self.held), self.largest, 1.0)
            self.level = min(self.level, self.capacity)

    def learn_capacity(self, spent: float, seconds: float) -> None:
        """Learn from the first refusal how much a told limit's bucket holds at the most.

        Args:
            spent: Since the start, when the bucket was full at best.
            seconds: Since the start.
        """
        if self.source == "told" and self.window_seconds < DAY:
            held = max(1.0, self.largest, spent - self.rate * seconds)
            self.capacity = min(self.capacity, held)
            self.level = min(self.level, self.capacity)

    def learn_burst(self, let_in: float | None) -> None:
        """Learn how much an unknown limit's bucket holds.

        Args:
            let_in: Between the opening of a closed gate and a refusal moments later; None when the
                refusal came later, and says that it may be more.
        """
        if let_in is not None:
            self.held = min(self.held, max(1.0, HELD_SHARE * let_in))
        else:
            self.held *= HELD_GROWTH

    def drain(self, now: float, level: float) -> None:
        """Believe that the provider's bucket holds no more than ``level``."""
        if self.is_limited:
            self.refill(now)
            self.level = min(self.level, level)

    def release(self) -> None:
        """Take it for unlimited again."""
        self.rate = self.ceiling = self.peak = math.inf
        self.capacity = self.level = math.inf

    def recall(self, limit: float | None, rate: float, capacity: float) -> None:
        """Start from what was known at the end of an earlier run."""
        if limit is None:
            self.peak = rate
            self.learn_rate(rate)
            return
        self.limit, self.source = limit, "remembered"
        self.rate = self.ceiling = self.peak = limit / self.window_seconds
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
        if not self.is_window:
            # A bucket's reset is the time until it is full, which tells how much it holds.
            holds = remaining + reset * self.ceiling
            self.capacity = min(limit, max(holds, self.largest, 1.0))
            self.level = min(self.level, self.capacity)
        deadline = sent_at + reset
        self._vote(sent_at, deadline, remaining, limit)
        self.refill(now)
        if self.is_window:
            if now < deadline:
                self.reset_at = deadline
                room = min(self.capacity, remaining - spent_since)
                self.level = max(min(self.level, room), room - pending_then)
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
        if self._last_header is None:
            self._last_header = (deadline, remaining, sent_at)
            return
        last_deadline, last_remaining, last_at = self._last_header
        if abs(remaining - last_remaining) <= 0.03 * limit or abs(sent_at - last_at) <= 1:
            return
        vote = 1 if abs(deadline - last_deadline) < 0.75 else -1
        self._header_votes = max(_MIN_VOTES, min(_MAX_VOTES, self._header_votes + vote))
        self._last_header = (deadline, remaining, sent_at)
        if self._header_votes >= _VOTES_FOR_WINDOW:
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
        self.is_window = True
        self.rate = self.ceiling
        self.level = self.capacity = self.limit
        self.spent_at_reset = self.spent
        self.reset_at = opened_at + self.window_seconds

    def become_bucket(self) -> None:
        """Give up the belief in a fixed window."""
        self.is_window = False
        self.rate = self.ceiling
        self._keep_to_told()

    def _keep_to_told(self) -> None:
        self.capacity = min(self.capacity, self._told_capacity)
        self.level = min(self.level, self.capacity, self._allowed)

    def distrust_window(self, now: float) -> None:
        """Give that belief up for good, when a refusal came in mid-window with room left."""
        if not self.is_window or self.spent_at_reset <= 0:
            return
        age = now - (self.reset_at - self.window_seconds)
        is_early = 1 < age < self.window_seconds - 1 or self.source != "header"
        if is_early and self.spent - self.spent_at_reset < 0.7 * self.capacity:
            self._header_votes = _MIN_VOTES
            self.become_bucket()
