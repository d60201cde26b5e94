"""What a reader gives: rows, and problems with their places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from batch_llm.core.text import safe, width

_WIDTH = 72


class Row(msgspec.Struct, frozen=True):
    """One record.

    Attributes:
        item_id: From the id column, or ``row-N`` with the record's number.
        line: Where it starts in the file, from 1.
        data: Its columns; of a batch line, the whole record.
        has_own_id: Whether one of the columns holds the id.
    """

    item_id: str
    line: int
    data: dict[str, Any]
    has_own_id: bool = False


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

    def render(self, name: str, unit: str = "line") -> str:
        """Return the lines that show it to a person.

        Args:
            name: The input's.
            unit: What the input is counted in: a line or a row.
        """
        if unit == "line":
            place = f"{safe(name)}:{self.line}" + (f":{self.column}" if self.column else "")
        else:
            place = f"{safe(name)}, {unit} {self.line}"
        lines = [f"  {place}  {self.code}", f"    {self.message}"]
        if self.excerpt and self.column:
            start = max(0, self.column - 1 - _WIDTH // 2)
            shown = safe(self.excerpt[start : start + _WIDTH])
            before = width(shown[: self.column - 1 - start])
            lines += [f"    {shown}", "    " + " " * before + "^"]
        return "\n".join(lines)
