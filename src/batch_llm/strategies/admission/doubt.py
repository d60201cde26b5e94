"""Calls in doubt: sent a moment ago, and not yet refused.

A refusal comes back in tenths of a second, an answer after seconds. So a call that was not refused
for a moment counts as let in, and only so many may be in doubt at a time: what a wrong belief
costs is bounded by that number.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from batch_llm.strategies.dimensions import MINUTE

if TYPE_CHECKING:
    from batch_llm.strategies.admission.grants import Grant

#: A call that was not refused for so long counts as let in. How long that is at the start, and the
#: bounds within which it is learned from refusals.
DOUBT_SECONDS, SHORTEST_DOUBT_SECONDS, LONGEST_DOUBT_SECONDS = 0.25, 0.1, 2.0
#: With each refusal that time becomes this share of itself and so many times what the refusal took:
#: in the long run twice as long as refusals take, and never less than so many times the last one's.
KEPT_SHARE, LATENCY_TIMES, LEAST_TIMES = 0.7, 0.6, 1.3
#: The same at the start where limits are told. More may be in doubt there, and a small bucket
#: refuses most of what is sent until the first refusal comes back.
DOUBT_SECONDS_TOLD = 0.5
#: Calls sent before a refused one count as let in when they are silent for so many times as long as
#: its refusal took: after a pause that the provider asked for, and after one that was guessed.
PASSED_TIMES, PASSED_TIMES_GUESSED = 1.0, 1.5
#: Calls in doubt at a time: at the start (a rate allows no fewer either), and at the most until
#: many were let in.
DOUBT_START, DOUBT_MOST = 2.0, 256.0
#: While nothing is refused there come to be so many at least; and so many where no limit is known,
#: and it is given how many calls may be in flight.
DOUBT_LEAST, DOUBT_LEAST_GIVEN = 16.0, 64.0
#: With each call let in so many more, while nothing is known, where it is given how many calls may
#: be in flight, and where a limit is known.
DOUBT_GROWTH, DOUBT_GROWTH_GIVEN, DOUBT_GROWTH_KNOWN = 0.33, 0.5, 1.0
#: So many may be in doubt where a limit was seen: in headers, as a minute's that was learned, or by
#: a refusal of a told one.
DOUBT_SEEN = 32.0
#: So many at the start where limits are told, as small buckets hold so many; or where it is given
#: how many calls may be in flight.
DOUBT_START_TOLD = 8.0
#: Once this share of a told minute's requests was let in, as many may be in doubt as were let in: a
#: smaller bucket would have refused some.
HELD_SHARE = 0.25
#: So many at the most while a rate is searched: they are refused when it turns out too high.
DOUBT_SEARCH = 64.0
#: This share of the calls let in may be in doubt while nothing is refused, also beyond
#: ``DOUBT_MOST``; and of a known minute's requests.
DOUBT_SHARE = 0.05
#: The same where no limit is known, and it is given how many calls may be in flight.
DOUBT_SHARE_GIVEN = 0.15
#: Of a fixed minute's requests so many may be in doubt when it was used up and has opened again.
DOUBT_SHARE_OPENED = 0.25
#: So many times what a learned rate sends while one call is in doubt may be in doubt; and so many
#: times what a rate sends at the least, however much that is.
DOUBT_OVER_LEARNED, DOUBT_OVER_PACED = 2.0, 1.2
#: So many are always allowed where others use the same limit.
DOUBT_SHARED = 4.0
#: Where others use the same limit, so much of what is left may be in doubt.
DOUBT_SHARE_LEFT = 0.25
#: Beyond what a learned window has let in, this share of its calls may be in doubt, and so many at
#: the least; nothing is tried in one with few calls, where the refusal would be a large part.
TRIED_SHARE, TRIED_LEAST, TRIED_CALLS = 0.01, 2, 64


class Doubt:
    """The calls in doubt, and how many there may be.

    Args:
        requests_per_minute: As the user told it, or 0.
        is_told: Whether the user told any limit.
        is_given: Whether it is given how many calls may be in flight: more are never refused at
            once.
    """

    __slots__ = (
        "_grants",
        "_growth",
        "_held",
        "_is_known",
        "_least",
        "_share",
        "_silent_most",
        "_told",
        "calls",
        "limit",
        "seconds",
    )

    def __init__(
        self, requests_per_minute: float, *, is_told: bool, is_given: bool = False
    ) -> None:
        #: In the order in which they were sent; some have ended since.
        self._grants: deque[Grant] = deque()
        #: How long a call is in doubt.
        self.seconds = DOUBT_SECONDS_TOLD if is_told else DOUBT_SECONDS
        #: What is aimed at while nothing is refused, and how fast.
        self._least, self._growth, self._share = DOUBT_LEAST, DOUBT_GROWTH, DOUBT_SHARE
        self._is_known = False
        #: So many may be in doubt as soon as a limit per minute is known that allows it.
        self._told = DOUBT_SHARE * requests_per_minute
        #: How many there are, and may be.
        self.calls = 0
        self.limit = max(DOUBT_START, min(DOUBT_START_TOLD, self._told))
        if is_told:
            self._aim_as_known()
        elif is_given:
            self.note_given()
        #: Calls that were silent let no more than so many be in doubt.
        self._silent_most = math.inf
        #: From so many calls let in on the bucket is taken for a whole minute's.
        self._held = HELD_SHARE * requests_per_minute if is_told else math.inf

    def add(self, grant: Grant) -> None:
        """Take a call in that was just sent."""
        if not self.calls:
            self._grants.clear()  # all of them have ended
        self._grants.append(grant)
        self.calls += 1

    def settle(self, grant: Grant) -> None:
        """Let a call go of which it is known what became."""
        if grant.is_in_doubt:
            grant.is_in_doubt = False
            self.calls -= 1

    def passed(self, now: float, refused: Grant, *, is_guess: bool) -> Grant | None:
        """Return the oldest call that would have been refused before another one that was.

        Args:
            now: The time.
            refused: The other one.
            is_guess: Whether the provider did not say when to come back.
        """
        times = PASSED_TIMES_GUESSED if is_guess else PASSED_TIMES
        return self.silent(now, times * (now - refused.at))

    def silent(self, now: float, seconds: float | None = None) -> Grant | None:
        """Return the oldest call that was silent for long enough to count as let in.

        Args:
            now: The time.
            seconds: How long that is, when it is not what was learned.
        """
        grants = self._grants
        while grants:
            grant = grants[0]
            if grant.is_in_doubt:
                if grant.at > now - (self.seconds if seconds is None else seconds):
                    return None
                grants.popleft()
                return grant
            grants.popleft()
        return None

    def wait(self, now: float) -> float:
        """Return the seconds until the oldest call counts as let in."""
        oldest = self._grants[0].at if self._grants else now
        return max(1e-3, oldest + self.seconds - now)

    def wait_to_try(self, now: float, wait: float, calls: float) -> float:
        """Return the seconds until a call is tried that a learned window may not let in.

        Args:
            now: The time.
            wait: Until it is sure to have room.
            calls: So many it lets in.
        """
        if calls < TRIED_CALLS:
            return wait
        is_few = self.calls < max(TRIED_LEAST, TRIED_SHARE * calls)
        return 0.0 if is_few else min(wait, self.wait(now))

    def note_refused(self, latency: float) -> None:
        """Learn how long calls are in doubt from the seconds that a refusal took."""
        learned = KEPT_SHARE * self.seconds + LATENCY_TIMES * latency
        learned = max(learned, LEAST_TIMES * latency)
        self.seconds = max(SHORTEST_DOUBT_SECONDS, min(LONGEST_DOUBT_SECONDS, learned))

    def note_given(self) -> None:
        """Allow more where it is given how many calls may be in flight, and no limit is known."""
        if not self._is_known:
            self._least, self._growth = DOUBT_LEAST_GIVEN, DOUBT_GROWTH_GIVEN
            self._share = DOUBT_SHARE_GIVEN
            self.limit = max(self.limit, DOUBT_START_TOLD)

    def _aim_as_known(self) -> None:
        """Go by a known limit from now on."""
        self._least, self._growth = max(DOUBT_LEAST, self._told), DOUBT_GROWTH_KNOWN
        self._share, self._is_known = DOUBT_SHARE, True

    def note_accepted(self, accepted: int, calls: int = 1, *, is_seen: bool = False) -> None:
        """Allow more with each call let in, while nothing speaks against it.

        Args:
            accepted: Calls let in so far.
            calls: How many of them are new; more than one only where no limit is told. What is
                aimed at grows by less than one with each there, so that many at once come to the
                same as one by one.
            is_seen: Whether an answer's headers have shown what is left.
        """
        limit = self.limit
        if limit >= self._silent_most and not is_seen:
            return
        aim = most = self._share * accepted
        least = self._least
        if most < DOUBT_MOST:  # noqa: PLR1730 - here and below: on the hot path, a call costs more
            most = DOUBT_MOST
        if limit >= most and limit >= least:
            return
        if accepted >= self._held:
            self.limit = limit = max(limit, min(most, accepted))
        if aim < least:  # noqa: PLR1730
            aim = least
        if aim > limit:
            self.limit = min(aim, limit + self._growth * calls)

    def note_headers(self, requests_per_minute: float) -> None:
        """Allow more where headers show the limits.

        More than the limit's rate needs is left to the answers: what others have taken meanwhile is
        seen by their headers only.
        """
        self.fit_to_limit(requests_per_minute)
        paced = DOUBT_OVER_PACED * requests_per_minute / MINUTE * self.seconds
        self._silent_most = max(DOUBT_SEEN, paced)

    def fit_to_limit(self, requests_per_minute: float) -> None:
        """Allow as many as when a limit per minute is told: headers or refusals showed it."""
        self.limit = max(self.limit, DOUBT_SEEN)
        self._told = DOUBT_SHARE * requests_per_minute
        self._aim_as_known()

    def fit_to_minute(self, requests: float, *, is_fixed: bool) -> None:
        """Allow more, because a minute was used up and has opened again.

        A fixed one lets in as many at once; a sliding one as they leave it.
        """
        self.fit_to_limit(requests)
        if is_fixed:
            self.limit = max(self.limit, DOUBT_SHARE_OPENED * requests)

    def keep_to(self, calls_per_second: float, left: float) -> None:
        """Allow what a rate sends, or a part of what is left: others may take the rest."""
        paced = DOUBT_OVER_PACED * calls_per_second * self.seconds
        self.limit = min(self.limit, max(DOUBT_SHARED, paced, DOUBT_SHARE_LEFT * left))

    def fit(self, calls_per_second: float, *, is_searching: bool) -> None:
        """Allow twice what a learned rate sends while a call is in doubt, within bounds."""
        paced = calls_per_second * self.seconds
        bound = DOUBT_SEARCH if is_searching else DOUBT_MOST
        most = min(DOUBT_OVER_LEARNED * paced, bound)
        self.limit = max(DOUBT_START, most, DOUBT_OVER_PACED * paced)

    def fit_to_cut(self, calls_per_second: float) -> None:
        """Allow no more than twice what a rate that was just cut sends."""
        paced = calls_per_second * self.seconds
        self.limit = max(DOUBT_START, DOUBT_OVER_LEARNED * paced)

    def fit_to_told(self, *, is_counted: bool) -> None:
        """Allow no more than at first: a told limit has refused a call.

        Args:
            is_counted: Whether a minute's worth was used up: how it opens is not known.
        """
        self.limit = min(self.limit, DOUBT_START if is_counted else max(DOUBT_SEEN, self._told))
        self._held = math.inf

    def keep_small(self) -> None:
        """Allow few: refusals go on although headers show plenty left."""
        self.limit = min(self.limit, DOUBT_START_TOLD)

    def fit_to_memory(self, calls_per_second: float) -> None:
        """Allow twice what a remembered rate sends, within bounds."""
        paced = calls_per_second * self.seconds
        self.limit = max(DOUBT_START, min(DOUBT_SEARCH, DOUBT_OVER_LEARNED * paced))
