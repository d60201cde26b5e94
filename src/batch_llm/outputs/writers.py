"""Files of results: each row is appended as it is finished, as one whole line.

After a crash the file holds every row that was written, and at most one torn line at its end; after
a write that failed, on a full disk, whole lines only.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from batch_llm.exceptions import (
    InputError,
    OutputExistsError,
    OutputGoneError,
    OutputInUseError,
    OutputLostError,
)
from batch_llm.inputs.records import Problem, Row  # noqa: TC001 - a field's type
from batch_llm.outputs.parquet import ParquetRows
from batch_llm.stores.file_lock import lock_while_open

if TYPE_CHECKING:
    from batch_llm.base import WorkItemResult
    from batch_llm.outputs.notes import OutputNotes

#: Bytes of lines that wait for others to be written with.
_MOST_WAITING = 1 << 16
#: Nested deeper than this, a value that needs cleaning is cut.
_MAX_DEPTH = 50
FIELDS = (
    "output",
    "status",
    "error",
    "model",
    "input_tokens",
    "output_tokens",
    "attempts",
    "seconds",
)
_OURS = frozenset(FIELDS)


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A row with what became of it, ready to be written."""

    row: Row
    output: Any = None
    error: str | None = None
    error_code: str | None = None
    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    attempts: int = 0
    seconds: float = 0.0
    body: bytes | None = None

    @property
    def status(self) -> str:
        """``ok`` or ``failed``."""
        return "ok" if self.error is None else "failed"


def finished(result: WorkItemResult[Any, Any], row: Row) -> Finished:
    """Return a row with its result."""
    usage = result.token_usage
    return Finished(
        row=row,
        output=result.output,
        error=result.error,
        error_code=result.error_code,
        model=result.model,
        input_tokens=usage.get("input_tokens", 0),
        output_tokens=usage.get("output_tokens", 0),
        attempts=result.attempts,
        seconds=result.duration_seconds,
        body=result.response_body,
    )


class ResultWriter:
    """Writes finished rows: the input's columns first, then ``FIELDS``.

    A column of the input that is called like one of ``FIELDS`` is kept as ``input_<name>``. Rows
    of batch files are written in the provider's batch shape.

    A table's columns are fixed before its first row: what a row has beyond them would be lost, so
    all that may come are to be named.

    Args:
        path: ``.csv`` and ``.tsv`` write tables, ``.parquet`` a table that is there when the
            writer is closed, everything else JSON lines; ``-`` is standard output.
        is_batch: Whether the rows are batch lines.
        columns: All columns that the rows may have; only a table needs to know.
        overwrite: Replace a file that is there.
        kept: Bytes and rows of it that are left as they are, if not all is replaced.
        notes: Hears of what is written.

    Raises:
        OutputExistsError: The file is there, or another process is writing it.
        MissingExtraError: A Parquet file is wanted, and pyarrow is not installed.
        OSError: It cannot be made.
    """

    def __init__(
        self,
        path: str,
        *,
        is_batch: bool = False,
        columns: Sequence[str] = (),
        overwrite: bool = False,
        kept: tuple[int, int] = (0, 0),
        notes: OutputNotes | None = None,
    ) -> None:
        self._is_batch, self._notes = is_batch, notes
        self._parquet: ParquetRows | None = None
        if Path(path).suffix.lower() == ".parquet":
            if Path(path).exists() and not overwrite:
                raise OutputExistsError(path)
            self._parquet = ParquetRows(path, cell)
            # What a run left there that was cut off may be replaced where a ledger has it too.
            self._lines = _LineFile(self._parquet.rows_path, overwrite=overwrite)
        else:
            self._lines = _LineFile(path, overwrite=overwrite, kept=kept[0])
        self._table = _Table.for_path(path)
        if self._table is not None and kept[0]:
            self._table.read_header(path)
        self._known = columns
        self._columns: dict[str, None] = {}
        self._names: dict[str, str] = {}
        self.rows = kept[1]

    def write(self, finished: Finished, *, is_kept: bool = False) -> None:
        """Append one row.

        Args:
            finished: The row.
            is_kept: Whether it may wait for others to be written with: it is safe elsewhere.

        Raises:
            OutputLostError: The disk is full, say.
            BrokenPipeError: The reader of standard output is gone.
        """
        record = _batch_line(finished) if self._is_batch else self._record(finished)
        if self._parquet is not None:
            self._parquet.note(record)
            self._columns.update(dict.fromkeys(record))
        if self._table is None:
            line = _json(record)
        else:
            if not self._table.columns:
                names = [self._name(name, record) for name in self._known]
                self._append(self._table.header([*record, *names], last=FIELDS), None)
            line = self._table.row(record)
        self._append(line, finished.row.line, can_wait=is_kept)
        self.rows += 1

    def _append(self, line: bytes, row: int | None, *, can_wait: bool = False) -> None:
        self._lines.append(line, can_wait=can_wait)
        if self._notes is not None:
            self._notes.wrote(line, row)

    def _record(self, finished: Finished) -> dict[str, Any]:
        row = finished.row
        columns = _identified(row)
        if not _OURS.isdisjoint(columns):
            columns = {self._name(name, row.data): value for name, value in columns.items()}
        return {
            **columns,
            "output": finished.output,
            "status": finished.status,
            "error": finished.error,
            "model": finished.model,
            "input_tokens": finished.input_tokens,
            "output_tokens": finished.output_tokens,
            "attempts": finished.attempts,
            "seconds": round(finished.seconds, 3),
        }

    def _name(self, column: str, taken: Mapping[str, Any]) -> str:
        """Return the name under which a column is kept beside the results' own."""
        if column not in FIELDS:
            return column
        name = self._names.get(column)
        if name is None:
            name = f"input_{column}"
            while name in taken or name in self._known:
                name = f"input_{name}"
            self._names[column] = name
        return name

    def close(self) -> None:
        """Make all rows durable. A second time it does nothing.

        Raises:
            OutputGoneError: The file was removed or replaced.
            OutputLostError: A Parquet file could not be made of them.
        """
        try:
            self._lines.close()
        finally:
            if self._notes is not None:
                self._notes.close()
        if self._parquet is not None:
            parquet, self._parquet = self._parquet, None
            names = [self._name(name, {}) for name in self._known]
            last = () if self._is_batch else FIELDS
            columns = [name for name in dict.fromkeys([*self._columns, *names]) if name not in last]
            parquet.finish([*columns, *last])


class FailedWriter:
    """Writes failed rows in the input's own shape with an ``error``, so that they can be run again.

    The file is made with the first failure. A column ``error`` of the input, such as an earlier
    failed file has, is replaced.

    Args:
        path: Where; a table when the input is one.
        columns: All columns that the rows may have; only a table needs to know.
        overwrite: Replace a file that is there.

    Raises:
        OutputExistsError: The file is there.
        PermissionError: It cannot be made, which the first failure would find too late.
    """

    def __init__(self, path: str, *, columns: Sequence[str] = (), overwrite: bool = False) -> None:
        self._path = path
        self._table = _Table.for_path(path)
        self._known = columns
        self._overwrite = overwrite
        self._lines: _LineFile | None = None
        if Path(path).exists() and not overwrite:
            raise OutputExistsError(path, "--failed")
        _refuse_unwritable(path)
        self.rows = 0

    def remove_old(self) -> None:
        """Remove the file that may be replaced: without a failure none is made."""
        if self._overwrite and Path(self._path).is_file():
            Path(self._path).unlink()

    def write(self, row: Row, error: str) -> None:
        """Append one row. Without an id column of its own it gets one: it keeps its id."""
        self._append(_identified(row) | {"error": error})

    def write_problem(self, problem: Problem) -> None:
        """Append a record that could not be used, as far as it could be read."""
        data = problem.data or {"raw": f"line {problem.line}"}
        self._append(data | {"error": f"{problem.code}: {problem.message}"})

    def _append(self, record: dict[str, Any]) -> None:
        if self._lines is None:
            try:
                self._lines = _LineFile(self._path, overwrite=self._overwrite)
            except OutputExistsError as error:  # it was not when the run began
                raise OutputLostError(self._path, "another process writes it") from error
            if self._table is not None:
                names = [*record, *self._known]
                self._lines.append(self._table.header(names, last=("error",)))
        if self._table is None:
            self._lines.append(_json(record))
        else:
            self._lines.append(self._table.row(record))
        self.rows += 1

    def close(self) -> None:
        """Make all rows durable."""
        if self._lines is not None:
            self._lines.close()


def _refuse_unwritable(path: str) -> None:
    place = Path(path)
    if not os.access(place if place.exists() else place.absolute().parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def _identified(row: Row) -> dict[str, Any]:
    """Return a row's columns, with its id in front where none of them holds it."""
    return row.data if row.has_own_id else {"id": row.item_id} | row.data


class _LineFile:
    """Appends lines, each handed to the system at once and whole."""

    def __init__(self, path: str, *, overwrite: bool, kept: int = 0) -> None:
        self._path = path
        self._waiting = bytearray()
        self._file: IO[bytes] | None = None
        if path == "-":
            if sys.stdout is None:
                raise InputError("standard output is closed")
            self._descriptor = sys.stdout.fileno()
            return
        self._file = _opened(path, kept if overwrite else None)
        self._descriptor = self._file.fileno()
        self._place = Path(path).absolute()

    def append(self, line: bytes, *, can_wait: bool = False) -> None:
        """Append a line; one that can wait, at the latest with the next that cannot."""
        can_wait = can_wait and self._file is not None  # who reads standard output may leave
        if can_wait or self._waiting:
            self._waiting += line
            if not can_wait or len(self._waiting) >= _MOST_WAITING:
                self._flush()
            return
        self._write(line)

    def _flush(self) -> None:
        waiting, self._waiting = bytes(self._waiting), bytearray()
        self._write(waiting)

    def _write(self, line: bytes) -> None:
        left = line
        try:
            while left:  # a pipe, or a disk that fills up, may take less than all
                left = left[os.write(self._descriptor, left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            self._take_back(len(line) - len(left))
            raise OutputLostError(self._path, error.strerror or str(error)) from error

    def _take_back(self, size: int) -> None:
        """Remove the beginning of a line that has no end: what follows would be read with it."""
        if self._file is None or not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return
        with contextlib.suppress(OSError):  # then the torn line is the last one
            place = os.lseek(self._descriptor, -size, os.SEEK_CUR)
            os.ftruncate(self._descriptor, place)

    def close(self) -> None:
        """Make all lines durable.

        Raises:
            OutputGoneError: They are in a file that nobody can find.
        """
        self._flush()
        if self._file is not None and not self._file.closed:
            written = os.fstat(self._descriptor)
            is_regular = stat.S_ISREG(written.st_mode)
            if is_regular:  # a device or a pipe cannot be synchronised
                os.fsync(self._descriptor)
            self._file.close()
            if is_regular and not _is_at(self._place, written):
                raise OutputGoneError(self._path)


def _opened(path: str, kept: int | None) -> IO[bytes]:
    """Open a file to write behind the first ``kept`` bytes; None: it must not be there.

    Raises:
        OutputExistsError: It is there, or another process is writing it.
    """
    if kept is not None and Path(path).exists() and not Path(path).is_file():
        return Path(path).open("wb", buffering=0)  # a device, or a pipe, which waits for its reader
    try:
        if kept is None:
            file: IO[bytes] = Path(path).open("xb", buffering=0)  # noqa: SIM115 - the caller closes it
        else:
            file = open(path, "r+b", buffering=0, opener=_making)  # noqa: SIM115 - `Path` knows no opener
    except FileExistsError:
        raise OutputExistsError(path) from None
    if not lock_while_open(file):
        file.close()
        raise OutputInUseError(path)
    if kept is not None:  # not before it is known that nobody else writes it
        file.truncate(kept)
        file.seek(kept)
    return file


def _making(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


def _is_at(path: Path, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), file)
    except FileNotFoundError:
        return False
    except OSError:  # not to be looked at, which does not say that it is gone
        return True


def _batch_line(finished: Finished) -> dict[str, Any]:
    """Return the line that a provider's batch job would have written."""
    custom_id = finished.row.item_id
    body = msgspec.Raw(finished.body) if finished.body is not None else finished.output
    response = {"status_code": 200, "request_id": None, "body": body}
    return {
        "id": f"batch_req_{custom_id}",
        "custom_id": custom_id,
        "response": response,
        "error": None,
    }


class _Table:
    """Rows as lines of a CSV or TSV, under columns that are fixed with the header."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        self.columns: list[str] = []

    @classmethod
    def for_path(cls, path: str) -> _Table | None:
        delimiter = {".csv": ",", ".tsv": "\t"}.get(Path(path).suffix.lower())
        return cls(delimiter) if delimiter else None

    def read_header(self, path: str) -> None:
        """Take the columns of a table that was begun before."""
        with Path(path).open(encoding="utf-8", newline="") as file:
            self.columns = next(csv.reader(file, delimiter=self._delimiter))

    def header(self, names: Sequence[str], *, last: Sequence[str]) -> bytes:
        """Fix the columns: each once, ``last`` behind the others."""
        self.columns = [name for name in dict.fromkeys(names) if name not in last] + list(last)
        return self._line(self.columns)

    def row(self, record: Mapping[str, Any]) -> bytes:
        return self._line([cell(record.get(name)) for name in self.columns])

    def _line(self, cells: Sequence[str]) -> bytes:
        # The csv module leaves a lone carriage return bare, which no reader takes for text.
        is_odd = any("\r" in cell for cell in cells)
        buffer = io.StringIO()
        writer = csv.writer(
            buffer,
            delimiter=self._delimiter,
            lineterminator="\n",
            quoting=csv.QUOTE_ALL if is_odd else csv.QUOTE_MINIMAL,
        )
        writer.writerow(cells)
        return buffer.getvalue().encode("utf-8", "replace")


def cell(value: Any) -> str:
    """Return a value as a table's cell holds it: text as it is, nothing for null, else JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else _json(value).decode().rstrip("\n")


def _json(value: Any) -> bytes:
    """Write one line of JSON, whatever the value holds. Our own reader can read it."""
    try:
        return msgspec.json.encode(value, enc_hook=_plain) + b"\n"
    except (ValueError, TypeError, RecursionError):
        return msgspec.json.encode(_cleaned(value, _MAX_DEPTH)) + b"\n"


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump is not None else str(value)


def _cleaned(value: Any, depth: int) -> Any:
    """Return what JSON can hold of a value: no lone surrogates, no cycles, no odd keys."""
    if value is None or isinstance(value, bool | int | float):
        return value  # NaN and infinity are written as null
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if depth == 0:
        return "…"
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        value = dump()
    if isinstance(value, Mapping):
        return {_cleaned(str(k), 1): _cleaned(inner, depth - 1) for k, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cleaned(inner, depth - 1) for inner in value]
    return _cleaned(str(value), 1)
