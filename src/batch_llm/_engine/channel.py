"""Results on their way to whoever consumes a stream."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from batch_llm.base import WorkItemResult


class Channel:
    """Hands results over; producers wait while it is full.

    Args:
        size: Results that may wait for the consumer.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._results: list[WorkItemResult[Any, Any]] = []
        self._has_some = asyncio.Event()
        self._producers: deque[asyncio.Future[None]] = deque()
        self._is_closed = False

    @property
    def has_ended(self) -> bool:
        """Whether all results were taken and no more will come."""
        return self._is_closed and not self._results

    def put(self, result: WorkItemResult[Any, Any]) -> Awaitable[None] | None:
        """Take the result; return something to wait for when the channel is full now."""
        self._results.append(result)
        self._has_some.set()
        if len(self._results) < self.size:
            return None
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._producers.append(room)
        return room

    async def take(self) -> list[WorkItemResult[Any, Any]]:
        """Wait for results and return all that are there; none only at the end."""
        await self._has_some.wait()
        results, self._results = self._results, []
        if not self._is_closed:
            self._has_some.clear()
        while self._producers:
            room = self._producers.popleft()
            if not room.done():
                room.set_result(None)
        return results

    def close(self) -> None:
        """Let the consumer know that no more will come."""
        self._is_closed = True
        self._has_some.set()
