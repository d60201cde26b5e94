"""What is said when a run goes on with other settings."""

from __future__ import annotations

from batch_llm.core.schema import OutputSchema
from batch_llm.runs.settings_changes import differences, shape_facts


def told(before, now):
    """The differences of two values of one setting."""
    return differences({"prompt": before}, {"prompt": now}, None, None)


def of_shapes(before, now):
    return differences({"schema": "1"}, {"schema": "2"}, shape_facts(before), now)


def schema(**properties):
    return OutputSchema.json_schema({"type": "object", "properties": properties}, "answer")


def test_what_is_the_same_is_not_told():
    assert differences({"model": "a", "seed": "1"}, {"model": "a", "seed": "1"}, None, None) == {}


def test_what_is_new_and_what_is_gone_is_told():
    found = differences({"model": "a", "seed": "1"}, {"model": "a", "top_p": "0.5"}, None, None)

    assert found == {"top_p": ("-", "0.5"), "seed": ("1", "-")}


def test_long_texts_are_shown_from_their_first_difference_on():
    same = "You are a careful judge of reviews. " * 20
    before, now = told(f"{same}Be brief.", f"{same}Be kind.")["prompt"]

    assert before.endswith("Be brief.")
    assert now.endswith("Be kind.")
    assert max(len(before), len(now)) <= 40
    assert before.startswith("…")


def test_a_long_text_that_goes_on_is_told_from_its_beginning():
    before, now = told("x" * 100, "x" * 100 + " more")["prompt"]

    assert before != now
    assert now.endswith(" more")


def test_texts_that_differ_in_what_is_never_shown_are_told_apart_by_digests():
    before, now = told("a\x00b", "a\x01b")["prompt"]

    assert len(before) == len(now) == 16
    assert before != now


def test_control_characters_are_not_shown():
    assert "\x1b" not in "".join(told("\x1b[31mred", "blue")["prompt"])


def test_of_choices_it_is_said_which():
    found = of_shapes(OutputSchema.choices("yes", "no"), OutputSchema.choices("yes", "no", "maybe"))

    assert found == {"schema.properties.choice.enum": ("yes, no", "yes, no, maybe")}


def test_of_schemas_it_is_said_where():
    found = of_shapes(schema(a={"type": "string"}), schema(a={"type": "integer"}, b=True))

    assert found == {
        "schema.properties.a.type": ('"string"', '"integer"'),
        "schema.properties.b": ("-", "true"),
    }


def test_of_schemas_with_much_that_differs_a_part_is_said():
    many = {f"p{n}": {"type": "string"} for n in range(50)}

    assert len(of_shapes(schema(), schema(**many))) == 5


def test_a_schema_beside_none_is_told_by_its_digest():
    now = OutputSchema.json_schema({}, "answer")

    assert differences({"schema": "1"}, {"schema": "-"}, shape_facts(now), None) == {
        "schema": ("1", "-")
    }
    assert differences({"schema": "-"}, {"schema": "2"}, None, now) == {"schema": ("-", "2")}


def test_a_number_and_a_truth_that_python_takes_for_equal_are_told_apart():
    found = of_shapes(schema(a={"default": 1}), schema(a={"default": True}))

    assert found == {"schema.properties.a.default": ("1", "true")}
