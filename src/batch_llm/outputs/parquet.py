"""Parquet files of results.

A Parquet file cannot grow row by row: its columns have types, and its index stands at its end. So
rows are kept as JSON lines beside it while they come, and turned into the file when all are there,
a group at a time. Whatever ends the process before, the rows are in ``FILE.rows.jsonl``.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from batch_llm.core.parquet import load_parquet
from batch_llm.exceptions import OutputLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: Rows in memory at a time, and in a group of the file.
GROUP_ROWS = 10_000
#: Kinds of values that have a type of their own; a column with others is text.
_TEXT, _BOOL, _INTEGER, _NUMBER = "text", "bool", "integer", "number"
_LARGEST = 2**63


def rows_of_parquet(path: str) -> str:
    """Return where the rows of a Parquet file are kept as long as it is not made."""
    return f"{path}.rows.jsonl"


class ParquetRows:
    """The rows of a Parquet file to be, and the kinds of values that its columns hold.

    A column of texts, booleans or numbers has that type; what else there is, or a mixture, is
    written as text, JSON where it is no text itself.

    Args:
        path: The Parquet file.
        cell: Turns a value into text.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: str, cell: Callable[[Any], str]) -> None:
        self._arrow, self._parquet = load_parquet()
        self._path, self._cell = path, cell
        self._kinds: dict[str, str | None] = {}
        #: Where the rows are kept meanwhile.
        self.rows_path = rows_of_parquet(path)

    def note(self, record: Mapping[str, Any]) -> None:
        """Look at a row's values."""
        kinds = self._kinds
        for name, value in record.items():
            before = kinds.setdefault(name, None)
            if value is None or before == _TEXT:
                continue
            kind = _kind(value)
            if before is None:
                kinds[name] = kind
            elif before != kind:
                is_number = {before, kind} == {_INTEGER, _NUMBER}
                kinds[name] = _NUMBER if is_number else _TEXT

    def finish(self, columns: list[str]) -> None:
        """Make the file of the rows that were written, and remove them.

        Args:
            columns: All columns, in their order.

        Raises:
            OutputLostError: It could not be written; the rows are still there.
        """
        pa, arrow_types = self._arrow, self._types()
        fields = [pa.field(name, arrow_types.get(name, pa.string())) for name in columns]
        schema = pa.schema(fields)
        unfinished = Path(f"{self._path}.part")
        try:
            with (
                Path(self.rows_path).open("rb") as rows,
                self._parquet.ParquetWriter(unfinished, schema) as file,
            ):
                for group in _groups(rows):
                    found = {field.name: self._column(group, field.name) for field in schema}
                    file.write_table(pa.table(found, schema=schema))
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(self._path)
            Path(self.rows_path).unlink()
        except (OSError, pa.ArrowException) as error:
            with contextlib.suppress(OSError):  # half a file is of no use, and takes room
                unfinished.unlink(missing_ok=True)
            reason = f"{error}; its rows are in {self.rows_path}"
            raise OutputLostError(self._path, reason) from error

    def _types(self) -> dict[str, Any]:
        pa = self._arrow
        types = {_BOOL: pa.bool_(), _INTEGER: pa.int64(), _NUMBER: pa.float64()}
        return {name: types[kind] for name, kind in self._kinds.items() if kind in types}

    def _column(self, group: list[dict[str, Any]], name: str) -> list[Any]:
        values = (record.get(name) for record in group)
        kind = self._kinds.get(name)
        if kind == _NUMBER:
            return [None if value is None else float(value) for value in values]
        if kind in {_BOOL, _INTEGER}:
            return list(values)
        return [None if value is None else self._cell(value) for value in values]


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _INTEGER if -_LARGEST <= value < _LARGEST else _TEXT
    return _NUMBER if isinstance(value, float) else _TEXT


def _groups(rows: IO[bytes]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for line in rows:
        group.append(msgspec.json.decode(line))
        if len(group) == GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group
