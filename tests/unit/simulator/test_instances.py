from __future__ import annotations

import json
import random
import re

import jsonschema_rs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batch_llm.simulator.instances import SchemaError, conforming, violating
from batch_llm.simulator.patterns import matching


def conforms(schema, instance):
    json.dumps(instance, allow_nan=False)
    return jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(instance)


def bounded(kind, low, high):
    """A schema of numbers between two bounds, or a length."""
    return st.tuples(st.integers(low, high), st.integers(0, high - low)).map(
        lambda pair: {kind[0]: pair[0], kind[1]: pair[0] + pair[1]}
    )


FORMATS = [
    "date", "time", "date-time", "duration", "email", "hostname", "uri", "uri-reference", "uuid",
    "ipv4", "ipv6", "json-pointer", "regex",
]  # fmt: skip
PATTERNS = ["^[A-Z]{3}-\\d{2,4}$", "^(?:ab|c+)?$", "[^a-y\\d]", "^\\w+@\\w+\\.com$", "^(?!x)[a-z]$"]

scalars = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"const": {"a": [1, None]}}),
    st.lists(st.one_of(st.integers(), st.text(), st.none()), min_size=1, unique=True).map(
        lambda values: {"enum": values}
    ),
    st.just({"type": "string"}),
    bounded(("minLength", "maxLength"), 0, 60).map(lambda keys: {"type": "string"} | keys),
    st.sampled_from(FORMATS).map(lambda name: {"type": "string", "format": name}),
    st.sampled_from(PATTERNS).map(lambda text: {"type": "string", "pattern": text}),
    st.just({"type": "integer"}),
    bounded(("minimum", "maximum"), -50, 10**6).map(lambda keys: {"type": "integer"} | keys),
    st.integers(-9, 9).map(lambda low: {"type": "integer", "exclusiveMinimum": low}),
    st.integers(-9, 9).map(lambda high: {"type": "integer", "exclusiveMaximum": high}),
    st.integers(1, 12).map(lambda step: {"type": "integer", "multipleOf": step, "minimum": 5}),
    st.just({"type": "number"}),
    st.floats(-1e6, 1e6).map(lambda low: {"type": "number", "minimum": low}),
    st.floats(-1e6, 1e6).map(lambda high: {"type": "number", "exclusiveMaximum": high}),
    st.just({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.001}),
    st.just({"type": "number", "multipleOf": 0.5, "minimum": 0.7}),
    st.just({"type": ["string", "null"]}),
    st.just(True),
)


def compound(inner):
    keys = st.sampled_from(["name", "city", "a", "b/c", "tags"])
    properties = st.dictionaries(keys, inner, max_size=4)
    objects = st.builds(
        lambda props, flags, closed: (
            {
                "type": "object",
                "properties": props,
                "required": [name for name, flag in zip(props, flags, strict=False) if flag],
            }
            | ({"additionalProperties": False} if closed else {})
        ),
        properties,
        st.lists(st.booleans(), min_size=4, max_size=4),
        st.booleans(),
    )
    arrays = st.builds(
        lambda items, keys: {"type": "array", "items": items} | keys,
        inner,
        bounded(("minItems", "maxItems"), 0, 5),
    )
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda parts: {
            "type": "array",
            "prefixItems": parts,
            "items": False,
            "minItems": len(parts),
            "maxItems": len(parts),
        }
    )
    maps = inner.map(lambda value: {"type": "object", "additionalProperties": value})
    either = st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    both = st.builds(lambda one, other: {"allOf": [one, other]}, objects, objects)
    referred = inner.map(lambda part: {"allOf": [part]})
    return st.one_of(objects, arrays, tuples, maps, either, both, referred)


schemas = st.recursive(scalars, compound, max_leaves=8)


@given(schemas, st.text(max_size=5))
def test_what_is_drawn_conforms_and_is_the_same_for_the_same_seed(schema, seed):
    try:
        instance = conforming(schema, seed)
    except SchemaError:
        # Only two parts that exclude each other may have no instance.
        assume("allOf" not in json.dumps(schema))
        raise

    assert conforms(schema, instance)
    assert conforming(schema, seed) == instance


@given(schemas, st.text(max_size=5))
def test_what_violates_does_not_conform(schema, seed):
    try:
        wrong = violating(schema, seed)
    except SchemaError:
        return

    assert not conforms(schema, wrong)


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "label": {"type": "string", "minLength": 3},
                "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "others": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["label", "left", "others"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    "schema",
    [
        TREE,
        {"oneOf": [{"type": "integer", "minimum": 5}, {"type": "integer", "multipleOf": 3}]},
        {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3},
        {"type": "array", "contains": {"const": 7}, "items": {"type": "integer"}},
        {"type": "object", "patternProperties": {"^x-\\d$": {"type": "integer"}},
         "additionalProperties": False, "minProperties": 1},
        {"type": "object", "propertyNames": {"pattern": "^k\\d$"}, "minProperties": 2},
        {"type": "object", "required": ["undeclared"]},
        {"properties": {"a": {"minimum": 3}}, "required": ["a"]},
        {"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "integer"}}},
        {"allOf": [{"type": "number", "minimum": 3}, {"type": "integer", "maximum": 4}]},
        {"anyOf": [{"properties": {"k": {"const": 1}}}, {"properties": {"k": {"const": 2}}}],
         "type": "object", "required": ["k"]},
    ],
    ids=json.dumps,
)  # fmt: skip
@given(seed=st.integers(0, 10**6))
def test_harder_schemas_are_met_too(schema, seed):
    assert conforms(schema, conforming(schema, str(seed)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "spaghetti"},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#"},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "string", "pattern": "("},
        False,
        7,
    ],
    ids=json.dumps,
)
def test_a_schema_without_instances_is_an_error(schema):
    with pytest.raises(SchemaError):
        conforming(schema, "seed")


def test_other_seeds_draw_other_instances():
    assert len({conforming({"type": "integer"}, str(seed)) for seed in range(50)}) > 20


@pytest.mark.parametrize("pattern", [*PATTERNS[:4], "a.c", "x{2}|[0-9a-f]+", "^\\S\\D\\W\\s?$"])
@given(seed=st.integers(0, 10**6))
def test_a_text_is_drawn_for_a_pattern(pattern, seed):
    assert re.search(pattern, matching(pattern, random.Random(seed)))


@pytest.mark.parametrize("pattern", ["(", "(a)\\1"])
def test_a_pattern_that_cannot_be_drawn_is_an_error(pattern):
    with pytest.raises(ValueError):
        matching(pattern, random.Random(0))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 100_000_000},
        {"type": "string", "minLength": 100_000_000},
        {"type": "array", "minItems": 999, "items": {"type": "array", "minItems": 999}},
    ],
)
def test_an_instance_that_would_take_minutes_is_refused(schema):
    with pytest.raises(SchemaError, match="its"):
        conforming(schema, "seed")
