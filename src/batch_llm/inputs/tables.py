"""Split CSV and TSV into records, with the line on which each starts.

CSV is RFC 4180 as Python's ``csv`` reads it. TSV usually has no quoting at all, and a lone quote
is text. A TSV field counts as quoted only when it starts with ``"`` and the next quote that is
not doubled is followed by a tab or the end of the line. Such a field may hold tabs, or run over
several lines, but not both after its first line: a further line with a tab in it is a record of
its own, and then the quotes are text.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

from batch_llm.inputs.jsonl import encoding_problem
from batch_llm.inputs.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

Record = tuple[int, "list[str] | Problem"]

_MAX_FIELD = 2**31 - 1
_MAX_QUOTED_LINES = 1000
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?=\t|\Z)')


def records_of_csv(lines: Iterator[bytes]) -> Iterator[Record]:
    """Yield the 1-based first line and the fields of each record that is not blank."""
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(line.decode("utf-8", "surrogateescape") for line in lines)
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, Problem(line=start, code="invalid_row", message=str(error))
            continue
        if fields:
            yield start, _utf8(fields, start, ",")


def records_of_tsv(lines: Iterator[bytes]) -> Iterator[Record]:
    """Yield the 1-based first line and the fields of each record that is not blank."""
    number = 0
    ahead: list[str] = []

    def more() -> str | None:
        raw = next(lines, None)
        return None if raw is None else raw.decode("utf-8", "surrogateescape")

    while True:
        text = ahead.pop(0) if ahead else more()
        if text is None:
            return
        number += 1
        start = number
        line = text.rstrip("\r\n")
        if not line:
            continue
        if '"' not in line:
            yield start, _utf8(line.split("\t"), start, "\t")
            continue
        taken = 0
        while (open_at := _open_quote(line)) is not None and taken < _MAX_QUOTED_LINES:
            if taken == len(ahead):
                following = more()
                if following is None:
                    break
                ahead.append(following)
            following = ahead[taken]
            end = following.find('"')
            if "\t" in (following if end < 0 else following[:end]):
                break
            text += following
            line = text.rstrip("\r\n")
            taken += 1
            if end >= 0 and _open_quote(line) is None and not _closes(line, open_at):
                break
        else:
            if taken and taken < _MAX_QUOTED_LINES and _closes(line, _first_open(line)):
                del ahead[:taken]
                number += taken
                yield start, _utf8(_split_quoted(line), start, "\t")
                continue
        first = line if not taken else line.split("\n", 1)[0].rstrip("\r")
        yield start, _utf8(_split_quoted(first), start, "\t")


def _utf8(fields: list[str], line: int, separator: str) -> list[str] | Problem:
    joined = separator.join(fields)
    if joined.isascii():
        return fields
    try:
        joined.encode()
    except UnicodeEncodeError:
        raw = joined.encode("utf-8", "surrogateescape")
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            return encoding_problem(raw, line, error)
    return fields
