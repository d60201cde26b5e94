from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.simulator.answers import (
    answer_digest,
    count_tokens,
    echo_of,
    fault_of,
    plain_answer,
)


@given(st.text())
def test_an_answer_begins_with_the_digest_of_its_question(prompt):
    assert plain_answer(prompt).startswith(f"Answer {answer_digest(prompt)}: ")
    assert plain_answer(prompt) == plain_answer(prompt)


def test_the_digest_is_the_same_on_every_machine():
    assert answer_digest("Capital of Peru?") == "db96cb80"


def test_several_choices_differ():
    assert len({plain_answer("hi", index) for index in range(5)}) == 5


def test_a_prompt_can_be_echoed():
    assert echo_of("say <<echo>> this <<echo>>") == " this <<echo>>"
    assert echo_of("say <<echo>>") == ""
    assert echo_of("say") is None


def test_tokens_are_a_quarter_of_the_characters_and_at_least_one():
    assert [count_tokens("x" * length) for length in (0, 3, 4, 9)] == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("hi <<p503>> there", ("p503", None)),
        ("<<pquota:credit_balance_exhausted>>", ("pquota", "credit_balance_exhausted")),
        ("<<p503", (None, None)),
        ("<<echo>>p503", (None, None)),
        ("hi", (None, None)),
    ],
)
def test_a_prompt_can_ask_for_a_fault(prompt, fault):
    assert fault_of(prompt) == fault
