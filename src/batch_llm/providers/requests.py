"""Calls the items that are plain data: codec, bytes, transport, codec."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import msgspec

from batch_llm.core.plain import as_plain
from batch_llm.exceptions import (
    BadOutputError,
    BatchLLMError,
    ConfigError,
    UnsupportedRequestError,
)
from batch_llm.providers.base import DEPARTURE, LaneFacts, content_digest
from batch_llm.providers.limit_headers import read_limits
from batch_llm.providers.local_servers import ask_capacity
from batch_llm.providers.openai import ChatCodec
from batch_llm.providers.refused_settings import RefusedSettings
from batch_llm.providers.registry import Endpoint
from batch_llm.providers.transport import Looker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextvars import Context

    from batch_llm.base import LLMWorkItem
    from batch_llm.core.request import Request
    from batch_llm.providers.base import Departure, Outcome, Try
    from batch_llm.providers.transport import Response, Transport, Watchable
    from batch_llm.strategies.admission.header_belief import LimitHeader

#: Writes a request whole, whatever its model refuses.
_WHOLE = ChatCodec(thinks=False)
#: How often the limit headers of an endpoint's answers are looked at, in seconds.
_LOOK_SECONDS = 0.05
#: Shorter keys are placeholders for servers that want any; they may be ordinary words.
_LEAST_SECRET = 8


class _Watch(msgspec.Struct):
    """Reads a call's answer as soon as it has come, and takes down what it took."""

    departure: Departure
    endpoint: Endpoint
    request: Request
    #: In which the user's own shape reads the answer: that of the call.
    context: Context | None
    outcome: Outcome | None = None

    def leaves(self) -> None:
        self.departure.goes()

    def answered(self, status: int, headers: Mapping[str, str], body: bytes, /) -> None:
        endpoint, context = self.endpoint, self.context
        decode = endpoint.codec.decode
        if context is not None:
            decode = partial(context.run, decode)  # type: ignore[call-arg]
        try:
            self.outcome = outcome = decode(
                status, headers, body, self.request, secret=endpoint.secret
            )
        except Exception:  # noqa: BLE001 - it is read again, by the call itself: that will raise it
            return
        if outcome.usage:
            self.departure.took(outcome.usage)


class RequestCaller:
    """Sends requests to where their model is.

    Args:
        endpoint: Where they go: one endpoint for all, whose model then replaces the requests' own;
            or a function from a request's model to its endpoint, called once per model. Several
            endpoints (keys, deployments) are a pool, filled by what each has left.
        transport: How they get there.
        keep_bodies: Hand the provider's answers through to the results, as they came.
        ignore_slots: Do not ask servers on the user's own machines how many calls they work on at
            once.
        fallback: Where a fallback's calls go, by its name, where ``endpoint`` is no such function;
            called once per name.
    """

    def __init__(
        self,
        endpoint: Endpoint | Sequence[Endpoint] | Callable[[str], Endpoint | Sequence[Endpoint]],
        transport: Transport,
        *,
        keep_bodies: bool = False,
        ignore_slots: bool = False,
        fallback: Callable[[str], Endpoint | Sequence[Endpoint]] | None = None,
    ) -> None:
        self._only = None if callable(endpoint) else _pool(endpoint)
        self._resolve = endpoint if callable(endpoint) else fallback
        self._pools: dict[str, tuple[Endpoint, ...]] = {}
        self._turn = 0
        self._transport = transport
        can_be_watched = getattr(transport, "can_be_watched", False)
        self._watchable = cast("Watchable", transport) if can_be_watched else None
        self.tells_departures = self._watchable is not None
        self._keep_bodies = keep_bodies
        self._looker = None if ignore_slots or not isinstance(transport, Looker) else transport
        #: By endpoint: each has limits of its own.
        self._next_look_at: dict[int, float] = {}
        self._where: dict[int, bytes] = {}
        self._refused = RefusedSettings()

    def lane(self, item: LLMWorkItem[Any, Any, Any], /) -> str:
        """Name the item's lane: its model, or the one endpoint for all."""
        if item.request is None:
            return ""
        if self._only is not None and item.asked_model is None:
            return ""
        return item.request.model

    def facts(self, item: LLMWorkItem[Any, Any, Any], /) -> LaneFacts:
        """Tell what is known of an item's lane: its endpoints, and how they charge."""
        try:
            pool = self._pool_of(item)
        except BatchLLMError:  # the call will say so
            return LaneFacts()
        return LaneFacts(
            places=len(pool),
            addresses=len({one.url for one in pool}),
            charges=pool[0].charges,
            model=f"{pool[0].provider}:{pool[0].model}",
            server=pool[0].server,
            keys=tuple(dict.fromkeys(one.key_variable for one in pool if one.key_variable)),
            labels=_labels(pool),
            url=pool[0].shown_url,
            remembered_as=tuple(endpoint.account for endpoint in pool),
            ask=()
            if self._looker is None
            else tuple(
                partial(ask_capacity, self._looker, endpoint) if endpoint.is_local else None
                for endpoint in pool
            ),
        )

    def content(self, item: LLMWorkItem[Any, Any, Any], /) -> bytes:
        """Return the digest of an item's id and its wire body, see ``content_of``."""
        assert item.request is not None  # noqa: S101 - only such items are given to us
        return content_of(item.item_id, item.request)

    async def call(self, item: LLMWorkItem[Any, Any, Any], attempt: Try, /) -> Outcome:
        """Make one call. After an answer that did not fit, the model is told why.

        Raises:
            TransportError: There was no complete answer.
            UnknownModelError: The request's model cannot be resolved.
            MissingKeyError: There is no key for it.
            UnsupportedRequestError: The provider's format has no place for a part of it.
        """
        request = item.request
        assert request is not None  # noqa: S101 - only such items are given to us
        departure = attempt.memory.pop(DEPARTURE, None)
        previous = attempt.previous_error
        pool = self._pool_of(item)
        place = attempt.place
        if place is None:
            place = self._turn = self._turn + 1
        endpoint = pool[place % len(pool)]
        request = self._refused.applied(request, endpoint)
        try:
            body = endpoint.codec.encode(
                request,
                attempt=attempt.number,
                model=endpoint.model,
                feedback=previous if isinstance(previous, BadOutputError) else None,
            )
        except UnicodeEncodeError as problem:
            half = ascii(problem.object[problem.start])
            raise UnsupportedRequestError("JSON", f"half of a character, {half}") from problem
        outcome = None
        if departure is None or self._watchable is None:
            response = await self._transport.post(endpoint.url, endpoint.headers, body)
        else:
            context = None if request.output is None else copy_context()
            watch = _Watch(departure, endpoint, request, context)
            response = await self._watchable.post(endpoint.url, endpoint.headers, body, watch)
            outcome = watch.outcome
        if outcome is None:
            outcome = endpoint.codec.decode(
                response.status, response.headers, response.body, request, secret=endpoint.secret
            )
        limits = self._limits_of(endpoint, response)
        if outcome.error is not None:
            error = self._refused.learn(outcome.error, request, endpoint, endpoint.model)
            return msgspec.structs.replace(outcome, error=error, limits=limits)
        return self._with_answer(outcome, endpoint, response.body, limits)

    def exchange(self, item: LLMWorkItem[Any, Any, Any], /) -> bytes | None:
        """Return the digest of provider, server, wire body and model, see ``exchange_of``."""
        request = item.request
        if request is None:
            return None
        try:
            endpoint = self._pool_of(item)[0]
            # By identity, as above: to find out where an endpoint is costs more than the digest.
            where = self._where.get(id(endpoint))
            if where is None:
                where = self._where[id(endpoint)] = where_of(endpoint)
            return exchange_of(request, endpoint, where)
        except (BatchLLMError, TypeError, ValueError, OverflowError, RecursionError):
            return None  # the call will say what is wrong

    def read_again(self, item: LLMWorkItem[Any, Any, Any], answer: bytes, /) -> Outcome:
        """Read an answer that came before; it may not fit what is asked for now."""
        assert item.request is not None  # noqa: S101 - only such items are given to us
        endpoint = self._pool_of(item)[0]
        outcome = endpoint.codec.decode(200, {}, answer, item.request, secret=endpoint.secret)
        return self._with_answer(outcome, endpoint, answer, None)

    def _with_answer(
        self,
        outcome: Outcome,
        endpoint: Endpoint,
        body: bytes,
        limits: dict[str, LimitHeader] | None,
    ) -> Outcome:
        secret = endpoint.secret
        repeats_key = len(secret) >= _LEAST_SECRET and secret.encode() in body
        return msgspec.structs.replace(
            outcome,
            limits=limits,
            body=endpoint.codec.document(body) if self._keep_bodies else None,
            answer=None if repeats_key else body,
        )

    def _limits_of(self, endpoint: Endpoint, response: Response) -> dict[str, LimitHeader] | None:
        """Read the limit headers of a refusal, and of an answer now and then: that is enough."""
        now = asyncio.get_running_loop().time()
        # By identity: endpoints are kept for as long as this caller, and are slow to compare.
        if response.status == 429 or now >= self._next_look_at.get(id(endpoint), 0.0):
            self._next_look_at[id(endpoint)] = now + _LOOK_SECONDS
            return read_limits(response.headers, endpoint.limit_names)
        return None

    def forget(self) -> None:
        """Forget where models are, and what their servers have said; both is found out anew."""
        self._pools.clear()
        self._where.clear()
        self._next_look_at.clear()
        self._refused = RefusedSettings()

    def _pool_of(self, item: LLMWorkItem[Any, Any, Any]) -> tuple[Endpoint, ...]:
        if self._only is not None and item.asked_model is None:
            return self._only
        assert item.request is not None  # noqa: S101 - only such items are given to us
        model = item.request.model
        if self._resolve is None:
            raise ConfigError("fallbacks", model, "none: nobody has said where its calls go")
        pool = self._pools.get(model)
        if pool is None:
            pool = self._pools[model] = _pool(self._resolve(model))
        return pool


def content_of(item_id: str, request: Request) -> bytes:
    """Return the digest of an id and of all that its request asks, model included.

    A request is digested as chat completions write it, because they lose nothing of it. So the
    digest does not depend on where the calls go, nor on the item's place in the input.
    """
    try:
        body = _WHOLE.encode(request, model=request.model)
    except (UnicodeEncodeError, TypeError, OverflowError):
        # It cannot be sent: its call will say so, and the other items go on.
        body = repr(request).encode("utf-8", "surrogatepass")
    return content_digest(item_id.encode("utf-8", "surrogatepass"), body, _later(request))


def exchange_of(request: Request, endpoint: Endpoint, where: bytes) -> bytes:
    """Return the digest of a request's wire body and of where it goes; no key is in it.

    Whatever makes later attempts ask something else belongs in it too: one of them may bring the
    answer that is shared or kept.

    Args:
        request: What is asked.
        endpoint: Where; of a pool, the first one: its places are interchangeable.
        where: What ``where_of`` says of it.
    """
    body = endpoint.codec.encode(request, model=endpoint.model)
    return content_digest(where, body, _later(request))


def where_of(endpoint: Endpoint) -> bytes:
    """Name the provider, the server and the model of an endpoint: some bodies lack the model."""
    name = f"{endpoint.provider} {endpoint.server} {endpoint.model}"
    return name.encode("utf-8", "surrogatepass")


def _later(request: Request) -> bytes:
    """Return the temperatures of all attempts, where they differ."""
    temperature = request.settings.temperature
    return (
        msgspec.json.encode(temperature, enc_hook=as_plain)
        if isinstance(temperature, tuple)
        else b""
    )


def _labels(pool: Sequence[Endpoint]) -> tuple[str, ...]:
    """Return what a pool's places differ in: their keys' variables, their servers, or both."""
    keys = [one.key_variable for one in pool]
    hosts = [urlsplit(one.shown_url).netloc for one in pool]
    if len(set(keys)) > 1 and len(set(hosts)) > 1:
        return tuple(f"{key} at {host}" for key, host in zip(keys, hosts, strict=True))
    return tuple(keys if len(set(keys)) > 1 else hosts)


def _pool(endpoints: Endpoint | Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    pool = (endpoints,) if isinstance(endpoints, Endpoint) else tuple(endpoints)
    if not pool:
        raise ConfigError("endpoint", endpoints, "one endpoint at least")
    return pool
