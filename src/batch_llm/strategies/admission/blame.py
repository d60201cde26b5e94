"""Which of several limits refused a call, where the refusal does not say so?

Each told limit's rate is known, so what is left of it is too, or how much of it was used before the
first refusal: in seconds of its rate these can be compared. One with far more left than another is
not what refused, and need not wait until it has filled again. Where none was told, any may have
refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from batch_llm.strategies.admission.belief import Belief
    from batch_llm.strategies.admission.budgets import Budget

#: A limit that has left no more than so many times what the emptiest has, and so many seconds more,
#: may have refused. At the first refusal: one of which no less than this share was used of what was
#: used of the most used one.
LEFT_FACTOR, LEFT_SECONDS, USED_SHARE = 2.0, 1.0, 0.5


def emptied_by(
    budgets: Mapping[str, Budget],
    now: float,
    named: str | None,
    belief: Belief,
    *,
    is_closed_still: bool,
) -> Collection[Budget]:
    """Return the budgets that a refusal shows to be empty.

    Args:
        budgets: By dimension.
        now: The time.
        named: The dimension that the refusal names, if it is one of these.
        belief: Where the limits are from.
        is_closed_still: Whether nothing was let in since the refusal before.
    """
    if named is not None and budgets[named].source != "unknown":
        return [budgets[named]]  # of an unknown one the others are searched beside it
    if is_closed_still or not belief.is_told:
        return budgets.values()
    return blamed(budgets.values(), now, is_first=belief.is_first)


def blamed(budgets: Iterable[Budget], now: float, *, is_first: bool) -> list[Budget]:
    """Return the told limits that may have refused a call.

    Args:
        budgets: Those of the lane.
        now: The time.
        is_first: Whether nothing was refused before: how much each bucket holds is not known then.
    """
    limited = [budget for budget in budgets if budget.is_limited]
    counted = [budget for budget in limited if budget.windows.may_be_counted]
    if counted or len(limited) < 2:
        return counted or limited
    if is_first:
        used = [budget.charged / budget.rate for budget in limited]
        least = USED_SHARE * max(used)
        return [budget for budget, seconds in zip(limited, used, strict=True) if seconds >= least]
    left = []
    for budget in limited:
        budget.refill(now)
        pending = 0.0 if budget.is_window else budget.pending
        left.append((budget.level + pending) / budget.rate)
    most = LEFT_FACTOR * max(0.0, min(left)) + LEFT_SECONDS
    return [budget for budget, seconds in zip(limited, left, strict=True) if seconds <= most]
