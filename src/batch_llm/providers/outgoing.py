"""A body that tells when it leaves the process. Loaded with aiohttp, for the first call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp.payload import BytesPayload

if TYPE_CHECKING:
    from collections.abc import Callable


class Outgoing(BytesPayload):
    """Bytes; ``on_sent`` is called in the step in which they are handed to the system.

    Until then the call may have waited for its connection, and nobody knows of it.
    """

    def __init__(self, value: bytes, on_sent: Callable[[], None]) -> None:
        super().__init__(value)
        self._on_sent = on_sent

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        """Write them, after the head that waits for them."""
        self._on_sent()
        await super().write_with_length(writer, content_length)
