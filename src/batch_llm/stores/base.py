"""What a store is: the record of which items of a run are in work, and what became of the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from batch_llm.base import WorkItemResult


class Attempt(msgspec.Struct, frozen=True):
    """One try of an item, as it was: the facts on which everything else is computed.

    Attributes:
        number: The attempt's number, from 1. A call refused by a rate limit has the number of
            the attempt that it did not use up.
        started_at: Seconds on the event loop's clock.
        seconds: How long the call took.
        usage: Tokens spent, or None where nobody knows.
        error_code: A value of ``strategies.errors.ErrorCode``, or None after a success.
        error: ``ExceptionType: message``, or None after a success.
    """

    number: int
    started_at: float
    seconds: float
    usage: dict[str, int] | None
    error_code: str | None = None
    error: str | None = None


class Store(Protocol):
    """Records a run's items: pending → running → done or failed, each step once.

    One instance serves one run at a time.
    """

    def start(self, item_id: str, /) -> None:
        """Note that an item is in work.

        Raises:
            DuplicateItemError: An item of this id is in work or has a result. Nothing changed.
        """
        ...

    def forget(self, item_id: str, /) -> None:
        """Make an item pending again: it was abandoned in work, without a result."""
        ...

    def finish(
        self, result: WorkItemResult[Any, Any], history: Sequence[Attempt], /
    ) -> Awaitable[None] | None:
        """Accept an item's only result, and save it whatever becomes of the caller.

        Returns:
            None when the result is safe already, else an awaitable that ends when it is.

        Raises:
            Exception: It could not be saved; the run stops. The awaitable may raise it too.
        """
        ...
