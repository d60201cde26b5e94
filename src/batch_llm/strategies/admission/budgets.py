"""One dimension of a provider's limits, as far as we know it: requests, or tokens of a kind.

A budget is a bucket: it refills at a rate up to its capacity, each call takes its cost out, and a
call may start when its cost is there. Where the limit is not known, rate and capacity are what was
learned. All amounts are requests or tokens, all times seconds on the caller's clock.

What headers say of it: ``header_belief.py``; whether it counts minutes: ``window_guess.py``. How
its rate is cut: ``cuts.py``; how it grows: ``rates.py``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_llm.strategies.admission.header_belief import HeaderBelief
from batch_llm.strategies.admission.window_guess import WindowGuess
from batch_llm.strategies.admission.windows import MinuteLog
from batch_llm.strategies.dimensions import DAY, MINUTE, REQUESTS, REQUESTS_PER_DAY

if TYPE_CHECKING:
    from batch_llm.strategies.admission.grants import Grant

#: A told sliding minute keeps room for this share of the output that calls in flight are still to
#: be charged: it is full all the time, and would be run over by it.
PENDING_SHARE = 0.5
#: The lowest rate that is ever learned: one in ten minutes.
LOWEST_RATE = 1 / 600
#: What an unknown bucket is taken to hold: so many seconds of its rate. Short for requests, whose
#: buckets are checked by the second; tokens come in larger pieces.
LEARNED_SECONDS = {REQUESTS: 1.0}
LEARNED_TOKEN_SECONDS = 5.0
#: The same of a bucket that held next to nothing when it was full.
TINY_SECONDS = 1.0
#: Lateness that is granted to the provider's clock at the end of a fixed window.
RESET_SLACK_SECONDS = 0.1


class Budget:
    """What may be spent of one dimension, and when.

    Args:
        name: The dimension.
        limit: Per minute (or day), where it was told; None to learn it.
        now: The time.
        burst_seconds: How many seconds of its rate a told limit's bucket holds.
    """

    __slots__ = (
        "_allowed_full_at",
        "allowed",
        "capacity",
        "ceiling",
        "charged_at",
        "charged_at_reset",
        "charged_when_empty",
        "counts_output",
        "extra_rate",
        "field",
        "full_at",
        "headers",
        "holds",
        "is_shut",
        "is_sliding",
        "is_window",
        "largest",
        "let_in_at_start",
        "level",
        "limit",
        "log",
        "name",
        "number",
        "pace",
        "peak",
        "pending",
        "pending_let_in",
        "pending_when_empty",
        "rate",
        "reset_at",
        "source",
        "spent",
        "spent_when_empty",
        "told",
        "told_capacity",
        "updated_at",
        "window_seconds",
        "windows",
    )

    def __init__(self, name: str, limit: float | None, now: float, burst_seconds: float) -> None:
        self.name = name
        #: Which part of a cost it counts, its place among the lane's budgets, and whether output
        #: that is charged at the end of a call counts: set by whoever keeps it.
        self.field = self.number = 0
        self.counts_output = False
        self.window_seconds = DAY if name == REQUESTS_PER_DAY else MINUTE
        self.limit = limit
        self.told = limit
        #: ``told``, ``header``, ``remembered``, or ``unknown``: learned, or not limited yet.
        self.source = "told" if limit else "unknown"
        self.rate = limit / self.window_seconds if limit else math.inf
        if name == REQUESTS_PER_DAY:
            burst_seconds = DAY
        #: What the rate never exceeds; and where it was refused last, to which it grows back.
        self.ceiling = self.peak = self.rate
        #: By so much faster the bucket is tried for now: ``ceiling_room.py``.
        self.extra_rate = 0.0
        self.capacity = self.level = self.rate * burst_seconds if limit else math.inf
        #: What the bucket holds as headers show it; and the share of its rate that is used because
        #: others use the rest.
        self.holds, self.pace = self.capacity, 1.0
        #: The told limit's own bucket: what headers say never lets more in than it holds.
        self.told_capacity = self.allowed = self.capacity
        self.updated_at = now
        #: When the bucket, and the told one, were last full or a window began.
        self.full_at = self._allowed_full_at = -math.inf
        #: All that was ever charged, output still to come included.
        self.spent = 0.0
        #: Its value when the call was sent for which the rate was last cut: the bucket was empty.
        self.spent_when_empty = 0.0
        #: What the provider had charged when it refused, and what was pending: calls in flight that
        #: are refused later, too, do not count.
        self.charged_when_empty = self.pending_when_empty = 0.0
        #: A learned minute let so much in that was pending when it refused, whatever came of it.
        self.pending_let_in = 0.0
        #: What the provider had charged when this window began.
        self.charged_at_reset = 0.0
        #: Output of the calls in flight that the provider will charge when they end.
        self.pending = 0.0
        #: What the largest call took.
        self.largest = 1.0
        #: Whether it counts fixed minutes, or what was spent within the last one.
        self.is_window = self.is_sliding = False
        #: The charges of the last minute, as long as it may be minutes that are counted.
        self.log = MinuteLog(MINUTE) if self.window_seconds == MINUTE else None
        #: When the first charge was made.
        self.charged_at = math.inf
        #: Whether this window is used up.
        self.is_shut = False
        #: When it ends.
        self.reset_at = math.inf
        #: What was let in before the first refusal of an unknown limit; 0 when that was next to
        #: nothing: its bucket is tiny, and a larger call than it holds leaves a debt.
        self.let_in_at_start = math.inf
        #: What tells whether it is counted by the minute, and what responses say of it.
        self.windows = WindowGuess(self, now)
        self.headers = HeaderBelief(self)

    @property
    def is_limited(self) -> bool:
        """Whether anything is known of the limit."""
        return self.capacity < math.inf

    @property
    def charged(self) -> float:
        """What the provider has charged: without the output that it charges at a call's end."""
        return self.spent - self.pending

    @property
    def has_learned_rate(self) -> bool:
        """Whether nobody told the limit, and a rate was learned, now or in an earlier run."""
        return self.source == "unknown" and self.rate < math.inf

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
        if self.told is not None:
            refilled = self.allowed + elapsed * self.told / self.window_seconds
            self.allowed = min(self.told_capacity, refilled)
            if refilled >= self.told_capacity:
                self._allowed_full_at = now
        if self.is_window:
            if now >= self.reset_at + RESET_SLACK_SECONDS:
                self.level = self.capacity
                self.is_shut = False
                self.charged_at_reset, self.full_at = self.charged, now
                windows = math.ceil((now - self.reset_at + 1e-6) / self.window_seconds)
                self.reset_at += self.window_seconds * windows
        elif self.rate < math.inf:
            refilled = self.level + elapsed * (self.rate * self.pace + self.extra_rate)
            self.level = min(self.capacity, refilled)
            if self.level >= self.capacity:
                self.full_at = now

    def charge(self, now: float, amount: float, pending: float = 0.0) -> float:
        """Take ``amount`` out; return what has been spent with it.

        Args:
            now: The time.
            amount: What a call is expected to take in all.
            pending: So much of it the provider charges when the call ends. A bucket is to have room
                for it from the start; a minute lets in what it has room for now.
        """
        self.spent = spent = self.spent + amount
        at_once = amount
        if pending:
            self.pending += pending
            at_once -= pending
        log = self.log
        if log is not None:
            if now < log.newest_until:
                log.newest += at_once
            else:
                log.charge(now, at_once)
                if self.charged_at == math.inf:
                    self.charged_at = now
        if self.capacity < math.inf:
            self.refill(now)
            self.level -= at_once if self.is_window else amount
            self.allowed -= amount
        return spent

    def note_end(self, now: float, pending: float) -> None:
        """Count the output of a call that has ended, as it was expected."""
        self.pending -= pending
        if self.log is not None:
            self.log.charge(now, pending)
        if self.is_window:
            self.refill(now)
            self.level -= pending

    def settle(self, now: float, difference: float, charged_at: float, late: float = 0.0) -> None:
        """Correct a charge by what was used more or, when negative, less than it.

        Args:
            now: When the call ended.
            difference: What was used more than expected.
            charged_at: When the call was sent.
            late: So much of the charge was counted when the call ended.
        """
        if difference >= 0:
            self.charge(now, difference)
        else:
            self.uncharge(now, -difference, charged_at, refund=True, late=late)

    def uncharge(
        self, now: float, amount: float, charged_at: float, *, refund: bool, late: float = 0.0
    ) -> None:
        """Forget a charge that the provider did not make; with ``refund`` it is there again.

        A bucket that was full meanwhile would be no fuller without that charge. ``late`` is what
        was counted of it just now, when the call ended.
        """
        self.spent -= amount
        late = min(late, amount)
        if self.log is not None:
            self.log.take_back(now, late)
            self.log.take_back(charged_at, amount - late)
        if not self.is_limited:
            return
        self.refill(now)
        if self._allowed_full_at <= charged_at:
            self.allowed = min(self.told_capacity, self.allowed + amount)
        if refund and self.full_at <= charged_at:
            self.level = min(self.capacity, self.level + amount)
        elif self.is_window:
            self.level = min(self.capacity, self.level + late)

    def wait(self, now: float, amount: float, pending: float = 0.0) -> float:
        """Return the seconds until a call of this cost may start; ``pending`` as in ``charge``.

        A call that costs more than the bucket holds waits for a full one, and leaves a debt.
        """
        if self.capacity == math.inf:
            return 0.0
        self.refill(now)
        counted = 0.0
        if self.is_sliding and self.log is not None:
            room = self.capacity - amount + pending
            if self.told is not None:
                room -= PENDING_SHARE * (self.pending + pending)
            counted = self.log.wait(now, max(0.0, room))
            if self.told is None:
                return counted
        if self.told is not None and (self.is_window or self.extra_rate or amount > self.capacity):
            # Whatever the provider lets in, the told limit's own bucket is kept to.
            too_much = min(amount, self.told_capacity) - self.allowed
            if too_much > 1e-9:
                counted = max(counted, too_much * self.window_seconds / self.told)
        if self.is_window:
            if self.pending_let_in:
                pending += max(0.0, self.pending_let_in - self.pending - pending)
            if min(amount - pending, self.capacity) - self.level <= 1e-9:
                return counted
            return max(1e-3, self.reset_at + RESET_SLACK_SECONDS - now)
        missing = min(amount, self.capacity) - self.level
        if missing <= 1e-9:
            return counted
        return max(counted, missing / (self.rate * self.pace + self.extra_rate))

    def learn_rate(self, rate: float) -> None:
        """Take ``rate`` for the limit, as far as the ceiling allows."""
        self.rate = min(self.ceiling, max(LOWEST_RATE, rate))
        self.fit_capacity()

    def fit_capacity(self) -> None:
        """Fit the bucket to a learned rate: it must hold the largest call, unless it is tiny."""
        if self.source == "unknown" and self.limit is None:
            if self.let_in_at_start:
                seconds = LEARNED_SECONDS.get(self.name, LEARNED_TOKEN_SECONDS)
                holds = min(self.rate * seconds, self.let_in_at_start)
                self.capacity = max(holds, self.largest, 1.0)
            else:
                self.capacity = max(self.rate * TINY_SECONDS, 1.0)
            self.level = min(self.level, self.capacity)

    def drawn_at(self, now: float, grant: Grant) -> float:
        """Return what a told limit's bucket lacked of being full, right after a call was sent.

        A provider's bucket that refused that call holds no more, as far as its rate is the told
        one.
        """
        if self.told is None:
            return 0.0
        self.refill(now)
        came_back = (self.updated_at - grant.at) * self.told / self.window_seconds
        return self.told_capacity - self.allowed - self.spent + grant.spent_with(self) + came_back

    def hold_at_most(self, amount: float) -> None:
        """Believe that the bucket holds no more than that, or the largest call."""
        self.capacity = min(self.capacity, max(1.0, self.largest, amount))
        self.level = min(self.level, self.capacity)

    def drain(self, now: float, level: float) -> None:
        """Believe that the provider's bucket holds no more than ``level``."""
        if self.is_limited and not self.is_sliding:
            self.refill(now)
            self.level = min(self.level, level)
            self.is_shut = self.is_window

    def keep_empty(self, until: float) -> None:
        """Let a bucket whose size is not told by the user fill from ``until`` on only.

        What a closed gate saves up would come in one burst, and the provider's bucket may be small,
        or others empty it meanwhile; headers tell when it is full.
        """
        is_small = self.capacity < self.told_capacity < math.inf and not self.is_window
        is_unknown = self.source == "unknown" and self.limit is None
        is_in_headers = self.source == "header" and not self.is_window
        if (is_small or is_unknown or is_in_headers) and until > self.updated_at:
            if self.told is not None:  # what is told fills all the same
                filled = (until - self.updated_at) * self.told / self.window_seconds
                self.allowed = min(self.told_capacity, self.allowed + filled)
            self.updated_at = until

    def thought_at(self, now: float, grant: Grant) -> float:
        """Return what was thought to be left right after a call had been sent."""
        self.refill(now)
        return self.level + self.spent - grant.spent_with(self) - self.rate * (now - grant.at)

    def release(self) -> None:
        """Take it for unlimited again."""
        self.headers.stop_sharing()
        self.limit = None
        self.is_window = self.is_sliding = False
        self.rate = self.ceiling = self.peak = math.inf
        self.capacity = self.level = math.inf

    def disbelieve_header(self, now: float, rate: float) -> None:
        """Go back to what was told, or else to ``rate`` per second; 0 is unlimited."""
        if self.told is None:
            self.release()
            self.source, self.peak = "unknown", rate
            if rate > 0:
                self.learn_rate(rate)
        elif self.source == "header":
            self.headers.stop_sharing()
            self.refill(now)
            self.limit, self.source = self.told, "told"
            self.rate = self.peak = self.ceiling = self.told / self.window_seconds
            self.capacity, self.level = self.told_capacity, self.allowed

    def recall(self, limit: float | None, rate: float, capacity: float) -> None:
        """Start from what was known at the end of an earlier run."""
        if limit is None:
            self.peak = rate
            self.learn_rate(rate)
            return
        self.limit, self.source = limit, "remembered"
        self.rate = self.peak = limit / self.window_seconds
        self.capacity = self.level = capacity

    def keep_to_told(self) -> None:
        """Hold no more than the told limit's own bucket does."""
        self.capacity = min(self.capacity, self.told_capacity)
        self.level = min(self.level, self.capacity, self.allowed)
