"""Decode one JSON line exactly, and say where it is broken."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import msgspec

from batch_llm.inputs.problem import Problem, excerpt_of

_decode = msgspec.json.Decoder().decode
_BYTE = re.compile(r" \(byte (\d+)\)$")


def decode_line(raw: bytes, line: int) -> Any | Problem:
    """Return the value of a line, or the problem with it. Never raises."""
    try:
        return _decode(raw)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        return _explained(raw, line, error)


def encoding_problem(raw: bytes, line: int, error: UnicodeDecodeError) -> Problem:
    """Return the problem of bytes that are not UTF-8; its column counts bytes."""
    text = raw.decode("utf-8", "replace")
    place = len(raw[: error.start].decode("utf-8", "replace"))
    excerpt, caret = excerpt_of(text, place)
    return Problem(
        line=line,
        column=error.start + 1,
        code="invalid_encoding",
        message=f"byte 0x{raw[error.start]:02x} is not UTF-8",
        excerpt=excerpt,
        caret=caret,
        raw=text,
    )


def _explained(raw: bytes, line: int, error: Exception) -> Problem:
    try:
        text = raw.decode()
    except UnicodeDecodeError as bad:
        return encoding_problem(raw, line, bad)
    message = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    place: int | None = None
    if found := _BYTE.search(message):
        place = len(raw[: int(found[1])].decode("utf-8", "ignore"))
        message = message[: found.start()]
    # msgspec points behind some characters; the standard library names the first bad one.
    try:
        json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as exact:
        place = exact.pos
        message = _worded(message, exact.msg, at_end=place >= len(text.rstrip()))
    except (ValueError, RecursionError):
        pass
    message = _worded(message, "", at_end=False)
    if place is None:
        return Problem(line=line, code="invalid_json_line", message=message, raw=text)
    excerpt, caret = excerpt_of(text, place)
    return Problem(
        line=line,
        column=place + 1,
        code="invalid_json_line",
        message=message,
        excerpt=excerpt,
        caret=caret,
        raw=text,
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _worded(message: str, exact: str, *, at_end: bool) -> str:
    message = message.removeprefix("JSON is malformed: ")
    if message.startswith("expected "):
        return f"unexpected character, {message}"
    if at_end and "truncated" in message:
        return "the line ends in mid-record"
    if message == "invalid character" and exact:
        return f"unexpected character: {exact[0].lower()}{exact[1:]}"
    return message
