"""What a record is: which shape it has, and what it is called."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from batch_llm.core.text import safe
from batch_llm.exceptions import ConfigError
from batch_llm.inputs.records import Problem, Row

if TYPE_CHECKING:
    from collections.abc import Iterable

_ID_COLUMNS = ("custom_id", "id")


def shape_of(data: dict[str, Any]) -> str:
    """Return the format of records like this first one.

    Raises:
        ConfigError: It is one that is not supported.
    """
    if "custom_id" in data and "body" in data:
        return "openai-batch"
    for mark, shape in ((("custom_id", "params"), "Anthropic"), (("key", "request"), "Gemini")):
        if all(name in data for name in mark):
            raise ConfigError(
                "the input's shape",
                f"{shape} batch lines",
                "OpenAI batch lines, chat or prompt rows",
            )
    if isinstance(data.get("messages"), list):
        return "chat"
    return "prompt" if "prompt" in data else "rows"


def id_column_of(columns: Iterable[str]) -> str | None:
    """Return the column that holds the ids, as far as nobody says; None numbers the rows."""
    known = set(columns)
    return next((name for name in _ID_COLUMNS if name in known), None)


class Identifier:
    """Gives each row its id, and finds those that cannot have one.

    Args:
        column: The column with the ids; None numbers the rows.
        unit: What the input is counted in: a line or a row.
    """

    def __init__(self, column: str | None, unit: str = "line") -> None:
        self._column, self._unit = column, unit
        self._seen: dict[str, int] = {}

    def identify(self, row: Row, number: int) -> Row | Problem:
        """Return the row under its id, or what is wrong with it."""
        column = self._column
        if is_left_over(row.data):
            message = "an earlier run could not read this record; mend it, or leave it out"
            return Problem(row.line, "invalid_row", message, data=row.data)
        if column is None:  # numbers differ anyway
            return Row(f"row-{number}", row.line, row.data)
        found = row.data.get(column)
        if found is None or found == "" or isinstance(found, dict | list | bool):
            given = json.dumps(found, default=str) if column in row.data else "nothing"
            message = (
                f'"{safe(column, 40)}" must be a text that is not empty, or a number, '
                f"got {safe(given, 40)}"
            )
            return Problem(row.line, "missing_id", message, data=row.data)
        item_id = str(found)
        first = self._seen.setdefault(item_id, row.line)
        if first != row.line:
            where = f"{'on' if self._unit == 'line' else 'in'} {self._unit} {first}"
            message = f'"{safe(item_id, 60)}" is already {where}'
            return Problem(row.line, "duplicate_id", message, data=row.data, item_id=item_id)
        return Row(item_id, row.line, row.data, has_own_id=True)


def is_left_over(data: dict[str, Any]) -> bool:
    """Tell whether our own file of failed rows holds a record here that never was a row."""
    if not data.get("raw") or not data.get("error"):
        return False
    return not any(value for name, value in data.items() if name not in {"raw", "error"})
