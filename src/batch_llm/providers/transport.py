"""HTTP: one small interface, and the one client behind it.

pyreqwest (reqwest, in Rust) keeps TLS, proxies and the socket work out of Python's own time.
HTTP/1.1 on purpose: over HTTP/2 all calls would share one connection and its limit on streams.
"""

from __future__ import annotations

import atexit
import sys
import threading
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import msgspec

from batch_llm.exceptions import AttemptTimeoutError, TransportError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyreqwest.client import Client

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 60.0
EXIT_SECONDS = 0.05
#: More URLs than any run has; the shortcut by URL must not grow for ever.
_MAX_URLS = 1000
_MAX_TIMEOUT_SECONDS = 86_400.0 * 365
_REASONS = {
    "BodyDecodeError": "the answer was cut off or cannot be unpacked, from",
    "BuilderError": "the URL cannot be called:",
    "ConnectError": "could not connect to",
    "ConnectTimeoutError": "could not connect in time to",
    "DecodeError": "the answer is not HTTP, from",
    "ReadError": "the connection broke before the answer was complete, from",
    "ValueError": "the URL or a header (the key?) has characters that HTTP forbids, for",
    "WriteError": "the connection broke while sending to",
}
#: Descriptors that the process needs for everything else.
SPARE_FILES = 100


class Response(msgspec.Struct, frozen=True):
    """An answer, read to its end.

    Attributes:
        status: The HTTP status.
        headers: Found by names in any case. Looking at them costs; a good answer needs none.
        body: All of it, unpacked.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Makes one HTTP exchange at a time, for many tasks at once."""

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout_seconds: float, /
    ) -> Response:
        """Send ``body`` and read the whole answer.

        The caller bounds the time of an attempt by cancelling; ``timeout_seconds`` is the latest
        moment at which the exchange itself has ended then, and its connection is closed.

        Raises:
            TransportError: There was no complete answer.
            AttemptTimeoutError: There was none within ``timeout_seconds``.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class ReqwestTransport:
    """The transport on pyreqwest.

    Redirects are not followed: they would carry the key elsewhere. Proxies come from the usual
    environment variables, except for this machine's own addresses.

    A cancelled ``post`` returns at once, but its exchange goes on until ``timeout_seconds`` are
    over: pyreqwest (0.15) detaches its task instead of aborting it, and closing the client does
    not abort it either. Only its own timeout closes the connection.

    Args:
        concurrency: Exchanges at a time at the most: as many connections are kept open.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._clients: dict[bool, Client] = {}
        self._client_by_url: dict[str, Client] = {}

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout_seconds: float, /
    ) -> Response:
        """Send ``body`` and read the whole answer."""
        from pyreqwest.exceptions import PyreqwestError

        client = self._client_by_url.get(url) or self._client_for(url)
        timeout = timedelta(seconds=min(timeout_seconds, _MAX_TIMEOUT_SECONDS))
        try:
            request = client.post(url).headers(headers).timeout(timeout).body_bytes(body).build()
            response = await request.send()
            content = (await response.bytes()).to_bytes()
        except TimeoutError as error:
            if _failed_to_connect(error):
                raise TransportError(_reason(error, url)) from None
            raise AttemptTimeoutError(timeout_seconds) from None
        except (PyreqwestError, ValueError) as error:
            # Not as the cause: the client's message may hold the URL's password or a header.
            raise TransportError(_reason(error, url)) from None
        return Response(response.status, response.headers, content)

    async def aclose(self) -> None:
        """Close all connections."""
        clients, self._clients, self._client_by_url = self._clients, {}, {}
        for client in clients.values():
            await client.close()

    def _client_for(self, url: str) -> Client:
        is_local = _is_loopback(url)
        client = self._clients.get(is_local)
        if client is None:
            client = self._clients[is_local] = self._build(is_local=is_local)
        if len(self._client_by_url) < _MAX_URLS:
            self._client_by_url[url] = client
        return client

    def _build(self, *, is_local: bool) -> Client:
        from pyreqwest.client import ClientBuilder

        _let_client_threads_finish()
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


@cache
def _let_client_threads_finish() -> None:
    """At the exit of the process, wait a moment for pyreqwest's own thread.

    It should end before the interpreter does, but pyreqwest (0.15) neither ends nor joins it.
    When an answer or a close has woken our loop, that thread still has to take the GIL once more
    to return from ``call_soon_threadsafe``; an interpreter that is finalizing by then aborts the
    process ("PyGILState_Release: thread state must be current"): 9 of 360 runs under load, closed
    or not, none with the wait. To be removed when pyreqwest joins its thread.
    """
    atexit.register(threading.Event().wait, EXIT_SECONDS)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or (host.startswith("127.") and host[-1].isdigit())


def _failed_to_connect(error: Exception) -> bool:
    """Tell whether there was no connection; pyreqwest's classes say so until the answer begins."""
    causes = getattr(error, "details", {}).get("causes") or ()
    return any("(Connect)" in cause["message"] for cause in causes)


def _reason(error: Exception, url: str) -> str:
    """Say what failed in our own words: the client's may hold credentials."""
    parts = urlsplit(url)
    where = parts.hostname or "?"
    if parts.port:
        where = f"{where}:{parts.port}"
    kind = type(error).__name__
    if kind == "ConnectError" and not _failed_to_connect(error):
        kind = "ReadError"
    return f"{_REASONS.get(kind, f'{kind} from')} {where}"


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
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):  # macOS has a lower bound of its own under an unlimited one
        wanted = soft
    return None if wanted >= needed else max(1, wanted - SPARE_FILES)
