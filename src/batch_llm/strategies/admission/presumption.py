"""A refusal right after the gate has opened: too fast again, or closed still?

The first call sent since then tells: when it is let in, the provider was open, and those behind it
were too many. What became of it is not known yet when one of these is refused. It is taken for let
in, and the rates are cut; when it turns out to be refused as well, the cut is taken back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.grants import Grant


class Presumption:
    """The first call since the gate has opened, taken for let in, and the rates from before."""

    __slots__ = ("_before", "_first")

    def __init__(self) -> None:
        #: The call's number; 0 while nothing is presumed.
        self._first = 0
        #: The unknown budgets with their rates and peaks.
        self._before: list[tuple[Budget, float, float]] = []

    def begin(self, first: int, budgets: Iterable[Budget]) -> None:
        """Take a call for let in, before the rates are cut."""
        self._first = first
        self._before = [
            (budget, budget.rate, budget.peak) for budget in budgets if budget.source == "unknown"
        ]

    def forget(self) -> None:
        """Presume nothing."""
        self._first = 0

    def is_refuted(self, refused: Grant) -> bool:
        """Whether this is the call that was taken for let in."""
        return refused.number == self._first

    def take_back(self) -> None:
        """Take back the cut."""
        self._first = 0
        for budget, rate, peak in self._before:
            if budget.rate < rate:
                budget.peak = peak
                budget.learn_rate(rate)
