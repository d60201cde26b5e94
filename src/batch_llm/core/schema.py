"""The shape of an answer: what the provider is told, and how the model's text is read."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import msgspec

from batch_llm.exceptions import BadOutputError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic_core import ErrorDetails

#: What providers accept as a schema's name.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
#: A problem sentence goes back to the model and into reports: it stays short.
_MAX_PROBLEMS = 5
_MAX_PROBLEM_CHARACTERS = 200
#: What models like to put around a bare word.
_AROUND_A_WORD = " \t\r\n\"'`*.“”‘’"  # noqa: RUF001 - the curly quotes are meant
#: Keywords that OpenAI's strict mode takes; with any other one it refuses the whole call.
#: https://developers.openai.com/api/docs/guides/structured-outputs
_STRICT_KEYWORDS = frozenset(
    {"type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf"}
    | {"$ref", "$defs", "definitions", "title", "description", "pattern", "format"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
    | {"minItems", "maxItems"}
)
_STRICT_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)
#: A subschema that has none of these allows anything, which strict mode does not know.
_STRICT_ANCHORS = ("type", "$ref", "anyOf", "enum", "const")


class OutputSchema:
    """A JSON schema with a name, and the function that turns an answer's text into a value.

    Immutable; made by ``of``, ``choices``, ``json_schema`` or ``from_type``. Two are equal when
    they are the same on the wire, even if one gives a model's instance and the other plain data.

    Attributes:
        name: 1 to 64 letters, digits, ``_`` and ``-``.
        schema: The JSON schema as it goes over the wire. Not to be changed.
        is_strict: Whether the provider is asked to enforce the schema to the letter; None leaves
            it to the provider.
    """

    __slots__ = ("_key", "_origin", "_read", "is_strict", "name", "schema")

    name: str
    schema: dict[str, Any]
    is_strict: bool | None
    _read: Callable[[str], Any]
    _origin: tuple[Callable[..., OutputSchema], tuple[Any, ...]]
    _key: tuple[str, bool | None, str]

    def __init__(
        self,
        name: str,
        schema: dict[str, Any],
        read: Callable[[str], Any],
        *,
        is_strict: bool | None,
        origin: tuple[Callable[..., OutputSchema], tuple[Any, ...]],
    ) -> None:
        key = (name, is_strict, json.dumps(schema, sort_keys=True))
        for attribute, value in (
            ("name", name),
            ("schema", schema),
            ("is_strict", is_strict),
            ("_read", read),
            ("_origin", origin),
            ("_key", key),
        ):
            object.__setattr__(self, attribute, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"an OutputSchema cannot be changed ({name})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"an OutputSchema cannot be changed ({name})")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OutputSchema) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"OutputSchema({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return self._origin  # the reading function cannot be pickled; it is made again

    @classmethod
    def of(cls, shape: Any) -> OutputSchema:
        """Accept any of: an ``OutputSchema``, a JSON schema (dict), choices (list), a type.

        Equal shapes give one shared schema, compiled once.

        Raises:
            ConfigError: The shape is none of these, or is invalid.
        """
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

        On the wire it is an object with one field, because strict modes want an object. Reading
        accepts the bare word too, in quotes and in any case.

        Raises:
            ConfigError: Fewer than two different names, or a name that is empty or no text.
        """
        given: tuple[object, ...] = names
        if not all(isinstance(name, str) and name.strip() for name in given):
            raise ConfigError("choices", names, "texts that are not empty")
        if len(set(names)) < 2:
            raise ConfigError("choices", names, "at least two different names")
        return _of_choices(names)

    @classmethod
    def json_schema(
        cls,
        schema: dict[str, Any],
        name: str | None = None,
        *,
        is_strict: bool | Literal["auto"] | None = "auto",
    ) -> OutputSchema:
        """Take a JSON schema; values are plain Python data that conform to it.

        References to other documents are never fetched.

        Args:
            schema: Any draft; copied.
            name: For the provider; default: the schema's title, or ``answer``. Characters that
                no provider takes become ``_``.
            is_strict: True, False or None send ``schema`` as it is, with that flag or none.
                ``"auto"`` closes it for strict enforcement if that does not change what it means.

        Raises:
            ConfigError: It is not a valid JSON schema.
        """
        try:
            text = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError("schema", schema, f"plain JSON data ({error})") from None
        title = schema.get("title")
        wanted = name or (title if isinstance(title, str) else "")
        return _of_json_schema(text, _wire_name(wanted), is_strict)

    @classmethod
    def from_type(cls, kind: Any) -> OutputSchema:
        """Take a pydantic model, or any type that pydantic can validate.

        A type that is no object on the wire (``list[int]``, a union) is sent as an object with
        the one field ``value``; the value is the type's own.

        Raises:
            ConfigError: Pydantic cannot validate the type, or has no JSON schema for it.
        """
        try:
            hash(kind)
        except TypeError:  # an ``Annotated`` with a list in it, say
            return _of_type.__wrapped__(kind)
        return _of_type(kind)

    def parse(self, text: str) -> Any:
        """Return the value of an answer. A fence of backticks around it is taken off.

        Raises:
            BadOutputError: It does not fit; ``problem`` is worded for the model.
        """
        problem: str | None = None
        try:
            return self._read(_unfenced(text))
        except _MisfitError as misfit:
            problem = misfit.problem
        raise BadOutputError(text, problem)


def as_shaped(shape: OutputSchema | None, output: Any) -> Any:
    """Return an output that was kept as plain data in the type that a shape makes of an answer."""
    if shape is None or not isinstance(output, dict | list):
        return output
    try:
        return shape.parse(msgspec.json.encode(output).decode())
    except BadOutputError:  # tool calls, or what a hook had put there
        return output


class _MisfitError(Exception):
    """A reading function's complaint; ``parse`` adds the text."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    @classmethod
    def of(cls, problems: Iterable[tuple[Iterable[Any], str]]) -> _MisfitError:
        """Condense pairs of place and message, of which only the first few are looked at."""
        sentences = []
        for place, message in islice(problems, _MAX_PROBLEMS):
            where = ".".join(map(str, place)) or "the answer"
            is_long = len(message) > _MAX_PROBLEM_CHARACTERS
            short = f"{message[:_MAX_PROBLEM_CHARACTERS]}…" if is_long else message
            sentences.append(f"{where}: {short}")
        return cls("; ".join(sentences))


@lru_cache(maxsize=256)
def _of_choices(names: tuple[str, ...]) -> OutputSchema:
    by_word: dict[str, str | None] = {}
    for name in dict.fromkeys(names):
        word = _word(name)
        by_word[word] = name if word not in by_word else None  # told apart by their case only
    listed = ", ".join(names)

    def read(body: str) -> str:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = body
        if isinstance(value, dict):
            value = value.get("choice", "")
        given = value if isinstance(value, str) else body
        for text in (given, body):
            if text in names:
                return text
        name = by_word.get(_word(given))
        if name is None:
            raise _MisfitError(f"choose exactly one of: {listed}")
        return name

    schema = {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(dict.fromkeys(names))}},
        "required": ["choice"],
        "additionalProperties": False,
    }
    return OutputSchema(
        "choice", schema, read, is_strict=True, origin=(OutputSchema.choices, names)
    )


@lru_cache(maxsize=256)
def _of_json_schema(
    text: str,
    name: str,
    is_strict: bool | Literal["auto"] | None,  # noqa: FBT001
) -> OutputSchema:
    import jsonschema_rs

    def refuse(uri: str) -> NoReturn:
        raise ValueError(f"{uri} is outside the schema")

    schema: dict[str, Any] = json.loads(text)
    try:
        # Without a retriever of ours, references to URLs and files would be opened.
        validator = jsonschema_rs.validator_for(schema, retriever=refuse)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        expected = f"a valid JSON schema ({str(error).splitlines()[0]})"
        raise ConfigError("schema", schema, expected) from None

    def read(body: str) -> Any:
        value = _from_json(body)
        if not validator.is_valid(value):
            errors = ((e.instance_path, e.message) for e in validator.iter_errors(value))
            raise _MisfitError.of(errors)
        return value

    origin = (_of_json_schema, (text, name, is_strict))
    if isinstance(is_strict, str):
        schema, is_strict = _strictest(schema, fills_defaults=False)
    return OutputSchema(name, schema, read, is_strict=is_strict, origin=origin)


@lru_cache(maxsize=256)
def _of_type(kind: Any) -> OutputSchema:
    from pydantic import PydanticUserError, TypeAdapter, ValidationError, create_model

    name = getattr(kind, "__name__", "")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        schema = adapter.json_schema()
        wrapper: TypeAdapter[Any] | None = None
        if schema.get("type") != "object":
            wrapper = TypeAdapter(create_model(_wire_name(name), value=(kind, ...)))
            schema = wrapper.json_schema()
    except (PydanticUserError, NameError) as error:
        expected = f"a type that pydantic can describe ({str(error).splitlines()[0]})"
        raise ConfigError("output", kind, expected) from error

    def read(body: str) -> Any:
        try:
            if wrapper is None:
                return adapter.validate_json(body)
            try:
                return wrapper.validate_json(body).value
            except ValidationError as error:
                try:
                    return adapter.validate_json(body)  # the bare value, from a model left free
                except ValidationError:
                    raise error from None
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            raise _MisfitError.of((one["loc"], _message(one)) for one in found) from None

    schema, is_strict = _strictest(schema, fills_defaults=True)
    origin = (OutputSchema.from_type, (kind,))
    return OutputSchema(_wire_name(name), schema, read, is_strict=is_strict, origin=origin)


def _message(error: ErrorDetails) -> str:
    is_json = error["type"] != "json_invalid"
    return error["msg"] if is_json else f"not valid JSON ({error['msg']})"


def _wire_name(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64] or "answer"


def is_wire_name(name: object) -> bool:
    """Tell whether providers take ``name`` as a schema's name as it is."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _word(text: str) -> str:
    return text.strip(_AROUND_A_WORD).casefold()


def _unfenced(text: str) -> str:
    stripped = text.strip()
    if len(stripped) < 6 or not (stripped.startswith("```") and stripped.endswith("```")):
        return text
    inside = stripped[3:-3]
    language = re.match(r"[a-zA-Z]*[ \t]*(?=[\r\n{\[\"])", inside)
    return inside[language.end() :].strip() if language else inside.strip()


def _from_json(body: str) -> Any:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not allowed in JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _MisfitError(f"the answer: not valid JSON ({error})") from None


def _strictest(schema: dict[str, Any], *, fills_defaults: bool) -> tuple[dict[str, Any], bool]:
    """Return the schema closed for strict mode and True, or as it was and False.

    Strict mode wants every object closed and every property required. Objects that say nothing
    about further properties may be closed: what then is written fits the open schema too.

    Args:
        schema: A valid schema.
        fills_defaults: A missing property that is null by default may be required, because
            null means the same to the reader.
    """
    is_object = schema.get("type") == "object" and "anyOf" not in schema
    closed = _closed(schema, fills_defaults=fills_defaults) if is_object else None
    return (schema, False) if closed is None else (closed, True)


def _closed(node: Any, *, fills_defaults: bool) -> dict[str, Any] | None:
    """Return a closed copy of a subschema, or None if there is no such thing."""
    if not isinstance(node, dict) or not any(anchor in node for anchor in _STRICT_ANCHORS):
        return None
    if not node.keys() <= _STRICT_KEYWORDS or ("$ref" in node and len(node) > 1):
        return None
    if "(?" in node.get("pattern", "") or node.get("format", "date") not in _STRICT_FORMATS:
        return None
    copy = dict(node)
    if "object" in _types(node) or "properties" in node:
        properties = node.get("properties")
        if not isinstance(properties, dict) or node.get("additionalProperties", False) is not False:
            return None
        required = list(node.get("required", ()))
        if fills_defaults:
            nullable = {
                key: {word: value for word, value in inner.items() if word != "default"}
                for key, inner in properties.items()
                if key not in required and _is_null_by_default(inner)
            }
            copy["properties"] = properties | nullable
            required += nullable
        if set(required) != set(properties):
            return None
        copy |= {"required": required, "additionalProperties": False}
    elif "additionalProperties" in node or ("array" in _types(node) and "items" not in node):
        return None
    for keyword in ("properties", "$defs", "definitions"):
        if keyword in copy:
            inner = {
                key: _closed(one, fills_defaults=fills_defaults)
                for key, one in copy[keyword].items()
            }
            if None in inner.values():
                return None
            copy[keyword] = inner
    if "items" in node:
        copy["items"] = _closed(node["items"], fills_defaults=fills_defaults)
    if "anyOf" in node:
        copy["anyOf"] = [_closed(one, fills_defaults=fills_defaults) for one in node["anyOf"]]
    return None if copy.get("items", "") is None or None in copy.get("anyOf", ()) else copy


def _types(node: dict[str, Any]) -> list[Any]:
    kind = node.get("type")
    return kind if isinstance(kind, list) else [kind]


def _is_null_by_default(node: Any) -> bool:
    if not isinstance(node, dict) or node.get("default", "") is not None:
        return False
    options = node.get("anyOf", [node])
    return any(isinstance(one, dict) and "null" in _types(one) for one in options)
