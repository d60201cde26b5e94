from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.simulator.gemini_schema import json_schema
from batch_llm.simulator.instances import SchemaError, conforming
from batch_llm.simulator.refusals import Flaw


@pytest.mark.parametrize(
    ("own", "plain"),
    [
        ({"type": "STRING"}, {"type": "string"}),
        ({"type": "TYPE_UNSPECIFIED"}, {}),
        ({"type": "INTEGER", "format": "int32"}, {"type": "integer"}),
        ({"type": "STRING", "format": "date-time"}, {"type": "string", "format": "date-time"}),
        ({"type": "STRING", "format": "enum", "enum": ["a"]}, {"type": "string", "enum": ["a"]}),
        (
            {"type": "STRING", "nullable": True},
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
        ),
        (
            {"type": "ARRAY", "items": {"type": "NUMBER"}, "minItems": "2", "max_items": 3},
            {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3},
        ),
        (
            {
                "type": "OBJECT",
                "properties": {"a": {"type": "BOOLEAN"}},
                "required": ["a"],
                "propertyOrdering": ["a"],
            },
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
        ),
        (
            {"anyOf": [{"type": "STRING"}, {"type": "INTEGER", "minimum": 1}]},
            {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}]},
        ),
    ],
)
def test_a_schema_says_the_same_as_json_schema(own, plain):
    assert json_schema(own) == plain


@pytest.mark.parametrize(
    ("own", "where"),
    [
        ("STRING", "response_schema"),
        ({"items": 7}, "response_schema.items"),
        ({"properties": {"a": []}}, r"response_schema.properties\[a\]"),
        ({"minItems": "many"}, "response_schema.minItems"),
        ({"type": "PASTA"}, "response_schema.type: PASTA is not a type"),
    ],
)
def test_what_is_no_schema_is_named(own, where):
    with pytest.raises(Flaw, match=where):
        json_schema(own)


NAMES = [
    "type", "format", "enum", "items", "properties", "required", "anyOf", "nullable", "minItems",
    "maxLength", "pattern", "minimum",
]  # fmt: skip
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.text(max_size=3)
    | st.sampled_from(["STRING", "OBJECT", "ARRAY", "NUMBER"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(values)
def test_anything_is_a_schema_with_an_instance_or_an_error(own):
    with contextlib.suppress(Flaw, SchemaError):
        conforming(json_schema(own), "seed")
