"""What is kept back of a bucket that headers show, because calls arrive out of step.

Where headers tell the limit and nobody else uses it, a call is refused now and then because it came
a moment too soon: a fraction of its cost was missing. So the calls after it are sent that moment
later, and the limit stays what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.strategies.dimensions import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.strategies.admission.budgets import Budget
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.admission.header_belief import LimitHeader

#: So much of the rate is kept back after the first such refusal; twice as much after each other
#: one.
FIRST_SECONDS = 0.05
#: No more than this is, or than an average call takes where that is more; and no more than this
#: share of the bucket.
MOST_SECONDS, MOST_SHARE = 0.25, 0.5


def explains(
    budgets: Mapping[str, Budget], grant: Grant, headers: Mapping[str, LimitHeader]
) -> bool:
    """Tell whether a call was refused for coming a moment too soon; keep more back if it was.

    Args:
        budgets: By dimension.
        grant: The refused call's.
        headers: What the refusal says of the limits.
    """
    calls, is_explained = max(budgets[REQUESTS].spent, 1.0), False
    for name, header in headers.items():
        budget = budgets.get(name)
        if budget is None or not header.is_sound or budget.number >= len(grant.spent_then):
            continue
        if budget.source != "header" or budget.is_window or budget.is_sliding:
            continue
        missing = min(grant.cost[budget.field], budget.capacity) - header.remaining
        if missing <= 0:
            continue
        if budget.headers.is_shared or not _keep_more(budget, missing, budget.spent / calls):
            return False
        is_explained = True
    return is_explained


def _keep_more(budget: Budget, missing: float, per_call: float) -> bool:
    """Keep more of a budget back; return False when too much is missing for that to help."""
    kept = budget.headers.kept_seconds * budget.ceiling
    most = max(MOST_SECONDS * budget.ceiling, per_call)
    most = min(most, MOST_SHARE * budget.capacity)
    more = min(most, max(FIRST_SECONDS * budget.ceiling, 2 * kept, kept + missing))
    if missing > most or more <= kept:
        return False
    budget.level -= more - kept
    budget.headers.kept_seconds = more / budget.ceiling
    return True
