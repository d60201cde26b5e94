from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import trustme

from batch_llm import ConfigError, TransportError
from batch_llm.providers import transport as transport_module
from batch_llm.providers.transport import HttpTransport


class Server:
    """Answers each request with given bytes; keeps what it got and how connections ended."""

    def __init__(self, answer=b"", *, closes=False, hangs=False):
        self.answer, self.closes, self.hangs = answer, closes, hangs
        self.requests = []
        self.connections = 0
        self.open = 0
        self.got = asyncio.Event()
        self.closed = asyncio.Event()

    async def serve(self, reader, writer):
        self.connections += 1
        self.open += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                self.requests.append((head.decode("latin-1"), await reader.readexactly(length)))
                self.got.set()
                if self.hangs:
                    await reader.read()
                    break
                writer.write(self.answer)
                await writer.drain()
                if self.closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            self.closed.set()
            writer.close()


def reply(body=b"{}", *headers, status=200):
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@asynccontextmanager
async def running(server):
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    transport = HttpTransport()
    try:
        yield transport, f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        await transport.aclose()
        listener.close()


async def test_a_body_goes_out_and_the_answer_comes_back():
    server = Server(reply(b'{"a":1}', "X-Thing: Yes"))
    async with running(server) as (transport, url):
        response = await transport.post(url, {"authorization": "Bearer k"}, b'{"q":2}')

    assert (response.status, response.body) == (200, b'{"a":1}')
    assert type(response.body) is bytes
    assert response.headers["x-thing"] == "Yes"
    head, body = server.requests[0]
    assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert "authorization: bearer k\r\n" in head.lower()
    assert "user-agent: batch-llm" in head.lower()
    assert body == b'{"q":2}'


@pytest.mark.parametrize("status", [400, 429, 503])
async def test_an_error_status_is_an_answer_like_any_other(status):
    async with running(Server(reply(b"no", "Retry-After: 3", status=status))) as (transport, url):
        response = await transport.post(url, {}, b"{}")

    assert (response.status, response.body) == (status, b"no")
    assert response.headers["retry-after"] == "3"


async def test_connections_are_used_again_and_no_more_are_opened_than_calls_in_flight():
    server = Server(reply())
    async with running(server) as (transport, url):
        for _ in range(10):
            await asyncio.gather(*(transport.post(url, {}, b"{}") for _ in range(5)))

    assert len(server.requests) == 50
    assert server.connections == 5


async def test_a_packed_answer_is_unpacked():
    packed = reply(gzip.compress(b'{"a":1}'), "content-encoding: gzip")
    async with running(Server(packed)) as (transport, url):
        assert (await transport.post(url, {}, b"{}")).body == b'{"a":1}'


class EndlessServer(Server):
    """Begins an answer, and goes on until nobody listens any more."""

    async def serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head.decode("latin-1"))
        writer.write(self.answer)
        try:
            while True:
                writer.write(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            self.closed.set()
        finally:
            writer.close()


async def test_an_answer_that_never_ends_is_given_up_before_it_takes_all_memory(monkeypatch):
    monkeypatch.setattr(transport_module, "MAX_ANSWER_BYTES", 1 << 20)
    server = EndlessServer(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    async with running(server) as (transport, url), asyncio.timeout(20):
        with pytest.raises(TransportError, match=r"longer than 1 MB, from 127\.0\.0\.1:"):
            await transport.post(url, {}, b"{}")
        await server.closed.wait()


async def test_a_small_answer_that_is_huge_when_unpacked_is_given_up(monkeypatch):
    monkeypatch.setattr(transport_module, "MAX_ANSWER_BYTES", 1 << 20)
    packed = reply(gzip.compress(b" " * (2 << 20)), "content-encoding: gzip")
    async with running(Server(packed)) as (transport, url):
        with pytest.raises(TransportError, match="longer than 1 MB"):
            await transport.post(url, {}, b"{}")


async def test_an_answer_as_long_as_may_be_is_taken_whole(monkeypatch):
    monkeypatch.setattr(transport_module, "MAX_ANSWER_BYTES", 1 << 20)
    body = bytes(range(256)) * 4096
    server = Server(reply(body))
    async with running(server) as (transport, url):
        assert (await transport.post(url, {}, b"{}")).body == body
        assert (await transport.post(url, {}, b"{}")).body == body

    assert server.connections == 1


async def test_a_redirect_is_not_followed():
    server = Server(reply(b"", "location: /elsewhere", status=302))
    async with running(server) as (transport, url):
        assert (await transport.post(url, {"authorization": "Bearer k"}, b"{}")).status == 302

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "broke before the answer was complete"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", "cut off"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", "cut off"),
        (b"220 smtp.example.com\r\n\r\n", "not HTTP"),
        (reply(b"no gzip", "content-encoding: gzip"), "cannot be unpacked"),
    ],
)
async def test_an_answer_that_is_not_whole_is_a_transport_error(answer, reason):
    async with running(Server(answer, closes=True)) as (transport, url):
        with pytest.raises(TransportError, match=reason):
            await transport.post(url, {}, b"{}")


async def test_a_server_that_is_not_there_is_named_without_its_password():
    transport = HttpTransport()

    with pytest.raises(TransportError) as caught:
        await transport.post("http://me:hush@127.0.0.1:9/v1", {}, b"{}")
    await transport.aclose()

    assert str(caught.value) == "could not connect to 127.0.0.1:9"
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("ftp://127.0.0.1/", {}),
        ("http://127.0.0.1:9/", {"authorization": "Bearer hush\nhush"}),
    ],
)
async def test_what_http_cannot_carry_is_a_transport_error_that_does_not_quote_it(url, headers):
    transport = HttpTransport()

    with pytest.raises(TransportError) as caught:
        await transport.post(url, headers, b"{}")
    await transport.aclose()

    assert "hush" not in str(caught.value)


HALF_AN_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc"


@pytest.mark.parametrize("server", [Server(hangs=True), Server(HALF_AN_ANSWER)])
async def test_a_cancelled_call_closes_its_connection_at_once(server):
    async with running(server) as (transport, url):
        call = asyncio.create_task(transport.post(url, {}, b"{}"))
        await server.got.wait()
        await asyncio.sleep(0.05)  # so that half of the answer can be there

        call.cancel()

        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(5):
            await server.closed.wait()
        assert server.open == 0


async def test_an_answer_that_is_no_answer_is_an_error():
    async with running(
        Server(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
    ) as (
        transport,
        url,
    ):
        with pytest.raises(TransportError, match="HTTP 101"):
            await transport.post(url, {}, b"{}")


async def test_a_large_body_arrives_whole():
    server = Server(reply())
    body = b"x" * 5_000_000
    async with running(server) as (transport, url):
        assert (await transport.post(url, {}, body)).status == 200

    assert server.requests[0][1] == body


async def test_long_headers_are_read():
    async with running(Server(reply(b"{}", "x-policy: " + "p" * 50_000))) as (transport, url):
        assert (await transport.post(url, {}, b"{}")).status == 200


async def test_a_certificate_that_nobody_vouches_for_is_said_to_be_so():
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    server = Server(reply())
    listener = await asyncio.start_server(server.serve, "localhost", 0, ssl=context)
    url = f"https://localhost:{listener.sockets[0].getsockname()[1]}/v1"
    transport = HttpTransport()
    with pytest.raises(TransportError, match="certificate is not trusted of localhost"):
        await transport.post(url, {}, b"{}")
    await transport.aclose()
    listener.close()


async def test_closing_closes_the_connections():
    server = Server(reply())
    async with running(server) as (transport, url):
        await transport.post(url, {}, b"{}")
        await transport.aclose()

        async with asyncio.timeout(5):
            await server.closed.wait()
        assert server.open == 0


async def test_this_machine_is_not_reached_through_a_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with running(Server(reply())) as (transport, url):
        assert (await transport.post(url, {}, b"{}")).status == 200


async def test_other_machines_are_reached_through_the_proxy_of_the_environment(monkeypatch):
    proxy = Server(reply(b"from the proxy"))
    async with running(proxy) as (transport, url):
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1/chat/completions"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)

        response = await transport.post("http://model.invalid/v1", {}, b"{}")

    assert response.body == b"from the proxy"
    assert proxy.requests[0][0].startswith("POST http://model.invalid/v1 ")


def test_importing_the_transport_does_not_load_the_client():
    code = "import sys, batch_llm.providers.requests, batch_llm.providers.transport\n"
    code += "heavy = {'aiohttp', 'pydantic', 'jsonschema_rs'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"

    subprocess.run([sys.executable, "-c", code], check=True)


async def test_a_name_and_password_of_the_proxy_are_sent_to_it(monkeypatch):
    proxy = Server(reply(b"from the proxy"))
    async with running(proxy) as (transport, url):
        host = url.removeprefix("http://").removesuffix("/v1/chat/completions")
        monkeypatch.setenv("http_proxy", f"http://me:hush@{host}")

        await transport.post("http://model.invalid/v1", {}, b"{}")

    assert "proxy-authorization: basic bwu6ahvzaa==" in proxy.requests[0][0].lower()


async def test_a_proxy_that_cannot_be_used_is_said_to_be_so_without_its_password(monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://me:hush@127.0.0.1:9")
    transport = HttpTransport()

    with pytest.raises(ConfigError, match="one that speaks HTTP") as caught:
        await transport.post("http://model.invalid/v1", {}, b"{}")
    await transport.aclose()

    assert "hush" not in str(caught.value)


async def test_a_tunnel_that_the_proxy_refuses_is_said_to_be_so(monkeypatch):
    heads = []

    async def refuse(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://me:hush@127.0.0.1:{port}")
    transport = HttpTransport()
    with pytest.raises(TransportError) as caught:
        await transport.post("https://model.invalid/v1", {"authorization": "Bearer k"}, b"{}")
    await transport.aclose()
    listener.close()

    assert str(caught.value) == "the proxy refused the way to model.invalid"
    [head] = heads
    assert head.startswith("connect model.invalid:443 http/1.1\r\n")
    assert "proxy-authorization: basic bwu6ahvzaa==\r\n" in head
    assert "bearer" not in head


class Watched:
    """Hears of a call, and keeps what it heard."""

    def __init__(self, server=None):
        self.server = server
        self.left_at = []
        self.answers = []

    def leaves(self):
        self.left_at.append(0 if self.server is None else len(self.server.requests))

    def answered(self, status, headers, body, /):
        self.answers.append((status, headers.get("x-thing"), body))


@pytest.mark.parametrize("body", [b"{}", b"x" * (1 << 20)])
async def test_a_call_tells_once_when_it_leaves(body):
    server = Server(reply())
    watched = Watched(server)
    async with running(server) as (transport, url):
        for _ in range(2):  # on a new connection, and on one that is there
            assert (await transport.post(url, {}, body, watched)).status == 200
    assert watched.left_at == [0, 1], "each before the server had it"
    assert [got for _, got in server.requests] == [body, body]


async def test_a_call_that_finds_no_server_has_not_left():
    watched, transport = Watched(), HttpTransport()
    try:
        with pytest.raises(TransportError):
            await transport.post("http://127.0.0.1:1/v1", {}, b"{}", watched)
    finally:
        await transport.aclose()
    assert watched.left_at == []


CHUNKED = b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
PACKED = gzip.compress(b'{"a":1}', mtime=0)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (reply(b'{"a":1}', "X-Thing: Yes"), (200, "Yes", b'{"a":1}')),
        (reply(b"wrong", status=429), (429, None, b"wrong")),
        (reply(PACKED, "content-encoding: gzip"), (200, None, b'{"a":1}')),
        (CHUNKED, (200, None, b"{}")),
        (b"HTTP/1.1 103 X\r\n\r\n" + reply(b"{}"), (200, None, b"{}")),
    ],
)
async def test_an_answer_is_shown_before_who_waits_for_it_goes_on_and_is_still_there(answer, seen):
    watched = Watched()
    async with running(Server(answer)) as (transport, url):
        for count in (1, 2):
            response = await transport.post(url, {}, b"{}", watched)
            assert (response.status, response.body) == (seen[0], seen[2])
            assert watched.answers == [seen] * count


async def test_an_answer_is_shown_in_the_step_in_which_it_is_read_from_the_socket():
    server, watched = Server(reply(b"{}")), Watched()
    async with running(server) as (transport, url):
        call = asyncio.ensure_future(transport.post(url, {}, b"{}", watched))
        while not watched.answers:
            await asyncio.sleep(0)
        assert not call.done(), "the call would have had to be woken first"
        assert (await call).body == b"{}"


async def test_an_answer_that_is_cut_off_is_not_shown():
    watched = Watched()
    async with running(Server(reply(b"{}")[:-1], closes=True)) as (transport, url):
        with pytest.raises(TransportError):
            await transport.post(url, {}, b"{}", watched)
    assert watched.answers == []


async def test_a_long_answer_is_whole_whether_it_was_shown_or_not():
    body, watched = b"x" * 3_000_000, Watched()
    async with running(Server(reply(body))) as (transport, url):
        for _ in range(3):
            assert (await transport.post(url, {}, b"{}", watched)).body == body
    assert all(shown == (200, None, body) for shown in watched.answers)
