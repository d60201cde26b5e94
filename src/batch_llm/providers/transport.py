"""HTTP: one small interface, and the one client behind it.

aiohttp: the fastest of the clients that close the connection when a call is cancelled, so that the
provider can stop working on it. What it offers of cookies, redirects and timers is switched off.
HTTP/1.1: over HTTP/2 all calls would share one connection and its limit on streams.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from batch_llm.exceptions import ConfigError, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp import ClientResponse, ClientSession
    from yarl import URL

CONNECT_SECONDS = 10.0
#: Shorter than most servers', so that a call seldom meets a connection that is being closed.
IDLE_SECONDS = 30.0
DNS_SECONDS = 300
#: Gateways send long policies and cookies along.
MAX_HEADER_BYTES = 65_536
#: No answer is longer than some tens of megabytes; a server that never ends would take all memory.
MAX_ANSWER_BYTES = 256 << 20
#: aiohttp wants larger bodies (images) as a file: it writes those piece by piece.
_LARGE_BODY_BYTES = 1 << 20
#: More URLs than any run has; the routes must not grow for ever.
_MAX_ROUTES = 1000
#: What failed, by the client's classes; the first that fits an error is said.
_REASONS = {
    "ConnectionTimeoutError": "could not connect in time to",
    "ClientConnectorCertificateError": "the certificate is not trusted of",
    "ClientConnectorSSLError": "no TLS connection to",
    "ClientConnectorDNSError": "no address is known for",
    "ClientProxyConnectionError": "could not connect to the proxy on the way to",
    "ClientHttpProxyError": "the proxy refused the way to",
    "ClientConnectorError": "could not connect to",
    "ServerDisconnectedError": "the connection broke before the answer was complete, from",
    "ClientPayloadError": "the answer was cut off or cannot be unpacked, from",
    "ClientResponseError": "the answer is not HTTP, from",
    "InvalidURL": "the URL cannot be called:",
    "NonHttpUrlClientError": "the URL cannot be called:",
    "ClientConnectionResetError": "the connection broke while sending to",
    "OSError": "the connection broke before the answer was complete, from",
    "ValueError": "the URL or a header (the key?) has characters that HTTP forbids, for",
}
#: Descriptors that the process needs for everything else.
SPARE_FILES = 100


class Response(msgspec.Struct, frozen=True):
    """An answer, read to its end.

    Attributes:
        status: The HTTP status.
        headers: Found by names in any case.
        body: All of it, unpacked.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Makes one HTTP exchange at a time, for many tasks at once."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, /) -> Response:
        """Send ``body`` and read the whole answer, however long that takes.

        Raises:
            TransportError: There was no complete answer.
            ConfigError: The environment names a proxy that cannot be used.
            asyncio.CancelledError: Passed on at once; the connection is closed.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class Watch(Protocol):
    """Hears of a call at once, in the step in which it happens. Must not raise."""

    def leaves(self) -> None:
        """Hear that it is about to be handed to the system."""
        ...

    def answered(self, status: int, headers: Mapping[str, str], body: bytes, /) -> None:
        """Hear that its answer has come to its end; it may also be told by ``post`` alone."""
        ...


class Watchable(Transport, Protocol):
    """A transport whose calls can be watched. One may offer it."""

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        watch: Watch | None = None,
        /,
    ) -> Response:
        """The same; ``watch`` hears of it."""
        ...


@runtime_checkable
class Looker(Protocol):
    """Reads what a server says of itself. A transport may offer it."""

    async def get(self, url: str, headers: Mapping[str, str], most_bytes: int, /) -> Response:
        """Read an answer, or its first ``most_bytes``, however long that takes.

        Raises:
            TransportError: There was none.
            ConfigError: The environment names a proxy that cannot be used.
            asyncio.CancelledError: Passed on at once; the connection is closed.
        """
        ...


class HttpTransport:
    """The transport on aiohttp.

    A call that finds no idle connection opens one: who calls bounds their number. Redirects are
    not followed: they would carry the key elsewhere. Proxies come from the usual environment
    variables, except for this machine's own addresses.
    """

    def __init__(self) -> None:
        self._session: ClientSession | None = None
        self._outgoing: Callable[[bytes, Watch], Any]
        self._routes: dict[str, dict[str, Any]] = {}

    #: ``post`` can be watched.
    can_be_watched = True

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        watch: Watch | None = None,
        /,
    ) -> Response:
        """Send ``body`` and read the whole answer."""
        from aiohttp import ClientConnectorError, ClientError, ConnectionTimeoutError

        session = self._session or self._open()
        data: Any = body
        if len(body) >= _LARGE_BODY_BYTES:
            data = io.BytesIO(body)
            if watch is not None:
                watch.leaves()
        elif watch is not None:
            data = self._outgoing(body, watch)
        try:
            route = self._routes.get(url) or self._find_route(url)
            response = await session.post(
                headers=headers, data=data, allow_redirects=False, **route
            )
            if response.status < 200:
                response.close()
                raise TransportError(f"the server answered HTTP {response.status} to a call")
            content = await _whole(response, url)
        except (ClientError, OSError, ValueError) as error:
            if isinstance(error, ConfigError | TransportError):
                raise
            # Not as the cause: the client's message may hold the URL's password or a header.
            was_never_sent = isinstance(error, ClientConnectorError | ConnectionTimeoutError)
            raise TransportError(_reason(error, url), was_never_sent) from None
        return Response(response.status, response.headers, content)

    async def get(self, url: str, headers: Mapping[str, str], most_bytes: int, /) -> Response:
        """Read an answer, or its first ``most_bytes``."""
        from aiohttp import ClientError

        session = self._session or self._open()
        plain = {**headers, "accept": "*/*", "accept-encoding": "identity"}
        content = b""
        try:
            route = self._routes.get(url) or self._find_route(url)
            async with session.get(headers=plain, allow_redirects=False, **route) as response:
                async for piece in response.content.iter_any():
                    content += piece
                    if len(content) >= most_bytes:
                        response.close()
                        break
        except (ClientError, OSError, ValueError) as error:
            if isinstance(error, ConfigError | TransportError):
                raise
            raise TransportError(_reason(error, url)) from None
        return Response(response.status, response.headers, content[:most_bytes])

    async def aclose(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> ClientSession:
        import aiohttp

        from batch_llm.providers.outgoing import Connector, Outgoing

        self._outgoing = Outgoing
        self._session = aiohttp.ClientSession(
            connector=Connector(limit=0, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=DNS_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "batch-llm"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        return self._session

    def _find_route(self, url: str) -> dict[str, Any]:
        from yarl import URL

        route: dict[str, Any] = {"url": URL(url, encoded=True)}
        if (proxy := _proxy_for(url)) is not None:
            route["proxy"] = _checked_proxy(proxy)
        if len(self._routes) < _MAX_ROUTES:
            self._routes[url] = route
        return route


async def _whole(response: ClientResponse, url: str) -> bytes:
    """Read an answer to its end, as aiohttp's ``read`` does, but for one that does not end.

    Raises:
        TransportError: It is longer than ``MAX_ANSWER_BYTES``, unpacked.
    """
    content, pieces, length = response.content, [], 0
    try:
        while not content.at_eof() and length <= MAX_ANSWER_BYTES:
            piece = await content.readany()
            length += len(piece)
            pieces.append(piece)
        if length <= MAX_ANSWER_BYTES:
            await response.wait_for_close()
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except BaseException:
        response.close()
        raise
    response.close()
    reason = f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MB, from"
    raise TransportError(f"{reason} {_host(url)}")


def _proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _checked_proxy(proxy: str) -> URL:
    from yarl import URL

    url = URL(proxy if "://" in proxy else f"http://{proxy}")
    if url.scheme not in {"http", "https"}:
        raise ConfigError("the proxy", f"{url.scheme}://{url.host}", "one that speaks HTTP")
    return url


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or (host.startswith("127.") and host[-1].isdigit())


def _reason(error: Exception, url: str) -> str:
    """Say what failed in our own words: the client's may hold credentials."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    known = (words for name, words in _REASONS.items() if name in kinds)
    return f"{next(known, f'{type(error).__name__} from')} {_host(url)}"


def _host(url: str) -> str:
    """Return who is called, without what may be secret in the address."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or "?"
    except ValueError:  # a port that is no number
        return "?"


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
