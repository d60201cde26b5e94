"""A store that remembers only for as long as the process lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import DuplicateItemError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batch_llm.base import WorkItemResult
    from batch_llm.stores.base import Attempt


class MemoryStore:
    """Keeps the ids of items in work and, where wanted, of finished ones.

    Args:
        keep_ids: Remember the ids of finished items, so that none is used again. Without it,
            memory is bounded by the items in work, and only those are protected.
    """

    def __init__(self, *, keep_ids: bool = True) -> None:
        self._keep_ids = keep_ids
        self._running: set[str] = set()
        self._finished: set[str] = set()

    def start(self, item_id: str, /) -> None:
        """Note that an item is in work.

        Raises:
            DuplicateItemError: An item of this id is in work or has a result. Nothing changed.
        """
        if item_id in self._running or item_id in self._finished:
            raise DuplicateItemError(item_id)
        self._running.add(item_id)

    def forget(self, item_id: str, /) -> None:
        """Make an item pending again."""
        self._running.discard(item_id)

    def finish(
        self,
        result: WorkItemResult[Any, Any],
        history: Sequence[Attempt],  # noqa: ARG002
        /,
    ) -> None:
        """Note that an item has its result; it is as safe at once as it will ever be.

        Raises:
            StoreError: The item is not in work. Nothing changed.
        """
        try:
            self._running.remove(result.item_id)
        except KeyError:
            raise StoreError(result.item_id, "it is not in work") from None
        if self._keep_ids:
            self._finished.add(result.item_id)
