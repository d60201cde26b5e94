from __future__ import annotations

import dataclasses
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from batch_llm.simulator import PROFILES, Profile
from batch_llm.simulator.faults import Faults

names = st.text(min_size=1, max_size=8)


def outcomes(profile, order):
    faults, seen = Faults(profile), {}
    for name in order:
        seen.setdefault(name, []).append(faults.next_for(name))
    return seen


@given(
    st.lists(names, min_size=1, max_size=8, unique=True),
    st.integers(0, 99),
    st.integers(0, 4),
    st.randoms(),
)
def test_faults_do_not_depend_on_the_order_of_conversations(conversations, seed, recover, dice):
    profile = Profile(p429=0.3, p500=0.3, pgarbage=0.1, prefuse=0.2, seed=seed, recover=recover)
    calls = conversations * 6
    shuffled = list(calls)
    dice.shuffle(shuffled)

    assert outcomes(profile, calls) == outcomes(profile, shuffled)


def test_another_seed_chooses_other_faults():
    order = [f"row {number}" for number in range(200)]

    first, second = (outcomes(Profile(p500=0.5, seed=seed), order) for seed in (1, 2))

    assert first != second


@given(names, st.integers(0, 1000), st.integers(1, 5))
def test_never_more_faults_in_a_row_than_recover_says(conversation, seed, recover):
    profile = Profile(p429=0.5, p500=0.5, seed=seed, recover=recover)

    assert outcomes(profile, [conversation] * 20)[conversation] == [
        None if call % (recover + 1) == recover else fault
        for call, fault in enumerate(outcomes(profile, [conversation] * 20)[conversation])
    ]
    assert outcomes(profile, [conversation] * (recover + 1))[conversation][-1] is None


@given(names, st.integers(0, 1000))
def test_a_flaky_provider_answers_within_four_calls(conversation, seed):
    worst = dataclasses.replace(PROFILES["flaky"], p429=0.9, p500=0.0, seed=seed)

    assert None in outcomes(worst, [conversation] * 4)[conversation]


@given(names)
def test_without_recovery_a_certain_fault_stays(conversation):
    assert outcomes(Profile(p500=1), [conversation] * 9)[conversation] == ["p500"] * 9


@given(names, st.integers(0, 99))
def test_refusals_stay_with_their_conversation(conversation, seed):
    profile = Profile(prefuse=0.3, pfilter=0.3, pquota=0.2, recover=2, seed=seed)

    assert len(set(outcomes(profile, [conversation] * 9)[conversation])) == 1


def test_each_fault_comes_as_often_as_its_option_says():
    profile = Profile(p429=0.2, ptruncate=0.1, prefuse=0.1)
    faults = Faults(profile)

    counts = Counter(faults.next_for(f"row {number}") for number in range(20_000))

    assert abs(counts["prefuse"] / 20_000 - 0.1) < 0.01
    # The passing ones are drawn among what the lasting ones left.
    assert abs(counts["p429"] / 20_000 - 0.9 * 0.2) < 0.01
    assert abs(counts["ptruncate"] / 20_000 - 0.9 * 0.1) < 0.01


def test_nothing_is_remembered_without_passing_faults():
    faults = Faults(Profile(prefuse=0.5))
    for number in range(100):
        faults.next_for(f"row {number}")

    assert not faults._seen


def test_a_conversation_costs_one_digest_and_one_number():
    faults = Faults(PROFILES["flaky"])
    for _ in range(50):
        faults.next_for("the same")

    assert [(len(key), type(value)) for key, value in faults._seen.items()] == [(16, int)]
