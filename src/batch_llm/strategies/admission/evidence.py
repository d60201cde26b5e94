"""The last refusals of a lane, and what was let in between them: which buckets explain them all?

What was let in up to each refusal is a stretch (``stretches.py``). The more of them, the fewer
rates are left that explain how each ended; when none is, no bucket with one rate has refused them
all.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from batch_llm.strategies.admission.stretches import (
    CLOSEST,
    JITTER_SECONDS,
    Explained,
    Stretch,
    explaining_rates,
)
from batch_llm.strategies.dimensions import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.grants import Grant

#: The search goes by so many of the last stretches; and so many are kept.
MOST_STRETCHES, KEPT_STRETCHES = 4, 5
#: A point is noted at the start of a stretch, and whenever so many times as much was let in since.
POINTS_SHARE = 1.125
#: One bucket must explain so many of the last refusals; tolerances are so many times the usual
#: ones, at first and in a second try.
ASKED_STRETCHES, SOME_TOLERANCE, MORE_TOLERANCE = 3, 1.5, 3.0
#: A bucket that refused a call may still have held so many times what the largest one takes; of
#: tokens more, because what calls take is a guess.
HELD_CALLS, HELD_CALLS_OF_TOKENS = 1, 2
#: A stretch with fewer calls does not show how fast the bucket filled.
FEWEST_CALLS = 32
#: A bucket was never full when no more than this share of what it holds was ever in it.
NEVER_FULL_SHARE = 0.8


class Evidence:
    """The last refusals of a lane, and what was let in between them.

    Args:
        budgets: By dimension; some may be added later.
        now: The time.
    """

    __slots__ = (
        "_began_at",
        "_budgets",
        "_empty",
        "_first",
        "_is_first",
        "_last",
        "_newest",
        "_next",
        "_points",
        "_refused",
        "_reopened_at",
        "_sent",
        "_stretches",
        "behind",
        "is_corrected",
        "next_call",
    )

    def __init__(self, budgets: dict[str, Budget], now: float) -> None:
        self._budgets = budgets
        self._stretches: deque[dict[str, Stretch]] = deque(maxlen=KEPT_STRETCHES)
        #: Of the stretch under way: when a point was noted, and by budget what was let in by then.
        self._points: list[tuple[float, list[float]]] = []
        self._began_at, self._is_first = now, True
        #: Before the first refusal: when some calls were sent, and how many had been before them.
        self._sent: list[tuple[float, int]] = []
        #: The number of the call at which the next of these is noted.
        self.next_call: float = 1
        #: When the gate opened again in this stretch, where that was noted.
        self._reopened_at = now
        #: The stretch before the first refusal.
        self._first: dict[str, Stretch] = {}
        #: What had been let in of each dimension when the stretch began.
        self._empty: dict[str, float] = {}
        #: The requests let in at which the next point is noted.
        self._next = 1.0
        #: The number of the refused call that ended the last stretch; and of the newest one then.
        self._last = self._newest = 0
        #: Calls between those two that were refused.
        self._refused = 0
        #: The followers of the refused call before the last.
        self.behind: tuple[float, int] = (0.0, 0)
        #: Whether calls were taken back since a stretch was ended.
        self.is_corrected = False

    def note(self, now: float) -> None:
        """Note what was let in by now, where that is an eighth more than at the last point."""
        requests = self._budgets[REQUESTS].spent
        if requests < self._next:
            return
        empty = self._empty.get(REQUESTS, 0.0)
        self._next = max(requests + 1, empty + POINTS_SHARE * (requests - empty))
        let_in = [budget.charged for budget in self._budgets.values()]
        self._points.append((now, let_in))

    def note_call(self, now: float, number: int) -> None:
        """Note when a call was sent, before any was refused: it may be charged later."""
        self._sent.append((now, number - 1))
        self.next_call = max(number + 1, int(POINTS_SHARE * number))

    def end(self, now: float, grant: Grant, calls: int) -> None:
        """End a stretch with a refused call; ``calls`` were sent by ``now``, when it is known."""
        requests = self._budgets[REQUESTS]
        before, number = grant.charged_before(requests), requests.number
        if self._sent:
            self._end_start(grant)
        if self._points and self._reopened_at > self._points[0][0]:
            self._points.insert(1, (self._reopened_at, list(self._points[0][1])))
        points = [point for point in self._points if point[1][number] <= before]
        self.behind = self.followers
        stretch = {}
        for name, budget in self._budgets.items():
            if budget.number >= len(grant.spent_then):
                continue
            empty = self._empty.get(name, 0.0)
            known = [point for point in points if budget.number < len(point[1])]
            seconds = [0.0, *(at - self._began_at for at, _ in known), grant.at - self._began_at]
            let_in = [0.0, *(charged[budget.number] - empty for _, charged in known)]
            self._empty[name] = grant.charged_before(budget)
            let_in.append(self._empty[name] - empty)
            held = budget.largest * (HELD_CALLS if name == REQUESTS else HELD_CALLS_OF_TOKENS)
            stretch[name] = Stretch(self._is_first, seconds, let_in, held)
        self._stretches.append(stretch)
        if self._is_first:
            self._first = stretch
        self.is_corrected = False
        self._points = [(now, [budget.charged for budget in self._budgets.values()])]
        self._began_at, self._is_first = grant.at, False
        self._last, self._newest, self._refused = grant.number, calls, 0
        self._next = requests.spent + 1

    def _end_start(self, grant: Grant) -> None:
        """Make points of the calls noted before the one refused first; all take the same."""
        charged = [
            grant.charged_before(budget)
            for budget in self._budgets.values()
            if budget.number < len(grant.spent_then)
        ]
        sent, before = self._sent, max(1, grant.number - 1)
        self._points = [
            (at, [calls / before * amount for amount in charged])
            for at, calls in sent
            if calls <= before
        ]
        self._sent, self.next_call = [], math.inf

    def note_reopened(self, at: float) -> None:
        """Note when the gate had opened, where calls may be refused right behind the first one.

        Nothing else says that all of them were sent since then.
        """
        self._reopened_at = at

    def forget(self, grant: Grant) -> None:
        """Take back a call that was refused later than the one that ended the last stretch.

        It was sent before that one, or until that one's refusal was known.
        """
        if not self._stretches or grant.number > self._newest:
            return
        if self._points:
            for budget in self._budgets.values():
                if budget.number < len(self._points[0][1]):
                    self._points[0][1][budget.number] -= grant.charged(budget)
        if grant.number > self._last:
            self._refused += 1
            return
        self.is_corrected = True
        for name, stretch in self._stretches[-1].items():
            charged = grant.charged(self._budgets[name])
            stretch.let_in[-1] -= charged
            self._empty[name] -= charged

    def clear(self, last: int = 0) -> None:
        """Forget all but so many of the last stretches."""
        while len(self._stretches) > last:
            self._stretches.popleft()

    def calls_explained(self) -> Explained | None:
        """Return the calls by the second that explain as many of the last refusals as any do.

        Any dimension may be the one that refused them.
        """
        for last in range(len(self._latest), 0, -1):
            found = []
            for name in self._budgets:
                one, per_call = self.explained(name, last), self.per_call(name)
                if one is not None and per_call > 0:
                    found.append(Explained(one.least / per_call, one.most / per_call))
            if found:
                least, most = min(one.least for one in found), max(one.most for one in found)
                return Explained(least, most, last)
        return None

    def was_never_full(self, name: str, rate: float) -> bool:
        """Tell whether a bucket with this rate had room left all the time since the last refusal.

        How much it holds is known from the first refusal.
        """
        first = self._first.get(name)
        last = self._stretches[-1].get(name) if self._stretches else None
        if first is None or last is None:
            return False
        held = first.sizes(rate, 1.0)[1]
        return last is not first and last.sizes(rate, 1.0)[0] < NEVER_FULL_SHARE * held

    def unexplained(self) -> int:
        """Tell how badly one bucket explains the last three refusals, and another one those before.

        Returns:
            0 when they do, 1 when they do with more tolerance, 2 when they do not. So a limit that
            changed once is explained.
        """
        stretches = list(self._stretches)
        if len(stretches) < 2:
            return 0
        for tolerance, how in ((SOME_TOLERANCE, 0), (MORE_TOLERANCE, 1)):
            if self._is_explained(stretches[-ASKED_STRETCHES:], tolerance) and any(
                self._is_explained(stretches[changed:], tolerance)
                and self._is_explained(stretches[:changed], tolerance)
                for changed in range(max(1, len(stretches) - ASKED_STRETCHES + 1))
            ):
                return how
        return 2

    def _is_explained(self, stretches: list[dict[str, Stretch]], tolerance: float) -> bool:
        """Tell whether one bucket, of any dimension, explains how these stretches ended."""
        return len(stretches) < 2 or any(
            rate
            for name in self._budgets
            for rate in explaining_rates(_of(name, stretches), tolerance)
        )

    @property
    def followers(self) -> tuple[float, int]:
        """How many calls under way behind the last refused one were let in, and refused."""
        if not self._points or self._is_first:
            return 0.0, 0
        number = self._budgets[REQUESTS].number
        return max(0.0, self._points[0][1][number] - self._empty[REQUESTS]), self._refused

    def best_rate(self) -> float:
        """Return the highest rate of calls by the second that was let in for a while."""
        return max((one[REQUESTS].rate_at_end for one in self._latest), default=0.0)

    @property
    def _latest(self) -> list[dict[str, Stretch]]:
        return list(self._stretches)[-MOST_STRETCHES:]

    @property
    def last_seconds(self) -> float:
        """How long the last stretch took."""
        return self._stretches[-1][REQUESTS].seconds[-1] if self._stretches else 0.0

    @property
    def last_calls(self) -> float:
        """How many calls were let in from the last refusal but one to the last."""
        return self._stretches[-1][REQUESTS].let_in[-1] if self._stretches else 0.0

    def calls_let_in(self) -> float:
        """Return the highest rate of calls that was let in from one refusal to the next."""
        rates = (
            one[REQUESTS].let_in[-1] / max(one[REQUESTS].seconds[-1], 1e-3)
            for one in self._latest
            if not one[REQUESTS].is_first
        )
        return max(rates, default=0.0)

    def per_call(self, name: str) -> float:
        """Return what a call took of a dimension since the first refusal that is kept."""
        calls = sum(max(0.0, one[REQUESTS].let_in[-1]) for one in self._latest)
        let_in = sum(max(0.0, one[name].let_in[-1]) for one in self._latest if name in one)
        return let_in / max(calls, 1.0)

    def fills_in(self, name: str, rate: float) -> float:
        """Return the seconds that the bucket takes to fill at the least.

        Args:
            name: The dimension.
            rate: At which it filled at the most, by the second. It filled as fast at least as was
                let in between two refusals, because it was empty at both.
        """
        stretches = _of(name, (self._first, *self._stretches))
        for one in stretches:
            if not one.is_first and one.let_in[-1] >= FEWEST_CALLS * one.held:
                rate = max(rate, one.let_in[-1] / (one.seconds[-1] + JITTER_SECONDS))
        held = max((one.sizes(CLOSEST * rate, 1.0)[0] for one in stretches), default=0.0)
        return held / rate

    def explained(self, name: str, last: int = MOST_STRETCHES) -> Explained | None:
        """Return the rates that explain the last refusals; None when there are none.

        Args:
            name: The dimension.
            last: So many refusals.
        """
        found = list(explaining_rates(_of(name, list(self._stretches)[-last:]), 1.0))
        return Explained(found[0], found[-1]) if found else None


def _of(name: str, stretches: Iterable[dict[str, Stretch]]) -> list[Stretch]:
    """Return the stretches of one dimension, where it was counted."""
    return [one[name] for one in stretches if name in one]
