"""The OpenAI chat completions codec, and what its relatives do otherwise.

The wire format is OpenAI's (``POST /v1/chat/completions``), which most servers speak. Where they
differ (what the length's field is called, whether a schema is taken) is data of the codec.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from batch_llm.core.request import Image, Message, OtherPart, Part, Request, Settings, Text
from batch_llm.core.schema import OutputSchema, is_wire_name
from batch_llm.core.usage import count_of, usage_by_kind
from batch_llm.exceptions import (
    BadOutputError,
    ConfigError,
    ContentFilteredError,
    ContextLengthError,
    RefusedError,
    TruncatedError,
)
from batch_llm.providers.base import Outcome
from batch_llm.providers.codec import Codec, answered, correction, to_json
from batch_llm.providers.failures import inner_status, malformed, status_error

if TYPE_CHECKING:
    from collections.abc import Mapping

_NUMBERS: Final = {"temperature": (int, float), "top_p": (int, float), "seed": (int,)}
#: OpenAI's models that think unless they are told not to, and those that think when they are told
#: to: while they do, a call with a temperature is refused.
#: https://developers.openai.com/api/docs/guides/reasoning
_THINKS = re.compile(
    r"o[134]|gpt-[6-9]|gpt-5\.[5-9]|gpt-5\.1-codex|gpt-5\.[123]-chat|gpt-5\.[24]-pro"
    r"|gpt-5(?!\.|-chat)"
)
_MAY_THINK = re.compile(r"gpt-5\.")


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
    prompt_cache_hit_tokens: int | None = None


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


@dataclass(frozen=True, slots=True)
class ChatCodec(Codec):
    """The chat completions format, in the dialect of one provider.

    Attributes:
        length_field: What the bound of an answer's length is called.
        seed_field: What the seed is called.
        has_developers: Whether it knows the role ``developer``; else it is sent as ``system``.
        schemas: ``json_schema``: the schema is sent and enforced. ``json_object``: the server
            knows no schemas; it is told to write JSON, and the model is told the schema.
        thinks: Whether models whose names say so refuse sampling settings, as OpenAI's do.
    """

    length_field: str = "max_completion_tokens"
    seed_field: str = "seed"
    has_developers: bool = True
    schemas: Literal["json_schema", "json_object"] = "json_schema"
    thinks: bool = True

    _answer_name = "a chat completion"
    _answer_fields = frozenset({"choices", "error"})
    _read = staticmethod(_decode)

    def path(self, model: str, /) -> str:  # noqa: ARG002
        """Return the path of a model's calls: the same for all."""
        return "/chat/completions"

    def _body(
        self, request: Request, attempt: int, model: str, feedback: BadOutputError | None, /
    ) -> dict[str, Any]:
        settings, output = request.settings, request.output
        tells_schema = output is not None and self.schemas == "json_object"
        messages: Any = None
        if feedback is None and not tells_schema:
            messages = _plain.written(request.messages)
        if messages is None:
            messages = self._messages(request, feedback)
        body: dict[str, Any] = {"model": model, "messages": messages}
        temperature, top_p = settings.temperature_for(attempt), settings.top_p
        if (temperature is not None or top_p is not None) and self.thinks:
            effort = settings.extra.get("reasoning_effort")
            if refuses_sampling(model, effort):
                temperature = top_p = None
        if temperature is not None:
            body["temperature"] = temperature
        if settings.max_tokens is not None:
            body[self.length_field] = settings.max_tokens
        if top_p is not None:
            body["top_p"] = top_p
        if settings.seed is not None:
            body[self.seed_field] = settings.seed
        if settings.stop is not None:
            body["stop"] = list(settings.stop)
        if tells_schema:
            body["response_format"] = {"type": "json_object"}
        elif output is not None:
            body["response_format"] = _wire_output(output)
        if settings.extra:
            body.update(settings.extra)
        return body

    def _messages(self, request: Request, feedback: BadOutputError | None) -> list[dict[str, Any]]:
        messages = [_wire_message(message) for message in request.messages]
        if not self.has_developers:
            for message in messages:
                if message["role"] == "developer":
                    message["role"] = "system"
        if feedback is not None:
            messages += correction(feedback)
        if request.output is not None and self.schemas == "json_object":
            messages.insert(0, {"role": "system", "content": told_schema(request.output)})
        return messages

    @staticmethod
    def _read_fields(raw: dict[str, Any], /) -> _Completion:
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

    def _outcome(
        self,
        completion: _Completion,
        headers: Mapping[str, str],
        answer: bytes,
        request: Request,
        secret: str,
        /,
    ) -> Outcome:
        usage, model = _usage(completion.usage), completion.model
        choice = completion.choices[0] if completion.choices else None
        trouble = completion.error or (choice.error if choice is not None else None)
        if trouble:  # some routers send their errors inside a 200
            inner = status_error(inner_status(trouble), headers, answer, secret, trouble)
            return Outcome(usage=usage, error=inner, model=model)
        if choice is None or choice.message is None:
            error: Exception = malformed("The answer has no choices", answer, secret)
            return Outcome(usage=usage, error=error, model=model)
        text, reason = choice.message.content, choice.finish_reason
        if choice.message.refusal:
            error = RefusedError(choice.message.refusal)
        elif reason == "content_filter":
            error = ContentFilteredError()
        elif reason == "length":
            error = TruncatedError(text or "", request.settings.longest_answer)
        elif reason == "model_length":  # Mistral's
            error = ContextLengthError(text or "")
        elif reason == "error":
            error = status_error(500, headers, answer, secret, {"message": "the answer broke off"})
        elif text is None and choice.message.tool_calls and request.output is None:
            return Outcome(choice.message.tool_calls, usage, None, model)  # of the request's tools
        elif text is None:
            error = malformed("The answer is without content", answer, secret)
        else:
            return answered(text, usage, model, request)
        return Outcome(usage=usage, error=error, model=model)


class _Plain:
    """Messages of nothing but text, which all dialects write alike, as JSON.

    The last ones are kept: a request's are often written three times in a row, for the digests of
    what it asks and of what is sent, and to be sent.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: tuple[tuple[Message, ...], msgspec.Raw] = ((), msgspec.Raw(b"[]"))

    def written(self, messages: tuple[Message, ...]) -> msgspec.Raw | None:
        """Return them as JSON; None where there is anything else in them."""
        last, written = self._last
        if last is messages:
            return written
        if messages.__class__ is not tuple:  # it might be changed meanwhile
            return None
        wire = []
        for message in messages:
            role, content = message.role, message.content
            if message.extra or content.__class__ is not str or role == "developer":
                return None
            wire.append({"role": role, "content": content})
        written = msgspec.Raw(to_json(wire))
        self._last = messages, written
        return written


_plain = _Plain()

#: The format as its inventor speaks it.
CHAT = ChatCodec()


def refuses_sampling(model: str, effort: object) -> bool:
    """Tell whether OpenAI refuses a temperature for a model.

    Args:
        model: Its name on the wire.
        effort: The reasoning effort that was asked for; None leaves it to the model.
    """
    if effort == "none":
        return False
    thinks = _THINKS.match(model) is not None
    return thinks or (effort is not None and _MAY_THINK.match(model) is not None)


def told_schema(output: OutputSchema) -> str:
    """Return what a model is told of a schema that its server does not know."""
    schema = json.dumps(output.schema, ensure_ascii=False)
    return f"Answer with one JSON object, and nothing else, that fits this JSON schema:\n{schema}"


def _wire_output(output: OutputSchema) -> dict[str, Any]:
    shape: dict[str, Any] = {"name": output.name, "schema": output.schema}
    if output.is_strict is not None:
        shape["strict"] = output.is_strict
    return {"type": "json_schema", "json_schema": shape}


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
        count_of(raw.get("prompt_tokens")),
        count_of(raw.get("completion_tokens")),
        count_of(raw.get("total_tokens")),
        _details_of(raw.get("prompt_tokens_details")),
        _details_of(raw.get("completion_tokens_details")),
        count_of(raw.get("prompt_cache_hit_tokens")),
    )


def _details_of(raw: Any) -> _Details | None:
    if not isinstance(raw, dict):
        return None
    return _Details(*(count_of(raw.get(name)) for name in _Details.__struct_fields__))


def _usage(usage: _Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    sent, got = usage.prompt_tokens, usage.completion_tokens
    if sent is None and got is None:
        return None
    sent, got = max(0, sent or 0), max(0, got or 0)
    read, written, thought = usage.prompt_cache_hit_tokens, None, None  # DeepSeek's name
    if (details := usage.prompt_tokens_details) is not None:
        if details.cached_tokens is not None:
            read = details.cached_tokens
        written = details.cache_write_tokens
    if (spent := usage.completion_tokens_details) is not None:
        thought = spent.reasoning_tokens
    if thought and usage.total_tokens == sent + got + thought:  # xAI counts it beside the answer
        got += thought
    return usage_by_kind(
        sent,
        got,
        read=read,
        written=written,
        thought=thought,
    )
