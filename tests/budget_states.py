"""Budgets as headers and openings leave them, for the tests of their parts."""

from __future__ import annotations

from batch_llm.strategies.admission.budgets import Budget
from batch_llm.strategies.admission.grants import Grant
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS


def told(per_minute=600.0, burst_seconds=60.0, name=REQUESTS):
    return Budget(name, per_minute, 0.0, burst_seconds)


def synced(budget, now, remaining, reset, *, limit=600.0, sent_at=None, pending=0.0):
    """Show a header to a call that was just sent; return whether the limit was news."""
    sent_at = now if sent_at is None else sent_at
    return budget.headers.sync(
        now, sent_at, budget.spent, pending, LimitHeader(limit, remaining, reset)
    )


def window():
    """Return a budget that headers have shown to be one per fixed minute, the next at 60."""
    budget = Budget(REQUESTS, None, 0.0, 60.0)
    for now in (2.0, 4.0, 6.0, 8.0):
        budget.charge(now, 50.0)
        synced(budget, now, 600.0 - 25.0 * now, 60.0 - now)
    assert budget.is_window
    assert budget.reset_at == 60.0
    return budget


def opening(budget, at):
    """Return the call that is the first to be let in at a time, as if it were sent just now."""
    grant = Grant(at, 0, Cost(0.0), 1, 0)
    grant.spent_then, grant.pending_then = [budget.spent], [budget.pending]
    return grant


def opened_twice(first=100.0, second=160.0, limit=600.0):
    budget = Budget(REQUESTS, limit, 0.0, 60.0)
    budget.charge(first, 400.0)
    budget.windows.seems_a_window(first, opening(budget, first))
    assert not budget.is_window
    budget.windows.seems_a_window(second, opening(budget, second))
    return budget
