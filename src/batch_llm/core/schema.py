"""The shape of an answer: what the provider is told, and how the model's text is read."""

from __future__ import annotations

import copy
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import BadOutputError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_MAX_PROBLEMS = 5


class OutputSchema:
    """A JSON schema with a name, and the function that turns an answer's text into a value.

    Made by ``of``, ``choices``, ``json_schema`` or ``from_type``; two of the same content are
    equal.

    Attributes:
        name: Letters, digits, ``_`` and ``-``; 64 at the most.
        schema: The JSON schema as it goes over the wire.
        is_strict: Whether providers may enforce it to the letter (every property required, no
            further ones).
    """

    __slots__ = ("_key", "_read", "is_strict", "name", "schema")

    def __init__(self, name: str, schema: dict[str, Any], read: Callable[[Any, str], Any]) -> None:
        self.name = re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64] or "answer"
        self.schema, self.is_strict = _strict(schema)
        self._read = read
        self._key = (self.name, json.dumps(schema, sort_keys=True, default=str))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OutputSchema) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"OutputSchema({self.name!r})"

    @classmethod
    def of(cls, shape: Any) -> OutputSchema:
        """Accept any of: an ``OutputSchema``, a JSON schema (dict), choices (list), a type."""
        if isinstance(shape, OutputSchema):
            return shape
        if isinstance(shape, dict):
            return cls.json_schema(shape)
        if isinstance(shape, list | tuple):
            return cls.choices(*shape)
        return cls.from_type(shape)

    @classmethod
    def choices(cls, *names: str) -> OutputSchema:
        """Let the model choose one of ``names``; the value is the name as given here.

        Raises:
            ConfigError: Fewer than two different names.
        """
        if len(set(names)) < 2:
            raise ConfigError("choices", names, "at least two different names")
        by_folded = {name.strip().casefold(): name for name in names}

        def read(value: Any, text: str) -> str:
            word = value.get("choice") if isinstance(value, dict) else value
            folded = str(text if word is None else word).strip().strip("\"'.").casefold()
            if folded not in by_folded:
                raise BadOutputError(text, f"choose exactly one of: {', '.join(names)}")
            return by_folded[folded]

        schema = {
            "type": "object",
            "properties": {"choice": {"type": "string", "enum": list(names)}},
            "required": ["choice"],
            "additionalProperties": False,
        }
        return cls("choice", schema, read)

    @classmethod
    def json_schema(cls, schema: dict[str, Any], name: str = "answer") -> OutputSchema:
        """Take a JSON schema; values are plain Python data that conform to it.

        Raises:
            ConfigError: It is not a valid JSON schema.
        """
        import jsonschema_rs

        try:
            validator = jsonschema_rs.validator_for(schema)
        except (jsonschema_rs.ValidationError, ValueError) as error:
            expected = f"a valid JSON schema ({str(error).splitlines()[0]})"
            raise ConfigError("schema", schema, expected) from error

        def read(value: Any, text: str) -> Any:
            problems = [
                f"{'.'.join(map(str, error.instance_path)) or 'the answer'}: {error.message}"
                for error, _ in zip(
                    validator.iter_errors(value), range(_MAX_PROBLEMS), strict=False
                )
            ]
            if problems:
                raise BadOutputError(text, "; ".join(problems))
            return value

        return cls(str(schema.get("title", name)), schema, read)

    @classmethod
    def from_type(cls, kind: Any) -> OutputSchema:
        """Take a pydantic model, or any type that pydantic can validate."""
        return _from_type(kind)

    def parse(self, text: str) -> Any:
        """Return the value of an answer.

        Raises:
            BadOutputError: It does not fit; ``problem`` is worded for the model.
        """
        match = _FENCE.match(text)
        body = match[1] if match else text
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            if self.name == "choice":
                return self._read(None, body)
            raise BadOutputError(text, f"it is not valid JSON ({error})") from None
        return self._read(value, text)


@lru_cache(maxsize=256)
def _from_type(kind: Any) -> OutputSchema:
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    is_wrapped = schema.get("type") != "object"
    if is_wrapped:  # providers want an object at the top
        definitions = schema.pop("$defs", None)
        schema = {"type": "object", "properties": {"value": schema}, "required": ["value"]}
        if definitions:
            schema["$defs"] = definitions

    def read(value: Any, text: str) -> Any:
        if is_wrapped and isinstance(value, dict) and set(value) == {"value"}:
            value = value["value"]
        try:
            return adapter.validate_json(json.dumps(value))
        except ValidationError as error:
            problems: Sequence[str] = [
                f"{'.'.join(map(str, found['loc'])) or 'the answer'}: {found['msg']}"
                for found in error.errors(include_url=False)[:_MAX_PROBLEMS]
            ]
            raise BadOutputError(text, "; ".join(problems)) from error

    return OutputSchema(getattr(kind, "__name__", "answer"), schema, read)


def _strict(schema: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the schema closed for strict use, or unchanged where that would alter its meaning."""
    closed = copy.deepcopy(schema)
    return (closed, True) if _close(closed) else (schema, False)


def _close(node: Any) -> bool:
    if isinstance(node, list):
        return all(_close(inner) for inner in node)
    if not isinstance(node, dict):
        return True
    if node.get("type") == "object" or "properties" in node:
        properties = node.get("properties", {})
        if (
            node.get("additionalProperties") not in {None, False}
            if not isinstance(node.get("additionalProperties"), dict)
            else True
        ):
            return False
        if set(node.get("required", [])) != set(properties):
            return False
        node["additionalProperties"] = False
    return all(
        _close(inner) for name, inner in node.items() if name not in {"enum", "const", "default"}
    )
