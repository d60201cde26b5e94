"""What the simulated model says: derived from the prompt, so that it can be checked."""

from __future__ import annotations

import hashlib
import random
from typing import Any

ECHO = "<<echo>>"
_WORDS = [
    "The",
    "result",
    "follows",
    "from",
    "the",
    "figures",
    "in",
    "the",
    "question",
    "after",
    "a",
    "short",
    "calculation",
    "so",
    "this",
    "answer",
    "should",
    "be",
    "read",
    "as",
    "an",
    "example",
    "of",
    "what",
    "a",
    "model",
    "would",
    "write",
    "here",
]
_DEPTH = 12


def answer_digest(text: str) -> str:
    """Return the eight characters by which an answer names the user message it belongs to."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).hexdigest()


def count_tokens(text: str) -> int:
    """Estimate tokens as a quarter of the characters, at least 1."""
    return max(1, len(text) // 4)


def plain_answer(prompt: str) -> str:
    """Answer a prompt; one with ``<<echo>>`` gets back what follows the mark."""
    _, mark, rest = prompt.partition(ECHO)
    if mark:
        return rest
    digest = answer_digest(prompt)
    length = 6 + int(digest[:2], 16) % (len(_WORDS) - 6)
    return f"Answer {digest}: {' '.join(_WORDS[:length])}."


def conforming(schema: Any, seed: str) -> Any:
    """Return an instance of a JSON schema, the same for the same seed."""
    return _instance(schema, schema, random.Random(seed), 0)  # noqa: S311 - repeatable on purpose


def _instance(schema: Any, root: Any, dice: random.Random, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _DEPTH:
        return None
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), root, dice, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return dice.choice(schema["enum"])
    for name in ("anyOf", "oneOf"):
        if schema.get(name):
            # The last ones end recursive schemas (`… | null`).
            options = schema[name]
            chosen = options[-1] if depth > _DEPTH // 3 else dice.choice(options)
            return _instance(chosen, root, dice, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            part = _resolve(part["$ref"], root) if "$ref" in part else part  # noqa: PLW2901
            properties = merged.get("properties", {}) | part.get("properties", {})
            required = merged.get("required", []) + part.get("required", [])
            merged |= part
            merged |= {"properties": properties, "required": required}
        return _instance(merged, root, dice, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    return _OF_KIND.get(kind, _text)(schema, root, dice, depth)


def _object(schema: Any, root: Any, dice: random.Random, depth: int) -> Any:
    required = set(schema.get("required", ()))
    return {
        name: _instance(inner, root, dice, depth + 1)
        for name, inner in schema.get("properties", {}).items()
        if name in required or depth < _DEPTH // 3
    }


def _array(schema: Any, root: Any, dice: random.Random, depth: int) -> Any:
    low = schema.get("minItems", 0 if depth > _DEPTH // 3 else 1)
    count = min(dice.randint(low, low + 2), schema.get("maxItems", low + 2))
    return [_instance(schema.get("items", {}), root, dice, depth + 1) for _ in range(count)]


def _number(schema: Any, dice: random.Random) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 101) - 1)
    return float(dice.randint(int(low), max(int(low), int(high))))


def _integer(schema: Any, _root: Any, dice: random.Random, _depth: int) -> Any:
    step = schema.get("multipleOf", 1)
    return int(_number(schema, dice)) // step * step


def _text(schema: Any, _root: Any, dice: random.Random, _depth: int) -> Any:
    known = {
        "date": "2026-01-02",
        "date-time": "2026-01-02T03:04:05Z",
        "time": "03:04:05Z",
        "email": "person@example.com",
        "uri": "https://example.com/",
        "uuid": "12345678-1234-4234-8234-123456789012",
    }.get(schema.get("format"))
    if known is not None:
        return known
    text = " ".join(dice.choices(_WORDS, k=dice.randint(1, 6)))
    text += "x" * max(0, schema.get("minLength", 0) - len(text))
    return text[: schema.get("maxLength", len(text))]


_OF_KIND: dict[str, Any] = {
    "object": _object,
    "array": _array,
    "integer": _integer,
    "number": lambda schema, _root, dice, _depth: _number(schema, dice),
    "boolean": lambda _schema, _root, dice, _depth: dice.random() < 0.5,
    "null": lambda _schema, _root, _dice, _depth: None,
    "string": _text,
}


def _resolve(reference: str, root: Any) -> Any:
    node = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            node = node.get(step, {}) if isinstance(node, dict) else {}
    return node
