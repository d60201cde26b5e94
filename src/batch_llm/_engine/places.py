"""One key or deployment of a lane: whether calls may go there now, and how many at a time.

When a call may start there is its admission's business (``strategies/admission/``). What is added
here: it is set aside when it fails for good, avoided for a while when it fails otherwise, and held
to what its server works on at once. Which of several is taken: ``lane.py``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_llm.core.usage import tokens
from batch_llm.strategies.admission.slots import with_margin
from batch_llm.strategies.dimensions import CONCURRENCY
from batch_llm.strategies.knee import Knee, work_of

if TYPE_CHECKING:
    from batch_llm.providers.base import Capacity
    from batch_llm.strategies.admission import Admission
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.admission.known_limits import Known
    from batch_llm.strategies.costs import Cost

#: A place that failed is set aside for so long; twice as long each further time.
ASIDE_SECONDS, LONGEST_ASIDE_SECONDS = 30.0, 900.0
#: After a failure other places are preferred for so long; twice as long after each further one.
AVOIDED_SECONDS, LONGEST_AVOIDED_SECONDS = 2.0, 15.0
#: Where more than a few calls and a larger share of them were refused, nothing is remembered.
MOST_REFUSED_SHARE, FEW_REFUSED = 0.1, 20


class Place:
    """One key or deployment of a lane."""

    def __init__(self, number: int, admission: Admission) -> None:
        self.number = number
        self.admission = admission
        self.aside_until = 0.0
        self._aside_seconds = ASIDE_SECONDS
        self._healed_at = -math.inf
        self._probe: Grant | None = None
        #: Whether something went wrong since the last good end of a call.
        self.is_in_doubt = False
        #: While there are others that have done nothing wrong, those are preferred.
        self.avoided_until = -math.inf
        self._failures = 0
        #: What its server works on at once, where that was found out.
        self.capacity: Capacity | None = None
        #: Where the number of calls in flight is searched.
        self.knee: Knee | None = None

    def hold(self, capacity: Capacity, most: float) -> None:
        """Keep to what a server works on at once, and a little more in its queue."""
        self.capacity = capacity
        wanted = with_margin(capacity.slots) if capacity.source == "server" else capacity.slots
        self.admission.keep_in_flight(min(most, wanted))

    def search(self, now: float, first: int, most: float, *, is_near: bool) -> None:
        """Search the number of calls in flight that gets most done."""
        self.knee = Knee(now, first, most, is_near=is_near)
        self.admission.keep_in_flight(self.knee.concurrency)

    @property
    def is_held(self) -> bool:
        """Whether its server, or a search, says how many calls may be in flight."""
        return self.capacity is not None or self.knee is not None

    def note_work(self, now: float, grant: Grant, usage: dict[str, int] | None) -> None:
        """Tell what a call brought that took its time; an empty usage says that nothing came.

        A call that was given up says nothing, and is not told.
        """
        if self.knee is None:
            return
        if usage is None:
            work = work_of(0, 0)
        elif usage:
            work = work_of(tokens(usage, "input_tokens"), tokens(usage, "output_tokens"))
        else:
            work = 0.0
        self.knee.note_end(now, grant.at, grant.beside, work)
        self.admission.max_in_flight = self.knee.concurrency

    def known_limits(self) -> list[tuple[str, float, str]]:
        """Return dimension, limit and source of each limit that is known or believed."""
        limits = self.admission.known_limits()
        if any(dimension == CONCURRENCY for dimension, _, _ in limits):
            return limits  # refusals know better
        if self.knee is not None and self.knee.known is not None:
            limits.append((CONCURRENCY, self.knee.known, "learned"))
        elif self.capacity is not None:
            limits.append((CONCURRENCY, self.capacity.slots, self.capacity.source))
        return limits

    def wait(self, now: float, cost: Cost) -> float:
        """Return the seconds until a call may start here; infinity while a probe is out."""
        if not self.aside_until:
            return self.admission.wait(now, cost)
        if self._probe is not None:
            return math.inf
        return max(self.aside_until - now, self.admission.wait(now, cost))

    def start(self, now: float, cost: Cost) -> Grant:
        """Let a call in; the first one after the place was set aside is a probe."""
        grant = self.admission.start(now, cost)
        if self.aside_until > 0:
            self._probe = grant
        return grant

    def ended(self, now: float, grant: Grant, *, is_good: bool | None) -> bool:
        """Note that a call ended; None when it says nothing of the place.

        Returns:
            Whether it brings the place back that was set aside.

        Of a place that is set aside only the probe's end says something: answers to calls from
        before may still come in.
        """
        is_probe = grant is self._probe
        if is_probe:
            self._probe = None
        if not is_good:
            return False
        self.avoided_until, self._failures = -math.inf, 0
        if is_probe:
            self.aside_until, self._aside_seconds, self._healed_at = 0.0, ASIDE_SECONDS, now
        self.is_in_doubt = self.aside_until > 0
        return is_probe

    def set_aside(self, now: float, grant: Grant) -> bool:
        """Let no calls in for a while; return whether that is news."""
        if now < self.aside_until or grant.at < self._healed_at:
            return False
        self.is_in_doubt = True
        self.aside_until = now + self._aside_seconds
        self._aside_seconds = min(LONGEST_ASIDE_SECONDS, 2 * self._aside_seconds)
        return True

    def avoid(self, now: float) -> None:
        """Prefer others for a while: a call found it busy, broken or gone."""
        seconds = min(LONGEST_AVOIDED_SECONDS, AVOIDED_SECONDS * 2 ** min(self._failures, 10))
        self._failures += 1
        self.is_in_doubt = True
        self.avoided_until = now + seconds

    def worth_knowing(self) -> dict[str, Known]:
        """Return what the next run is to start from; nothing where it would be misled.

        A limit that an earlier run was told of, and that no answer of this one confirmed, may be
        none any more. Rates at which many calls were refused are too high.
        """
        admission = self.admission
        if admission.refusals > max(FEW_REFUSED, MOST_REFUSED_SHARE * admission.calls):
            return {}
        return {
            name: known
            for name, known in admission.learned().items()
            if admission.budgets[name].source != "remembered"
        }

    def is_well(self, now: float) -> bool:
        """Whether nothing speaks against it: calls that failed elsewhere may go here."""
        return (
            self.aside_until <= now
            and self.avoided_until <= now
            and self.admission.overloaded_since is None
        )
