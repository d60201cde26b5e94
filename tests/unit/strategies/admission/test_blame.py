"""Of several told limits those are blamed for a refusal that may have caused it."""

from __future__ import annotations

from batch_llm.strategies.admission.blame import blamed
from batch_llm.strategies.dimensions import TOKENS
from budget_states import told


def pair():
    return told(600.0), told(6000.0, name=TOKENS)


def test_before_anything_was_refused_the_most_used_may_be_used_up():
    requests, tokens = pair()
    requests.charge(0.0, 100.0)
    tokens.charge(0.0, 200.0)

    assert blamed([requests, tokens], 1.0, is_first=True) == [requests]

    tokens.charge(0.0, 600.0)
    assert blamed([requests, tokens], 1.0, is_first=True) == [requests, tokens]


def test_later_the_emptiest_is():
    requests, tokens = pair()
    tokens.charge(0.0, 6000.0)

    assert blamed([requests, tokens], 0.0, is_first=False) == [tokens]

    requests.charge(0.0, 595.0)
    assert blamed([requests, tokens], 0.0, is_first=False) == [requests, tokens]


def test_output_that_the_provider_has_not_charged_yet_is_there():
    requests, tokens = pair()
    requests.charge(0.0, 600.0)
    tokens.charge(0.0, 6000.0)
    tokens.pending = 3000.0

    assert blamed([requests, tokens], 0.0, is_first=False) == [requests]


def test_output_that_the_provider_has_not_charged_yet_was_not_used():
    requests, tokens = pair()
    requests.charge(0.0, 60.0)
    tokens.charge(0.0, 1000.0)
    tokens.pending = 800.0

    assert blamed([requests, tokens], 1.0, is_first=True) == [requests]


def test_one_with_up_to_twice_as_much_left_as_the_emptiest_may_be_as_empty():
    requests, tokens = pair()
    requests.charge(0.0, 300.0)  # 30 seconds of its rate are left
    tokens.charge(0.0, 500.0)  # 55 seconds

    assert blamed([requests, tokens], 0.0, is_first=False) == [requests, tokens]


def test_a_minute_s_worth_that_was_used_is_blamed_alone():
    requests, tokens = pair()
    tokens.windows.may_be_counted = True

    assert blamed([requests, tokens], 0.0, is_first=True) == [tokens]


def test_one_limit_is_always_blamed():
    requests = told(600.0)

    assert blamed([requests], 0.0, is_first=False) == [requests]
