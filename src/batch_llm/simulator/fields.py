"""Reading bodies and headers, field by field, and writing JSON and events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.simulator.refusals import Flaw

if TYPE_CHECKING:
    from collections.abc import Iterable

    Headers = list[tuple[bytes, bytes]]

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the secret of the ``Authorization`` header, or nothing."""
    for name, value in headers:
        if name == b"authorization":
            if value.startswith(b"Bearer "):
                return value[7:].strip()
            scheme, _, secret = value.partition(b" ")
            return secret.strip() if scheme.lower() == b"bearer" else b""
    return b""


def header(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    """Return the value of a header, or nothing."""
    return next((value.strip() for name, value in headers if name == wanted), b"")


def fields_of(body: bytes) -> dict[str, Any]:
    """Return a body's JSON object.

    Raises:
        Flaw: It is none.
    """
    try:
        fields = decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Flaw("json") from None
    if not isinstance(fields, dict):
        raise Flaw("type", "body", "an object", fields)
    return fields


def whole_number(
    fields: dict[str, Any],
    name: str,
    *,
    least: int = 1,
    most: int | None = None,
    where: str | None = None,
) -> int | None:
    """Return a field's whole number, or None without one.

    Raises:
        Flaw: It is something else, or out of bounds.
    """
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise Flaw("type", where or name, "an integer", value)
    if value < least:
        raise Flaw("below", where or name, str(least), value)
    if most is not None and value > most:
        raise Flaw("above", where or name, str(most), value)
    return value


def flag(fields: dict[str, Any], name: str) -> bool:
    """Return whether a field is set.

    Raises:
        Flaw: It is neither true nor false nor absent.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise Flaw("type", name, "a boolean", value)
    return bool(value)


def event(name: str, data: dict[str, Any]) -> bytes:
    """Write a server-sent event that has a name."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data))


def data_event(data: Any) -> bytes:
    """Write a server-sent event without a name."""
    return b"data: %b\n\n" % encode(data)
