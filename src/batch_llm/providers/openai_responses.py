"""The OpenAI Responses codec (``POST /v1/responses``).

Shapes: the API reference and what the official SDK reads. Nothing is kept at the provider
(``store`` is false) unless the request says so: each item is a conversation of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.core.request import Image, Text
from batch_llm.core.usage import count_of, usage_by_kind
from batch_llm.exceptions import (
    ContentFilteredError,
    RefusedError,
    TruncatedError,
    UnsupportedRequestError,
)
from batch_llm.providers.base import Outcome
from batch_llm.providers.codec import Codec, answered, correction, other_fields, text_of
from batch_llm.providers.failures import inner_status, malformed, status_error
from batch_llm.providers.openai import refuses_sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.core.request import Message, Part, Request, Settings
    from batch_llm.exceptions import BadOutputError

_NAME = "The Responses format"
_ROLES = ("system", "developer", "user", "assistant")
#: Of a refusal that names no reason.
_UNNAMED = "no reason was given"


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Part(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str | None = None
    content: list[_Part] | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    status: str | None = None
    output: list[_Item] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: Any = None
    incomplete_details: _Incomplete | None = None


_decode = msgspec.json.Decoder(_Response).decode


@dataclass(frozen=True, slots=True)
class ResponsesCodec(Codec):
    """The Responses format.

    Attributes:
        thinks: Whether models whose names say so refuse sampling settings, as OpenAI's do.
    """

    thinks: bool = True

    _answer_name = "a response"
    _answer_fields = frozenset({"output", "error", "status"})
    _read = staticmethod(_decode)

    def path(self, model: str, /) -> str:  # noqa: ARG002
        """Return the path of a model's calls: the same for all."""
        return "/responses"

    def _body(
        self, request: Request, attempt: int, model: str, feedback: BadOutputError | None, /
    ) -> dict[str, Any]:
        settings = request.settings
        if settings.seed is not None:
            raise UnsupportedRequestError(_NAME, "a seed")
        if settings.stop is not None:
            raise UnsupportedRequestError(_NAME, "stop sequences")
        messages = [_wire_message(message) for message in request.messages]
        if feedback is not None:
            messages += correction(feedback)
        body: dict[str, Any] = {"model": model, "input": messages, "store": False}
        temperature, top_p = settings.temperature_for(attempt), settings.top_p
        further = _further_fields(settings)
        if (temperature is not None or top_p is not None) and self.thinks:
            reasoning = further.get("reasoning")
            effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
            if refuses_sampling(model, effort):
                temperature = top_p = None
        if temperature is not None:
            body["temperature"] = temperature
        if top_p is not None:
            body["top_p"] = top_p
        length = settings.longest_answer
        if length is not None:
            body["max_output_tokens"] = length
        body.update(further)
        if request.output is not None:
            shape: dict[str, Any] = {
                "type": "json_schema",
                "name": request.output.name,
                "schema": request.output.schema,
            }
            if request.output.is_strict is not None:
                shape["strict"] = request.output.is_strict
            text = body.get("text")
            body["text"] = (text if isinstance(text, dict) else {}) | {"format": shape}
        return body

    @staticmethod
    def _read_fields(raw: dict[str, Any], /) -> _Response:
        items = []
        output = raw.get("output")
        for one in output if isinstance(output, list) else ():
            if isinstance(one, dict):
                content = one.get("content")
                parts = [
                    _Part(*(text_of(part.get(name)) for name in _Part.__struct_fields__))
                    for part in (content if isinstance(content, list) else ())
                    if isinstance(part, dict)
                ]
                items.append(_Item(text_of(one.get("type")), parts))
        usage = raw.get("usage")
        details = raw.get("incomplete_details")
        return _Response(
            text_of(raw.get("status")),
            items,
            _usage_of(usage) if isinstance(usage, dict) else None,
            text_of(raw.get("model")),
            raw.get("error"),
            _Incomplete(text_of(details.get("reason"))) if isinstance(details, dict) else None,
        )

    def _outcome(
        self,
        response: _Response,
        headers: Mapping[str, str],
        answer: bytes,
        request: Request,
        secret: str,
        /,
    ) -> Outcome:
        usage, model = _usage(response.usage), response.model
        if response.error or response.status in {"failed", "cancelled"}:
            inner = status_error(inner_status(response.error), headers, answer, secret)
            return Outcome(usage=usage, error=inner, model=model)
        text, refusal, has_calls = _said(response.output or [])
        reason = response.incomplete_details.reason if response.incomplete_details else None
        error: Exception
        if refusal is not None:
            error = RefusedError(refusal or _UNNAMED)
        elif reason == "content_filter":
            error = ContentFilteredError()
        elif reason == "max_output_tokens":
            error = TruncatedError(text or "", request.settings.longest_answer)
        elif response.status == "incomplete":
            error = malformed(f"The answer is incomplete ({reason})"[:80], answer, secret)
        elif text is None and has_calls and request.output is None:
            return Outcome(_calls(answer), usage, None, model)
        elif text is None:
            error = malformed("The answer is without content", answer, secret)
        else:
            return answered(text, usage, model, request)
        return Outcome(usage=usage, error=error, model=model)


RESPONSES = ResponsesCodec()


def _further_fields(settings: Settings) -> dict[str, Any]:
    """Return the fields that go out as they are; the effort has another place than in chat."""
    if not settings.extra:
        return {}
    further = other_fields(settings)
    if "reasoning_effort" in further:
        effort = {"effort": further.pop("reasoning_effort")}
        reasoning = further.get("reasoning")
        further["reasoning"] = effort | (reasoning if isinstance(reasoning, dict) else {})
    return further


def _wire_message(message: Message) -> dict[str, Any]:
    role, content = message.role, message.content
    if role not in _ROLES:
        raise UnsupportedRequestError(_NAME, f"a message of the role {role[:40]!r}")
    if message.extra.get("tool_calls"):
        raise UnsupportedRequestError(_NAME, "tool calls in a message")
    if isinstance(content, tuple):
        return {"role": role, "content": [_wire_part(part, role) for part in content]}
    return {"role": role, "content": content or ""}


def _wire_part(part: Part, role: str) -> Mapping[str, Any]:
    if isinstance(part, Text):
        kind = "output_text" if role == "assistant" else "input_text"
        return {"type": kind, "text": part.text}
    if isinstance(part, Image):
        return {"type": "input_image", "image_url": part.url, "detail": part.detail or "auto"}
    return part.data


def _said(items: list[_Item]) -> tuple[str | None, str | None, bool]:
    """Return an answer's text and its refusal, None where there is none; and if tools are called.

    What was thought is no part of the text.
    """
    text = refusal = None
    has_calls = False
    for item in items:
        if item.type == "message":
            for part in item.content or ():
                if part.type == "output_text":
                    text = (text or "") + (part.text or "")
                elif part.type == "refusal":
                    refusal = (refusal or "") + (part.refusal or "")
        elif item.type is not None and item.type.endswith("_call"):
            has_calls = True
    return text, refusal, has_calls


def _calls(answer: bytes) -> list[Any]:
    items = msgspec.json.decode(answer)["output"]
    return [item for item in items if str(item.get("type")).endswith("_call")]


def _usage_of(raw: dict[str, Any]) -> _Usage:
    sent, got = raw.get("input_tokens_details"), raw.get("output_tokens_details")
    of_input = sent if isinstance(sent, dict) else {}
    of_output = got if isinstance(got, dict) else {}
    return _Usage(
        count_of(raw.get("input_tokens")),
        count_of(raw.get("output_tokens")),
        _InputDetails(
            count_of(of_input.get("cached_tokens")), count_of(of_input.get("cache_write_tokens"))
        ),
        _OutputDetails(count_of(of_output.get("reasoning_tokens"))),
    )


def _usage(usage: _Usage | None) -> dict[str, int] | None:
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    of_input = usage.input_tokens_details or _InputDetails()
    of_output = usage.output_tokens_details or _OutputDetails()
    return usage_by_kind(
        usage.input_tokens or 0,
        usage.output_tokens or 0,
        read=of_input.cached_tokens,
        written=of_input.cache_write_tokens,
        thought=of_output.reasoning_tokens,
    )
