"""The OpenAI chat completions codec: request ↔ wire JSON. Pure functions, no network.

The wire format is OpenAI's (``POST /v1/chat/completions``), which most servers speak.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.core.request import Image, Message, OtherPart, Part, Request, Settings, Text
from batch_llm.core.schema import OutputSchema
from batch_llm.exceptions import (
    BadOutputError,
    ContentFilteredError,
    MalformedResponseError,
    RefusedError,
    StatusError,
    TruncatedError,
)
from batch_llm.providers.base import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXCERPT = 200
_SETTINGS = ("temperature", "top_p", "seed")


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Answer
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None
    model: str | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Completion).decode
_encode = msgspec.json.Encoder().encode


def encode(
    request: Request,
    *,
    attempt: int = 1,
    model: str | None = None,
    feedback: BadOutputError | None = None,
    max_tokens_field: str = "max_completion_tokens",
) -> bytes:
    """Return the body of a call.

    Args:
        request: What to ask.
        attempt: The attempt's number, from 1: it picks the temperature.
        model: The model's name on the wire; default: ``request.model`` without its provider.
        feedback: Why the answer before did not fit: the model is shown it and told.
        max_tokens_field: What the server calls the limit; ``max_tokens`` on older ones.
    """
    settings = request.settings
    body: dict[str, Any] = {
        "model": model if model is not None else request.model.partition(":")[2],
        "messages": [_wire_message(message) for message in request.messages],
    }
    if feedback is not None:
        body["messages"] += [
            {"role": "assistant", "content": feedback.text},
            {
                "role": "user",
                "content": f"Your answer cannot be used: {feedback.problem}. "
                "Answer again, with nothing but the corrected answer.",
            },
        ]
    temperature = settings.temperature_for(attempt)
    if temperature is not None:
        body["temperature"] = temperature
    if settings.max_tokens is not None:
        body[max_tokens_field] = settings.max_tokens
    if settings.top_p is not None:
        body["top_p"] = settings.top_p
    if settings.seed is not None:
        body["seed"] = settings.seed
    if settings.stop is not None:
        body["stop"] = list(settings.stop)
    if request.output is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": request.output.name,
                "schema": request.output.schema,
                "strict": request.output.is_strict,
            },
        }
    if settings.extra:
        body.update(settings.extra)
    return _encode(body)


def _wire_message(message: Message) -> dict[str, Any]:
    content = message.content
    wire: dict[str, Any] = {
        "role": message.role,
        "content": [_wire_part(part) for part in content]
        if isinstance(content, tuple)
        else content,
    }
    if message.extra:
        wire.update(message.extra)
    return wire


def _wire_part(part: Part) -> Mapping[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        image = {"url": part.url} | ({"detail": part.detail} if part.detail is not None else {})
        return {"type": "image_url", "image_url": image}
    return part.data


def read(body: Mapping[str, Any], provider: str) -> Request:
    """Return the request that a wire body makes: the inverse of ``encode``.

    Fields that a request does not model are kept in its ``extra`` and go out again as they came.

    Raises:
        ValueError: ``messages`` or ``model`` is missing or of the wrong kind.
    """
    fields = dict(body)
    model, messages = fields.pop("model", None), fields.pop("messages", None)
    if not isinstance(model, str) or not model:
        raise ValueError("the body has no `model`")
    if not isinstance(messages, list) or not messages:
        raise ValueError("the body has no `messages`")
    found: dict[str, Any] = {}
    for name in _SETTINGS:
        if isinstance(fields.get(name), int | float) and not isinstance(fields[name], bool):
            found[name] = fields.pop(name)
    for name in ("max_completion_tokens", "max_tokens"):
        if name == "max_completion_tokens" and isinstance(fields.get(name), int):
            found["max_tokens"] = fields.pop(name)
    stop = fields.get("stop")
    if isinstance(stop, list) and all(isinstance(one, str) for one in stop):
        found["stop"] = tuple(fields.pop("stop"))
    output = _read_output(fields)
    return Request(
        f"{provider}:{model}",
        tuple(_read_message(message) for message in messages),
        Settings(**found, extra=fields),
        output,
    )


def _read_output(fields: dict[str, Any]) -> OutputSchema | None:
    """Take the schema out of the fields, if it would be written again just as it is."""
    shape = fields.get("response_format")
    if not isinstance(shape, dict) or set(shape) != {"type", "json_schema"}:
        return None
    inner = shape["json_schema"]
    if shape["type"] != "json_schema" or not isinstance(inner, dict):
        return None
    if not isinstance(inner.get("schema"), dict) or not isinstance(inner.get("name"), str):
        return None
    try:
        output = OutputSchema.json_schema({"title": inner["name"]} | inner["schema"])
    except ValueError:
        return None
    return output if fields.pop("response_format") else None


def _read_message(message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError("a message has no `role`")  # noqa: TRY004 - bad input, not a bug
    extra = {name: value for name, value in message.items() if name not in {"role", "content"}}
    content = message.get("content")
    if isinstance(content, list):
        return Message(message["role"], tuple(_read_part(part) for part in content), extra)
    if content is not None and not isinstance(content, str):
        raise ValueError("a message's `content` must be text or a list of parts")
    return Message(message["role"], content, extra)


def _read_part(part: Any) -> Part:
    if not isinstance(part, dict):
        raise ValueError("a content part must be an object")  # noqa: TRY004 - bad input, not a bug
    kind = part.get("type")
    if kind == "text" and set(part) == {"type", "text"} and isinstance(part["text"], str):
        return Text(part["text"])
    image = part.get("image_url")
    if (
        kind == "image_url"
        and set(part) == {"type", "image_url"}
        and isinstance(image, dict)
        and set(image) <= {"url", "detail"}
        and isinstance(image.get("url"), str)
        and isinstance(image.get("detail", ""), str)
    ):
        return Image(image["url"], image.get("detail"))
    return OtherPart(part)


def decode(status: int, headers: Mapping[str, str], body: bytes, request: Request) -> Outcome:
    """Read an answer. What is wrong with it is in the outcome, together with what it cost."""
    if status >= 400:
        return Outcome(error=_status_error(status, headers, body))
    try:
        completion = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Outcome(error=_malformed("The answer is not a chat completion", body))
    if completion.error is not None:  # some routers send their errors inside a 200
        inner = completion.error if isinstance(completion.error, dict) else {}
        code = inner.get("code")
        inner_status = code if isinstance(code, int) and 400 <= code <= 599 else 500
        return Outcome(error=_status_error(inner_status, headers, body))
    usage = _usage(completion.usage)
    if not completion.choices:
        error: Exception = _malformed("The answer has no choices", body)
        return Outcome(usage=usage, error=error, model=completion.model)
    choice = completion.choices[0]
    text, reason = choice.message.content, choice.finish_reason
    if choice.message.refusal:
        error = RefusedError(choice.message.refusal)
    elif reason == "content_filter":
        error = ContentFilteredError()
    elif reason == "length":
        error = TruncatedError(text or "", request.settings.max_tokens)
    elif text is None:
        error = _malformed("The answer has no content", body)
    else:
        try:
            output = text if request.output is None else request.output.parse(text)
        except BadOutputError as bad:
            return Outcome(usage=usage, error=bad, model=completion.model)
        return Outcome(output, usage, None, completion.model)
    return Outcome(usage=usage, error=error, model=completion.model)


def _usage(usage: _Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    sent, got = usage.prompt_tokens or 0, usage.completion_tokens or 0
    found = {"input_tokens": sent, "output_tokens": got, "total_tokens": sent + got}
    if (details := usage.prompt_tokens_details) is not None:
        if details.cached_tokens:
            found["cache_read_tokens"] = details.cached_tokens
        if details.cache_write_tokens:
            found["cache_write_tokens"] = details.cache_write_tokens
    if (spent := usage.completion_tokens_details) is not None and spent.reasoning_tokens:
        found["reasoning_tokens"] = spent.reasoning_tokens
    return found


def _malformed(reason: str, body: bytes) -> MalformedResponseError:
    return MalformedResponseError(reason, body[:_EXCERPT].decode("utf-8", "replace"))


def _status_error(status: int, headers: Mapping[str, str], body: bytes) -> StatusError:
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = body[: 10 * _EXCERPT].decode("utf-8", "replace")
    message, code = "", None
    if isinstance(decoded, dict):
        inner = decoded.get("error", decoded)
        if isinstance(inner, dict):
            message = str(inner.get("message") or "")
            code = inner.get("code") or inner.get("type")
        else:
            message = str(inner)
    else:
        message = str(decoded)[:_EXCERPT]
    return StatusError(
        status, message, str(code) if code is not None else None, dict(headers), decoded
    )
