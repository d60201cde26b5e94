"""What aiohttp can be made to tell at once: when a call leaves, and what answers it.

Whoever waits for an answer goes on some turns of the event loop after it came, and a busy loop's
turns take long. A process that is killed meanwhile has had an answer of which nobody knows. So the
answer is looked at in the step in which it is read from the socket.

Loaded with aiohttp, for the first call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.payload import PAYLOAD_REGISTRY, BytesPayload

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from batch_llm.providers.transport import Watch


class Outgoing(BytesPayload):
    """The body of a call that is watched."""

    def __init__(self, value: bytes, watch: Watch) -> None:
        super().__init__(value)
        self._watch = watch

    def write_with_length(
        self, writer: Any, content_length: int | None
    ) -> Coroutine[Any, Any, None]:
        """Write it, after the head that waits for it."""
        handler = writer.protocol
        if isinstance(handler, _Handler):
            handler.watch = self._watch
        self._watch.leaves()
        return super().write_with_length(writer, content_length)


def _as_it_is(body: Outgoing, **_options: Any) -> Outgoing:
    return body


# aiohttp takes any payload; one of a kind that it knows it need not ask whether it is one.
PAYLOAD_REGISTRY.register(_as_it_is, Outgoing)  # type: ignore[arg-type] # whatever makes one


class _Handler(ResponseHandler):
    """A connection that shows an answer to who watches, when all of it has come."""

    watch: Watch | None = None

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take the head of an answer; what has come of its body is in it."""
        super().feed_data(data, size)
        watch = self.watch
        message, payload = data
        if watch is not None and message.code >= 200:
            self.watch = None
            if payload.is_eof():
                _show(watch, message, payload)
            else:
                payload.on_eof(partial(_show, watch, message, payload))


def _show(watch: Watch, message: Any, payload: Any) -> None:
    # No public method of aiohttp's reads a body and leaves it there. Of one of which a part is read
    # already, its reader will tell.
    chunks = getattr(payload, "_buffer", None)
    if chunks:
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if len(body) == payload.total_bytes and not payload._buffer_offset:  # noqa: SLF001
            watch.answered(message.code, message.headers, body)


class Connector(TCPConnector):
    """aiohttp's connector, with connections that can be watched.

    It has no public way to say so. Where the attribute is another one, nothing is shown early.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if hasattr(self, "_factory"):
            self._factory: Any = partial(_Handler, loop=self._loop)
