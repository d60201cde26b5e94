from __future__ import annotations

import json

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import ConfigError
from batch_llm.simulator import PROFILES, Profile, parse_profile
from batch_llm.simulator.answers import conforming, plain_answer
from batch_llm.simulator.faults import Faults
from batch_llm.simulator.limits import Bucket, FixedWindow


def test_a_profile_is_read_from_one_line():
    profile = parse_profile("fast?rpm=500&tpm=100k&p429=0.05&seed=7")

    assert (profile.rpm, profile.tpm, profile.p429, profile.seed) == (500, 100_000, 0.05, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsat", "did you mean fast"),
        ("fast?rmp=1", "did you mean rpm"),
        ("fast?rpm=many", "rpm must be a number such as 500"),
        ("fast?p429=2", "p429 must be a probability"),
        ("fast?rpm=-1", "rpm must be a finite number >= 0"),
        ("fast?window=hour", "window must be bucket or fixed"),
    ],
)
def test_an_impossible_profile_says_why(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_profile(text)


names = st.text(min_size=1, max_size=8)


@given(st.lists(names, min_size=1, max_size=8), st.integers(0, 99), st.randoms())
def test_faults_do_not_depend_on_the_order_of_conversations(conversations, seed, dice):
    profile = Profile(p429=0.3, p500=0.3, pgarbage=0.2, seed=seed)
    calls = [name for name in set(conversations) for _ in range(5)]
    shuffled = list(calls)
    dice.shuffle(shuffled)

    def run(order):
        faults, seen = Faults(profile), {}
        for name in order:
            seen.setdefault(name, []).append(faults.next_for(name))
        return seen

    assert run(calls) == run(shuffled)


@given(names, st.integers(0, 1000))
def test_a_flaky_provider_answers_within_four_calls(conversation, seed):
    import dataclasses

    faults = Faults(dataclasses.replace(PROFILES["flaky"], p429=0.9, p500=0.0, seed=seed))

    assert None in [faults.next_for(conversation) for _ in range(4)]


@given(
    st.floats(1, 1e5),
    st.floats(0.5, 120),
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 50)), max_size=60),
)
def test_no_more_passes_than_the_bucket_and_its_refill(per_minute, burst, steps):
    bucket, now, passed = Bucket(per_minute, burst, 0.0), 0.0, 0.0
    largest = 0.0
    for gap, amount in steps:
        now += gap
        if bucket.wait_for(amount, now) == 0:
            bucket.take(amount, now)
            passed, largest = passed + amount, max(largest, amount)

    size = max(1.0, per_minute / 60 * burst)
    assert passed <= size + now * per_minute / 60 + largest + 1e-6


def test_a_fixed_window_starts_anew_each_minute():
    window = FixedWindow(2, 0.0)
    window.take(2, 10.0)

    assert window.wait_for(1, 50.0) == 10.0
    assert window.wait_for(1, 60.0) == 0.0


SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5}}, "required": ["a"]},
    {"enum": ["x", "y"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"anyOf": [{"type": "string", "minLength": 40}, {"type": "null"}]},
    {"type": "string", "format": "date-time"},
    {
        "$defs": {
            "n": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                "required": ["next"],
            }
        },
        "$ref": "#/$defs/n",
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
@given(seed=st.text(max_size=5))
def test_answers_conform_to_their_schema(schema, seed):
    jsonschema_rs.validate(schema, conforming(schema, seed))


def test_a_prompt_can_be_echoed():
    assert plain_answer("say <<echo>> this") == " this"
