"""Rows of a file: JSON lines of several shapes, CSV, TSV, Parquet, plain lines. Read as a stream.

A record that cannot be used is a ``Problem`` with its place, never an exception: the good rows
around it are not lost.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import ConfigError, InputError
from batch_llm.inputs import json_lines
from batch_llm.inputs.blocks import LineBody
from batch_llm.inputs.kinds import check_holds_rows
from batch_llm.inputs.lines import Lines, has_lines
from batch_llm.inputs.parquet import ParquetTable, as_row
from batch_llm.inputs.records import Problem, Row
from batch_llm.inputs.shapes import Identifier, id_column_of, is_left_over, shape_of
from batch_llm.inputs.tables import Table, delimiter_of
from batch_llm.inputs.value_blocks import ValueBody

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batch_llm.inputs.blocks import Body

FORMATS = ("openai-batch", "chat", "prompt", "rows", "csv", "tsv", "parquet", "txt")


class Source:
    """An input file, opened as often as it is iterated. Gives ``Row`` and ``Problem`` in order.

    Args:
        path: The file; ``-`` reads standard input to its end into a temporary file first.
        format: One of ``FORMATS``; None looks at the name and the first record.
        columns: Names for a CSV or TSV without a header line.
        has_header: Whether a CSV or TSV has one; None says yes unless ``columns`` are given.
            Without names the columns are called ``1``, ``2``, …
        id_column: Holds the ids; None looks for ``custom_id`` and ``id`` in the first record.
        limit: Stop after so many records.

    Raises:
        ConfigError: The format is unknown, or its shape is not supported.
        InputError: The file holds no rows as it is, or standard input is closed.
        OSError: The file cannot be read.
    """

    def __init__(
        self,
        path: str,
        *,
        format: str | None = None,  # noqa: A002 - the flag's name
        columns: Sequence[str] | None = None,
        has_header: bool | None = None,
        id_column: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.name = "<stdin>" if path == "-" else Path(path).name
        self._spool = _spooled() if path == "-" else None
        self._path = Path(self._spool.name if self._spool else path)
        self._mark = self._fingerprint()
        self._limit = limit
        if columns and ("" in columns or len(set(columns)) < len(columns)):
            raise ConfigError("--columns", ",".join(columns), "names that differ, like label,text")
        if format is not None and format not in FORMATS:
            raise ConfigError("--format", format, f"one of {', '.join(FORMATS)}")
        suffix = Path(path).suffix.lower()
        check_holds_rows(self._path, self.name, format, suffix)
        self.format = format or self._sniff(suffix)
        if columns and self.format not in {"csv", "tsv"}:
            raise ConfigError("--columns", ",".join(columns), "left out: only tables have columns")
        self._table: Table | ParquetTable | None = None
        if self.format == "parquet":
            self._table = ParquetTable(self._path, self.name)
        elif self.format in {"csv", "tsv"}:
            has_header = has_header if has_header is not None else columns is None
            names = list(columns) if columns else None
            delimiter = "\t"
            if self.format == "csv":
                delimiter = delimiter_of(self._path, names, has_header=has_header)
            self._table = Table(self._path, delimiter, names, has_header=has_header)
        self.columns = self._find_columns()
        self._id_column = id_column or id_column_of(self.columns)

    def __iter__(self) -> Iterator[Row | Problem]:
        identifier = self.identifier()
        for number, record in enumerate(self._records(), 1):
            if self._limit is not None and number > self._limit:
                return
            yield record if isinstance(record, Problem) else identifier.identify(record, number)

    @property
    def unit(self) -> str:
        """What it is counted in: a line or a row."""
        return "row" if self.format == "parquet" else "line"

    @property
    def id_column(self) -> str | None:
        """The column that holds the ids; None where rows are numbered."""
        return self._id_column

    def has_changed(self) -> bool:
        """Tell whether the file was written to since it was opened first."""
        return self._fingerprint() != self._mark

    def _fingerprint(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:  # gone meanwhile
            return None
        return found.st_size, found.st_mtime_ns

    def identifier(self) -> Identifier:
        """Return who gives the rows of one reading their ids."""
        return Identifier(self._id_column, self.unit)

    def body(self) -> Body | None:
        """Return what the file's rows are read with block by block; None where they cannot be."""
        if isinstance(self._table, ParquetTable):
            return ValueBody(
                self._table.some, as_row, self._limit, self.format, lambda _: not self.has_changed()
            )
        if not has_lines(self._path):
            return None
        if self._table is None:
            begin = (0, 0)
            return LineBody(
                self._path, begin, self._lines_from, self._limit, self.format, self.has_changed
            )
        found = self._table.body()
        if found is None:
            return None
        table, (columns, offset, line) = self._table, found
        dialect = repr((self.format, table.delimiter, columns, table.has_quotes))
        return LineBody(
            self._path,
            (offset, line),
            lambda lines: table.rows_from(lines, columns),
            self._limit,
            dialect,
            self.has_changed,
        )

    def _records(self) -> Iterator[Row | Problem]:
        return self._table.rows() if self._table is not None else self._lines()

    def _lines(self) -> Iterator[Row | Problem]:
        with self._path.open("rb") as file:
            yield from self._lines_from(Lines(file))

    def _lines_from(self, lines: Lines) -> Iterator[Row | Problem]:
        return json_lines.records(lines, is_text=self.format == "txt")

    def _sniff(self, suffix: str) -> str:
        if suffix in {".csv", ".tsv", ".txt", ".parquet"}:
            return suffix[1:]
        if suffix == ".tab":
            return "tsv"
        self.format = "rows"
        first = self._first_row(self._lines())
        if first is None:
            return "rows"
        return shape_of(first.data)

    def _find_columns(self) -> list[str]:
        """Return the columns of the first good record."""
        named = self._table.header_columns() if self._table is not None else None
        if named is not None:
            return named
        first = self._first_row(self._records())
        return list(first.data) if first else []

    @staticmethod
    def _first_row(records: Iterable[Row | Problem]) -> Row | None:
        rows = (record for record in records if isinstance(record, Row))
        return next((row for row in rows if not is_left_over(row.data)), None)


def _spooled() -> Any:
    if sys.stdin is None:
        raise InputError("standard input is closed")
    spool = tempfile.NamedTemporaryFile(prefix="batch-llm-", suffix=".jsonl")  # noqa: SIM115 - lives as long as its source
    while chunk := sys.stdin.buffer.read(1 << 20):
        spool.write(chunk)
    spool.flush()
    return spool
