"""Calls the items that are plain data: codec, bytes, transport, codec."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.exceptions import BadOutputError
from batch_llm.providers import openai
from batch_llm.providers.limit_headers import read_limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm.base import LLMWorkItem
    from batch_llm.providers.base import Outcome, Try
    from batch_llm.providers.registry import Endpoint
    from batch_llm.providers.transport import Response, Transport
    from batch_llm.strategies.budgets import LimitHeader

#: How often an answer's limit headers are looked at, in seconds.
_LOOK_SECONDS = 0.05


class RequestCaller:
    """Sends requests to where their model is.

    Args:
        endpoint: Where they go: one endpoint for all, whose model then replaces the requests'
            own; or a function from a request's model to its endpoint, called once per model.
        transport: How they get there.
        keep_bodies: Hand the provider's answers through to the results, as they came.
    """

    def __init__(
        self,
        endpoint: Endpoint | Callable[[str], Endpoint],
        transport: Transport,
        *,
        keep_bodies: bool = False,
    ) -> None:
        self._only = None if callable(endpoint) else endpoint
        self._resolve = endpoint if callable(endpoint) else None
        self._endpoints: dict[str, Endpoint] = {}
        self._transport = transport
        self._keep_bodies = keep_bodies
        self._next_look_at = 0.0

    def lane(self, item: LLMWorkItem[Any, Any, Any], /) -> str:
        """Name the item's lane: its model, or the one endpoint for all."""
        if self._only is not None or item.request is None:
            return ""
        return item.request.model

    async def call(self, item: LLMWorkItem[Any, Any, Any], attempt: Try, /) -> Outcome:
        """Make one call. After an answer that did not fit, the model is told why.

        Raises:
            TransportError: There was no complete answer.
            UnknownModelError: The request's model cannot be resolved.
            MissingKeyError: There is no key for it.
        """
        request = item.request
        assert request is not None  # noqa: S101 - only such items are given to us
        previous = attempt.previous_error
        endpoint = self._only or self._endpoint_for(request.model)
        body = openai.encode(
            request,
            attempt=attempt.number,
            model=endpoint.model,
            feedback=previous if isinstance(previous, BadOutputError) else None,
            max_tokens_field=endpoint.max_tokens_field,
        )
        response = await self._transport.post(endpoint.url, endpoint.headers, body)
        outcome = openai.decode(
            response.status, response.headers, response.body, request, secret=endpoint.secret
        )
        limits = self._limits_of(response)
        if outcome.error is not None:
            return msgspec.structs.replace(outcome, limits=limits) if limits else outcome
        if self._keep_bodies:
            return msgspec.structs.replace(outcome, body=response.body, limits=limits)
        return msgspec.structs.replace(outcome, limits=limits) if limits else outcome

    def _limits_of(self, response: Response) -> dict[str, LimitHeader] | None:
        """Read the limit headers of a refusal, and of an answer now and then: that is enough."""
        now = asyncio.get_running_loop().time()
        if response.status == 429 or now >= self._next_look_at:
            self._next_look_at = now + _LOOK_SECONDS
            return read_limits(response.headers)
        return None

    def _endpoint_for(self, model: str) -> Endpoint:
        endpoint = self._endpoints.get(model)
        if endpoint is None:
            assert self._resolve is not None  # noqa: S101 - else there is only one
            endpoint = self._endpoints[model] = self._resolve(model)
        return endpoint
