from __future__ import annotations

import json

import pytest

from batch_llm.core.schema import OutputSchema
from batch_llm.providers.openai import told_schema
from batch_llm.simulator.azure import AZURE
from batch_llm.simulator.groq import GROQ
from batch_llm.simulator.openai_chat import OPENAI_CHAT
from batch_llm.simulator.refusals import Refusal
from batch_llm.simulator.routes import find

KEY = (b"api-key", b"any")
OLD = "/openai/deployments/mine/chat/completions"


@pytest.mark.parametrize(
    ("path", "headers", "query", "expected"),
    [
        ("/openai/v1/chat/completions", [KEY], b"", (AZURE, "call", "")),
        ("/openai/v1/chat/completions", [], b"", (GROQ, "call", "")),
        (OLD, [KEY], b"api-version=2024-10-21", (AZURE, "call", "mine")),
        ("/azure" + OLD, [KEY], b"api-version=2024-10-21", (AZURE, "call", "mine")),
        (OLD, [KEY], b"", (AZURE, "lost", "")),
        ("/openai/deployments/mine", [KEY], b"api-version=1", (AZURE, "lost", "")),
    ],
)
def test_azures_addresses_are_told_apart(path, headers, query, expected):
    assert find("POST", path, headers, query) == expected
    if expected[1] == "call":
        assert find("PUT", path, headers, query).kind == "method"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([KEY], None),
        ([(b"authorization", b"Bearer any")], None),
        ([], 401),
        ([(b"api-key", b"invalid")], 401),
        ([(b"api-key", b"forbidden")], 403),
    ],
)
def test_azures_key_has_a_header_of_its_own(headers, status):
    if status is None:
        AZURE.check_key(headers, b"")
        return
    with pytest.raises(Refusal) as caught:
        AZURE.check_key(headers, b"")
    assert caught.value.status == status


def test_the_model_is_the_deployments_where_the_body_names_none():
    body = json.dumps({"messages": [{"role": "user", "content": "Capital of Peru?"}]}).encode()

    assert AZURE.read(body, "mine").model == "mine"
    with pytest.raises(Refusal, match="model parameter"):
        AZURE.read(body, "")


@pytest.mark.parametrize("as_parts", [False, True])
def test_a_schema_that_the_model_is_told_is_kept_in_json_mode(as_parts):
    shape = OutputSchema.choices("good", "bad")
    told = told_schema(shape)
    messages = [
        {"role": "system", "content": [{"type": "text", "text": told}] if as_parts else told},
        {"role": "user", "content": 'Which? {"type": 1}'},
    ]
    fields = {"model": "m", "messages": messages, "response_format": {"type": "json_object"}}

    call = OPENAI_CHAT.read(json.dumps(fields).encode(), "")

    assert call.schema == shape.schema


@pytest.mark.parametrize("prompt", ["As JSON.", "Of this schema: {", 'A schema: {"n": 1}', "{}"])
def test_any_object_will_do_in_json_mode_where_no_schema_is_told(prompt):
    messages = [{"role": "user", "content": prompt}]
    fields = {"model": "m", "messages": messages, "response_format": {"type": "json_object"}}

    call = OPENAI_CHAT.read(json.dumps(fields).encode(), "")

    assert call.schema["required"] == ["answer"]
