"""Caps without a loop: what is reserved, what is booked, and what bounds a call."""

from __future__ import annotations

from decimal import Decimal

import pytest

from batch_llm.core.prices import Price
from batch_llm.strategies.caps import (
    FEW_ANSWERS,
    FIRST_HIDDEN_TOKENS,
    FIRST_OUTPUT_TOKENS,
    LEAST_OUTPUT_TOKENS,
    OVERHEAD_TOKENS,
    Bounds,
    Purse,
    Size,
    Worst,
)

RATE = Price(input=1, output=10, cache_write=2, reasoning=20).rate()


def learned(*answers, size=None):
    bounds = Bounds()
    for sent, got in answers:
        bounds.learn(size or Size(400), sent, got)
    return bounds


def test_a_cap_may_be_used_to_the_last_token():
    purse = Purse(max_tokens=100)

    first = purse.reserve(Worst(60))

    assert purse.reserve(Worst(41)) is None
    assert purse.reserve(Worst(40)) is not None
    assert first.worst.tokens == 60


def test_what_was_not_used_is_given_back():
    purse = Purse(max_tokens=100)
    held = purse.reserve(Worst(100))

    purse.settle(held, Decimal(0), 30)

    assert (purse.spent_tokens, purse.reserved_tokens) == (30, 0)
    assert purse.hindrance(Worst(70)) is None
    assert purse.hindrance(Worst(71)) == "max_tokens_total"


def test_money_is_summed_exactly():
    purse = Purse(Decimal("0.3"))

    for _ in range(3):
        purse.settle(purse.reserve(Worst(1, Decimal("0.1"))), Decimal("0.1"), 1)

    assert purse.spent_usd == Decimal("0.3")
    assert purse.hindrance(Worst(0, Decimal("0.0000001"))) == "max_cost_usd"


def test_an_unknown_cost_is_booked_at_its_worst():
    purse = Purse(Decimal(1))

    purse.settle_unknown(purse.reserve(Worst(5, Decimal("0.25"))))

    assert (purse.spent_usd, purse.spent_tokens, purse.unknown_calls) == (Decimal("0.25"), 5, 1)


def test_a_call_is_settled_once():
    purse = Purse(max_tokens=10)
    held = purse.reserve(Worst(10))

    purse.settle(held, Decimal(0), 4)
    purse.settle_unknown(held)
    purse.release(held)

    assert (purse.spent_tokens, purse.reserved_tokens, purse.has_reservations) == (4, 0, False)


def test_what_passes_its_reservation_is_booked_whole():
    purse = Purse(max_tokens=10)

    purse.settle(purse.reserve(Worst(4)), Decimal(0), 7)

    assert (purse.spent_tokens, purse.reserved_tokens) == (7, 0)


def test_max_tokens_bounds_the_output():
    assert Bounds().output_tokens(Size(0, max_output_tokens=7)) == 7


def test_without_max_tokens_the_bound_is_high_and_then_learned():
    assert Bounds().output_tokens(Size(0)) == FIRST_OUTPUT_TOKENS
    assert learned((1, 5000)).output_tokens(Size(0)) == 10_000
    assert learned(*[(1, 300)] * FEW_ANSWERS).output_tokens(Size(0)) == 600
    assert learned(*[(1, 3)] * FEW_ANSWERS).output_tokens(Size(0)) == LEAST_OUTPUT_TOKENS


def test_input_is_bounded_by_its_bytes_and_then_by_what_bytes_took():
    assert Bounds().input_tokens(Size(400)) == 400 + OVERHEAD_TOKENS
    taught = learned(*[(100 + OVERHEAD_TOKENS, 1)] * FEW_ANSWERS)
    assert taught.input_tokens(Size(400)) == 200 + OVERHEAD_TOKENS


def test_what_cannot_be_seen_is_learned_too():
    hidden = Size(40, is_seen=False)

    assert Bounds().input_tokens(hidden) == 40 + OVERHEAD_TOKENS + FIRST_HIDDEN_TOKENS
    taught = learned(*[(1040 + OVERHEAD_TOKENS, 1)] * FEW_ANSWERS, size=hidden)
    assert taught.input_tokens(hidden) == 40 + OVERHEAD_TOKENS + 2000


def test_what_the_user_says_counts_where_it_is_more():
    told = Size(0, told_input_tokens=10_000, told_output_tokens=9_000)

    assert Bounds().input_tokens(told) == 20_000
    assert Bounds().output_tokens(told) == 18_000


def test_the_worst_price_is_that_of_the_dearest_kinds():
    worst = Bounds().worst(Size(68, max_output_tokens=10), lambda _sent: RATE)

    assert worst.tokens == 110
    assert worst.usd == (100 * Decimal(2) + 10 * Decimal(20)) / 10**6


@pytest.mark.parametrize("setting", [{"max_usd": Decimal(1)}, {"max_tokens": 1}, {}])
def test_a_cap_that_is_not_given_hinders_nobody(setting):
    purse = Purse(**setting)

    hindrance = purse.hindrance(Worst(2, Decimal(2)))

    assert hindrance == {"max_usd": "max_cost_usd", "max_tokens": "max_tokens_total"}.get(
        next(iter(setting), "")
    )
