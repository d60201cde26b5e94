"""Instances of a JSON schema: what a model with structured outputs would write.

An instance is drawn, then checked by a real validator; a draw that misses is thrown away.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import jsonschema_rs

from batch_llm.simulator.patterns import matching

if TYPE_CHECKING:
    from collections.abc import Callable

_DRAWS = 50
#: From this depth or size on, optional parts are left out and the simplest branch is taken.
_DEEP = 4
_LARGE = 200
#: A schema that asks for more than this has no finite instance, as far as we can tell.
_TOO_DEEP = 60

_WORDS = (
    "amber", "bridge", "candid", "delta", "early", "forest", "gentle", "harbour", "inland",
    "journey", "kernel", "lively", "meadow", "northern", "orchard", "plain", "quiet", "river",
    "summit", "timber", "upland", "valley", "western", "yellow",
)  # fmt: skip
_BY_NAME = {
    "name": ("Ada Moreno", "Jonas Lind", "Mei Tanaka", "Omar Haddad"),
    "title": ("A short history of tides", "Notes on a quiet river", "The second harvest"),
    "city": ("Lima", "Oslo", "Accra", "Hanoi"),
    "country": ("Peru", "Norway", "Ghana", "Vietnam"),
    "language": ("English", "Spanish", "Vietnamese"),
    "sentiment": ("positive", "neutral", "negative"),
    "currency": ("EUR", "PEN", "NOK"),
}


#: Nobody's answer is larger; one server answers many, and must not draw one of them for minutes.
_TOO_LARGE = 20_000
_TOO_LONG = 100_000


class SchemaError(ValueError):
    """The schema is broken, or no instance of it was found."""


def conforming(schema: Any, seed: str) -> Any:
    """Return an instance of a JSON schema, the same for the same seed.

    Formats count as part of the schema. References to other documents are not followed.

    Raises:
        SchemaError: The schema is broken, or its parts contradict each other.
    """
    validator = _validator(schema)
    dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
    for _ in range(_DRAWS):
        try:
            instance = _Drawing(schema, dice).draw(schema)
        except _MissError:
            continue
        if validator.is_valid(instance):
            return instance
    raise SchemaError(f"no instance found in {_DRAWS} draws")


def violating(schema: Any, seed: str) -> Any:
    """Return a value that does not conform, the same for the same seed.

    Where that is possible it is an instance with one thing wrong.

    Raises:
        SchemaError: The schema is broken, has no instance, or allows everything that was tried.
    """
    validator = _validator(schema)
    for candidate in (*_spoilt(conforming(schema, seed)), "not what was asked", [], None, {}, 0.5):
        if not validator.is_valid(candidate):
            return candidate
    raise SchemaError("everything that was tried conforms")


def _validator(schema: Any) -> Any:
    try:
        return jsonschema_rs.validator_for(schema, validate_formats=True, offline=True)
    except (ValueError, TypeError) as error:
        raise SchemaError(str(error).partition("\n")[0]) from None


def _spoilt(instance: Any) -> list[Any]:
    if not isinstance(instance, dict):
        return []
    shortened = [{key: instance[key] for key in instance if key != lost} for lost in instance]
    return [*shortened, instance | {"unexpected": ["not", "what", "was", "asked"]}]


class _MissError(Exception):
    """This draw leads nowhere."""


class _Drawing:
    """One draw of an instance.

    Args:
        root: The whole schema, where references start.
        dice: Decides everything.
    """

    def __init__(self, root: Any, dice: random.Random) -> None:
        self._root = root
        self._dice = dice
        self._nodes = 0

    def draw(self, schema: Any, depth: int = 0, name: str = "") -> Any:
        """Return an instance of a part of the schema, which is the value of ``name``."""
        self._nodes += 1
        if self._nodes > _TOO_LARGE:
            raise SchemaError(f"its instances have more than {_TOO_LARGE} parts")
        if depth > _TOO_DEEP or schema is False:
            raise _MissError
        plain = self._flat(schema, self._is_small(depth))
        if "const" in plain:
            return plain["const"]
        if "enum" in plain:
            return self._dice.choice(plain["enum"] or [None])
        return self._of_type(self._type(plain, depth), plain, depth, name)

    def _is_small(self, depth: int) -> bool:
        return depth >= _DEEP or self._nodes > _LARGE

    def _flat(self, schema: Any, is_small: bool) -> dict[str, Any]:  # noqa: FBT001 - private
        """Return the schema without references and combinations: one branch of each is taken."""
        flat = dict(schema) if isinstance(schema, dict) else {}
        for _ in range(_TOO_DEEP):
            if "$ref" in flat:
                flat = _merged(self._target(flat.pop("$ref")), flat)
            elif "allOf" in flat:
                for part in flat.pop("allOf"):
                    flat = _merged(flat, part)
            elif branches := flat.pop("anyOf", None) or flat.pop("oneOf", None):
                flat = _merged(flat, self._branch(branches, is_small))
            else:
                return flat
        raise _MissError  # references that go round in a circle

    def _branch(self, branches: list[Any], is_small: bool) -> Any:  # noqa: FBT001 - private
        return min(branches, key=_weight) if is_small else self._dice.choice(branches)

    def _target(self, reference: str) -> Any:
        node = self._root
        for step in unquote(reference.partition("#")[2]).split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list):
                node = node[int(key)]
            elif key in node:
                node = node[key]
            else:
                raise SchemaError(f"{reference} leads nowhere")
        return node

    def _type(self, schema: dict[str, Any], depth: int) -> str:
        kinds = schema.get("type") or _implied_type(schema)
        if isinstance(kinds, str):
            return kinds
        if self._is_small(depth) and "null" in kinds:
            return "null"
        return str(self._dice.choice(kinds))

    def _of_type(self, kind: str, schema: dict[str, Any], depth: int, name: str) -> Any:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth, name)
        if kind == "integer":
            return self._integer(schema)
        if kind == "number":
            return self._number(schema)
        if kind == "boolean":
            return self._dice.random() < 0.5
        return None if kind == "null" else self._text(schema, name)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        is_small = self._is_small(depth)
        wanted = [
            name
            for name in properties
            if name in required or not (is_small or self._dice.random() < 0.2)
        ]
        wanted += [name for name in required if name not in properties]
        drawn = {name: self.draw(self._property(schema, name), depth + 1, name) for name in wanted}
        fewest = schema.get("minProperties", 0)
        if not properties and self._is_map(schema) and not is_small:
            fewest = max(fewest, self._dice.randint(1, 2))
        return self._filled(drawn, fewest, schema, depth)

    def _filled(
        self, drawn: dict[str, Any], fewest: int, schema: dict[str, Any], depth: int
    ) -> dict[str, Any]:
        spare = [name for name in schema.get("properties", {}) if name not in drawn]
        for _ in range(_DRAWS):
            if len(drawn) >= fewest:
                break
            name = spare.pop() if spare else self._key(schema, depth)
            drawn[name] = self.draw(self._property(schema, name), depth + 1, name)
        return drawn

    @staticmethod
    def _is_map(schema: dict[str, Any]) -> bool:
        return bool(schema.get("patternProperties")) or isinstance(
            schema.get("additionalProperties"), dict
        )

    @staticmethod
    def _property(schema: dict[str, Any], name: str) -> Any:
        if name in schema.get("properties", {}):
            return schema["properties"][name]
        for inner in schema.get("patternProperties", {}).values():
            return inner
        return schema.get("additionalProperties", {})

    def _key(self, schema: dict[str, Any], depth: int) -> str:
        for pattern in schema.get("patternProperties", {}):
            return self._matching(pattern)
        names = schema.get("propertyNames", {})
        return str(self.draw({"type": "string"} | names, depth + 1)) if names else self._word()

    def _array(self, schema: dict[str, Any], depth: int, name: str) -> list[Any]:
        items = schema.get("items", {})
        first = schema.get("prefixItems", [])
        if isinstance(items, list):
            first, items = items, schema.get("additionalItems", {})
        least = schema.get("minItems", 0)
        if not self._is_small(depth):
            least = max(least, min(1, schema.get("maxItems", 1)))
        most = schema.get("maxItems", max(least, len(first)) + 2)
        if items is False:
            most = min(most, len(first))
        count = least if self._is_small(depth) else self._dice.randint(min(least, most), most)
        drawn = [self.draw(part, depth + 1) for part in first[: max(count, least)]]
        if "contains" in schema and len(drawn) < most:
            drawn.append(self.draw(schema["contains"], depth + 1))
        return self._extended(drawn, count, schema, depth, name, items)

    def _extended(
        self,
        drawn: list[Any],
        count: int,
        schema: dict[str, Any],
        depth: int,
        name: str,
        items: Any,
    ) -> list[Any]:
        singular = name.removesuffix("s")
        for _ in range(count + _DRAWS):
            if len(drawn) >= count:
                break
            item = self.draw(items, depth + 1, singular)
            if not (schema.get("uniqueItems") and item in drawn):
                drawn.append(item)
        return drawn

    def _integer(self, schema: dict[str, Any]) -> int:
        low, high = _bounds(schema)
        step = schema.get("multipleOf", 1)
        if step != int(step):
            step = 1
        step = int(step)
        first, last = _integers_between(low, high, schema, step)
        if first is None and last is None:
            first, last = 1, 100
        elif first is None:
            first = last - 100
        elif last is None:
            last = first + 100
        if first > last:
            raise _MissError
        return self._dice.randint(first, last) * step

    def _number(self, schema: dict[str, Any]) -> float:
        if "multipleOf" in schema:
            step = schema["multipleOf"]
            low, high = _bounds(schema)
            scaled = {"minimum": None if low is None else low / step}
            scaled["maximum"] = None if high is None else high / step
            whole = {key: bound for key, bound in scaled.items() if bound is not None}
            return float(round(self._integer(whole) * step, 12))
        low, high = _bounds(schema)
        if low is None:
            low = 0.0 if high is None or high > 0 else high - 100
        if high is None:
            high = low + 100
        number = float(low + (high - low) * self._dice.random())
        rounded = round(number, 2)
        return rounded if low < rounded < high else number

    def _text(self, schema: dict[str, Any], name: str) -> str:
        if "pattern" in schema:
            return self._matching(schema["pattern"])
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]](self._dice)
        least = schema.get("minLength", 0)
        if least > _TOO_LONG:
            raise SchemaError(f"its texts are longer than {_TOO_LONG} characters")
        text = self._phrase(name)
        while len(text) < least:
            text += f" {self._word()}"
        most = schema.get("maxLength", len(text))
        return text[:most]

    def _phrase(self, name: str) -> str:
        known = _BY_NAME.get(name.lower())
        if known is not None:
            return self._dice.choice(known)
        return " ".join(self._dice.choices(_WORDS, k=self._dice.randint(1, 5)))

    def _word(self) -> str:
        return self._dice.choice(_WORDS)

    def _matching(self, pattern: str) -> str:
        try:
            return matching(pattern, self._dice)
        except ValueError:
            raise _MissError from None  # another branch may do without it


def _weight(branch: Any) -> int:
    """Rank branches by how soon they end: null, then plain values, then the rest."""
    if not isinstance(branch, dict):
        return 2
    if branch.get("type") == "null":
        return 0
    is_plain = "enum" in branch or "const" in branch
    if is_plain or branch.get("type") in {"string", "integer", "number", "boolean"}:
        return 1
    return 2 if "$ref" not in branch else 3


def _implied_type(schema: dict[str, Any]) -> str:
    for kind, keywords in _KEYWORDS.items():
        if not keywords.isdisjoint(schema):
            return kind
    return "string"


_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties", "patternProperties",
               "minProperties", "maxProperties", "propertyNames"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"},
    "string": {"pattern", "format", "minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}  # fmt: skip


def _merged(one: Any, other: Any) -> dict[str, Any]:
    """Return a schema for what fits both. Where that is hard, the validator has the last word."""
    if one is False or other is False:
        raise _MissError
    left = one if isinstance(one, dict) else {}
    right = other if isinstance(other, dict) else {}
    both = left | right
    for key in left.keys() & right.keys():
        both[key] = _merged_keyword(key, left[key], right[key])
    return both


def _merged_keyword(key: str, one: Any, other: Any) -> Any:
    if one == other:
        return one
    if key == "properties":
        shared = {name: {"allOf": [one[name], other[name]]} for name in one.keys() & other.keys()}
        return one | other | shared
    if key in {"items", "additionalProperties", "propertyNames"}:
        return {"allOf": [one, other]} if isinstance(one, dict) else other and one
    if key in {"required", "allOf"}:
        return [*one, *(name for name in other if name not in one)]
    if key == "enum":
        return [value for value in one if value in other]
    if key == "type":
        return _merged_types(one, other)
    if key in {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}:
        return max(one, other)
    if key in {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}:
        return min(one, other)
    return other


def _merged_types(one: Any, other: Any) -> list[str]:
    left, right = ([kinds] if isinstance(kinds, str) else kinds for kinds in (one, other))
    shared = [kind for kind in left if kind in right]
    if "integer" in {*left, *right} and "number" in {*left, *right} and "integer" not in shared:
        shared.append("integer")
    if not shared:
        raise _MissError
    return shared


def _bounds(schema: dict[str, Any]) -> tuple[Any, Any]:
    lows = [schema[key] for key in ("minimum", "exclusiveMinimum") if key in schema]
    highs = [schema[key] for key in ("maximum", "exclusiveMaximum") if key in schema]
    return max(lows, default=None), min(highs, default=None)


def _integers_between(low: Any, high: Any, schema: dict[str, Any], step: int) -> tuple[Any, Any]:
    """Return the first and the last multiple of ``step`` within the bounds, in steps."""
    first = None if low is None else math.ceil(low / step)
    last = None if high is None else math.floor(high / step)
    if first is not None and first * step == schema.get("exclusiveMinimum"):
        first += 1
    if last is not None and last * step == schema.get("exclusiveMaximum"):
        last -= 1
    return first, last


def _date(dice: random.Random) -> str:
    return f"20{dice.randint(10, 29)}-{dice.randint(1, 12):02}-{dice.randint(1, 28):02}"


def _time(dice: random.Random) -> str:
    return f"{dice.randint(0, 23):02}:{dice.randint(0, 59):02}:{dice.randint(0, 59):02}Z"


def _uuid(dice: random.Random) -> str:
    digits = f"{dice.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


_FORMATS: dict[str, Callable[[random.Random], str]] = {
    "date": _date,
    "time": _time,
    "date-time": lambda dice: f"{_date(dice)}T{_time(dice)}",
    "duration": lambda dice: f"PT{dice.randint(1, 23)}H",
    "email": lambda dice: f"{dice.choice(_WORDS)}@example.com",
    "hostname": lambda dice: f"{dice.choice(_WORDS)}.example.com",
    "uri": lambda dice: f"https://example.com/{dice.choice(_WORDS)}",
    "uri-reference": lambda dice: f"/{dice.choice(_WORDS)}",
    "uuid": _uuid,
    "ipv4": lambda dice: f"192.0.2.{dice.randint(1, 254)}",
    "ipv6": lambda dice: f"2001:db8::{dice.randint(1, 9999):x}",
    "json-pointer": lambda dice: f"/{dice.choice(_WORDS)}",
    "regex": lambda dice: f"^{dice.choice(_WORDS)}$",
}  # fmt: skip
