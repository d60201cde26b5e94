"""What Retry-After tells of a limit's rate, where nobody told the limit.

A bucket asks a call that it refuses for the time in which what is missing comes back. No more than
the call's cost is missing, so the rate is no higher than that cost over that time. And of many
calls that are refused one after the other, at whatever level, the longest time comes close to what
a whole call needs. A limit that counts minutes asks for what is left of its minute: that is longer
than any bucket with a minute's burst can ask for that let in so much before, and tells nothing.

Everything is in calls by the second; what tokens a call costs is taken as a share of what one costs
on average, because a refusal does not tell which dimension it is for.
"""

from __future__ import annotations

import math

#: The likely rate is higher than the limit's with about this probability, if the bucket's levels at
#: the refusals are independent of each other.
DOUBTED_SHARE = 0.2
#: All refusals of a volley may ask for the same moment when the shortest time is longer than so
#: many times the longest over their number; else the bucket's level went up and down between them.
SPREAD = 2.0
#: So many times as much as a bucket can let in may seem to be let in: clocks differ, and calls are
#: in flight.
SLACK = 1.1
#: What is tried beyond the highest rate that is possible: this share of it more for each call let
#: in since the last refusal, but no more than this share for each second.
TRIED_SHARE, TRIED_SHARE_PER_SECOND = 0.01, 0.2
#: Times that differ by so many seconds were worked out from a limit, even if they are whole.
WORKED_OUT_SECONDS = 2.0
#: After so many seconds without a refusal twice the highest possible rate is tried, after twice as
#: many five times, and so on: some providers always ask for the same time, however fast the limit.
DOUBLED_SECONDS = 60.0
#: The same fraction of a second in so many volleys of refusals, one after the other, was not worked
#: out from a limit.
SAME_ASKED = 3


class Asked:
    """Tells a Retry-After that was worked out from a limit from one that is always the same."""

    __slots__ = ("_last", "_times")

    def __init__(self) -> None:
        #: The last one that began a volley of refusals, and how many in a row were the same.
        self._last: float | None = None
        self._times = 0

    def note(self, retry_after: float | None) -> None:
        """Take in what the first refusal of a volley asks for."""
        self._times = self._times + 1 if retry_after == self._last else 1
        self._last = retry_after

    def is_whole(self, retry_after: float | None) -> bool:
        """Tell whether a Retry-After is whole seconds, or a fraction that is always the same.

        False where there is none: the gate is closed for moments only then, and chance costs
        little.
        """
        return retry_after is not None and (retry_after % 1 == 0 or self.is_same(retry_after))

    def is_worked_out(self, retry_after: float | None) -> bool:
        """Tell whether a Retry-After was worked out from a limit: its fraction changes."""
        return retry_after is not None and not self.is_whole(retry_after)

    def is_same(self, retry_after: float) -> bool:
        """Tell whether it is a fraction that is always the same, which bounds no rate."""
        is_last = self._times >= SAME_ASKED and retry_after == self._last
        return is_last and retry_after % 1 != 0


class RetryHints:
    """The rates that Retry-After leaves possible. Every operation is O(1)."""

    __slots__ = (
        "_calls",
        "_first_at",
        "_is_void",
        "_last_at",
        "_least_asked",
        "_most_asked",
        "_per_call",
        "_per_size",
        "_shortest",
        "most",
    )

    def __init__(self) -> None:
        #: The highest rate that no Retry-After contradicts.
        self.most = math.inf
        #: Of the refusals of one volley: how many there are, when the first and the last were sent,
        #: and the longest time asked for, as it is and over the call's size.
        self._calls = 0
        self._first_at = self._last_at = 0.0
        self._per_call = self._per_size = 0.0
        #: The shortest time asked for.
        self._shortest = math.inf
        #: The shortest and the longest time that was ever asked for.
        self._least_asked, self._most_asked = math.inf, 0.0
        #: Whether the volley was not refused by a bucket.
        self._is_void = False

    def begin(self) -> None:
        """Begin another volley of refusals."""
        self._calls, self._per_call, self._per_size = 0, 0.0, 0.0
        self._shortest = math.inf
        self._is_void = False

    def note(self, sent_at: float, retry_after: float, size: float, least: float) -> None:
        """Take in what a refused call is asked to wait.

        Args:
            sent_at: When it was sent.
            retry_after: What it is asked to wait, in seconds. Where those are whole they are taken
                for rounded up.
            size: Its cost, as a share of what calls cost on average.
            least: A bucket with a minute's burst has let in what it did with no lower rate.
        """
        self._least_asked = min(self._least_asked, retry_after)
        self._most_asked = max(self._most_asked, retry_after)
        if self._is_void or retry_after <= 0:
            return
        at_least = retry_after - 1 if retry_after % 1 == 0 else retry_after
        most = max(1.0, size) / at_least if at_least > 0 else math.inf
        if SLACK * most < least:
            self._is_void = True
            return
        if not self._calls:
            self._first_at = self._last_at = sent_at
        self._first_at, self._last_at = min(self._first_at, sent_at), max(self._last_at, sent_at)
        self._calls += 1
        self._shortest = min(self._shortest, retry_after)
        self._per_call = max(self._per_call, retry_after)
        self._per_size = max(self._per_size, retry_after / max(size, 1e-3))
        self.most = min(self.most, most)

    @property
    def vary(self) -> bool:
        """Whether the times differ so much that they were worked out, whole seconds or not.

        What refuses at random asks for the same each time.
        """
        return self._most_asked >= self._least_asked + WORKED_OUT_SECONDS

    @property
    def least(self) -> float:
        """The rate that the volley makes likely to be there at the least; 0 when it tells none."""
        longest = min(self._per_call, self._per_size)
        if self._is_void or longest <= 0:
            return 0.0
        told = float(self._calls)
        if self._shortest * told > SPREAD * self._per_call:
            # Within the time that one call needs all of them are asked for the same moment.
            told = min(told, 1 + (self._last_at - self._first_at) / longest)
        share: float = DOUBTED_SHARE ** (1 / told)
        return min(self.most, share / longest)

    def most_tried(self, let_in: float, seconds: float) -> float:
        """Return the highest rate that is tried.

        Args:
            let_in: Calls since the last refusal.
            seconds: Since then.
        """
        by_calls = min(TRIED_SHARE * let_in, TRIED_SHARE_PER_SECOND * seconds)
        return self.most * (1 + by_calls + (seconds / DOUBLED_SECONDS) ** 2)

    def refute(self, rate: float) -> None:
        """Forget the most when more than that was let in for a while."""
        if rate > SLACK * self.most:
            self.forget()

    def forget(self) -> None:
        """Forget the most: it was another limit's."""
        self.most = math.inf
