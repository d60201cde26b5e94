"""One good record of an input."""

from __future__ import annotations

from typing import Any

import msgspec


class Row(msgspec.Struct, frozen=True, gc=False):
    """One good record.

    Attributes:
        item_id: Unique in its source.
        line: 1-based line of the file on which the record starts.
        data: Its columns; the whole record for the openai-batch format. Do not change it.
    """

    item_id: str
    line: int
    data: dict[str, Any]
