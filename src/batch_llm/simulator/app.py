"""The ASGI application: routes, keys, limits, latency, faults, and the count of what was done."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.simulator.account import Account, Counts, Stats, make_line
from batch_llm.simulator.billed import Billed
from batch_llm.simulator.refusals import Refusal
from batch_llm.simulator.routes import CALLS, Route, find
from batch_llm.simulator.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batch_llm.simulator.account import Visit
    from batch_llm.simulator.billed import BilledCall
    from batch_llm.simulator.calls import Call
    from batch_llm.simulator.completions import Completion
    from batch_llm.simulator.fields import Headers
    from batch_llm.simulator.local_server import Line
    from batch_llm.simulator.profile import Profile
    from batch_llm.simulator.wire import WireFormat

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

#: The key in an ASGI scope's ``extensions`` of a function that resets the connection.
RESET = "batch_llm.reset"
#: The same of one that is given what to call when nobody has collected the answer.
IF_UNREAD = "batch_llm.if_unread"

_TYPE_JSON = (b"content-type", b"application/json")
#: How long the client gets to read the first half of an answer before the connection is reset:
#: a reset throws away what has arrived but was not yet read, the status line included.
_READING_SECONDS = 0.02
_NO_LOG = {"error": "calls are kept with the option log=on alone, for example fast?log=on"}
_encode = msgspec.json.Encoder().encode


class SimulatorApp:
    """All providers in one object.

    Args:
        profile: How they behave.
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
        now, line = self._clock(), make_line(self._profile)
        counts = Counts(billed=Billed(keeps_all=self._profile.log == "on"))
        self._accounts = {
            provider: Account(self._profile, now, provider, counts, line) for provider in RULES
        }

    def stats(self) -> Stats:
        """Return what was done so far; from any thread."""
        return self._accounts["openai"].stats()

    def billed_calls(self) -> list[BilledCall] | None:
        """Return what was billed, call by call; None where that is not kept. From any thread."""
        return self._accounts["openai"].billed_calls()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        route = CALLS.get(path)
        if route is None or method != "POST":
            if await self._tells(method, path, send):
                return
            route = find(method, path, scope["headers"], scope["query_string"])
        if route.kind == "call":
            await self._counted_call(route, scope, receive, send)
            return
        try:
            body = await self._page(route, scope, receive)
            await _send(send, 200, body, [_TYPE_JSON, *route.wire.own_headers(b"", 0.0)])
        except Refusal as refusal:
            await self._refuse(route.wire, refusal, {}, send, self._clock())

    async def _tells(self, method: str, path: str, send: Send) -> bool:
        """Answer what is asked of the simulator, or of a local server, itself."""
        if path == "/sim/stats" and method == "GET":
            await _send(send, 200, _encode(self.stats()), [_TYPE_JSON])
        elif path == "/sim/calls" and method == "GET":
            calls = self.billed_calls()
            status, found = (404, _NO_LOG) if calls is None else (200, calls)
            await _send(send, status, _encode(found), [_TYPE_JSON])
        elif path == "/sim/reset" and method == "POST":
            self.reset()
            await _send(send, 200, b"{}", [_TYPE_JSON])
        elif method == "GET" and (page := self._accounts["openai"].look(path)) is not None:
            await _send(send, page.status, page.body, [(b"content-type", page.kind)])
        else:
            return False
        return True

    async def _page(self, route: Route, scope: dict[str, Any], receive: Receive) -> bytes:
        """Return what is at an address that is no call."""
        wire, headers = route.wire, scope["headers"]
        if route.kind in {"lost", "method"}:
            name = "no_path" if route.kind == "lost" else "wrong_method"
            raise wire.trouble(name, method=scope["method"], path=scope["path"])
        wire.check_key(headers, scope["query_string"])
        if route.kind == "models":
            return wire.models()
        if route.kind == "model":
            return wire.model(route.model)
        return wire.counted(wire.read_to_count(await _read_body(receive), route.model))

    async def _counted_call(
        self, route: Route, scope: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        # The same account to the end, whatever is reset meanwhile.
        account = self._accounts[route.wire.provider]
        self._in_flight += 1
        account.arrive(self._in_flight, scope["headers"])
        try:
            await self._call(account, route, scope, receive, send)
        finally:
            self._in_flight -= 1

    async def _call(
        self,
        account: Account,
        route: Route,
        scope: dict[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        wire = route.wire
        started = self._clock()
        body = await _read_body(receive)
        try:
            headers, query = scope["headers"], scope["query_string"]
            call = account.read(wire, headers, body, query, route.model)
            visit = account.admit(wire, call, self._clock(), _now())
        except Refusal as refusal:
            await self._refuse(wire, refusal, {}, send, started)
            return
        try:
            if not await _gets_slot(account.line, receive):
                account.give_up()
                return
            try:
                await self._work(account, wire, visit, started, scope, receive, send)
            finally:
                account.line.leave()
        finally:
            account.release()

    async def _work(
        self,
        account: Account,
        wire: WireFormat,
        visit: Visit,
        started: float,
        scope: dict[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer a call that was let in."""
        call = visit.call
        try:
            completion, name = account.answer(wire, call, _now())
        except Refusal as refusal:
            self._settle(account, wire, visit, None)
            await self._refuse(wire, refusal, visit.headers, send, started)
            return
        if not await self._wait(account.line, name, completion, call, receive):
            self._settle(account, wire, visit, None)
            return
        lines = wire.own_headers(completion.request_id, self._clock() - started)
        if_unread = account.bill(completion, name, call, lines)
        watch = scope.get("extensions", {}).get(IF_UNREAD)
        if if_unread is not None and watch is not None:
            watch(if_unread)
        if not call.streams:
            self._settle(account, wire, visit, completion)
        if visit.headers and (wire.tells_limits_of_streams or not call.streams):
            lines += _lines(visit.headers)
        try:
            await self._deliver(scope, send, wire, call, completion, name, lines)
        finally:
            if call.streams:
                self._settle(account, wire, visit, completion)

    def _settle(
        self, account: Account, wire: WireFormat, visit: Visit, done: Completion | None
    ) -> None:
        if account.settles:
            account.settle(wire, visit, done, self._clock(), _now())

    async def _refuse(
        self,
        wire: WireFormat,
        refusal: Refusal,
        headers: dict[str, str],
        send: Send,
        started: float,
    ) -> None:
        lines = wire.own_headers(refusal.request_id, self._clock() - started)
        lines += _lines(headers | refusal.headers)
        lines.append((b"content-type", refusal.kind))
        await _send(send, refusal.status, refusal.body, lines)

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
        wire: WireFormat,
        call: Call,
        completion: Completion,
        name: str | None,
        headers: Headers,
    ) -> None:
        if call.streams:
            await self._stream(send, wire, completion, name, headers)
        else:
            body = completion.body()
            if name == "preset":
                await _send_half(send, body, headers)
            else:
                sent = body[: len(body) // 2] if name == "pgarbage" else body
                headers.append(_TYPE_JSON)
                await _send(send, 200, sent, headers)
        if name == "preset":
            await asyncio.sleep(_READING_SECONDS)
            scope["extensions"][RESET]()

    async def _stream(
        self,
        send: Send,
        wire: WireFormat,
        completion: Completion,
        name: str | None,
        headers: Headers,
    ) -> None:
        events = list(completion.events())
        if name == "pgarbage":
            events[1] = events[1][: len(events[1]) // 2] + b"\n\n"
        elif name == "preset":
            del events[len(events) // 2 :]
        elif name == "pmidway":
            events[len(events) // 2 :] = [wire.midway(completion.request_id)]
        await _start(send, 200, [(b"content-type", wire.stream_type), *headers])
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


def _now() -> float:
    return time.time()  # noqa: TID251 - a date, for the wire


def _lines(headers: dict[str, str]) -> Headers:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _length(body: bytes) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % len(body))


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
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send(send: Send, status: int, body: bytes, headers: Headers) -> None:
    headers.append(_length(body))
    await _start(send, status, headers)
    await send({"type": "http.response.body", "body": body})


async def _send_half(send: Send, body: bytes, headers: Headers) -> None:
    await _start(send, 200, [_TYPE_JSON, *headers, _length(body)])
    half = body[: len(body) // 2]
    await send({"type": "http.response.body", "body": half, "more_body": True})
