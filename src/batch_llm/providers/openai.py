"""The OpenAI chat completions codec: request ↔ wire JSON. Pure functions, no network.

The wire format is OpenAI's (``POST /v1/chat/completions``), which most servers speak. Where calls
go and how is for ``registry`` and ``transport``; what an error means, for ``strategies``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batch_llm.core.request import Image, Message, OtherPart, Part, Request, Settings, Text
from batch_llm.core.schema import OutputSchema, is_wire_name
from batch_llm.exceptions import (
    BadOutputError,
    ConfigError,
    ContentFilteredError,
    MalformedResponseError,
    RefusedError,
    StatusError,
    TruncatedError,
)
from batch_llm.providers.base import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXCERPT_CHARACTERS = 200
_MAX_KEPT_BODY_BYTES = 100_000
#: What looks like a key, wherever a server repeats it.
_KEY_LIKE = re.compile(
    rb"(?<![A-Za-z0-9])(sk|rk|pk|gsk|xai)-[A-Za-z0-9_*-]{8,}|(?<=Bearer )[^\s\"]{8,}"
)
_HIDDEN = b"[key]"
#: Shorter ones are placeholders for servers that want any key; they may be ordinary words.
_MIN_SECRET_CHARACTERS = 8
_NUMBERS: Final = {"temperature": (int, float), "top_p": (int, float), "seed": (int,)}


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    message: _Answer | None = None
    finish_reason: str | None = None
    error: Any = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
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
            },
        }
        if request.output.is_strict is not None:
            body["response_format"]["json_schema"]["strict"] = request.output.is_strict
    if settings.extra:
        body.update(settings.extra)
    return _encode(body)


def _wire_message(message: Message) -> dict[str, Any]:
    content = message.content
    wire: dict[str, Any] = {"role": message.role}
    if isinstance(content, tuple):
        wire["content"] = [_wire_part(part) for part in content]
    elif content is not None:
        wire["content"] = content
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


def read(body: Mapping[str, Any] | bytes, provider: str) -> Request:
    """Return the request that a wire body makes: the inverse of ``encode``.

    Nothing is lost: what a request does not model is kept in ``extra`` and goes out again as it
    came. A limit called ``max_tokens`` (its old name) stays in ``extra`` under that name.

    Raises:
        ValueError: The body is no JSON object, or ``messages`` or ``model`` is missing or of the
            wrong kind.
    """
    if isinstance(body, bytes):
        try:
            body = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise ValueError("the body must be an object")  # noqa: TRY004 - bad input, not a bug
    fields = dict(body)
    model, messages = fields.pop("model", None), fields.pop("messages", None)
    if not isinstance(model, str) or not model:
        raise ValueError("the body has no `model`")
    if not isinstance(messages, list) or not messages:
        raise ValueError("the body has no `messages`")
    found: dict[str, Any] = {}
    for name, kinds in _NUMBERS.items():
        if type(fields.get(name)) in kinds:
            found[name] = fields.pop(name)
    if type(fields.get("max_completion_tokens")) is int:
        found["max_tokens"] = fields.pop("max_completion_tokens")
    stop = fields.get("stop")
    if isinstance(stop, list) and all(isinstance(one, str) for one in stop):
        found["stop"] = tuple(fields.pop("stop"))
    output = _read_output(fields.get("response_format"))
    if output is not None:
        del fields["response_format"]
    return Request(
        f"{provider}:{model}",
        tuple(_read_message(message) for message in messages),
        Settings(**found, extra=fields),
        output,
    )


def _read_output(shape: Any) -> OutputSchema | None:
    """Return the schema, if it would be written again just as it is."""
    if not isinstance(shape, dict) or shape.keys() != {"type", "json_schema"}:
        return None
    inner = shape["json_schema"]
    if shape["type"] != "json_schema" or not isinstance(inner, dict):
        return None
    if not inner.keys() <= {"name", "schema", "strict"} or not is_wire_name(inner.get("name")):
        return None
    strict = inner.get("strict")
    if not isinstance(inner.get("schema"), dict) or ("strict" in inner) != isinstance(strict, bool):
        return None
    try:
        return OutputSchema.json_schema(inner["schema"], inner["name"], is_strict=strict)
    except ConfigError:  # the provider will say what is wrong with it
        return None


def _read_message(message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError("a message has no `role`")  # noqa: TRY004 - bad input, not a bug
    extra = {name: value for name, value in message.items() if name not in {"role", "content"}}
    content = message.get("content")
    if isinstance(content, list):
        return Message(message["role"], tuple(_read_part(part) for part in content), extra)
    if content is None:
        if "content" in message:
            extra["content"] = None  # null is not the same as nothing
    elif not isinstance(content, str):
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


def decode(
    status: int, headers: Mapping[str, str], body: bytes, request: Request, *, secret: str = ""
) -> Outcome:
    """Read an answer. What is wrong with it is in the outcome, together with what it cost.

    The output is the text, or what the request's schema makes of it; the list of tool calls, as
    on the wire, when the model answered with those.

    Args:
        status: The HTTP status.
        headers: Looked at only when something is wrong.
        body: As it came.
        request: What was asked.
        secret: The key that was sent: no error repeats it, whatever the server says.
    """
    if not 200 <= status < 300:
        return Outcome(error=_status_error(status, headers, body, secret))
    try:
        completion = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        salvaged = _salvaged(body)
        if salvaged is None:
            error: Exception = _malformed("The answer is not a chat completion", body, secret)
            return Outcome(error=error)
        completion = salvaged
    usage, model = _usage(completion.usage), completion.model
    choice = completion.choices[0] if completion.choices else None
    trouble = completion.error or (choice.error if choice is not None else None)
    if trouble:  # some routers send their errors inside a 200
        inner = _status_error(_inner_status(trouble), headers, body, secret, trouble)
        return Outcome(usage=usage, error=inner, model=model)
    if choice is None or choice.message is None:
        error = _malformed("The answer has no choices", body, secret)
        return Outcome(usage=usage, error=error, model=model)
    text, reason = choice.message.content, choice.finish_reason
    if choice.message.refusal:
        error = RefusedError(choice.message.refusal)
    elif reason == "content_filter":
        error = ContentFilteredError()
    elif reason == "length":
        error = TruncatedError(text or "", request.settings.max_tokens)
    elif text is None and choice.message.tool_calls and request.output is None:
        return Outcome(choice.message.tool_calls, usage, None, model)  # tools came with the request
    elif text is None:
        error = _malformed("The answer is without content", body, secret)
    elif request.output is None:
        return Outcome(text, usage, None, model)
    else:
        try:
            return Outcome(request.output.parse(text), usage, None, model)
        except BadOutputError as bad:
            error = bad
    return Outcome(usage=usage, error=error, model=model)


def _salvaged(body: bytes) -> _Completion | None:
    """Read an answer field by field, so that an odd one in a place of no matter spoils nothing."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(raw, dict) or raw.keys().isdisjoint({"choices", "error"}):
        return None
    choices = raw.get("choices")
    found = []
    for one in choices if isinstance(choices, list) else ():
        if isinstance(one, dict):
            reason, message = one.get("finish_reason"), one.get("message")
            answer = None
            if isinstance(message, dict):
                calls = message.get("tool_calls")
                answer = _Answer(
                    _text_of(message.get("content")),
                    _text_of(message.get("refusal")),
                    calls if isinstance(calls, list) else None,
                )
            found.append(_Choice(answer, _text_of(reason), one.get("error")))
    return _Completion(
        found, _usage_of(raw.get("usage")), _text_of(raw.get("model")), raw.get("error")
    )


def _text_of(value: Any) -> str | None:
    """Return a text, or the text in a list of parts (Mistral's way), or None."""
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, dict)]
        found = [text for text in texts if isinstance(text, str)]
        return "".join(found) if found else None
    return value if isinstance(value, str) else None


def _usage_of(raw: Any) -> _Usage | None:
    if not isinstance(raw, dict):
        return None
    return _Usage(
        _count(raw.get("prompt_tokens")),
        _count(raw.get("completion_tokens")),
        None,
        _details_of(raw.get("prompt_tokens_details")),
        _details_of(raw.get("completion_tokens_details")),
    )


def _details_of(raw: Any) -> _Details | None:
    if not isinstance(raw, dict):
        return None
    return _Details(*(_count(raw.get(name)) for name in _Details.__struct_fields__))


def _count(value: Any) -> int | None:
    is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    return int(value) if is_whole and value >= 0 else None


def _usage(usage: _Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    sent, got = usage.prompt_tokens, usage.completion_tokens
    if sent is None and got is None:
        return None
    sent, got = sent or 0, got or 0
    found = {"input_tokens": sent, "output_tokens": got, "total_tokens": sent + got}
    if (details := usage.prompt_tokens_details) is not None:
        if details.cached_tokens is not None:
            found["cache_read_tokens"] = details.cached_tokens
        if details.cache_write_tokens is not None:
            found["cache_write_tokens"] = details.cache_write_tokens
    if (
        spent := usage.completion_tokens_details
    ) is not None and spent.reasoning_tokens is not None:
        found["reasoning_tokens"] = spent.reasoning_tokens
    return found


def _malformed(reason: str, body: bytes, secret: str) -> MalformedResponseError:
    text = _without_keys(body, secret)[:_EXCERPT_CHARACTERS]
    return MalformedResponseError(reason, text.decode("utf-8", "replace"))


def _inner_status(trouble: Any) -> int:
    """Return the status that an error inside a 200 would have had outside."""
    fields = trouble if isinstance(trouble, dict) else {}
    named = [fields.get(name) for name in ("code", "status", "type")]
    for code in named:
        number = (
            int(code) if isinstance(code, str) and code.isdecimal() and len(code) == 3 else code
        )
        if type(number) is int and 400 <= number <= 599:
            return number
    if any(isinstance(code, str) and ("rate_limit" in code or "quota" in code) for code in named):
        return 429
    return 500


def _status_error(
    status: int, headers: Mapping[str, str], body: bytes, secret: str, trouble: Any = None
) -> StatusError:
    """Build the error of a body; ``trouble`` is its error object when that is not at the top."""
    body = _without_keys(body[:_MAX_KEPT_BODY_BYTES], secret)
    decoded: Any
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = body.decode("utf-8", "replace")
    message, code = "", None
    inner = decoded
    if isinstance(decoded, dict):
        inner = decoded.get("error") or (trouble if trouble is not None else decoded)
    if isinstance(inner, dict):
        message = str(inner.get("message") or "")
        code = inner.get("code") or inner.get("type")
    elif inner is not None:
        message = str(inner)[:_EXCERPT_CHARACTERS]
    if 300 <= status < 400 and not message:
        message = "the server redirects; the base URL is wrong"
    return StatusError(
        status, message, str(code) if code is not None else None, _plain(headers), decoded
    )


def _without_keys(body: bytes, secret: str) -> bytes:
    if len(secret) >= _MIN_SECRET_CHARACTERS:
        body = body.replace(secret.encode(), _HIDDEN)
    return _KEY_LIKE.sub(_HIDDEN, body)


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    """Copy headers to a dict of clean text: bytes that are none came as lone surrogates."""
    return {
        name.lower(): value.encode("utf-8", "replace").decode() for name, value in headers.items()
    }
