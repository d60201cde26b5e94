"""Rows of a file: JSON lines of several shapes, CSV, TSV, plain lines. Read as a stream.

A record that cannot be used is a ``Problem`` with its place, never an exception: the good rows
around it are not lost.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from batch_llm.core.text import safe, width
from batch_llm.exceptions import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FORMATS = ("openai-batch", "chat", "prompt", "rows", "csv", "tsv", "txt")
_ID_COLUMNS = ("custom_id", "id")
#: Columns that a file of failed rows has beyond its input's.
_OURS = {"id", "raw", "error"}
_BOM = b"\xef\xbb\xbf"
_WIDTH = 72


@dataclass(frozen=True, slots=True)
class Row:
    """One record.

    Attributes:
        item_id: From the id column, or ``row-N`` with the record's number.
        line: Where it starts in the file, from 1.
        data: Its columns; of a batch line, the whole record.
    """

    item_id: str
    line: int
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that cannot be used.

    Attributes:
        line: Where it starts in the file, from 1.
        code: One of OpenAI's codes for batch files, such as ``invalid_json_line``.
        message: What is wrong.
        column: Where in the line, from 1, when that is known.
        excerpt: The line around that place.
        data: What could be read of the record.
        item_id: Its id, when that could be read.
    """

    line: int
    code: str
    message: str
    column: int | None = None
    excerpt: str | None = None
    data: dict[str, Any] | None = None
    item_id: str | None = None

    def render(self, name: str) -> str:
        """Return the lines that show it to a person."""
        place = f"{safe(name)}:{self.line}" + (f":{self.column}" if self.column else "")
        lines = [f"  {place}  {self.code}", f"    {self.message}"]
        if self.excerpt and self.column:
            start = max(0, self.column - 1 - _WIDTH // 2)
            shown = safe(self.excerpt[start : start + _WIDTH])
            before = width(shown[: self.column - 1 - start])
            lines += [f"    {shown}", "    " + " " * before + "^"]
        return "\n".join(lines)


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
        self._given_columns = list(columns) if columns else None
        self._has_header = has_header if has_header is not None else columns is None
        if columns and ("" in columns or len(set(columns)) < len(columns)):
            raise ConfigError("--columns", ",".join(columns), "names that differ, like label,text")
        if format is not None and format not in FORMATS:
            raise ConfigError("--format", format, f"one of {', '.join(FORMATS)}")
        self.format = format or self._sniff(Path(path).suffix.lower())
        if columns and self.format not in {"csv", "tsv"}:
            raise ConfigError("--columns", ",".join(columns), "left out: only tables have columns")
        self._has_quoted_fields = self.format == "tsv" and _spans_lines(self._path)
        self.columns = self._find_columns()
        found = (name for name in _ID_COLUMNS if name in self.columns)
        self._id_column = id_column or next(found, None)

    def __iter__(self) -> Iterator[Row | Problem]:
        seen: dict[str, int] = {}
        records = self._tables() if self.format in {"csv", "tsv"} else self._lines()
        for number, record in enumerate(records, 1):
            if self._limit is not None and number > self._limit:
                return
            yield record if isinstance(record, Problem) else self._identify(record, number, seen)

    def has_changed(self) -> bool:
        """Tell whether the file was written to since it was opened first."""
        return self._fingerprint() != self._mark

    def _fingerprint(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:  # gone meanwhile
            return None
        return found.st_size, found.st_mtime_ns

    def _identify(self, row: Row, number: int, seen: dict[str, int]) -> Row | Problem:
        column = self._id_column
        if _is_left_over(row.data):
            message = "an earlier run could not read this record; mend it, or leave it out"
            return Problem(row.line, "invalid_row", message, data=row.data)
        if column is None:
            item_id = f"row-{number}"
        else:
            found = row.data.get(column)
            if found is None or found == "" or isinstance(found, dict | list | bool):
                message = f'"{safe(column, 40)}" must be a text that is not empty'
                return Problem(row.line, "missing_id", message, data=row.data)
            item_id = str(found)
        first = seen.setdefault(item_id, row.line)
        if first != row.line:
            message = f'"{safe(item_id, 60)}" is already on line {first}'
            return Problem(row.line, "duplicate_custom_id", message, data=row.data, item_id=item_id)
        return replace(row, item_id=item_id)

    # -- lines

    def _lines(self) -> Iterator[Row | Problem]:
        with self._path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.removeprefix(_BOM) if number == 1 else raw
                line = line.rstrip(b"\r\n")
                if not line.strip():
                    continue
                yield self._plain(line, number) if self.format == "txt" else _parse(line, number)

    @staticmethod
    def _plain(line: bytes, number: int) -> Row | Problem:
        try:
            return Row("", number, {"prompt": line.decode()})
        except UnicodeDecodeError as error:
            return Problem(number, "invalid_utf8", "not UTF-8", error.start + 1)

    # -- tables

    def _tables(self) -> Iterator[Row | Problem]:
        with self._table() as records:
            columns, is_first = self._given_columns, True
            for line, fields in records:
                if isinstance(fields, Problem):
                    yield fields
                    continue
                if is_first:
                    is_first = False
                    if _is_failed_header(fields, self._given_columns):
                        columns = _header(fields)
                        continue
                    if self._has_header:
                        columns = self._given_columns or _header(fields)
                        continue
                    if columns is None:
                        columns = [str(position) for position in range(1, len(fields) + 1)]
                assert columns is not None  # noqa: S101 - the first record has set them
                if len(fields) != len(columns):
                    message = f"{len(fields)} fields, expected {len(columns)}"
                    raw = ("\t" if self.format == "tsv" else ",").join(fields)
                    yield Problem(line, "wrong_field_count", message, data={"raw": raw})
                    continue
                if any("\udc80" <= char <= "\udcff" for field in fields for char in field):
                    yield Problem(line, "invalid_utf8", "not UTF-8")
                    continue
                yield Row("", line, dict(zip(columns, fields, strict=True)))

    @contextmanager
    def _table(self) -> Iterator[Iterator[tuple[int, list[str] | Problem]]]:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        with self._path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if self.format == "csv":
                yield _read_quoted(file, ",")
            elif self._has_quoted_fields:
                yield _read_quoted(file, "\t")
            else:
                yield _read_lines(file)

    # -- what it is

    def _sniff(self, suffix: str) -> str:
        if suffix in {".csv", ".tsv", ".txt"}:
            return suffix[1:]
        if suffix == ".tab":
            return "tsv"
        self.format = "rows"
        first = self._first_row(self._lines())
        if first is None:
            return "rows"
        data = first.data
        if "custom_id" in data and "body" in data:
            return "openai-batch"
        for mark, shape in ((("custom_id", "params"), "Anthropic"), (("key", "request"), "Gemini")):
            if all(name in data for name in mark):
                raise ConfigError("the input's shape", f"{shape} batch lines", "another for now")
        if isinstance(data.get("messages"), list):
            return "chat"
        return "prompt" if "prompt" in data else "rows"

    def _find_columns(self) -> list[str]:
        """Return the columns of the first good record."""
        if self.format in {"csv", "tsv"} and self._given_columns is None and self._has_header:
            with self._table() as records:
                for _, fields in records:
                    if not isinstance(fields, Problem):
                        return _header(fields)
            return []
        first = self._first_row(self._tables() if self.format in {"csv", "tsv"} else self._lines())
        return list(first.data) if first else []

    @staticmethod
    def _first_row(records: Iterable[Row | Problem]) -> Row | None:
        rows = (record for record in records if isinstance(record, Row))
        return next((row for row in rows if not _is_left_over(row.data)), None)


def _header(fields: list[str]) -> list[str]:
    """Name each column, and no two alike: a second ``a`` becomes ``a_2``."""
    names: list[str] = []
    for position, field in enumerate(fields, 1):
        base = field.strip() or str(position)
        name, number = base, 1
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.append(name)
    return names


def _is_failed_header(fields: list[str], given: Sequence[str] | None) -> bool:
    """Recognise the header of our own file of failed rows, whose input may have had none.

    It repeats the names of the columns and has ``error`` behind them. Where the columns have only
    their positions for names, none holds an id, so one stands before them.
    """
    if fields[-1] != "error" or (given is None and fields[0] != "id"):
        return False
    kept = [name for name in fields if name not in _OURS or name in (given or ())]
    return kept == (given or [str(position) for position in range(1, len(kept) + 1)])


def _is_left_over(data: dict[str, Any]) -> bool:
    """Tell whether our own file of failed rows holds a record here that never was a row."""
    if not data.get("raw") or not data.get("error"):
        return False
    return not any(value for name, value in data.items() if name not in {"raw", "error"})


def _read_quoted(file: IO[str], delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
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
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if len({line.count("\t") for line in file if line.strip("\r\n")}) < 2:
            return False
        file.seek(0)
        counts = {
            None if isinstance(fields, Problem) else len(fields)
            for _, fields in _read_quoted(file, "\t")
        }
    return len(counts) == 1 and None not in counts


def _read_lines(file: IO[str]) -> Iterator[tuple[int, list[str] | Problem]]:
    """Read one record per line. Quotes are text, unless they enclose a field as they should."""
    for number, line in enumerate(file, 1):
        text = line.rstrip("\r\n")
        if text:
            yield number, [_unquoted(field) for field in text.split("\t")]


def _unquoted(field: str) -> str:
    if len(field) >= 2 and field[0] == field[-1] == '"':
        inner = field[1:-1].replace('""', "\0")
        if '"' not in inner:
            return inner.replace("\0", '"')
    return field


def _parse(line: bytes, number: int) -> Row | Problem:
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
    except (RecursionError, ValueError) as error:
        message = safe(error)
    return Problem(number, "invalid_json_line", message, column, text, data={"raw": text})


def _spooled() -> Any:
    if sys.stdin is None:
        raise InputError("standard input is closed")
    spool = tempfile.NamedTemporaryFile(prefix="batch-llm-", suffix=".jsonl")  # noqa: SIM115 - lives as long as its source
    while chunk := sys.stdin.buffer.read(1 << 20):
        spool.write(chunk)
    spool.flush()
    return spool
