"""A limit on calls in flight: told by the provider, or seen because nothing else explains refusals.

Such a limit refuses a call when so many others are in work, whatever the rate. So refusals that
come at the same number in flight again and again, while no call was let in above it, are its sign.
"""

from __future__ import annotations

import math

#: Episodes of refusals at the same number in flight, until it is taken for a limit.
EPISODES = 4
#: How far those numbers may be apart: so many, or this share.
SPREAD, SPREAD_SHARE = 2, 0.1
#: Answers on their way back still count as in flight here, and no more at the provider.
SLACK = 2
#: Below so many in flight every number is alike.
LEAST = 4
#: A limit that was held for so long is tried one higher; twice as long after each refusal.
TRIAL_SECONDS, LONGEST_TRIAL_SECONDS = 20.0, 600.0
#: When fewer calls get through than this share of what did, it is tried all the time: answers take
#: longer, and it may be a limit of a rate that was mistaken for one on calls in flight.
SLOWED_SHARE, RATE_SECONDS, SLOWED_TRIAL_SECONDS = 0.85, 5.0, 0.5
#: Refusals under the limit are surprises; so many with fewer calls let in between them refute it,
#: and twice as many episodes are asked for next time.
SURPRISES, CALLS_TO_FORGET = 3, 100
#: Beyond a server's slots so many calls wait in its queue, or this share of the slots: a slot that
#: becomes free has its next call at once, and the queue stays short.
LEAST_QUEUED, QUEUED_SHARE = 2, 0.125


def with_margin(slots: int) -> int:
    """Return how many calls are to be in flight for a server that works on ``slots`` at once."""
    return slots + max(LEAST_QUEUED, math.ceil(QUEUED_SHARE * slots))


class Slots:
    """How many calls may be in flight in one lane."""

    __slots__ = (
        "_below",
        "_best_rate",
        "_calls",
        "_counted",
        "_counted_since",
        "_episodes",
        "_episodes_asked",
        "_full_since",
        "_highest",
        "_is_slowed",
        "_is_told",
        "_lowest",
        "_surprises",
        "_trial_seconds",
        "most",
        "tried",
    )

    def __init__(self) -> None:
        #: What the provider takes, as far as is known; and one more while that is tried.
        self.most = self.tried = math.inf
        self._episodes_asked = EPISODES
        self._trial_seconds = TRIAL_SECONDS
        self.forget()

    @property
    def is_known(self) -> bool:
        """Whether there is such a limit."""
        return self.most < math.inf

    def forget(self) -> None:
        """Give the limit up, and what seemed to speak for it."""
        self.most = self.tried = self._full_since = math.inf
        #: Calls let in since it was last reached.
        self._below = 0
        self._lowest, self._highest = math.inf, -math.inf
        self._episodes = self._surprises = self._calls = 0
        #: How many calls get through, and got through at best.
        self._counted, self._counted_since, self._best_rate = 0, math.inf, 0.0
        self._is_slowed = False
        #: Whether a refusal has named it: then those that do not are something else's.
        self._is_told = False

    def note_accepted(self, now: float, beside: int) -> None:
        """Note that a call was let in beside so many in flight."""
        if not self.is_known:
            if beside >= self._lowest + SLACK:
                self.forget()
            return
        self._calls += 1
        if self._calls > CALLS_TO_FORGET:
            self._calls = self._surprises = 0
        self._note_rate(now)
        if beside >= self.most:
            self.most = self.tried
            self._full_since = math.inf
        elif beside + 1 < self.most:
            # Where all answers take the same time, calls start together, the first beside nobody.
            self._below += 1
            if self._below > self.most:
                self._full_since = math.inf
        else:
            self._below = 0
            self._note_full(now)

    def _note_full(self, now: float) -> None:
        """Try one more once the limit was reached all the time for long enough."""
        seconds = SLOWED_TRIAL_SECONDS if self._is_slowed else self._trial_seconds
        if self._full_since == math.inf:
            self._full_since = now
        elif now - self._full_since > seconds:
            self.tried = self.most + 1

    def _note_rate(self, now: float) -> None:
        """See whether as many calls get through as did."""
        if self._counted_since == math.inf:
            self._counted_since = now
            return
        self._counted += 1
        elapsed = now - self._counted_since
        if elapsed < RATE_SECONDS:
            return
        rate = self._counted / elapsed
        self._counted, self._counted_since = 0, now
        self._best_rate = max(self._best_rate, rate)
        self._is_slowed = rate < SLOWED_SHARE * self._best_rate

    def explains(self, beside: int, *, is_first: bool) -> bool:
        """Return whether the refusal of a call beside so many in flight is this limit's.

        Args:
            beside: Calls in flight when it was sent, itself not counted.
            is_first: Whether it is the first refusal of its episode.
        """
        if self.is_known:
            return self._is_expected(beside)
        if not is_first:
            return False
        lowest, highest = min(self._lowest, beside), max(self._highest, beside)
        if highest - lowest > max(SPREAD, SPREAD_SHARE * highest):
            self.forget()
            lowest = highest = beside
        if beside < LEAST:
            return False
        self._lowest, self._highest = lowest, highest
        self._episodes += 1
        if self._episodes < self._episodes_asked:
            return False
        self.most = self.tried = lowest
        return True

    def told(self, beside: int) -> bool:
        """Take a refusal that speaks of calls in flight; return whether that explains it."""
        if beside < 1:  # others use the same key: nothing that we could do about it
            return False
        self._is_told = True
        if beside >= self.most:
            return self._is_expected(beside)
        self.most = self.tried = beside
        self._full_since = math.inf
        return True

    def _is_expected(self, beside: int) -> bool:
        # A call that was sent before the one more may arrive after it, and be the one refused.
        is_trial = self.tried > self.most and beside >= self.most - SLACK
        if beside >= self.most or is_trial:  # that few get through is not this limit's fault
            if self.tried > self.most:  # late refusals of calls from before are no trials
                self._trial_seconds = min(LONGEST_TRIAL_SECONDS, 2 * self._trial_seconds)
            self.tried, self._best_rate, self._is_slowed = self.most, 0.0, False
            self._full_since = math.inf
            return True
        if self._is_told:
            return False
        self._surprises += 1
        self._calls = 0
        if self._surprises >= SURPRISES:
            self._episodes_asked *= 2
            self.forget()
            return False
        if beside >= max(1, self.most - 1 - SLACK):
            self.most = self.tried = beside
            return True
        return False
