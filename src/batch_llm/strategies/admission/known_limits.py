"""A lane's limits as users tell them, as they are shown, and as the next run remembers them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from batch_llm.strategies.dimensions import (
    CONCURRENCY,
    INPUT,
    OUTPUT,
    REQUESTS,
    REQUESTS_PER_DAY,
    TOKENS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batch_llm.core.config import Limits
    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.slots import Slots


class Known(NamedTuple):
    """What is known of one dimension at the end of a run.

    Attributes:
        limit: Per minute or day, where the provider told it; None where it was learned.
        rate: Per second.
        capacity: What the bucket holds, in requests or tokens.
    """

    limit: float | None
    rate: float
    capacity: float


def told_limits(limits: Limits | None) -> dict[str, float]:
    """Return what a user tells, by dimension: per minute, or per day."""
    if limits is None:
        return {}
    named = {
        REQUESTS: limits.requests_per_minute,
        TOKENS: limits.tokens_per_minute,
        INPUT: limits.input_tokens_per_minute,
        OUTPUT: limits.output_tokens_per_minute,
        REQUESTS_PER_DAY: limits.requests_per_day,
    }
    return {name: limit for name, limit in named.items() if limit}


def shown_limits(budgets: Iterable[Budget], slots: Slots) -> list[tuple[str, float, str]]:
    """Return dimension, limit and source of each limit that is known or believed."""
    limits = [
        (budget.name, budget.limit_believed, budget.shown_source)
        for budget in _known(budgets, slots)
    ]
    if slots.is_known:
        limits.append((CONCURRENCY, slots.most, "learned"))
    return limits


def limits_to_remember(budgets: Iterable[Budget], slots: Slots) -> dict[str, Known]:
    """Return by dimension what is worth knowing in the next run: not what was told."""
    return {
        budget.name: Known(
            budget.limit if budget.source != "unknown" else None,
            budget.limit / budget.window_seconds if budget.limit else budget.rate,
            budget.capacity,
        )
        for budget in _known(budgets, slots)
        if budget.source != "told"
    }


def _known(budgets: Iterable[Budget], slots: Slots) -> Iterator[Budget]:
    """Yield the budgets whose rate means something: under a limit on calls in flight it floats."""
    for budget in budgets:
        is_floating = budget.source == "unknown" and slots.is_known
        if budget.rate < math.inf and not is_floating:
            yield budget
