"""HTTP: one small interface, and the one client behind it.

pyreqwest (reqwest, in Rust) keeps TLS, proxies and the socket work out of Python's own time.
HTTP/1.1 on purpose: over HTTP/2 all calls would share one connection and its limit on streams.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import msgspec

from batch_llm.exceptions import TransportError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyreqwest.client import Client

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 60.0
#: Descriptors that the process needs for everything else.
SPARE_FILES = 100


class Response(msgspec.Struct, frozen=True):
    """An answer, read to its end. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Makes one HTTP exchange at a time, for many tasks at once."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, /) -> Response:
        """Send ``body`` and read the whole answer. Bounded in time by its caller.

        Raises:
            TransportError: There was no complete answer.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class ReqwestTransport:
    """The transport on pyreqwest.

    Args:
        concurrency: Exchanges at a time at the most: as many connections are kept open.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._clients: dict[bool, Client] = {}

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, /) -> Response:
        """Send ``body`` and read the whole answer."""
        from pyreqwest.exceptions import RequestError

        client = self._client_for(url)
        try:
            request = client.post(url).headers(headers).body_bytes(body).build()
            response = await request.send()
            content = bytes(await response.bytes())
        except RequestError as error:
            raise TransportError(_reason(error, url)) from None
        return Response(response.status, response.headers, content)

    async def aclose(self) -> None:
        """Close all connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

    def _client_for(self, url: str) -> Client:
        is_local = urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
        client = self._clients.get(is_local)
        if client is None:
            client = self._clients[is_local] = self._build(is_local=is_local)
        return client

    def _build(self, *, is_local: bool) -> Client:
        from pyreqwest.client import ClientBuilder

        builder = (
            ClientBuilder()
            .http1_only()
            .tcp_nodelay(True)
            .follow_redirects(False)
            .gzip(True)
            .connect_timeout(timedelta(seconds=CONNECT_SECONDS))
            .pool_idle_timeout(timedelta(seconds=IDLE_SECONDS))
            .pool_max_idle_per_host(self._concurrency)
            .user_agent("batch-llm")
        )
        if is_local:  # a proxy from the environment cannot reach this machine's own servers
            builder = builder.no_proxy()
        return builder.build()


def _reason(error: Exception, url: str) -> str:
    """Say what failed without the URL's credentials, which the client's own message may hold."""
    parts = urlsplit(url)
    where = parts.hostname or "?"
    if parts.port:
        where = f"{where}:{parts.port}"
    what = {
        "ConnectError": "could not connect to",
        "ConnectTimeoutError": "could not connect in time to",
        "ReadError": "the connection broke while reading from",
        "BodyDecodeError": "the answer was cut off by",
        "WriteError": "the connection broke while sending to",
    }.get(type(error).__name__, f"{type(error).__name__} from")
    return f"{what} {where}"


def raise_file_limit(concurrency: int) -> int | None:
    """Let the process open a connection per call.

    Returns:
        None when ``concurrency`` calls have room, else how many do.
    """
    if sys.platform == "win32":
        return None
    import resource

    needed = concurrency + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return None
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return None if wanted >= needed else max(1, wanted - SPARE_FILES)
