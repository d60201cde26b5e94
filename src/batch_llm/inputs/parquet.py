"""Parquet files, read a group of rows at a time."""

from __future__ import annotations

import bisect
import itertools
from datetime import date, datetime, time, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.core.parquet import load_parquet
from batch_llm.exceptions import InputError
from batch_llm.inputs.columns import distinct_names
from batch_llm.inputs.records import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
        #: Records from a place on, and what comes behind them, see ``some``.
        self._place, self._kept = 0, list[dict[str, Any]]()
        self._rest: Iterator[Any] | None = None

    def header_columns(self) -> list[str]:
        """Return the names of the columns."""
        with self._opened() as file:
            return distinct_names(file.schema_arrow.names)

    def rows(self) -> Iterator[Row]:
        """Give the records in order, without ids. A row's line is its number."""
        numbers = itertools.count(1)
        for batch in self._batches(0):
            yield from map(as_row, self._records(batch), numbers)

    def some(self, place: int, count: int) -> list[dict[str, Any]]:
        """Return records, fewer at the end.

        Cheapest where no place lies before that of the last call: then it reads on.

        Args:
            place: The first one's, from 0.
            count: How many.
        """
        group = bisect.bisect_right(self._groups, place) - 1
        end = self._place + len(self._kept)
        if place < self._place or self._rest is None or self._groups[group] > end:
            self._place, self._kept = self._groups[group], []
            self._rest = self._batches(group)
        self._let_go(place)
        while self._place + len(self._kept) < place + count:
            batch = next(self._rest, None)
            if batch is None:
                break
            if self._place + len(self._kept) + len(batch) <= place:  # nothing is kept by now
                self._place += len(batch)
                continue
            self._kept += self._records(batch)
            self._let_go(place)
        return self._kept[:count]

    def _let_go(self, place: int) -> None:
        """Forget what stands before a place."""
        count = min(place - self._place, len(self._kept))
        del self._kept[:count]
        self._place += count

    @cached_property
    def _groups(self) -> list[int]:
        """Where each group of rows begins."""
        with self._opened() as file:
            sizes = [file.metadata.row_group(one).num_rows for one in range(file.num_row_groups)]
        return [0, *itertools.accumulate(sizes[:-1])]

    def _batches(self, first_group: int) -> Iterator[Any]:
        with self._opened() as file:
            groups = range(first_group, file.num_row_groups)
            try:
                yield from file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=groups)
            except self._arrow.ArrowException as error:
                raise InputError(f"{self._name} is damaged: {error}") from None

    def _records(self, batch: Any) -> list[dict[str, Any]]:
        names = distinct_names(batch.schema.names)
        if names != batch.schema.names:
            batch = batch.rename_columns(names)
        records: list[dict[str, Any]] = batch.to_pylist()
        for field in batch.schema:
            if not self._is_plain(field.type):
                name, make_plain = field.name, self._maker(field.type)
                for record in records:
                    record[name] = make_plain(record[name])
        return records

    def _maker(self, kind: Any) -> Callable[[Any], Any]:
        """Return what makes the values of a column ``plain``: maps come as lists of pairs."""
        types = self._arrow.types
        if types.is_map(kind):
            of_keys, of_items = self._maker(kind.key_type), self._maker(kind.item_type)
            return _unless_none(lambda pairs: {_name(of_keys(k)): of_items(v) for k, v in pairs})
        if types.is_struct(kind):
            makers = {field.name: self._maker(field.type) for field in kind}
            return _unless_none(lambda fields: {k: makers[k](v) for k, v in fields.items()})
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            of_values = self._maker(kind.value_type)
            return _unless_none(lambda values: [of_values(one) for one in values])
        return plain

    def _is_plain(self, kind: Any) -> bool:
        """Tell whether a column's values are ``plain`` as they come."""
        types = self._arrow.types
        if types.is_floating(kind):
            return not types.is_float16(kind)
        found: bool = (
            types.is_string(kind)
            or types.is_large_string(kind)
            or types.is_integer(kind)
            or types.is_boolean(kind)
        )
        return found

    def _opened(self) -> Any:
        try:
            return self._parquet.ParquetFile(self._path)
        except self._arrow.ArrowException as error:
            raise InputError(f"{self._name} is no Parquet file: {error}") from None


def as_row(record: dict[str, Any], number: int) -> Row:
    """Return a record as a row without an id; its line is its number, from 1."""
    return Row("", number, record)


def _unless_none(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else make(value)


def _name(key: Any) -> str:
    """Return a map's key as one of JSON's."""
    return key if isinstance(key, str) else msgspec.json.encode(key).decode()


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
