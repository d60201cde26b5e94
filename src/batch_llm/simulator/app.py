"""The ASGI application: routes, keys, limits, latency, faults, and the book of what was done."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.simulator.faults import Faults
from batch_llm.simulator.limits import Limit, make_limit
from batch_llm.simulator.openai_chat import (
    Call,
    Completion,
    Refusal,
    fault,
    go_duration,
    out_of_quota,
    rate_limited,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from batch_llm.simulator.profile import Profile

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

_CHAT = {"/v1/chat/completions", "/chat/completions"}
_MODELS = "/v1/models"
_JSON = (b"content-type", b"application/json")
_numbers = itertools.count(1)


class Stats(msgspec.Struct, frozen=True):
    """What a simulator has done so far.

    Attributes:
        calls: Chat calls received.
        answers: Calls answered with a completion, spoilt ones included.
        refused: Calls refused by a limit of the profile.
        faults: Faults by the name of their option.
        input_tokens: Billed, of all answers.
        output_tokens: The same.
        peak_in_flight: Calls at the same time at the most.
    """

    calls: int
    answers: int
    refused: int
    faults: dict[str, int]
    input_tokens: int
    output_tokens: int
    peak_in_flight: int


class SimulatorApp:
    """A provider in one object.

    Args:
        profile: How it behaves.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self.reset()

    def reset(self) -> None:
        """Forget everything: counts, limits, conversations."""
        profile, now = self._profile, time.monotonic()  # noqa: TID251 - a server's own clock
        self._faults = Faults(profile)
        self._requests = make_limit(profile.rpm, profile.window, profile.burst, now)
        self._tokens = make_limit(profile.tpm, profile.window, profile.burst, now)
        self._latency = random.Random(profile.seed)  # noqa: S311 - repeatable on purpose
        self._calls = self._answers = self._refused = 0
        self._input_tokens = self._output_tokens = 0
        self._in_flight = self._peak = 0
        self._fault_counts: Counter[str] = Counter()

    def stats(self) -> Stats:
        """Return what was done so far."""
        return Stats(
            self._calls,
            self._answers,
            self._refused,
            dict(self._fault_counts),
            self._input_tokens,
            self._output_tokens,
            self._peak,
        )

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        if path in _CHAT and method == "POST":
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            try:
                await self._chat(scope, receive, send)
            finally:
                self._in_flight -= 1
        elif path == "/sim/stats":
            await _reply(send, 200, msgspec.json.encode(self.stats()))
        elif path == "/sim/reset" and method == "POST":
            self.reset()
            await _reply(send, 200, b"{}")
        elif path.startswith(_MODELS):
            await _reply(send, 200, _models(path.removeprefix(_MODELS).strip("/")))
        else:
            message = f"Invalid URL ({method} {path})"
            refusal = Refusal(404, message, "invalid_request_error")
            await _reply(send, 404, refusal.body)

    async def _chat(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        started = time.monotonic()  # noqa: TID251 - a server's own clock
        self._calls += 1
        body = await _read_body(receive)
        headers: dict[str, str] = {}
        try:
            _check_key(scope["headers"])
            call = Call(body)
            headers = self._admit(call, started)
            name = self._faults.next_for(call.conversation)
            if name is not None:
                self._fault_counts[name] += 1
                refusal = fault(name, call, self._profile.retry_after)
                if refusal is not None:
                    raise refusal
            if self._profile.quota_after and self._answers >= self._profile.quota_after:
                raise out_of_quota()
        except Refusal as refusal:
            await _reply(send, refusal.status, refusal.body, (headers | refusal.headers).items())
            return
        if name == "ptimeout":
            if await _hangs_up(receive, self._profile.hang):
                return
        else:
            await asyncio.sleep(self._draw_latency())
        answer = Completion(call, name, time.time())  # noqa: TID251 - the wire wants a date
        self._answers += 1
        self._input_tokens += answer.input_tokens
        self._output_tokens += answer.output_tokens
        elapsed = time.monotonic() - started  # noqa: TID251 - a server's own clock
        headers["openai-processing-ms"] = str(round(elapsed * 1000))
        if name == "preset":
            await _break_off(send, answer.body)
            return
        spoilt = answer.body[: len(answer.body) // 2] if name == "pgarbage" else answer.body
        await _reply(send, 200, spoilt, headers.items())

    def _admit(self, call: Call, now: float) -> dict[str, str]:
        """Pass the limits, both or none, and return the headers that tell of them."""
        amounts: list[tuple[str, Limit, float]] = []
        if self._requests is not None:
            amounts.append(("requests", self._requests, 1))
        if self._tokens is not None:
            amounts.append(("tokens", self._tokens, call.reserved_tokens))
        if not amounts:
            return {}
        waits = [(limit.wait_for(amount, now), kind, limit) for kind, limit, amount in amounts]
        wait, kind, limit = max(waits, key=lambda one: one[0])
        if wait <= 0:
            for _, passed, amount in amounts:
                passed.take(amount, now)
            return _limit_headers(amounts)
        self._refused += 1
        refusal = rate_limited(
            kind,
            call,
            wait,
            self._profile.retry_after,
            limit=limit.limit,
            used=limit.limit - limit.remaining(),
        )
        refusal.headers |= _limit_headers(amounts)
        raise refusal

    def _draw_latency(self) -> float:
        profile = self._profile
        if not profile.tail:
            return profile.latency
        return profile.latency * self._latency.lognormvariate(0.0, profile.tail)


def _limit_headers(amounts: list[tuple[str, Limit, float]]) -> dict[str, str]:
    headers = {}
    for kind, limit, _ in amounts:
        headers[f"x-ratelimit-limit-{kind}"] = f"{limit.limit:.0f}"
        headers[f"x-ratelimit-remaining-{kind}"] = str(limit.remaining())
        headers[f"x-ratelimit-reset-{kind}"] = go_duration(limit.reset_seconds())
    return headers


def _check_key(headers: list[tuple[bytes, bytes]]) -> None:
    given = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, key = given.partition(b" ")
    if scheme.lower() != b"bearer" or not key:
        message = "You didn't provide an API key."
        raise Refusal(401, message, "invalid_request_error")
    if key == b"invalid":
        message = "Incorrect API key provided: invalid."
        raise Refusal(401, message, "invalid_request_error", "invalid_api_key")


async def _read_body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


async def _hangs_up(receive: Receive, seconds: float) -> bool:
    """Wait; return whether the client lost patience first."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


async def _reply(
    send: Send, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()
) -> None:
    lines = [
        _JSON,
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", b"req_%012x" % next(_numbers)),
        (b"openai-version", b"2020-10-01"),
    ]
    lines += [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def _break_off(send: Send, body: bytes) -> None:
    """Promise the whole body, send half: the server closes the connection when we return."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [_JSON, length]})
    half = body[: len(body) // 2]
    await send({"type": "http.response.body", "body": half, "more_body": True})


def _models(name: str) -> bytes:
    if name:
        return json.dumps(_model(name)).encode()
    return json.dumps({"object": "list", "data": [_model("fast"), _model("flaky")]}).encode()


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
