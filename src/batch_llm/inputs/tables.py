"""CSV and TSV, as they are found: quotes that enclose a field, and quotes that are text."""

from __future__ import annotations

import csv
import sys
from itertools import islice
from typing import IO, TYPE_CHECKING

from batch_llm.core.text import counted, safe
from batch_llm.inputs.columns import header_names
from batch_llm.inputs.lines import Lines
from batch_llm.inputs.records import Problem, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

#: Names in quotes may hold line ends.
_LINES_OF_A_HEADER = 100
#: What stands between fields where commas do not: programs of many countries write semicolons.
_OTHER_DELIMITERS = (";", "\t", "|")
#: Columns that a file of failed rows has beyond its input's.
_OURS = {"id", "raw", "error"}


class Table:
    """A CSV or TSV file, opened as often as its rows are read.

    Args:
        path: The file.
        delimiter: Between two fields: a comma, or whatever ``delimiter_of`` finds.
        given_columns: Names for a table without a header line.
        has_header: Whether it has one. With neither, the columns are called ``1``, ``2``, …
    """

    def __init__(
        self, path: Path, delimiter: str, given_columns: list[str] | None, *, has_header: bool
    ) -> None:
        self._path = path
        self.delimiter = delimiter
        self._given_columns = given_columns
        self._has_header = has_header
        #: Whether fields in quotes may hold tabs and line ends.
        self.has_quotes = delimiter != "\t" or _spans_lines(path)

    def rows(self) -> Iterator[Row | Problem]:
        """Give the records in order, without ids."""
        columns: list[str] | None = None
        with self._path.open("rb") as file:
            for line, fields in self._records(Lines(file)):
                if isinstance(fields, Problem):
                    yield fields
                    continue
                if columns is None:
                    columns, is_header = self._columns_from(fields)
                    if is_header:
                        continue
                yield self._row(line, fields, columns)

    def body(self) -> tuple[list[str], int, int] | None:
        """Return the columns, where the first record begins, and the lines before it.

        None where there is no record, or bad ones stand before the header.
        """
        with self._path.open("rb") as file:
            lines = Lines(file)
            for _, fields in self._records(lines):
                if isinstance(fields, Problem) or not lines.is_at_end_of_line:
                    break
                columns, is_header = self._columns_from(fields)
                return (columns, lines.offset, lines.number) if is_header else (columns, 0, 0)
        return None

    def rows_from(self, lines: Lines, columns: list[str]) -> Iterator[Row | Problem]:
        """Give the records from some place behind the header on, without ids."""
        for line, fields in self._records(lines):
            yield fields if isinstance(fields, Problem) else self._row(line, fields, columns)

    def _columns_from(self, first: list[str]) -> tuple[list[str], bool]:
        """Return the columns' names, and whether the first record is none but holds them."""
        if _is_failed_header(first, self._given_columns):
            return header_names(first), True
        if self._has_header:
            return self._given_columns or header_names(first), True
        return self._given_columns or [str(place) for place in range(1, len(first) + 1)], False

    def _row(self, line: int, fields: list[str], columns: list[str]) -> Row | Problem:
        if len(fields) != len(columns):
            message = f"{counted(len(fields), 'field')}, expected {len(columns)}"
            raw = self.delimiter.join(fields)
            return Problem(line, "wrong_field_count", message, data={"raw": raw})
        if not all(map(str.isascii, fields)) and any(
            "\udc80" <= char <= "\udcff" for field in fields for char in field
        ):
            return Problem(line, "invalid_utf8", "not UTF-8")
        return Row("", line, dict(zip(columns, fields, strict=True)))

    def header_columns(self) -> list[str] | None:
        """Return the names in the header line; None where the table has none of its own."""
        if self._given_columns is not None or not self._has_header:
            return None
        with self._path.open("rb") as file:
            found = self._records(Lines(file))
            first = (fields for _, fields in found if not isinstance(fields, Problem))
            return header_names(next(first, []))

    def _records(self, lines: Lines) -> Iterator[tuple[int, list[str] | Problem]]:
        if self.has_quotes:
            return _read_quoted(lines.texts(), self.delimiter, lines.number)
        return _read_lines(lines)


def delimiter_of(path: Path, given_columns: list[str] | None, *, has_header: bool) -> str:
    """Return what stands between the fields of a CSV file, seen from its first line.

    It is the comma unless that leaves one field, where another one makes several: names in a
    header line, or as many as there are names given. Without either, a text may hold anything.
    """
    wanted = None if given_columns is None else len(given_columns)
    if wanted == 1 or (wanted is None and not has_header):
        return ","
    if _fields(path, ",") == 1:
        for delimiter in _OTHER_DELIMITERS:
            if (found := _fields(path, delimiter)) > 1 and wanted in {None, found}:
                return delimiter
    return ","


def _fields(path: Path, delimiter: str) -> int:
    """Return how many fields the first record has."""
    with _opened(path) as file:
        lines = islice(file, _LINES_OF_A_HEADER)
        try:
            found = csv.reader(lines, delimiter=delimiter, strict=True)
            return len(next(filter(None, found), ()))
        except csv.Error:  # quotes that are none with this delimiter
            return 1


def _opened(path: Path) -> IO[str]:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _is_failed_header(fields: list[str], given: Sequence[str] | None) -> bool:
    """Recognise the header of our own file of failed rows, whose input may have had none.

    It repeats the names of the columns and has ``error`` behind them. Where the columns have only
    their positions for names, none holds an id, so one stands before them.
    """
    if fields[-1] != "error" or (given is None and fields[0] != "id"):
        return False
    kept = [name for name in fields if name not in _OURS or name in (given or ())]
    return kept == (given or [str(position) for position in range(1, len(kept) + 1)])


def _read_quoted(
    texts: Iterable[str], delimiter: str, before: int = 0
) -> Iterator[tuple[int, list[str] | Problem]]:
    """Read records; ``before`` lines stand before the first."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    while True:
        line = before + reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            message = safe(error)
            if message == "unexpected end of data":
                message = "a quote opens in this record and is never closed"
            yield line, Problem(line, "invalid_csv", message)
            continue
        if fields:
            yield line, fields


def _spans_lines(path: Path) -> bool:
    """Tell whether a TSV has quoted fields with tabs or line ends in them.

    Real TSV files (chat logs, exports) are full of lone quotes, which a CSV parser takes for the
    start of a field that goes on for lines. So a file whose lines all have the same number of
    fields has one record per line, whatever its quotes look like. Only where they have not, and
    reading with quotes gives records that do, the quotes are believed.
    """
    with _opened(path) as file:
        is_ours = file.readline().rstrip("\r\n").endswith("\terror")  # failed rows
        file.seek(0)
        if not is_ours and len({line.count("\t") for line in file if line.strip("\r\n")}) < 2:
            return False
        file.seek(0)
        counts = {
            None if isinstance(fields, Problem) else len(fields)
            for _, fields in _read_quoted(file, "\t")
        }
    return len(counts) == 1 and None not in counts


def _read_lines(lines: Lines) -> Iterator[tuple[int, list[str] | Problem]]:
    """Read one record per line. Quotes are text, unless they enclose a field as they should."""
    for number, line in enumerate(lines.texts(), lines.number + 1):
        text = line.rstrip("\r\n")
        if text:
            yield number, [_unquoted(field) for field in text.split("\t")]


def _unquoted(field: str) -> str:
    if len(field) >= 2 and field[0] == field[-1] == '"':
        inner = field[1:-1].replace('""', "\0")
        if '"' not in inner:
            return inner.replace("\0", '"')
    return field
