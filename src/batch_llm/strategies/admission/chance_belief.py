"""Is it believed that refusals are chance: of a share of all calls, however few they are?

A limit refuses what is beyond it, and what it refused can be explained by one bucket
(``evidence.py``). When that cannot be done, again and again, and of the calls that were under way
behind a refused one most were let in, the refusals say nothing about the rate: slowing down for
them would only starve the run. Those of a limit that has changed cannot be explained either, but
they are few. Once refusals are believed to be random, each refused call waits for itself, and the
rate is cut only when there are many more of them than before.
"""

from __future__ import annotations

#: Refusals are random from so much weight on: one that no bucket explains weighs 1, or 2 when it is
#: not even explained with more tolerance; each that one bucket explains takes so much off.
WEIGHT_ASKED, EXPLAINED_WEIGHT = 4.0, 2.0
#: A refusal weighs less when fewer calls than this were let in since the one before.
FEW_CALLS = 8
#: Calls under way behind a refused one that were let in weigh so much each, up to so much; when
#: more than a share was refused, that speaks for a limit.
FOLLOWER_WEIGHT, FOLLOWERS_WEIGHT = 0.1, 1.0
REFUSED_SHARE, REFUSED_WEIGHT = 0.34, 2.0
#: When there are too many within so few calls of coming to believe it, it was a limit after all;
#: and twice as many refusals are asked for next time.
CALLS_TO_REFUTE = 60
#: A larger share of refused calls is never taken for random.
LARGEST_SHARE = 0.4
#: How fast the estimated share of refusals follows; and how far it may rise above what it was when
#: it came to be believed, because a limit that is reached slowly raises it too.
LEARNING_SHARE, LARGEST_RISE = 0.01, 2.0
#: The change detector (CUSUM): what each call takes off it, and where it rings.
TOLERATED_FACTOR, TOLERATED_SHARE, ALARM = 1.5, 0.02, 5.0
#: When so many random refusals should have come since the last one, there are none any more.
MISSING = 20.0


class ChanceBelief:
    """Tells refusals at random from those of a limit. Every operation is O(1)."""

    __slots__ = (
        "_alarm",
        "_asked",
        "_calls",
        "_calls_since",
        "_calm_share",
        "_refusals",
        "_share_most",
        "_silent",
        "_silent_most",
        "_weight",
        "share",
    )

    def __init__(self) -> None:
        #: The share of calls that is refused at random; 0 while none are believed to be.
        self.share = 0.0
        self._share_most = LARGEST_SHARE
        #: What it was when there were last no more refusals than it explains.
        self._calm_share = 0.0
        self._asked = WEIGHT_ASKED
        self._weight = 0.0
        self._calls = self._refusals = 0
        self._alarm = 0.0
        self._silent = self._calls_since = 0
        #: So many calls without a refusal are too many.
        self._silent_most = 0.0

    @property
    def is_believed(self) -> bool:
        """Whether refusals come at random."""
        return self.share > 0

    @property
    def times_asked(self) -> float:
        """How many times as much is asked for as at first, because it was refuted."""
        return self._asked / WEIGHT_ASKED

    @property
    def is_suspected(self) -> bool:
        """Whether the last refusal was not explained by a bucket."""
        return self._weight > 0

    def weigh(self, unexplained: float, calls: int, followers: tuple[float, int]) -> bool:
        """Take a refusal into account.

        Args:
            unexplained: 0 when one bucket explains the last refusals, 1 when none does, 2 when none
                does even with more tolerance.
            calls: Calls let in since the last refusal.
            followers: How many of the calls behind the refused one before were let in and refused.

        Returns:
            Whether refusals are believed to be random from now on.
        """
        if unexplained:
            self._weight += unexplained * min(1.0, (calls + 2) / FEW_CALLS)
            self._calls += calls + 1
            self._refusals += 1
        else:
            self._weight = max(0.0, self._weight - EXPLAINED_WEIGHT)
        let_in, refused = followers
        if refused > REFUSED_SHARE * (let_in + refused):
            self._weight = max(0.0, self._weight - REFUSED_WEIGHT)
        elif self._weight:
            self._weight += min(FOLLOWERS_WEIGHT, FOLLOWER_WEIGHT * let_in)
        if not self._weight:
            self._calls = self._refusals = 0
        if not unexplained or self._weight < self._asked:
            return False
        self.believe(self._refusals / self._calls)
        return True

    def forget(self) -> None:
        """Forget what spoke for chance."""
        self._weight, self._calls, self._refusals = 0.0, 0, 0

    def believe(self, share: float) -> None:
        """Take refusals for random from now on, ``share`` of all calls."""
        self.share = self._calm_share = min(LARGEST_SHARE, share)
        self._share_most = min(LARGEST_SHARE, LARGEST_RISE * self.share)
        self.forget()
        self._alarm, self._silent, self._calls_since = 0.0, 0, 0
        self._silent_most = MISSING / self.share

    def note_accepted(self) -> None:
        """Count a call that was let in, while refusals are believed to be random."""
        self.share *= 1 - LEARNING_SHARE
        self._alarm = max(0.0, self._alarm - TOLERATED_FACTOR * self.share - TOLERATED_SHARE)
        if not self._alarm:
            self._calm_share = self.share
        self._silent += 1
        self._calls_since += 1
        if self._silent > self._silent_most:
            self.share = 0.0

    def note_refused(self) -> bool:
        """Count a refusal, while they are believed to be random.

        Returns:
            Whether there are too many now: a limit refuses as well.
        """
        self.share = min(self._share_most, self.share + LEARNING_SHARE * (1 - self.share))
        self._silent, self._silent_most = 0, MISSING / self.share
        self._alarm += 1 - TOLERATED_FACTOR * self.share - TOLERATED_SHARE
        if self._alarm < ALARM:
            return False
        self._alarm, self.share = 0.0, self._calm_share
        if self._calls_since < CALLS_TO_REFUTE:
            self._asked *= 2
            self.share = 0.0
        return True
