"""Parquet files, read a group of rows at a time."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from batch_llm.core.parquet import load_parquet
from batch_llm.exceptions import InputError
from batch_llm.inputs.records import Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Rows in memory at a time.
_ROWS_AT_ONCE = 1_000


class ParquetTable:
    """A Parquet file, opened as often as its rows are read.

    Args:
        path: The file.
        name: How it is called in errors.

    Raises:
        MissingExtraError: pyarrow is not installed.
        InputError: The file is none.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._arrow, self._parquet = load_parquet()
        self._path, self._name = path, name

    def header_columns(self) -> list[str]:
        """Return the names of the columns."""
        with self._opened() as file:
            return list(file.schema_arrow.names)

    def rows(self) -> Iterator[Row]:
        """Give the records in order, without ids. A row's line is its number."""
        number = 0
        with self._opened() as file:
            try:
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                    for record in batch.to_pylist():
                        number += 1
                        yield Row("", number, {name: plain(one) for name, one in record.items()})
            except self._arrow.ArrowException as error:
                raise InputError(f"{self._name} is damaged: {error}") from None

    def _opened(self) -> Any:
        try:
            return self._parquet.ParquetFile(self._path)
        except self._arrow.ArrowException as error:
            raise InputError(f"{self._name} is no Parquet file: {error}") from None


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: times as ISO 8601, exact numbers and bytes as text."""
    if isinstance(value, str | int | float) or value is None:
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)  # exact numbers among them
