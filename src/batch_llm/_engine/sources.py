"""Where items come from. A source is asked for one item at a time, by whoever has room for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from batch_llm.base import LLMWorkItem
from batch_llm.exceptions import SourceError

if TYPE_CHECKING:
    Item = LLMWorkItem[Any, Any, Any]

#: What ``take`` returns when there will be no more.
END: Final = None
_NOTHING: Final = object()


class Source(Protocol):
    """Gives items until it ends."""

    async def take(self) -> Item | None:
        """Return the next item, or ``END``. After ``END`` it is never asked for more to start."""
        ...

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take: it has ended, or nothing is queued for now."""
        ...

    def give_back(self, item: Item, /) -> None:
        """Take an item back: the run was cancelled while it was in work, and it has no result."""
        ...

    def finished(self) -> None:
        """Hear that an item taken from here is out of work."""
        ...


class IterableSource:
    """Items from any iterable or async iterable, pulled one at a time.

    Args:
        items: Pulled only as fast as there is room; never by two workers at once.
    """

    def __init__(self, items: Iterable[Item] | AsyncIterable[Item]) -> None:
        self._sync: Iterator[Item] | None = None
        self._async: AsyncIterator[Item] | None = None
        if isinstance(items, AsyncIterable):
            self._async = aiter(items)
        else:
            self._sync = iter(items)
        self._turn = asyncio.Lock()
        self._has_ended = False
        self.given = 0

    @property
    def is_empty(self) -> bool:
        """Whether it has ended."""
        return self._has_ended

    async def take(self) -> Item | None:
        """Return the next item, or ``END``.

        Raises:
            SourceError: The iterable raised, its error is the cause, or gave something that is no
                item. Later calls get ``END``.
        """
        if self._sync is not None:
            return self.take_now()
        if self._has_ended:
            return END
        try:
            # Async generators refuse a second `anext` while one is under way.
            async with self._turn:
                item = await self._take_async()
        except Exception as error:
            self._has_ended = True
            raise SourceError(self.given, f"{type(error).__name__}: {error}") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._has_ended = True
            raise SourceError(self.given, "it was cancelled") from error
        return self._checked(item)

    @property
    def is_sync(self) -> bool:
        """Whether ``take_now`` can be used."""
        return self._sync is not None

    def take_now(self) -> Item | None:
        """Return the next item of an iterable that is not async, or ``END``.

        Raises:
            SourceError: As for ``take``.
        """
        if self._has_ended or self._sync is None:
            return END
        try:
            item = next(self._sync, _NOTHING)
        except Exception as error:
            self._has_ended = True
            raise SourceError(self.given, f"{type(error).__name__}: {error}") from error
        except asyncio.CancelledError as error:
            self._has_ended = True
            raise SourceError(self.given, "it was cancelled") from error
        if type(item) is LLMWorkItem:
            self.given += 1
            return item
        return self._checked(item)

    def _checked(self, item: object) -> Item | None:
        if item is _NOTHING:
            self._has_ended = True
            return END
        if not isinstance(item, LLMWorkItem):
            self._has_ended = True
            raise SourceError(self.given, f"it gave {item!r:.80}, which is no LLMWorkItem")
        self.given += 1
        return item

    async def _take_async(self) -> object:
        if self._has_ended or self._async is None:
            return _NOTHING
        return await anext(self._async, _NOTHING)

    def give_back(self, item: Item, /) -> None:
        """An iterable cannot be given anything back: who holds it knows what has no result."""

    def finished(self) -> None:
        """Nothing depends on it here."""


class QueueSource:
    """Items added one by one, before and while they are processed.

    It ends when nothing is queued and nothing is in work: an item in work may still add others.

    Args:
        max_size: ``put`` waits while so many items are queued; 0 for no bound.
    """

    def __init__(self, max_size: int = 0) -> None:
        self._max_size = max_size
        self._items: deque[Item] = deque()
        self._putters: deque[tuple[asyncio.Future[None], Item]] = deque()
        self._takers: deque[asyncio.Future[None]] = deque()
        self._in_work = 0
        #: Owners of items that were let in and have not woken yet: they may have more to put.
        self._waking = 0

    def __len__(self) -> int:
        return len(self._items) + len(self._putters)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is queued; items in work may still add others."""
        return not self._items

    def ids(self) -> set[str]:
        """Return the ids of what is queued, or waits to be."""
        waiting = (item.item_id for _, item in self._putters)
        return {item.item_id for item in self._items}.union(waiting)

    async def put(self, item: Item, *, may_wait: bool = True) -> None:
        """Queue ``item``, waiting for room first.

        Args:
            item: What to queue.
            may_wait: Otherwise it is queued beyond ``max_size``: who takes the items must not
                wait for room that only it can make.

        Raises:
            asyncio.CancelledError: The item was not queued.
        """
        if not may_wait or not self._max_size or len(self._items) < self._max_size:
            self._items.append(item)
            self._wake_one()
            return
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (room, item)
        self._putters.append(entry)
        try:
            await room
        except asyncio.CancelledError:
            if room.cancelled():
                self._putters.remove(entry)
            else:
                self._waking -= 1
            raise
        self._waking -= 1

    async def take(self) -> Item | None:
        """Return the next item; wait while there is none but some are in work."""
        while not self._items:
            if not self._in_work:
                if self._waking:
                    await asyncio.sleep(0)
                    continue
                self._wake_all()
                return END
            taker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            try:
                await taker
            except asyncio.CancelledError:
                if not taker.cancelled():
                    self._wake_one()  # the call that woke us is for somebody else now
                raise
        item = self._items.popleft()
        self._in_work += 1
        self._let_in_putter()
        return item

    def give_back(self, item: Item, /) -> None:
        """Queue an item again, in front of the others."""
        self._items.appendleft(item)

    def finished(self) -> None:
        """Count an item as done; the last one ends the source."""
        self._in_work -= 1
        if not self._in_work and not self._items:
            self._wake_all()

    def _let_in_putter(self) -> None:
        # The item is moved here and not by its woken owner, so that the queue is never empty in
        # between, which would look like its end.
        while self._putters:
            room, item = self._putters.popleft()
            if not room.cancelled():
                room.set_result(None)
                self._waking += 1
                self._items.append(item)
                return

    def _wake_one(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._takers:
            self._wake_one()
