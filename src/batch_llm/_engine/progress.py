"""What has happened to one item so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.core.usage import no_usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batch_llm.stores.base import Attempt
    from batch_llm.strategies.errors import ErrorCode


class Progress:
    """What has happened to one item so far."""

    __slots__ = (
        "billed_as", "changes", "error_code", "error_type", "history", "item_id", "origin", "usage",
    )  # fmt: skip

    def __init__(self, item_id: str = "") -> None:
        #: Under which name the store has the item, whatever hooks have made of it.
        self.item_id = item_id
        #: Under which name the last call's tokens were counted; None: it cost nothing.
        self.billed_as: tuple[str, str, str] | None = None
        self.history: list[Attempt] = []
        #: Where the result comes from, when no call brought it.
        self.origin: Attempt | None = None
        self.usage = no_usage()
        self.error_code: ErrorCode | None = None
        self.error_type: str | None = None
        #: What attempts asked otherwise than the one before.
        self.changes: Sequence[str] = ()
