"""From when on a call is slow, and what copies may cost: pure, on a made-up clock."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.strategies import hedging
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.hedging import Hedges, Size, Slowness, telling

NOBODY_SAID = Size()


def taught(seconds, size=NOBODY_SAID, tokens=None):
    slowness = Slowness()
    for one in seconds:
        slowness.note(one, size, tokens)
    return slowness


def slow_seconds(slowness, size=NOBODY_SAID, under_way=()):
    return slowness.slow_factor(under_way) * slowness.expected_seconds(size)


def test_nothing_is_slow_before_enough_answers():
    assert taught([1.0] * 19).slow_factor([]) is None
    assert taught([1.0] * 20).slow_factor([]) is not None


def test_slow_is_at_least_two_medians():
    assert slow_seconds(taught([3.0] * 100)) == pytest.approx(6.0, rel=0.06)


def test_slow_is_what_nineteen_of_twenty_are_faster_than():
    seconds = [1.0] * 900 + [10.0] * 100
    random.Random(1).shuffle(seconds)

    assert slow_seconds(taught(seconds)) == pytest.approx(10.0, rel=0.15)


def test_a_long_answer_is_not_slow_for_its_length():
    slowness = Slowness()
    dice = random.Random(2)
    for _ in range(300):
        tokens = dice.choice([10, 100, 1000])
        slowness.note(1.0 + tokens / 100, Size(got=tokens), tokens)

    assert slow_seconds(slowness, Size(got=1000)) == pytest.approx(22.0, rel=0.1)
    assert slow_seconds(slowness, Size(got=10)) == pytest.approx(2.2, rel=0.1)


def test_an_answer_is_expected_to_be_no_longer_than_was_asked_for():
    slowness = taught([2.0] * 50, tokens=500)

    assert slowness.expected_tokens(Size(got=900, most=200)) == 200
    assert slowness.expected_tokens(Size(most=200)) == 200
    assert slowness.expected_tokens(NOBODY_SAID) == pytest.approx(500)


def test_a_straggler_hardly_moves_what_is_expected():
    slowness = taught([2.0] * 100)

    slowness.note(600.0, NOBODY_SAID, None)

    assert slowness.expected_seconds(NOBODY_SAID) == pytest.approx(2.0, rel=0.05)


def test_what_was_long_ago_is_forgotten():
    assert slow_seconds(taught([10.0] * 1000 + [1.0] * 6000)) == pytest.approx(2.0, rel=0.1)


def test_calls_without_an_answer_yet_count_as_slower_than_they_are_so_far():
    """Only the quick half has been answered: what is slow is not to be told from that."""
    slowness = taught([1.0 + n / 100 for n in range(100)])

    alone = slowness.slow_factor([])
    among_others = slowness.slow_factor([1.3] * 100)

    assert among_others > 1.3 * alone / 1.25
    assert among_others > alone


def test_hung_calls_do_not_hide_that_they_hang():
    assert taught([1.0] * 20).slow_factor([300.0] * 5) < 2.2


def test_weights_do_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(hedging, "LARGEST_WEIGHT", 1.05)
    often = taught([1.0, 2.0] * 500)
    monkeypatch.undo()
    never = taught([1.0, 2.0] * 500)

    assert often._weight <= 1.06
    assert slow_seconds(often) == pytest.approx(slow_seconds(never))
    assert often.tokens == pytest.approx(never.tokens)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6), st.one_of(st.none(), st.integers(0, 10**6)), st.integers(0, 10**6)
        ),
        min_size=20,
        max_size=120,
    ),
    st.lists(st.floats(0, 1e6), max_size=50),
)
def test_whatever_answers_bring_slow_is_a_finite_time(answers, under_way):
    slowness = Slowness()
    for seconds, told, tokens in answers:
        slowness.note(seconds, Size(got=told), tokens)

    assert 0 < slowness.slow_factor(under_way) < math.inf
    assert 0 <= slowness.expected_seconds(NOBODY_SAID) < math.inf
    assert 0 <= slowness.expected_seconds(Size(got=10**6)) < math.inf


def wait(hedges, now=1000.0, cost=0.0, *, items=10_000, tokens=0):
    return hedges.wait(now, cost, items=items, tokens=tokens)


def test_the_first_copy_is_free_of_the_budget():
    hedges = Hedges()

    assert wait(hedges, items=1, cost=100.0, tokens=10) == 0
    hedges.note_sent(100.0)
    assert wait(hedges, items=1, cost=100.0, tokens=10) == math.inf


def test_no_more_copies_than_a_twentieth_of_the_items():
    hedges = Hedges()
    while wait(hedges, items=200) == 0:
        hedges.note_sent(0.0)

    assert hedges.sent == 10


def test_no_more_tokens_than_two_percent():
    hedges = Hedges()
    while wait(hedges, cost=30.0, tokens=10_000) == 0:
        hedges.note_sent(30.0)

    assert hedges.tokens == 180.0


def test_the_more_of_the_budget_is_used_up_the_slower_a_call_must_be():
    hedges = Hedges()
    asked = []
    while wait(hedges, cost=50.0, items=200, tokens=10_000) == 0:
        asked.append(hedges.patience(items=200, tokens=10_000))
        hedges.note_sent(50.0)

    assert asked == pytest.approx([1.0, 4**0.25, 2.0, 4**0.75])
    assert hedges.patience(items=200, tokens=0) == pytest.approx(4**0.4)
    assert hedges.patience(items=2, tokens=10) == 4.0


def test_a_refusal_stops_copies_for_half_a_minute():
    hedges = Hedges()
    for _ in range(100):
        hedges.note_end(990.0, None)
    hedges.note_end(990.0, ErrorCode.RATE_LIMITED)

    assert wait(hedges, 1000.0) == 20.0
    assert wait(hedges, 1020.0) == 0.0


@pytest.mark.parametrize("code", [ErrorCode.OVERLOADED, ErrorCode.CONNECTION])
def test_a_provider_that_deals_with_too_few_calls_gets_no_copies(code):
    hedges = Hedges()
    for _ in range(80):
        hedges.note_end(1000.0, None)
    for _ in range(11):
        hedges.note_end(1000.0, code)

    assert wait(hedges, 1000.0) == hedging.LOOK_AGAIN_SECONDS
    assert wait(hedges, 1200.0) == 0.0


@pytest.mark.parametrize("code", [ErrorCode.BAD_OUTPUT, ErrorCode.TIMEOUT, ErrorCode.SERVER_ERROR])
def test_failures_of_single_calls_stop_nothing(code):
    hedges = Hedges()
    for _ in range(100):
        hedges.note_end(1000.0, code)

    assert wait(hedges, 1000.0) == 0.0


def test_a_copy_costs_what_is_told_of_it_and_else_what_answers_took():
    hedges = Hedges()
    for tokens in [100] * 200:
        hedges.note_input(tokens)

    assert hedges.cost(Size(sent=7, got=5), 5.0, 2.0) == 12.0
    assert hedges.cost(Size(got=5), 5.0, 2.0) == pytest.approx(105.0)


def test_a_call_of_unknown_size_may_be_slow_because_it_is_long():
    hedges = Hedges()

    assert hedges.cost(NOBODY_SAID, 50.0, 2.5) == 125.0
    assert hedges.cost(Size(most=60), 50.0, 2.5) == 60.0


def test_a_copy_that_was_given_up_leaves_nothing_in_the_budget():
    hedges = Hedges()
    hedges.note_sent(50.0)

    hedges.take_back(50.0)

    assert (hedges.sent, hedges.tokens) == (0, 0.0)


def test_what_a_copy_has_used_takes_the_place_of_what_was_expected():
    hedges = Hedges()
    hedges.note_sent(500.0)
    assert wait(hedges, cost=0.0, tokens=10_000) == math.inf

    hedges.note_cost(500.0, 20.0)

    assert wait(hedges, cost=0.0, tokens=10_000) == 0.0


def test_of_two_failures_the_one_that_says_more_of_the_item_counts():
    order = [
        telling(ErrorCode.RATE_LIMITED, is_final=False),
        telling(ErrorCode.TIMEOUT, is_final=False),
        telling(ErrorCode.BAD_OUTPUT, is_final=False),
        telling(ErrorCode.CONTENT_FILTER, is_final=True),
    ]

    assert order == sorted(order)
    assert len(set(order)) == 4
