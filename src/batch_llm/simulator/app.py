"""The ASGI application: routes, keys, limits, latency, faults, and the count of what was done."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.simulator.account import Account, Stats
from batch_llm.simulator.openai_chat import Call, Completion, Refusal, check_key, check_model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from batch_llm.simulator.local_server import Line
    from batch_llm.simulator.profile import Profile

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Headers = list[tuple[bytes, bytes]]

#: The key in an ASGI scope's ``extensions`` of a function that resets the connection.
RESET = "batch_llm.reset"

_CHAT = frozenset({"/v1/chat/completions", "/chat/completions"})
_MODELS = frozenset({"/v1/models", "/models"})
_MODEL = ("/v1/models/", "/models/")
_LISTED = ("fast", "flaky", "slow")
_TYPE_JSON = (b"content-type", b"application/json")
_TYPE_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
_CONSTANT = [(b"openai-organization", b"org-simulator"), (b"openai-version", b"2020-10-01")]
#: How long the client gets to read the first half of an answer before the connection is reset:
#: a reset throws away what has arrived but was not yet read, the status line included.
_READING_SECONDS = 0.02
_numbers = itertools.count(1)
_encode = msgspec.json.Encoder().encode


class SimulatorApp:
    """A provider in one object.

    Args:
        profile: How it behaves.
        clock: Returns seconds that only grow.
    """

    def __init__(
        self,
        profile: Profile,
        clock: Callable[[], float] = time.monotonic,  # noqa: TID251 - a server's own clock
    ) -> None:
        self._profile = profile
        self._clock = clock
        self._in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything and start anew. Calls in flight still count for what was before.

        May be called from any thread: one assignment makes the change.
        """
        self._latency = random.Random(self._profile.seed)  # noqa: S311 - repeatable on purpose
        self._account = Account(self._profile, self._clock())

    def stats(self) -> Stats:
        """Return what was done so far; from any thread."""
        return self._account.stats()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        if scope["path"] in _CHAT and scope["method"] == "POST":
            await self._counted_chat(scope, receive, send)
            return
        if scope["method"] == "GET" and (page := self._account.look(scope["path"])) is not None:
            await _start(send, page.status, [(b"content-type", page.kind), _length(page.body)])
            await send({"type": "http.response.body", "body": page.body})
            return
        try:
            await _send_json(send, 200, self._other(scope))
        except Refusal as refusal:
            await _send_json(send, refusal.status, refusal.body)

    def _other(self, scope: dict[str, Any]) -> bytes:
        path, method = scope["path"], scope["method"]
        if (path, method) == ("/sim/stats", "GET"):
            return _encode(self.stats())
        if (path, method) == ("/sim/reset", "POST"):
            self.reset()
            return b"{}"
        if method == "GET" and path in _MODELS:
            check_key(_authorization(scope))
            return _encode({"object": "list", "data": [_model(name) for name in _LISTED]})
        if method == "GET" and path.startswith(_MODEL):
            check_key(_authorization(scope))
            name = path.partition("/models/")[2]
            check_model(name)
            return _encode(_model(name))
        if path in _CHAT or path in _MODELS:
            message = f"Not allowed to {method} on {path} (HINT: Perhaps you meant another method)"
            raise Refusal(405, message, "invalid_request_error", "method_not_supported")
        message = f"Invalid URL ({method} {path})"
        raise Refusal(404, message, "invalid_request_error")

    async def _counted_chat(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        account = self._account  # the same one to the end, whatever is reset meanwhile
        self._in_flight += 1
        account.arrive(self._in_flight)
        try:
            await self._chat(account, scope, receive, send)
        finally:
            self._in_flight -= 1

    async def _chat(
        self, account: Account, scope: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        started = self._clock()
        body = await _read_body(receive)
        headers: dict[str, str] = {}
        try:
            call = account.read(_authorization(scope), body)
            headers = account.admit(call, self._clock())
        except Refusal as refusal:
            await self._refuse(refusal, headers, started, send)
            return
        try:
            if not await _gets_slot(account.line, receive):
                account.give_up()
                return
            try:
                await self._work(account, call, headers, started, scope, receive, send)
            finally:
                account.line.leave()
        finally:
            account.release()

    async def _work(
        self,
        account: Account,
        call: Call,
        headers: dict[str, str],
        started: float,
        scope: dict[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer a call that was let in."""
        try:
            completion, name = account.answer(call, time.time())  # noqa: TID251 - a date, for the wire
        except Refusal as refusal:
            await self._refuse(refusal, headers, started, send)
            return
        if not await self._wait(account.line, name, completion, call, receive):
            return
        account.bill(completion, name)
        lines = _lines(headers)
        lines.append(self._processing(started))
        await self._deliver(scope, send, call, completion, name, lines)

    async def _refuse(
        self, refusal: Refusal, headers: dict[str, str], started: float, send: Send
    ) -> None:
        lines = _lines(headers | refusal.headers)
        lines.append(self._processing(started))
        await _send_json(send, refusal.status, refusal.body, lines)

    async def _wait(
        self, line: Line, name: str | None, completion: Completion, call: Call, receive: Receive
    ) -> bool:
        """Let the time of the answer pass; return whether somebody is still there to get it."""
        profile = self._profile
        if name == "ptimeout":
            return not await _hangs_up(receive, profile.hang)
        seconds = self._draw_latency()
        if not call.streams:
            seconds += profile.per_token * completion.output_tokens
        await asyncio.sleep(max(seconds, line.write(completion.output_tokens, self._clock())))
        return True

    async def _deliver(
        self,
        scope: dict[str, Any],
        send: Send,
        call: Call,
        completion: Completion,
        name: str | None,
        headers: Headers,
    ) -> None:
        if call.streams:
            await self._stream(send, completion, name, headers)
        elif name == "preset":
            await _send_half(send, completion.body(), headers)
        else:
            body = completion.body()
            sent = body[: len(body) // 2] if name == "pgarbage" else body
            await _send_json(send, 200, sent, headers)
        if name == "preset":
            await asyncio.sleep(_READING_SECONDS)
            scope["extensions"][RESET]()

    async def _stream(
        self, send: Send, completion: Completion, name: str | None, headers: Headers
    ) -> None:
        events = list(completion.events())
        if name == "pgarbage":
            events[1] = events[1][: len(events[1]) // 2] + b"\n\n"
        elif name == "preset":
            del events[len(events) // 2 :]
        await _start(send, 200, [_TYPE_EVENTS, *headers])
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(self._profile.per_token)  # at 0 too: a client may hang up
        if name != "preset":
            await send({"type": "http.response.body", "body": b""})

    def _draw_latency(self) -> float:
        profile = self._profile
        if not profile.tail:
            return profile.latency
        return profile.latency * self._latency.lognormvariate(0.0, profile.tail)

    def _processing(self, started: float) -> tuple[bytes, bytes]:
        return (b"openai-processing-ms", b"%d" % round((self._clock() - started) * 1000))


def _lines(headers: dict[str, str]) -> Headers:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _length(body: bytes) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % len(body))


def _authorization(scope: dict[str, Any]) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return bytes(value)
    return b""


async def _read_body(receive: Receive) -> bytes:
    message = await receive()
    if not message.get("more_body"):
        return bytes(message.get("body", b""))
    parts = [message.get("body", b"")]
    while message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
    return b"".join(parts)


async def _hangs_up(receive: Receive, seconds: float | None) -> bool:
    """Wait; return whether the client lost patience first."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


async def _gets_slot(line: Line, receive: Receive) -> bool:
    """Wait for a slot; return whether the client is still there when its turn has come."""
    place = line.enter()
    if place is None:
        return True
    gone: asyncio.Future[Any] = asyncio.ensure_future(_hangs_up(receive, None))
    try:
        await asyncio.wait([place, gone], return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        if not place.cancel():  # its turn came in the same step
            line.leave()
        raise
    finally:
        gone.cancel()
    return not place.cancel()


async def _start(send: Send, status: int, headers: Headers) -> None:
    number = (b"x-request-id", b"req_%032x" % next(_numbers))
    lines = [*headers, number, *_CONSTANT]
    await send({"type": "http.response.start", "status": status, "headers": lines})


async def _send_json(send: Send, status: int, body: bytes, headers: Iterable[Any] = ()) -> None:
    await _start(send, status, [_TYPE_JSON, _length(body), *headers])
    await send({"type": "http.response.body", "body": body})


async def _send_half(send: Send, body: bytes, headers: Headers) -> None:
    await _start(send, 200, [_TYPE_JSON, _length(body), *headers])
    half = body[: len(body) // 2]
    await send({"type": "http.response.body", "body": half, "more_body": True})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
