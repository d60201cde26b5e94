"""JSON lines and plain lines: one record on each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from batch_llm.core.text import safe
from batch_llm.inputs.records import Problem, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batch_llm.inputs.lines import Lines


def records(lines: Lines, *, is_text: bool) -> Iterator[Row | Problem]:
    """Give the records without ids; empty lines are none.

    Args:
        lines: From where on.
        is_text: Whether each line is a prompt as it stands.
    """
    read = _prompt if is_text else parse
    for raw in lines:
        line = raw.rstrip(b"\r\n")
        if line.strip():
            yield read(line, lines.number)


def _prompt(line: bytes, number: int) -> Row | Problem:
    try:
        return Row("", number, {"prompt": line.decode()})
    except UnicodeDecodeError as error:
        return Problem(number, "invalid_utf8", "not UTF-8", error.start + 1)


def parse(line: bytes, number: int) -> Row | Problem:
    """Read one line; a bare text is a prompt. What is no object has its place and reason."""
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _explain(line, number)
    if isinstance(value, str):
        return Row("", number, {"prompt": value})
    if not isinstance(value, dict):
        kind = {list: "a list", bool: "true or false", type(None): "null"}.get(type(value))
        message = f"expected an object, got {kind or 'a number'}"
        return Problem(number, "invalid_row", message)
    return Row("", number, value)


def _explain(line: bytes, number: int) -> Problem:
    """Say where and why a line is no JSON."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raw = {"raw": line.decode("utf-8", "replace")}
        return Problem(number, "invalid_utf8", "not UTF-8", error.start + 1, data=raw)
    message, column = "a number or character that JSON does not allow", None
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        # The decoder counts lines too, but a record has only one.
        message, column = safe(error.msg), error.pos + 1
    except RecursionError:
        message = "nested too deeply"
    except ValueError:
        message = "a number with too many digits"
    return Problem(number, "invalid_json_line", message, column, text, data={"raw": text})
