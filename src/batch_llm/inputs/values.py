"""Rows that are Python values: texts, mappings, conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import InputError
from batch_llm.inputs.records import Problem, Row
from batch_llm.inputs.shapes import Identifier, id_column_of, shape_of
from batch_llm.inputs.value_blocks import ValueBody

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batch_llm.inputs.blocks import Body

#: How a run's input is called that is no file.
NAME = "the input"


class ValueSource:
    """Values as rows, read as often as they are iterated.

    Args:
        values: Texts (prompts), mappings (columns), or lists of messages.
        id_column: Holds the ids; None looks for ``custom_id`` and ``id`` in the first row.
        limit: Stop after so many.

    Raises:
        InputError: The id column is not there.
        ConfigError: The first one has a shape that is not supported.
    """

    name = NAME
    #: What it is counted in.
    unit = "row"

    def __init__(
        self, values: Sequence[Any], *, id_column: str | None = None, limit: int | None = None
    ) -> None:
        self._values = values
        self._limit = limit
        rows = (row for row in map(read_value, values, range(1, len(values) + 1)))
        first = next((row for row in rows if isinstance(row, Row)), None)
        self.columns = list(first.data) if first else []
        self.format = shape_of(first.data) if first else "rows"
        self.id_column = id_column or id_column_of(self.columns)

    def __iter__(self) -> Iterator[Row | Problem]:
        identifier = self.identifier()
        for number, value in enumerate(self._values[: self._limit], 1):
            record = read_value(value, number)
            yield record if isinstance(record, Problem) else identifier.identify(record, number)

    def has_changed(self) -> bool:
        """Tell whether the rows are other ones now: never."""
        return False

    def identifier(self) -> Identifier:
        """Return who gives the rows of one reading their ids."""
        return Identifier(self.id_column, self.unit)

    def body(self) -> Body:
        """Return what the rows are read with block by block."""
        values = self._values
        return ValueBody(
            lambda place, count: values[place : place + count], read_value, self._limit, "values"
        )


def read_value(value: Any, number: int) -> Row | Problem:
    """Read one value as a row without an id. ``number`` counts from 1."""
    if isinstance(value, str):
        return Row("", number, {"prompt": value})
    if isinstance(value, Mapping):
        data = value if isinstance(value, dict) else dict(value)
        if all(isinstance(name, str) for name in data):
            return Row("", number, data)
        return Problem(number, "invalid_row", "the names of columns must be texts", data={})
    is_list = isinstance(value, Sequence) and not isinstance(value, bytes | bytearray)
    if is_list and value and all(isinstance(message, Mapping) for message in value):
        return Row("", number, {"messages": list(value)})
    message = f"expected a text, a mapping or messages, got {_kind(value)}"
    return Problem(number, "invalid_row", message, data={})


def apart(value: Any) -> Any:
    """Return a row that stays what it is though its generator fills the same mapping anew."""
    return value.copy() if type(value) in {dict, list} else value


def check_is_rows(rows: object) -> None:
    """Refuse what is no collection of rows, with the way to make one of it.

    Raises:
        InputError: It is a single mapping, say.
    """
    kinds = ("__iter__", "__aiter__", "__fspath__")
    is_good = any(hasattr(rows, kind) for kind in kinds)
    if isinstance(rows, Mapping | bytes | bytearray) or not is_good:
        raise InputError(
            f"rows must be a file's path or an iterable of rows, got {_kind(rows)}; put one row "
            "into a list"
        )


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
