"""The Anthropic Messages codec (``POST /v1/messages``).

Shapes: the API reference and what the official SDK reads. An answer may come as JSON or, where a
long one was asked for, as a stream of events: the provider wants those streamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.core.request import Image, Text
from batch_llm.core.usage import count_of, usage_by_kind
from batch_llm.exceptions import (
    ContextLengthError,
    RefusedError,
    TruncatedError,
    UnsupportedRequestError,
)
from batch_llm.providers.base import Outcome
from batch_llm.providers.codec import (
    Codec,
    answered,
    complaint,
    other_fields,
    stops,
    system_apart,
    text_of,
    to_json,
)
from batch_llm.providers.data_urls import split_data_url
from batch_llm.providers.failures import inner_status, malformed, status_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.core.request import Message, Part, Request
    from batch_llm.core.schema import OutputSchema
    from batch_llm.exceptions import BadOutputError

#: The version of the format, sent with each call.
VERSION = "2026-10-21"
#: The length that is asked for where the request names none; the format wants one. Unused length
#: costs nothing, and is not counted against limits.
DEFAULT_LENGTH = 16_384
#: Of the models of the third generation.
_OLD_DEFAULT_LENGTH = 4096
#: Room for the answer beside what is thought.
_LENGTH_AFTER_THINKING = 4096
#: Longer answers may take over ten minutes (an hour for 128,000 tokens), and are streamed, so that
#: the connection is never silent for so long.
LONGEST_UNSTREAMED = 21_333
_NAME = "The Messages format"
#: Models that refuse temperature and top_p.
_WITHOUT_SAMPLING = (
    *("claude-fable-5", "claude-mythos-5", "claude-opus-4-7", "claude-opus-4-8"),
    *("claude-opus-5", "claude-sonnet-5", "claude-haiku-5-5"),
)
#: Models that write by a schema. Others are given a tool that takes it.
_WITH_SCHEMAS = (
    *_WITHOUT_SAMPLING,
    *("claude-haiku-4-5", "claude-sonnet-4-5", "claude-sonnet-4-6", "claude-opus-4-1"),
    *("claude-opus-4-5", "claude-opus-4-6"),
)
#: Models that refuse to be told which tool to use.
_WITHOUT_FORCED_TOOLS = (
    *("claude-fable-5-1", "claude-mythos-5-1", "claude-opus-5-5", "claude-sonnet-5-5"),
)
_USE_TOOL = "Give the answer by calling this tool, once."
#: Of a refusal that names no reason.
_UNNAMED = "no reason was given"


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _OutputDetails | None = None


class _Block(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"")


class _StopDetails(msgspec.Struct):
    category: str | None = None
    explanation: str | None = None


class _Message(msgspec.Struct):
    content: list[_Block] | None = None
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: Any = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    partial_json: str = ""


class _BlockDelta(msgspec.Struct, tag="content_block_delta"):
    delta: _Delta
    index: int | None = None


class _BlockStart(msgspec.Struct, tag="content_block_start"):
    content_block: dict[str, Any]
    index: int | None = None


class _MessageStart(msgspec.Struct, tag="message_start"):
    message: dict[str, Any]


class _MessageDelta(msgspec.Struct, tag="message_delta"):
    delta: dict[str, Any] = msgspec.field(default_factory=dict)
    usage: dict[str, Any] | None = None


class _StreamError(msgspec.Struct, tag="error"):
    error: Any = None


class _BlockStop(msgspec.Struct, tag="content_block_stop"):
    """Says nothing new."""


class _MessageStop(msgspec.Struct, tag="message_stop"):
    """Says nothing new."""


class _Ping(msgspec.Struct, tag="ping"):
    """Says nothing at all."""


_Event = (
    _BlockDelta
    | _BlockStart
    | _MessageStart
    | _MessageDelta
    | _StreamError
    | _BlockStop
    | _MessageStop
    | _Ping
)
#: Where the pieces of a block are while it grows; no field of the format.
_TEXTS, _WRITTEN = "\0text", "\0input"

_decode_event = msgspec.json.Decoder(_Event).decode
_decode_events = msgspec.json.Decoder(list[_Event]).decode
_decode = msgspec.json.Decoder(_Message).decode


@dataclass(frozen=True, slots=True)
class MessagesCodec(Codec):
    """The Messages format."""

    _answer_name = "a message"
    _answer_fields = frozenset({"content", "error"})
    _read = staticmethod(_decode)

    def path(self, model: str, /) -> str:  # noqa: ARG002
        """Return the path of a model's calls: the same for all."""
        return "/messages"

    def _body(
        self, request: Request, attempt: int, model: str, feedback: BadOutputError | None, /
    ) -> dict[str, Any]:
        settings = request.settings
        if settings.seed is not None:
            raise UnsupportedRequestError(_NAME, "a seed")
        of_system, others = system_apart(request.messages)
        system = [block for message in of_system for block in _blocks(message)]
        messages = [_wire_message(message) for message in others]
        if feedback is not None:
            messages += [
                {"role": "assistant", "content": feedback.text.rstrip() or "(nothing)"},
                {"role": "user", "content": complaint(feedback)},
            ]
        thinking = _thinking(settings.extra)
        length = settings.longest_answer
        if length is None:
            is_old = model.startswith("claude-3-")
            length = _OLD_DEFAULT_LENGTH if is_old else DEFAULT_LENGTH
            length = max(length, thinking + _LENGTH_AFTER_THINKING if thinking else 0)
        body: dict[str, Any] = {"model": model, "max_tokens": length, "messages": messages}
        if length > LONGEST_UNSTREAMED:
            body["stream"] = True
        if system:
            is_plain = len(system) == 1 and system[0].keys() == {"type", "text"}
            body["system"] = system[0]["text"] if is_plain else system
        if thinking is None and not model.startswith(_WITHOUT_SAMPLING):
            temperature = settings.temperature_for(attempt)
            if temperature is not None:
                body["temperature"] = temperature
            if settings.top_p is not None:
                body["top_p"] = settings.top_p
        ends = stops(settings)
        if ends is not None:
            body["stop_sequences"] = ends
        if settings.extra:
            body.update(other_fields(settings))
        if request.output is not None:
            _ask_for(request.output, body, model, is_thinking=thinking is not None)
        return body

    @staticmethod
    def _read_fields(raw: dict[str, Any], /) -> _Message:
        content = raw.get("content")
        blocks = None
        if isinstance(content, list):
            blocks = [
                _Block(
                    text_of(one.get("type")),
                    text_of(one.get("text")),
                    text_of(one.get("name")),
                    msgspec.Raw(to_json(one.get("input"))),
                )
                for one in content
                if isinstance(one, dict)
            ]
        usage, details = raw.get("usage"), raw.get("stop_details")
        return _Message(
            blocks,
            text_of(raw.get("stop_reason")),
            _StopDetails(text_of(details.get("category")), text_of(details.get("explanation")))
            if isinstance(details, dict)
            else None,
            _usage_of(usage) if isinstance(usage, dict) else None,
            text_of(raw.get("model")),
            raw.get("error"),
        )

    def _outcome(
        self,
        message: _Message,
        headers: Mapping[str, str],
        answer: bytes,
        request: Request,
        secret: str,
        /,
    ) -> Outcome:
        usage, model = _usage(message.usage), message.model
        if message.error:
            inner = status_error(
                inner_status(message.error), headers, answer, secret, message.error
            )
            return Outcome(usage=usage, error=inner, model=model)
        text, value, has_tools = _said(message.content or [], request.output)
        reason = message.stop_reason
        error: Exception
        if reason == "refusal":
            details = message.stop_details or _StopDetails()
            error = RefusedError(details.explanation or details.category or _UNNAMED)
        elif reason == "max_tokens":
            error = TruncatedError(text or "", request.settings.longest_answer)
        elif reason == "model_context_window_exceeded":
            error = ContextLengthError(text or "")
        elif message.content is None or (reason is None and not message.content):
            error = malformed("The answer is without content", answer, secret)
        elif value is not None:
            return answered(value, usage, model, request)
        elif text is None and has_tools and request.output is None:
            return Outcome(_calls(answer), usage, None, model)
        elif reason == "pause_turn":
            error = malformed("The answer was paused before its end", answer, secret)
        elif reason is None:
            error = malformed("The answer broke off before its end", answer, secret)
        else:
            return answered(text or "", usage, model, request)
        return Outcome(usage=usage, error=error, model=model)

    def document(self, body: bytes, /) -> bytes:
        """Return the message that a stream of events makes; any other body as it is."""
        is_stream = body.startswith((b"event:", b"data:", b":"))
        return _joined(body) if is_stream else body


MESSAGES = MessagesCodec()


def _thinking(extra: Mapping[str, Any]) -> int | None:
    """Return how many tokens may be thought, 0 where the model decides; None without thinking."""
    thinking = extra.get("thinking")
    if not isinstance(thinking, dict) or thinking.get("type") in {None, "disabled"}:
        return None
    budget = thinking.get("budget_tokens")
    return budget if type(budget) is int else 0


def _ask_for(output: OutputSchema, body: dict[str, Any], model: str, *, is_thinking: bool) -> None:
    """Ask for an answer by a schema: as the format of the text, else as the input of a tool."""
    if output.is_strict and model.startswith(_WITH_SCHEMAS):
        config = body.get("output_config")
        shape = {"type": "json_schema", "schema": output.schema}
        body["output_config"] = (config if isinstance(config, dict) else {}) | {"format": shape}
        return
    tools = body.get("tools")
    tool = {"name": output.name, "description": _USE_TOOL, "input_schema": output.schema}
    body["tools"] = [*(tools if isinstance(tools, list) else ()), tool]
    is_free = is_thinking or model.startswith(_WITHOUT_FORCED_TOOLS)
    body["tool_choice"] = {"type": "auto"} if is_free else {"type": "tool", "name": output.name}


def _wire_message(message: Message) -> dict[str, Any]:
    if message.role not in {"user", "assistant"}:
        raise UnsupportedRequestError(_NAME, f"a message of the role {message.role[:40]!r}")
    if message.extra.get("tool_calls"):
        raise UnsupportedRequestError(_NAME, "tool calls in the shape of chat completions")
    content = message.content
    if isinstance(content, tuple):
        return {"role": message.role, "content": [_block(part) for part in content]}
    return {"role": message.role, "content": content or ""}


def _blocks(message: Message) -> list[Mapping[str, Any]]:
    content = message.content
    if isinstance(content, tuple):
        return [_block(part) for part in content]
    return [{"type": "text", "text": content}] if content else []


def _block(part: Part) -> Mapping[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        held = split_data_url(part.url)
        if held is None:
            return {"type": "image", "source": {"type": "url", "url": part.url}}
        source = {"type": "base64", "media_type": held.media_type, "data": held.base64}
        return {"type": "image", "source": source}
    return part.data


def _said(blocks: list[_Block], output: OutputSchema | None) -> tuple[str | None, str | None, bool]:
    """Return an answer's text, the JSON that it gave to our tool, and if it calls any tool."""
    text = value = None
    has_tools = False
    for block in blocks:
        if block.type == "text":
            text = (text or "") + (block.text or "")
        elif block.type == "tool_use":
            has_tools = True
            if output is not None and block.name == output.name and value is None:
                value = bytes(block.input).decode("utf-8", "replace")
    return text, value, has_tools


def _calls(answer: bytes) -> list[Any]:
    content = msgspec.json.decode(answer)["content"]
    return [block for block in content if block.get("type") == "tool_use"]


def _joined(stream: bytes) -> bytes:
    """Return the message that a stream of events makes, or the error that ended it, as JSON.

    The events: ``message_start``, ``content_block_start``, ``…_delta``, ``…_stop``,
    ``message_delta`` with the rest of the usage, ``message_stop``, ``ping`` and ``error``. Of a
    stream that breaks off, what was there; it has no ``stop_reason`` then.
    """
    lines = [line[5:] for line in stream.split(b"\n") if line.startswith(b"data:")]
    try:
        # At once: a long answer has thousands of events.
        events = _decode_events(b"[%b]" % b",".join(lines))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        events = _read_one_by_one(lines)
    message: dict[str, Any] = {}
    blocks: dict[Any, dict[str, Any]] = {}
    for event in events:
        if type(event) is _BlockDelta:
            if (block := blocks.get(event.index)) is not None:
                _extend(block, event.delta)
        elif type(event) is _BlockStart:
            blocks[event.index] = event.content_block
        elif type(event) is _MessageStart:
            message |= event.message
        elif type(event) is _MessageDelta:
            message |= event.delta
            if event.usage is not None:
                message["usage"] = (message.get("usage") or {}) | event.usage
        elif type(event) is _StreamError:
            message["error"] = event.error or True
    if not message:
        return b""
    message["content"] = [_finished(block) for block in blocks.values()]
    return to_json(message)


def _read_one_by_one(lines: list[bytes]) -> list[_Event]:
    """Read events up to the one that is broken off, without those of a shape that nobody knows."""
    events = []
    for line in lines:
        try:
            events.append(_decode_event(line))
        except msgspec.ValidationError:
            continue
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            break
    return events


def _extend(block: dict[str, Any], delta: _Delta) -> None:
    if delta.type == "text_delta":
        block.setdefault(_TEXTS, []).append(delta.text)
    elif delta.type == "input_json_delta":
        block.setdefault(_WRITTEN, []).append(delta.partial_json)


def _finished(block: dict[str, Any]) -> dict[str, Any]:
    """Return a block whose pieces are joined; its input stays as it is where it is no JSON."""
    if texts := block.pop(_TEXTS, None):
        block["text"] = "".join((block.get("text") or "", *texts))
    if written := "".join(block.pop(_WRITTEN, ())):
        try:
            msgspec.json.decode(written)
            block["input"] = msgspec.Raw(written.encode())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            block["input"] = written
    return block


def _usage_of(raw: dict[str, Any]) -> _Usage:
    written, got = raw.get("cache_creation"), raw.get("output_tokens_details")
    of_cache = written if isinstance(written, dict) else {}
    of_output = got if isinstance(got, dict) else {}
    return _Usage(
        count_of(raw.get("input_tokens")),
        count_of(raw.get("output_tokens")),
        count_of(raw.get("cache_creation_input_tokens")),
        count_of(raw.get("cache_read_input_tokens")),
        _CacheCreation(count_of(of_cache.get("ephemeral_1h_input_tokens"))),
        _OutputDetails(count_of(of_output.get("thinking_tokens"))),
    )


def _usage(usage: _Usage | None) -> dict[str, int] | None:
    """Return the tokens by kind: the provider tells input without that from and to caches."""
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    hour = usage.cache_creation.ephemeral_1h_input_tokens if usage.cache_creation else None
    details = usage.output_tokens_details
    read, written, hour, thought = (
        None if count is None else max(0, count)
        for count in (read, written, hour, details.thinking_tokens if details else None)
    )
    if hour is not None:
        written = max(written or 0, hour)
    return usage_by_kind(
        max(0, usage.input_tokens or 0) + (read or 0) + (written or 0),
        max(0, usage.output_tokens or 0),
        read=read,
        written=written,
        written_1h=hour,
        thought=thought,
    )
