"""What is wrong with an input, and the text that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from batch_llm.core.text import clip, columns_of, safe
from batch_llm.exceptions import BatchLLMError

if TYPE_CHECKING:
    from collections.abc import Sequence

Code = Literal[
    "invalid_json_line",
    "invalid_encoding",
    "duplicate_custom_id",
    "invalid_row",
    "missing_column",
    "empty_file",
]

_WIDTH = 80
_INDENT = "    "
_ROOM = _WIDTH - len(_INDENT)
_SHOWN = 10
_KEPT_EXCERPT = 200


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One bad record.

    Attributes:
        line: 1-based line of the file; 0 when the whole file is meant.
        column: 1-based column in characters (in bytes for ``invalid_encoding``), or None.
        code: OpenAI's batch code where there is one.
        message: What is wrong. May hold hostile text; ``render`` makes it safe.
        excerpt: The part of the line around the column, or None.
        caret: 0-based place in the excerpt that is meant, or None.
        item_id: The record's id where it could be read, else None.
        raw: The record as text, bytes that are not UTF-8 replaced. Whole, not shortened.
        data: The record where it could be read, else None.
    """

    line: int
    code: Code
    message: str
    column: int | None = None
    excerpt: str | None = None
    caret: int | None = None
    item_id: str | None = None
    raw: str = ""
    data: dict[str, Any] | None = None

    def render(self, name: str) -> str:
        """Return the block shown to the user: no line is wider than 80 columns.

        Args:
            name: The file's name.
        """
        place = f":{self.line}" if self.line else ""
        if self.line and self.column is not None:
            place += f":{self.column}"
        tail = f"{place}  {self.code}"
        lines = [
            f"  {clip(safe(name), _WIDTH - 2 - len(tail))}{tail}",
            *(_INDENT + part for part in _wrapped(safe(self.message))),
        ]
        if self.excerpt is not None:
            lines += pointed_at(self.excerpt, self.caret, 1)
        return "\n".join(lines)


def excerpt_of(text: str, place: int) -> tuple[str, int]:
    """Return the part of a line around a 0-based place, and the place in that part."""
    start = max(0, place - _KEPT_EXCERPT // 2)
    return text[start : start + _KEPT_EXCERPT], place - start


def pointed_at(text: str, caret: int | None, length: int) -> list[str]:
    """Return a line of source, indented, and the line with carets below it.

    Args:
        text: The line; hostile.
        caret: 0-based place of the first caret, or None for no carets.
        length: How many characters are meant.
    """
    if caret is None:
        return [_INDENT + clip(safe(text), _ROOM)]
    before = safe(text[:caret])
    marked = safe(text[caret : caret + length])
    if columns_of(before) + columns_of(marked) > _ROOM - 10:
        before = "…" + _last(before, max(0, _ROOM - 40))
    shown = clip(before + marked + safe(text[caret + length :]), _ROOM)
    carets = "^" * max(1, min(columns_of(marked), _ROOM - columns_of(before)))
    return [_INDENT + shown, _INDENT + " " * columns_of(before) + carets]


def _last(text: str, columns: int) -> str:
    start = len(text)
    used = 0
    while start and (used := used + columns_of(text[start - 1])) <= columns:
        start -= 1
    return text[start:]


def _wrapped(text: str, limit: int = 4) -> list[str]:
    lines: list[str] = []
    line = ""
    for word in text[: 2 * _ROOM * limit].split(" "):
        longer = f"{line} {word}" if line else word
        if line and columns_of(longer) > _ROOM:
            lines.append(line)
            longer = word
        line = clip(longer, _ROOM)
    return [*lines, line][:limit]


class InputError(BatchLLMError):
    """An input has bad records, or is none that this version reads; nothing was sent.

    Attributes:
        name: The file's name.
        problems: The first ones, in file order.
        bad: All bad records, also those not in ``problems``.
        records: All records that were looked at, good or bad.
    """

    def __init__(self, name: str, problems: Sequence[Problem], bad: int, records: int) -> None:
        super().__init__(name, problems, bad, records)
        self.name = name
        self.problems = problems
        self.bad = bad
        self.records = records

    def __str__(self) -> str:
        if self.bad == 1 and self.problems and not self.problems[0].line:
            head = f": {self.problems[0].message}"
            return "\n".join(_wrapped(f"{clip(safe(self.name), 30)}{safe(head)}"))
        blocks = [problem.render(self.name) for problem in self.problems[:_SHOWN]]
        lines = "line" if self.bad == 1 else "lines"
        tail = f" has {self.bad:,} bad {lines} of {self.records:,}; nothing was sent"
        head = clip(safe(self.name), _WIDTH - len("error: ") - len(tail)) + tail
        if self.bad > len(blocks):
            blocks.append(f"  … and {self.bad - len(blocks):,} more")
        return "\n\n".join([head, *blocks]) + (
            "\n\nFix the lines, or run with --bad-rows fail to record them as failed items\n"
            "and send the rest."
        )
