"""What had been spent and charged when a call started, by the order in which limits were seen."""

from __future__ import annotations

from admissions import admission
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import OUTPUT, REQUESTS, TOKENS

#: 20 tokens in, and 10 out that a provider charges when the call ends.
CALL = Cost(1.0, 30.0, 20.0, 10.0, 10.0)


def third_call():
    """Return a lane's admission, and the grant of its third call in flight."""
    one = admission(dimensions=(REQUESTS, TOKENS))
    return one, [one.start(0.0, CALL) for _ in range(3)][-1]


def test_what_was_spent_is_with_the_call_and_before_it():
    one, grant = third_call()

    assert grant.spent_with(one.budgets[TOKENS]) == 90
    assert grant.spent_before(one.budgets[TOKENS]) == 60
    assert grant.spent_before(one.budgets[REQUESTS]) == 2
    assert (grant.number, grant.beside) == (3, 2)


def test_a_provider_charges_output_at_the_end_of_a_call_where_output_counts():
    one, grant = third_call()

    assert grant.charged(one.budgets[TOKENS]) == 20
    assert grant.charged_before(one.budgets[TOKENS]) == 40
    assert grant.charged(one.budgets[REQUESTS]) == 1
    assert grant.charged_before(one.budgets[REQUESTS]) == 2


def test_what_is_spent_later_does_not_count():
    one, grant = third_call()
    one.start(1.0, CALL)

    assert grant.spent_with(one.budgets[TOKENS]) == 90


def test_of_a_limit_that_was_not_known_when_it_started_nothing_was_spent():
    one, grant = third_call()
    later = one._lane.add(OUTPUT, 1000.0, 1.0, 60.0)

    assert grant.spent_with(later) == 0
