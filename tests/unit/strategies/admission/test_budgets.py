"""One dimension: a bucket, told or learned."""

from __future__ import annotations

import pytest

from batch_llm.strategies.admission.budgets import Budget
from batch_llm.strategies.dimensions import TOKENS
from budget_states import told


def test_a_learned_bucket_holds_the_largest_call():
    budget = Budget(TOKENS, None, 0.0, 60.0)
    budget.largest = 5000.0

    budget.learn_rate(10.0)

    assert budget.capacity == 5000.0


def test_a_limit_that_is_believed_no_more_is_none():
    budget = Budget(TOKENS, None, 0.0, 60.0)
    budget.learn_rate(10.0)

    budget.release()

    assert budget.wait(0.0, 1e9) == 0.0
    assert not budget.is_limited


@pytest.mark.parametrize("how", ["settled with less", "never sent"])
def test_a_late_refund_gives_back_no_more_than_is_missing_still(how):
    """The charge of 30 was refilled by 30 s; then the bucket of 60 was emptied by others."""
    budget = told(60.0)
    budget.charge(0.0, 30.0)
    budget.charge(30.0, 60.0)
    assert budget.level == pytest.approx(0.0)

    if how == "never sent":
        budget.uncharge(30.0, 30.0, 0.0, refund=True)
    else:
        budget.settle(30.0, -30.0, 0.0)

    assert budget.level == pytest.approx(0.0)


def test_a_refund_before_the_bucket_was_full_again_is_paid_in_full():
    budget = told(60.0)
    budget.charge(0.0, 30.0)
    budget.charge(10.0, 20.0)

    budget.settle(10.0, -30.0, 0.0)

    assert budget.level == pytest.approx(60 - 30 + 10 - 20 + 30)
