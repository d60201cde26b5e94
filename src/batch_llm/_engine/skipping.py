"""Passes over the items whose results are kept from an earlier run, many at a time.

Their results are shown as if they came now; they never become a worker's. Only items that the store
may know are read ahead, so that of others no more are pulled than there is room for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import SourceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batch_llm._engine.sources import IterableSource
    from batch_llm.base import LLMWorkItem, WorkItemResult
    from batch_llm.stores.base import Keeper

    Item = LLMWorkItem[Any, Any, Any]

#: Items that are looked up together, in one turn of the event loop.
AT_ONCE = 128


class SkippingSource:
    """Gives the items of a source that have no result yet.

    Args:
        source: Over an iterable that gives its items at once.
        store: Knows the results.
        content_of: The digest of what an item asks.
        show: Takes a kept result; what it returns is waited for before more are read.
    """

    def __init__(
        self,
        source: IterableSource,
        store: Keeper,
        content_of: Callable[[Item], bytes],
        show: Callable[[Item, WorkItemResult[Any, Any]], Awaitable[None] | None],
    ) -> None:
        self._source, self._store = source, store
        self._content_of, self._show = content_of, show
        self._ready: deque[Item] = deque()
        self._room: asyncio.Future[None] | None = None
        self._error: SourceError | None = None
        #: One worker at a time passes over kept items; the others wait for what it finds.
        self._turn = asyncio.Lock()

    @property
    def is_empty(self) -> bool:
        """Whether it has ended."""
        return self._source.is_empty and not self._ready

    async def take(self) -> Item | None:
        """Return the next item without a result, or ``END``.

        Raises:
            SourceError: As for the source; what came before it was given.
        """
        if not (self._ready or self._error or self._room or self._turn.locked()):
            # Nobody is passing over items: among new ones this is all that there is to do.
            item = self._source.take_now()
            if item is None or not self._store.may_have(item.item_id):
                return item
            self._read(item)
        async with self._turn:
            return await self._take()

    async def _take(self) -> Item | None:
        while not self._ready:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._room is not None:
                await asyncio.shield(self._room)
                self._room = None
            else:
                await asyncio.sleep(0)
            item = self._source.take_now()
            if item is None or not self._store.may_have(item.item_id):
                return item
            self._read(item)
        return self._ready.popleft()

    def _read(self, first: Item) -> None:
        chunk = [first]
        unknown: Item | None = None
        may_have = self._store.may_have
        try:
            while len(chunk) < AT_ONCE and (item := self._source.take_now()) is not None:
                if not may_have(item.item_id):
                    unknown = item
                    break
                chunk.append(item)
        except SourceError as error:
            self._error = error
        content_of = self._content_of
        found = self._store.kept([(item.item_id, content_of(item)) for item in chunk])
        shown: Awaitable[None] | None = None
        for item, kept in zip(chunk, found, strict=True):
            if kept is None:
                self._ready.append(item)
            else:
                shown = self._show(item, kept) or shown
        if shown is not None:
            self._room = asyncio.ensure_future(shown)
        if unknown is not None:
            self._ready.append(unknown)

    def give_back(self, item: Item, /) -> None:
        """An iterable cannot be given anything back."""

    def finished(self) -> None:
        """Nothing depends on it here."""
