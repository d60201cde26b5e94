"""Calls the items that are plain data: codec, bytes, transport, codec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import BadOutputError
from batch_llm.providers import openai

if TYPE_CHECKING:
    from batch_llm.base import LLMWorkItem
    from batch_llm.providers.base import Outcome, Try
    from batch_llm.providers.registry import Endpoint
    from batch_llm.providers.transport import Transport


class RequestCaller:
    """Sends requests to one endpoint.

    Args:
        endpoint: Where they go. It decides the model's name on the wire.
        transport: How they get there.
    """

    def __init__(self, endpoint: Endpoint, transport: Transport) -> None:
        self._endpoint = endpoint
        self._transport = transport

    async def call(self, item: LLMWorkItem[Any, Any, Any], attempt: Try, /) -> Outcome:
        """Make one call. After an answer that did not fit, the model is told why.

        Raises:
            TransportError: There was no complete answer.
        """
        request = item.request
        assert request is not None  # noqa: S101 - only such items are given to us
        previous = attempt.previous_error
        endpoint = self._endpoint
        body = openai.encode(
            request,
            attempt=attempt.number,
            model=endpoint.model,
            feedback=previous if isinstance(previous, BadOutputError) else None,
            max_tokens_field=endpoint.max_tokens_field,
        )
        response = await self._transport.post(endpoint.url, endpoint.headers, body)
        return openai.decode(response.status, response.headers, response.body, request)
