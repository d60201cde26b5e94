"""Which of several limits that nobody told refuses, where refusals do not say so?

The bucket of the one that refuses is empty each time: what it has let in from one refusal to the
next is its rate, again and again. Of the others more or less was let in, as calls happen to be
long or short. So the one whose rates differ least is what refuses; the others are not cut with it,
and let it have its rate, which is known from many refusals better than from one. Now and then one
of the others may refuse, too: so it is most of the time that counts, and not all of it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from batch_llm.strategies.costs import FIELDS
from batch_llm.strategies.dimensions import INPUT, OUTPUT, TOKENS

if TYPE_CHECKING:
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.costs import Cost

#: So many of the last refusals are looked at; it is judged by so many times between them at the
#: least, none of which counts that is shorter than this.
MOST_POINTS, FEWEST_ROUNDS, SHORTEST_SECONDS = 24, 4, 4.0
#: It is known what refuses when another dimension's rates differ by so many times as much as those
#: of the one that differs least, and by so much more as a share;
TIMES, MORE = 2.5, 0.01
#: and when these differ by no more than this share. Where all differ by more than the second, it is
#: not known any more.
SURE, LOST = 0.04, 0.08
#: A dimension that does not refuse may let in so many times as many calls as the one that does.
ROOM = 1.3
#: The rate is the one that is not exceeded in this share of the time; and the others differ from it
#: by what is not exceeded in the second share.
QUANTILE, MOST = 0.6, 0.6
#: So much of the output of calls in flight is counted where it is not known what refuses.
GUESSED_SHARE = 0.25
#: A bucket that refused a call held so much of its cost, where nobody says when it has room for it.
HELD_SHARE = 0.5
#: When what was let in since the last refusal differs by more than this share, another dimension
#: has refused; so many times in a row, it is another limit. A shorter time does not tell, but so
#: many of them in a row do.
CHANGED_SHARE, MOST_CHANGED, TELLING_SECONDS, MOST_SHORT = 0.25, 2, 2.0, 3


class Point:
    """A refusal: when the call was sent, its number, and what had been charged by dimension."""

    __slots__ = ("at", "charged", "number")

    def __init__(self, at: float, number: int, charged: dict[str, float]) -> None:
        self.at = at
        self.number = number
        self.charged = charged


class Scarce:
    """The last refusals, and which dimension is the scarce one.

    Args:
        budgets: By dimension; some may be added later.
    """

    __slots__ = ("_budgets", "_changed", "_newest", "_points", "_rates", "_short", "_spared")

    def __init__(self, budgets: dict[str, Budget]) -> None:
        self._budgets = budgets
        self._points: deque[Point] = deque(maxlen=MOST_POINTS)
        #: The number of the last refused call: what calls before it took may still be corrected.
        self._newest = 0
        #: Refusals in a row, each a moment after the one before; and those after another rate.
        self._short = self._changed = 0
        #: What is let in of each dimension by the second; and the dimensions that do not refuse.
        self._rates: dict[str, float] = {}
        self._spared: frozenset[str] = frozenset()

    @property
    def is_found(self) -> bool:
        """Whether some dimensions are known not to refuse."""
        return bool(self._spared)

    def is_spared(self, budget: Budget) -> bool:
        """Tell whether it is another dimension than this one that refuses."""
        return budget.name in self._spared

    def rate(self, budget: Budget) -> float:
        """Return what is let in by the second from refusal to refusal."""
        return self._rates.get(budget.name, budget.rate)

    def room(self, budget: Budget) -> float:
        """Return the rate that leaves the scarce dimension its own."""
        return ROOM * self.rate(budget)

    def owed(self, budget: Budget) -> float:
        """Return what a budget that was found empty is still to be charged for calls in flight.

        One that does not refuse was not found empty; and of output, which is nearly all charged
        late, a quarter is counted where it is not known to be what refuses.
        """
        if not budget.has_learned_rate:
            return budget.pending
        if self.is_spared(budget):
            return 0.0
        is_guess = budget.name == OUTPUT and self._points and not self._spared
        return GUESSED_SHARE * budget.pending if is_guess else budget.pending

    def clear(self) -> None:
        """Forget all: it is another limit."""
        self._points.clear()
        self._newest = self._short = self._changed = 0
        self._rates, self._spared = {}, frozenset()

    def note(self, grant: Grant, retry_after: float | None) -> None:
        """Take in a refusal that rates are cut for.

        Args:
            grant: The refused call's.
            retry_after: Seconds after which there is room for it, if that is known.
        """
        share = HELD_SHARE if retry_after is None else 1.0
        charged = {
            name: grant.charged_before(budget) + share * grant.charged(budget)
            for name, budget in self._budgets.items()
            if budget.number < len(grant.spent_then)
        }
        point = Point(grant.at + (retry_after or 0.0), grant.number, charged)
        self._judge()
        if self._spared:
            self._compare(point)
        self._newest = grant.number
        self._points.append(point)

    def correct(self, grant: Grant, used: Cost) -> None:
        """Correct what had been charged by then, when a call from before has ended.

        Its output was not among it, as long as the provider charges that at the end.
        """
        if grant.number >= self._newest:
            return
        field = FIELDS[INPUT]
        difference = used[field] - grant.cost[field]
        for point in reversed(self._points):
            if point.number <= grant.number:
                return
            for name in (TOKENS, INPUT):
                if name in point.charged:
                    point.charged[name] += difference

    def forget(self, grant: Grant) -> None:
        """Take back a call from before that was refused after all."""
        if grant.number >= self._newest:
            return
        for point in reversed(self._points):
            if point.number <= grant.number:
                return
            for name in point.charged:
                point.charged[name] -= grant.charged(self._budgets[name])

    def _compare(self, point: Point) -> None:
        """See whether what was let in since the last refusal is another rate than before.

        Then another dimension has refused this time; or it is another limit.
        """
        last = self._points[-1]
        seconds = point.at - last.at
        self._short = self._short + 1 if seconds < TELLING_SECONDS else 0
        if self._short:
            if self._short >= MOST_SHORT:
                self.clear()
            return
        is_other = any(
            abs((charged - last.charged.get(name, 0.0)) / seconds - self._rates[name])
            > CHANGED_SHARE * self._rates[name]
            for name, charged in point.charged.items()
            if name in self._rates and name not in self._spared
        )
        self._changed = self._changed + 1 if is_other else 0
        if self._changed >= MOST_CHANGED:
            self.clear()
        elif is_other:
            self._spared = frozenset()

    def _judge(self) -> None:
        """See which dimensions do not refuse, by the refusals whose calls before have ended."""
        points = self._points
        rounds: list[tuple[float, dict[str, float]]] = []
        before = None
        for point in points:
            if before is None:
                before = point
            elif point.at - before.at >= SHORTEST_SECONDS:
                amounts = {
                    name: charged - before.charged[name]
                    for name, charged in point.charged.items()
                    if name in before.charged
                }
                rounds.append((point.at - before.at, amounts))
                before = point
        if len(rounds) < FEWEST_ROUNDS:
            return
        rates, differ = {}, {}
        for name in rounds[0][1]:
            found = sorted(
                (amounts.get(name, 0.0) / seconds, seconds) for seconds, amounts in rounds
            )
            rates[name], differ[name] = _spread(found)
        self._rates = rates
        scarce = min(differ, key=differ.__getitem__)
        least = differ[scarce]
        if least <= SURE and max(differ.values()) > TIMES * least + MORE:
            self._spared = frozenset(differ) - {scarce}
        elif least > LOST:
            self._spared = frozenset()


def _spread(rates: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the rate of a bucket, and the share by which most of the others differ from it.

    Args:
        rates: By the second, each with the seconds that it lasted, the lowest first.
    """
    common = _quantile(rates, QUANTILE)
    if common <= 0:
        return 0.0, 1.0
    differ = sorted((abs(rate / common - 1), seconds) for rate, seconds in rates)
    return common, _quantile(differ, MOST)


def _quantile(values: list[tuple[float, float]], share: float) -> float:
    """Return the value that is not exceeded in this share of the time.

    Args:
        values: Each with the seconds that it lasted, the lowest first.
        share: Of all these seconds.
    """
    left = share * sum(seconds for _, seconds in values)
    for value, seconds in values:
        left -= seconds
        if left <= 0:
            return value
    return values[-1][0]
