"""Gemini's own kind of schema, as a JSON schema."""

from __future__ import annotations

from typing import Any

from batch_llm.simulator.refusals import Flaw

_TYPES = {"string", "number", "integer", "boolean", "array", "object", "null"}
#: Formats that both know; the others, such as ``int32``, say nothing to a JSON schema.
_FORMATS = ("date-time", "date", "time")
_BOUNDS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_PLAIN = ("enum", "pattern", "minimum", "maximum", "required", "title", "description")


def json_schema(schema: Any, where: str = "response_schema") -> dict[str, Any]:
    """Return the JSON schema that says the same.

    Args:
        schema: Types are in capitals, ``nullable`` is a flag, whole numbers may be strings, and
            names may be in either case.
        where: Its place, for the error.

    Raises:
        Flaw: It is none.
    """
    if not isinstance(schema, dict):
        raise Flaw("type", where, "an object", schema)
    fields = {_camel(name): value for name, value in schema.items()}
    plain: dict[str, Any] = {name: fields[name] for name in _PLAIN if name in fields}
    kind = str(fields.get("type", "")).lower()
    if kind in _TYPES:
        plain["type"] = kind
    elif kind and kind != "type_unspecified":
        raise Flaw("schema", message=f"{where}.type: {fields['type']} is not a type")
    if fields.get("format") in _FORMATS:
        plain["format"] = fields["format"]
    for name in _BOUNDS:
        if name in fields:
            plain[name] = _whole(fields[name], f"{where}.{name}")
    if "items" in fields:
        plain["items"] = json_schema(fields["items"], f"{where}.items")
    if isinstance(fields.get("properties"), dict):
        plain["properties"] = {
            name: json_schema(inner, f"{where}.properties[{name}]")
            for name, inner in fields["properties"].items()
        }
    if isinstance(fields.get("anyOf"), list):
        plain["anyOf"] = [json_schema(inner, f"{where}.any_of") for inner in fields["anyOf"]]
    return {"anyOf": [plain, {"type": "null"}]} if fields.get("nullable") else plain


def _whole(value: Any, where: str) -> int:
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
        return int(value)
    raise Flaw("type", where, "an integer", value)


def _camel(name: str) -> str:
    first, *others = str(name).split("_")
    return first + "".join(part.capitalize() for part in others)
