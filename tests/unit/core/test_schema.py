from __future__ import annotations

import copy
import json
import pickle
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator

from batch_llm import BadOutputError, ConfigError
from batch_llm.core.schema import OutputSchema

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


class Review(BaseModel):
    label: Literal["good", "bad"]
    stars: int = Field(ge=1, le=5)
    comment: str | None = None


class Node(BaseModel):
    name: str
    children: list[Node]


class Even(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def must_be_even(cls, value):
        if value % 2:
            raise ValueError("must be even")
        return value


def problem_of(shape, text):
    with pytest.raises(BadOutputError) as caught:
        OutputSchema.of(shape).parse(text)
    assert caught.value.text == text
    return caught.value.problem


@pytest.mark.parametrize(
    "make",
    [
        lambda: OutputSchema.of(Review),
        lambda: OutputSchema.of(copy.deepcopy(PERSON)),
        lambda: OutputSchema.of(["ham", "spam"]),
        lambda: OutputSchema.of(("ham", "spam")),
    ],
)
def test_equal_shapes_share_one_schema(make):
    assert make() is make()


def test_schemas_of_the_same_content_are_equal_and_hash_alike():
    one = OutputSchema.json_schema({"type": "object", "title": "a"})
    other = OutputSchema.json_schema({"title": "a", "type": "object"})

    assert one == other
    assert hash(one) == hash(other)
    assert one != OutputSchema.json_schema({"type": "object", "title": "b"})


def test_a_schema_does_not_follow_changes_of_the_dict_that_made_it():
    given_schema = copy.deepcopy(PERSON)
    schema = OutputSchema.of(given_schema)

    given_schema["required"].append("other")

    assert schema.parse('{"name": "Ada", "age": 36}') == {"name": "Ada", "age": 36}


def test_a_schema_cannot_be_changed():
    with pytest.raises(AttributeError, match="cannot be changed"):
        OutputSchema.of(Review).name = "other"


@pytest.mark.parametrize("shape", [Review, PERSON, ["ham", "spam"]])
def test_a_schema_survives_pickle_and_copy(shape):
    schema = OutputSchema.of(shape)

    assert pickle.loads(pickle.dumps(schema)) == schema
    assert copy.deepcopy(schema) == schema


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (OutputSchema.of(Review), "Review"),
        (OutputSchema.of(list[int]), "list"),
        (OutputSchema.of({"type": "object"}), "answer"),
        (OutputSchema.of({"type": "object", "title": "Größe in m"}), "Gr__e_in_m"),
        (OutputSchema.json_schema({"type": "object", "title": "ignored"}, "given"), "given"),
        (OutputSchema.json_schema({"type": "object"}, "x" * 80), "x" * 64),
    ],
)
def test_names_are_fit_for_the_wire(schema, name):
    assert schema.name == name


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ('{"choice": "spam"}', "spam"),
        ('```json\n{"choice": "spam"}\n```', "spam"),
        ("```\nspam\n```", "spam"),
        ("SPAM", "spam"),
        (' "Spam". ', "spam"),
        ("**spam**", "spam"),
        ('"e.g."', "e.g."),
    ],
)
def test_a_choice_is_read_as_an_object_or_a_word(text, choice):
    assert OutputSchema.choices("ham", "spam", "e.g.").parse(text) == choice


@pytest.mark.parametrize("text", ["1", "true", "null", '{"choice": "1"}'])
def test_choices_that_look_like_json_values_are_still_words(text):
    assert OutputSchema.choices("1", "true", "null").parse(text) in {"1", "true", "null"}


def test_choices_that_differ_in_case_only_are_taken_literally():
    schema = OutputSchema.choices("US", "us")

    assert (schema.parse("US"), schema.parse('{"choice": "us"}')) == ("US", "us")
    assert "choose exactly one of: US, us" in problem_of(["US", "us"], "Us")


@pytest.mark.parametrize("text", ["eggs", "", "ham spam", '{"choice": 7}', '["ham"]', "[" * 5000])
def test_no_choice_is_told_the_choices(text):
    assert problem_of(["ham", "spam"], text) == "choose exactly one of: ham, spam"


@pytest.mark.parametrize("names", [[], ["one"], ["a", "a"], ["a", 1], ["a", " "]])
def test_choices_must_be_different_texts(names):
    with pytest.raises(ConfigError, match="choices must be"):
        OutputSchema.of(names)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=2, unique=True))
def test_every_choice_can_be_chosen(names):
    schema = OutputSchema.choices(*names)

    for name in names:
        assert schema.parse(json.dumps({"choice": name})) == name


def test_a_model_that_is_called_choice_is_no_choice():
    choice = OutputSchema.json_schema(PERSON, "choice")

    with pytest.raises(BadOutputError, match="not valid JSON"):
        choice.parse("name")


@pytest.mark.parametrize(
    "text",
    [
        '{"name":"Ada","age":36}',
        '```json\n{"name":"Ada","age":36}\n```\n',
        '```{"name":"Ada","age":36}```',
    ],
)
def test_json_is_read_with_or_without_a_fence(text):
    assert OutputSchema.of(PERSON).parse(text) == {"name": "Ada", "age": 36}


def test_a_fence_inside_a_string_is_left_alone():
    text = json.dumps({"name": "```py\nx\n```", "age": 1})

    assert OutputSchema.of(PERSON).parse(text)["name"] == "```py\nx\n```"


def test_a_misfit_says_where_and_what():
    assert problem_of(PERSON, '{"name": 5}') == (
        'the answer: "age" is a required property; name: 5 is not of type "string"'
    )


def test_problems_are_few_and_short():
    numbers = {"type": "array", "items": {"type": "integer"}}
    text = json.dumps(["x" * 10_000] * 100)

    problem = problem_of(numbers, text)

    assert problem.count(";") == 4
    assert len(problem) < 1500


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', "[" * 100_000, '{"age": 1e'])
def test_what_is_not_json_is_said_to_be_none(text):
    assert "not valid JSON" in problem_of(PERSON, text)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": {"a", "b"}},
        {"minimum": float("nan")},
        {"properties": {"a": {"pattern": "("}}},
        {"$ref": "#/$defs/missing"},
    ],
)
def test_an_invalid_schema_is_refused_before_anything_is_sent(schema):
    with pytest.raises(ConfigError, match="schema must be"):
        OutputSchema.of(schema)


def test_no_schema_makes_us_open_files_or_urls(tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"type": "string"}')

    with pytest.raises(ConfigError, match="outside the schema"):
        OutputSchema.of({"$ref": other.as_uri()})


def test_a_model_gives_its_instance():
    text = '{"label": "good", "stars": 5, "comment": null}'

    assert OutputSchema.of(Review).parse(text) == Review(label="good", stars=5)


def test_a_models_misfits_are_condensed():
    problem = problem_of(Review, '{"label": "fine", "stars": 9}')

    assert problem == (
        "label: Input should be 'good' or 'bad'; stars: Input should be less than or equal to 5"
    )


def test_a_validator_of_a_model_has_its_say():
    assert "must be even" in problem_of(Even, '{"number": 3}')


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (list[int], '{"value": [1, 2]}', [1, 2]),
        (list[int], "[1, 2]", [1, 2]),
        (int | None, '{"value": null}', None),
        (dict[str, int], '{"value": 1}', {"value": 1}),
        (Annotated[int, ["unhashable"]], '{"value": 3}', 3),
    ],
)
def test_types_that_are_no_objects_travel_in_one(kind, text, value):
    schema = OutputSchema.of(kind)

    assert schema.schema["type"] == "object"
    assert schema.parse(text) == value


def test_a_model_that_holds_itself_is_an_object_on_the_wire():
    schema = OutputSchema.of(Node)

    assert schema.schema["type"] == "object"
    assert schema.parse('{"name": "a", "children": []}') == Node(name="a", children=[])


@pytest.mark.parametrize("kind", [object(), 5, type("Odd", (), {}), "NoSuchType"])
def test_a_type_that_pydantic_cannot_describe_is_refused(kind):
    with pytest.raises(ConfigError, match="output must be"):
        OutputSchema.of(kind)


def closed(schema):
    found = OutputSchema.of(schema)
    return found.is_strict, found.schema


def test_an_open_object_is_closed_for_strict_mode():
    assert closed(PERSON) == (True, PERSON | {"additionalProperties": False})


def test_inner_objects_are_closed_too():
    outer = {
        "type": "object",
        "properties": {"people": {"type": "array", "items": PERSON}},
        "required": ["people"],
    }

    is_strict, schema = closed(outer)

    assert is_strict
    assert schema["properties"]["people"]["items"]["additionalProperties"] is False


def test_properties_named_like_keywords_are_properties():
    named = {
        "type": "object",
        "properties": {"enum": PERSON, "default": {"type": "string"}},
        "required": ["enum", "default"],
    }

    is_strict, schema = closed(named)

    assert is_strict
    assert schema["properties"]["enum"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "change",
    [
        {"required": ["name"]},
        {"additionalProperties": True},
        {"additionalProperties": {"type": "string"}},
        {"properties": {"name": {}, "age": {"type": "integer"}}},
        {"properties": {"name": {"type": "string", "default": "x"}, "age": {"type": "integer"}}},
        {"properties": {"name": {"oneOf": [{"type": "string"}]}, "age": {"type": "integer"}}},
        {"properties": {"name": {"type": "string", "format": "uri"}, "age": {"type": "integer"}}},
        {"properties": {"name": {"type": "array"}, "age": {"type": "integer"}}},
        {"properties": {"name": {"type": "object"}, "age": {"type": "integer"}}},
        {"minProperties": 1},
        {"anyOf": [PERSON, PERSON]},
    ],
)
def test_a_schema_that_strict_mode_would_change_or_refuse_goes_as_it_is(change):
    schema = PERSON | change

    assert closed(schema) == (False, schema)


def test_a_field_that_is_null_by_default_may_be_required_of_the_model():
    is_strict, schema = closed(Review)

    assert is_strict
    assert schema["required"] == ["label", "stars", "comment"]
    assert "default" not in schema["properties"]["comment"]


def test_a_field_with_another_default_may_not():
    class Loose(BaseModel):
        stars: int = 3

    assert OutputSchema.of(Loose).is_strict is False


@pytest.mark.parametrize("flag", [True, False, None])
def test_a_given_flag_sends_the_schema_as_it_is(flag):
    schema = OutputSchema.json_schema(PERSON, is_strict=flag)

    assert (schema.is_strict, schema.schema) == (flag, PERSON)


def test_a_strict_schema_is_its_own_strict_version():
    once = OutputSchema.of(PERSON)

    assert OutputSchema.json_schema(once.schema, once.name) == once
