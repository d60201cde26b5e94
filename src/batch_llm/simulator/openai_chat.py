"""OpenAI chat completions, as the service answers them. Values in, values out; no network.

Bodies, headers and wordings follow the API reference and what the official SDK reads. What its
other endpoints and its imitators share with it is here too.
"""

from __future__ import annotations

import json
import math
import re
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, ClassVar

from batch_llm.simulator.answers import count_tokens
from batch_llm.simulator.calls import JSON_OBJECT, Call, Tool, pick_tool
from batch_llm.simulator.completions import NO_SHARES, Choice, Completion, Shares, number
from batch_llm.simulator.fields import bearer, data_event, encode, fields_of, flag, whole_number
from batch_llm.simulator.refusals import (
    MISSING_MODEL,
    TROUBLING_KEYS,
    Excess,
    Flaw,
    Refusal,
    Trouble,
)
from batch_llm.simulator.wire import LISTED_MODELS, MODELS_CREATED, WireFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batch_llm.simulator.fields import Headers
    from batch_llm.simulator.limits import Limit

FINGERPRINT = "fp_simulator"
MAX_CHOICES = 128
#: What an image counts at low detail.
IMAGE_TOKENS = 85
_ROLES = ("system", "assistant", "user", "function", "tool", "developer")
_TIER = "default"
_KEY_PAGE = "https://platform.openai.com/account/api-keys"
#: Pieces of about four characters, as tokens are.
PIECES = re.compile(r"[\s\S]{1,4}")
_decode_json = json.JSONDecoder()
#: By one of these a schema in a message is known.
_MARKS_OF_SCHEMAS = frozenset({"type", "properties", "enum", "$ref", "anyOf", "const"})
#: Of each kind of limit: the error's ``type``, and how the message calls it.
_PER = {
    "requests": ("requests", "requests per min (RPM)"),
    "tokens": ("tokens", "tokens per min (TPM)"),
    "input_tokens": ("input_tokens", "input tokens per min (ITPM)"),
    "output_tokens": ("output_tokens", "output tokens per min (OTPM)"),
    "requests_a_day": ("requests", "requests per day (RPD)"),
}
_TOLD = ("limit", "remaining", "reset")
#: Of each kind of limit: the headers with the limit, what remains of it, and when it is whole.
LIMIT_HEADERS = {
    kind: [f"x-ratelimit-{what}-{kind.replace('_', '-')}" for what in _TOLD] for kind in _PER
}
_CONSTANT = [(b"openai-organization", b"org-simulator"), (b"openai-version", b"2020-10-01")]
_QUOTA_MESSAGE = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, read the docs: "
    "https://platform.openai.com/docs/guides/error-codes/api-errors."
)
_QUOTAS = {
    "insufficient_quota": _QUOTA_MESSAGE,
    "billing_hard_limit_reached": "Billing hard limit has been reached",
    "credit_balance_exhausted": "Your credit balance is exhausted. Add credits to go on.",
    "organization_spend_limit_exceeded": "Your organization has reached its spend limit.",
    "project_spend_limit_exceeded": "This project has reached its spend limit.",
    "organization_usage_limit_exceeded": "Your organization has reached its usage limit.",
}
_INVALID = "invalid_request_error"
_TROUBLES = {
    "no_key": Trouble(
        401,
        _INVALID,
        None,
        "You didn't provide an API key. You need to provide your API key in an Authorization "
        "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY). You can obtain an "
        f"API key from {_KEY_PAGE}.",
    ),
    "bad_key": Trouble(
        401,
        _INVALID,
        "invalid_api_key",
        f"Incorrect API key provided: invalid. You can find your API key at {_KEY_PAGE}.",
    ),
    "forbidden": Trouble(
        403,
        _INVALID,
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    "missing_model": Trouble(
        404,
        _INVALID,
        "model_not_found",
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    "wrong_method": Trouble(
        405,
        _INVALID,
        "method_not_supported",
        "Not allowed to {method} on {path} (HINT: Perhaps you meant another method)",
    ),
    "no_path": Trouble(404, _INVALID, None, "Invalid URL ({method} {path})"),
    "context": Trouble(
        400,
        _INVALID,
        "context_length_exceeded",
        "This model's maximum context length is {most} tokens. However, your messages resulted "
        "in {tokens} tokens. Please reduce the length of the messages.",
    ),
    "too_large": Trouble(413, _INVALID, None, "Request body is larger than {most} bytes."),
    "p408": Trouble(408, "timeout", None, "Request timed out."),
    "p500": Trouble(
        500,
        "server_error",
        None,
        "The server had an error while processing your request. Sorry about that!",
    ),
    "p503": Trouble(
        503,
        "service_unavailable",
        "server_is_overloaded",
        "The engine is currently overloaded, please try again later.",
    ),
    "p504": Trouble(504, "server_error", None, "The request timed out at the gateway."),
    "p529": Trouble(529, "overloaded", "overloaded", "Overloaded"),
    # In the words of Moonshot; OpenAI has no such limit.
    "busy": Trouble(
        429,
        "rate_limit_reached_error",
        None,
        "Your account org-simulator request reached max organization concurrency: {most}, "
        "please try again later",
    ),
}


class ChatCall(Call):
    """A chat call, checked and understood.

    Args:
        body: As it came.
        model: The name in the path, where it has one there.

    Attributes:
        streams_usage: Whether the pieces end with the usage.

    Raises:
        Flaw: The body is wrong.
    """

    __slots__ = ("streams_usage",)

    def __init__(self, body: bytes, model: str = "") -> None:
        fields = fields_of(body)
        self.model = model or model_name(fields)
        called = self._read_messages(_messages(fields))
        self.max_tokens = _max_tokens(fields)
        self.choices = 1
        self.cached_tokens = 0
        self.streams = self.streams_usage = False
        self.schema = self.tool = None
        # Most calls have none of these.
        if "n" in fields:
            self.choices = whole_number(fields, "n", most=MAX_CHOICES) or 1
        if "stream" in fields or "stream_options" in fields:
            self.streams, self.streams_usage = _streaming(fields)
        if "response_format" in fields:
            self.schema = _schema(fields)
            if self.schema is JSON_OBJECT:
                self.schema = _schema_told(fields["messages"])
        if "tools" in fields:
            self._read_tools(fields, called)

    def _read_messages(self, messages: list[Any]) -> list[str]:
        tokens = 3
        system = first = last = None
        called: list[str] = []
        for number_, message in enumerate(messages):
            role, text, images = _message(number_, message)
            tokens += count_tokens(text) + images * IMAGE_TOKENS
            if role == "user":
                first, last = text if first is None else first, text
            elif role in {"system", "developer"} and system is None:
                system = text
            elif "tool_calls" in message:
                called += _names_called(message["tool_calls"])
        self.conversation = f"{self.model}\x00{system or ''}\x00{first or ''}"
        self.prompt = last or ""
        self.input_tokens = tokens
        return called

    def _read_tools(self, fields: dict[str, Any], called: Sequence[str]) -> None:
        tools = [_tool(number_, tool) for number_, tool in enumerate(_tools(fields))]
        choice = fields.get("tool_choice") or "auto"
        if isinstance(choice, dict):
            function = choice.get("function")
            name = function.get("name") if isinstance(function, dict) else None
            tools = [tool for tool in tools if tool.name == name]
            if not tools:
                message = f"Tool choice '{name}' not found in 'tools' parameter."
                raise Flaw("other", "tool_choice", message=message)
        is_due = choice in {"required", "any"} if isinstance(choice, str) else True
        if choice == "none":
            return
        picked = pick_tool(tools, called, self.prompt, is_due=is_due)
        if picked is not None:
            self.tool, self.schema = picked


def model_name(fields: dict[str, Any]) -> str:
    """Return the model's name in a body."""
    model = fields.get("model")
    if model is None or model == "":
        raise Flaw("other", message="you must provide a model parameter")
    if not isinstance(model, str):
        raise Flaw("type", "model", "a string", model)
    return model


def _messages(fields: dict[str, Any]) -> list[Any]:
    messages = fields.get("messages")
    if messages is None:
        raise Flaw("missing", "messages")
    if not isinstance(messages, list):
        raise Flaw("type", "messages", "an array of objects", messages)
    if not messages:
        raise Flaw("empty", "messages")
    return messages


def _message(number_: int, message: Any) -> tuple[str, str, int]:
    if not isinstance(message, dict):
        raise Flaw("type", f"messages[{number_}]", "an object", message)
    role = message.get("role")
    if role is None:
        raise Flaw("missing", f"messages[{number_}].role")
    if role not in _ROLES:
        raise Flaw("value", f"messages[{number_}].role", listed(_ROLES), role)
    content = message.get("content")
    if isinstance(content, str):
        return role, content, 0
    where = f"messages[{number_}].content"
    if isinstance(content, list):
        return role, text_of(content, where), images_in(content)
    if content is None and role in {"assistant", "function"}:
        return role, "", 0
    raise Flaw("type", where, "a string or an array of objects", content)


def text_of(parts: list[Any], where: str) -> str:
    """Return the text of a message in parts."""
    texts = []
    for part in parts:
        if not isinstance(part, dict):
            raise Flaw("type", where, "an array of objects", part)
        text = part.get("text")
        if isinstance(text, str):
            texts.append(text)
    return "\n".join(texts)


def images_in(parts: list[Any]) -> int:
    """Return how many parts of a message are images."""
    return sum("image" in str(part.get("type", "")) for part in parts)


def _names_called(calls: Any) -> list[str]:
    if not isinstance(calls, list):
        return []
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return [name for name in names if isinstance(name, str)]


def _tools(fields: dict[str, Any]) -> list[Any]:
    tools = fields["tools"]
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise Flaw("type", "tools", "an array of objects", tools)
    return tools


def _tool(number_: int, tool: Any) -> Tool:
    where = f"tools[{number_}]"
    if not isinstance(tool, dict):
        raise Flaw("type", where, "an object", tool)
    function = tool.get("function")
    if not isinstance(function, dict):
        raise Flaw("missing", f"{where}.function")
    name = function.get("name")
    if not isinstance(name, str):
        raise Flaw("missing", f"{where}.function.name")
    return Tool(name, function.get("parameters") or {"type": "object", "properties": {}})


def _max_tokens(fields: dict[str, Any]) -> int | None:
    newer = older = None
    if "max_completion_tokens" in fields:
        newer = whole_number(fields, "max_completion_tokens")
    if "max_tokens" in fields:
        older = whole_number(fields, "max_tokens")
    return older if newer is None else newer


def _streaming(fields: dict[str, Any]) -> tuple[bool, bool]:
    streams, options = flag(fields, "stream"), fields.get("stream_options")
    if options is None:
        return streams, False
    if not isinstance(options, dict):
        raise Flaw("type", "stream_options", "an object", options)
    if not streams:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise Flaw("other", "stream_options", message=message)
    return True, options.get("include_usage") is True


def _schema(fields: dict[str, Any]) -> Any:
    shape = fields.get("response_format")
    if shape is None:
        return None
    if not isinstance(shape, dict):
        raise Flaw("type", "response_format", "an object", shape)
    kind = shape.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return JSON_OBJECT
    if kind != "json_schema":
        known = ("json_object", "json_schema", "text")
        raise Flaw("value", "response_format.type", listed(known), kind)
    inner = shape.get("json_schema")
    if not isinstance(inner, dict):
        raise Flaw("missing", "response_format.json_schema")
    if not isinstance(inner.get("name"), str):
        raise Flaw("missing", "response_format.json_schema.name")
    return inner.get("schema", {})


def _schema_told(messages: list[Any]) -> Any:
    """Return what an answer in JSON mode is to fit: a schema that a message tells, or any object.

    A model reads it there too: servers of this mode know no schemas.
    """
    for message in messages:
        content = message.get("content")
        text = text_of(content, "messages") if isinstance(content, list) else content or ""
        start = text.find("{")
        if start < 0 or "schema" not in text[:start].lower():
            continue
        try:
            schema, _ = _decode_json.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if not _MARKS_OF_SCHEMAS.isdisjoint(schema):
            return schema
    return JSON_OBJECT


def listed(words: Sequence[str]) -> str:
    """Write words as OpenAI lists them."""
    quoted = [f"'{word}'" for word in words]
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


_TYPE_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    dict: "an object",
    list: "an array",
    type(None): "null",
}
_NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you "
    "aren't using your HTTP library correctly. The OpenAI API expects a JSON payload.)"
)


def said(flaw: Flaw) -> tuple[str, str | None, str | None]:
    """Say what is wrong with a body: message, param and code."""
    where, value = flaw.where, flaw.value
    if flaw.kind == "json":
        return _NOT_JSON, None, None
    if flaw.kind == "missing":
        return f"Missing required parameter: '{where}'.", where, "missing_required_parameter"
    if flaw.kind == "type":
        got = _TYPE_NAMES[type(value)]
        text = f"Invalid type for '{where}': expected {flaw.expected}, but got {got} instead."
        return text, where, "invalid_type"
    if flaw.kind == "value":
        text = f"Invalid value: '{value}'. Supported values are: {flaw.expected}."
        return text, where, "invalid_value"
    if flaw.kind == "empty":
        text = (
            f"Invalid '{where}': empty array. Expected an array with minimum length 1, "
            "but got an empty array instead."
        )
        return text, where, "empty_array"
    if flaw.kind in {"below", "above"}:
        end, sign = ("minimum", ">=") if flaw.kind == "below" else ("maximum", "<=")
        text = (
            f"Invalid '{where}': integer {flaw.kind} {end} value. "
            f"Expected a value {sign} {flaw.expected}, but got {value} instead."
        )
        return text, where, f"integer_{flaw.kind}_{end[:3]}_value"
    if flaw.kind == "schema":
        where = where or "response_format"
        return f"Invalid schema for {where}: {flaw.message}", where, None
    return flaw.message, where or None, None


class OpenAiFormat(WireFormat):
    """What the endpoints of OpenAI and of its imitators have in common."""

    provider = "openai"
    troubles = _TROUBLES
    owner: ClassVar[str] = "simulator"
    organization: ClassVar[str] = "org-simulator"

    def check_key(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> None:  # noqa: ARG002
        """See ``WireFormat``."""
        secret = bearer(headers)
        if not secret or secret in TROUBLING_KEYS:
            self.check_secret(secret)

    def flawed(self, flaw: Flaw) -> Refusal:
        """See ``WireFormat``."""
        message, param, code = said(flaw)
        return self.error(400, message, _INVALID, code, param)

    def error(
        self,
        status: int,
        message: str,
        kind: str | None,
        code: str | None,
        param: str | None = None,
    ) -> Refusal:
        """See ``WireFormat``."""
        error = {"message": message, "type": kind, "param": param, "code": code}
        return Refusal(status, message, encode({"error": error}))

    def limited(self, excess: Excess) -> Refusal:
        """See ``WireFormat``."""
        about, per = _PER[excess.kind]
        message = (
            f"Rate limit reached for {excess.model} in organization {self.organization} on {per}: "
            f"Limit {excess.limit:.0f}, Used {excess.used:.0f}, Requested {excess.asked}. "
            f"Please try again in {go_duration(excess.seconds)}. "
            "Visit https://platform.openai.com/account/rate-limits to learn more."
        )
        refusal = self.error(429, message, about, "rate_limit_exceeded")
        refusal.headers = wait_headers(excess)
        return refusal

    def out_of_quota(self, word: str, model: str) -> Refusal:  # noqa: ARG002
        """See ``WireFormat``."""
        code = word if word in _QUOTAS else "insufficient_quota"
        return self.error(429, _QUOTAS[code], code, code)

    def limit_headers(self, limits: Iterable[tuple[str, Limit]], now: float) -> dict[str, str]:  # noqa: ARG002
        """See ``WireFormat``."""
        headers: dict[str, str] = {}
        for kind, limit in limits:
            if kind != "requests_a_day":
                most, remaining, reset = LIMIT_HEADERS[kind]
                headers[most] = f"{limit.limit:.0f}"
                headers[remaining] = str(limit.remaining())
                headers[reset] = go_duration(limit.reset_seconds())
        return headers

    def own_headers(self, request_id: bytes, seconds: float) -> Headers:
        """See ``WireFormat``."""
        return [
            (b"x-request-id", request_id or b"req_%032x" % number()),
            *_CONSTANT,
            (b"openai-processing-ms", b"%d" % round(seconds * 1000)),
        ]

    def models(self) -> bytes:
        """See ``WireFormat``."""
        return encode({"object": "list", "data": [self._model(name) for name in LISTED_MODELS]})

    def model(self, name: str) -> bytes:
        """See ``WireFormat``."""
        return encode(self._model(self.checked_model(name)))

    def _model(self, name: str) -> dict[str, Any]:
        model = {"id": name, "object": "model", "created": MODELS_CREATED}
        return model | {"owned_by": self.owner}

    def knows_midway(self, call: Call) -> bool:  # noqa: ARG002 - in a body too
        """See ``WireFormat``."""
        return True

    def midway(self, request_id: bytes) -> bytes:  # noqa: ARG002 - it does not stand there
        """See ``WireFormat``."""
        return b"data: %b\n\n" % self.trouble("p500").body


class ChatFormat(OpenAiFormat):
    """OpenAI's chat completions."""

    def read(self, body: bytes, model: str) -> ChatCall:
        """See ``WireFormat``."""
        try:
            call = ChatCall(body, model)
        except Flaw as flaw:
            raise self.flawed(flaw) from None
        if call.model.startswith(MISSING_MODEL):
            self.checked_model(call.model)
        return call

    def complete(
        self, call: ChatCall, fault_name: str | None, now: float, shares: Shares = NO_SHARES
    ) -> ChatCompletion:
        """See ``WireFormat``."""
        return ChatCompletion(call, fault_name, now, shares)


def wait_headers(excess: Excess) -> dict[str, str]:
    """Return the header that says when to come back, as the profile wants it."""
    if excess.retry_after == "none":
        return {}
    if excess.retry_after == "ms":
        return {"retry-after-ms": str(max(1, math.ceil(excess.seconds * 1000)))}
    if excess.retry_after == "decimal":
        return {"retry-after": f"{max(0.001, excess.seconds):.3f}"}
    if excess.retry_after == "date":
        return {"retry-after": formatdate(math.ceil(excess.now + excess.seconds), usegmt=True)}
    return {"retry-after": str(max(1, math.ceil(excess.seconds)))}


def go_duration(seconds: float) -> str:
    """Write seconds as Go does, to the millisecond: ``1h0m2s``, ``1m23s``, ``7.66s``, ``20ms``."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if hours or minutes else ""
    return f"{text}{rest / 1000:g}s"


class ChatCompletion(Completion):
    """An answer to a chat call."""

    __slots__ = ()
    _call: ChatCall

    @property
    def _id(self) -> str:
        return f"chatcmpl-{self._number:029x}"

    def body(self) -> bytes:
        """See ``Completion``."""
        if self._fault_name == "pmidway":
            error = {"code": 502, "message": "Provider returned error", "metadata": {}}
            return encode({"error": error, "user_id": "user_simulator"})  # as OpenRouter does
        choices: list[dict[str, Any]] = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": choice.text,
                    "refusal": choice.refusal,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        if self._call.tool is not None:
            self._call_tools(choices)
        return encode(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": int(self._now),
                "model": self._call.model,
                "choices": choices,
                "usage": self._usage(),
                "service_tier": _TIER,
                "system_fingerprint": FINGERPRINT,
            }
        )

    def _call_tools(self, choices: list[dict[str, Any]]) -> None:
        """Turn answers into calls of the function."""
        for choice in choices:
            message = choice["message"]
            if message["content"]:
                message["tool_calls"] = [self._tool_call(choice["index"], message["content"])]
                message["content"] = None

    def _tool_call(self, index: int, arguments: str) -> dict[str, Any]:
        function = {"name": self._call.tool, "arguments": arguments}
        return {
            "id": f"call_{self._number:022x}{index:02x}",
            "type": "function",
            "function": function,
        }

    def events(self) -> Iterator[bytes]:
        """Return the same answer as server-sent events: deltas, usage if asked for, ``[DONE]``."""
        for index, choice in enumerate(self._choices):
            if self._call.tool is not None and choice.text:
                yield from self._tool_deltas(index, choice.text)
            else:
                yield self._delta(index, {"role": "assistant", "content": "", "refusal": None})
                field = "content" if choice.refusal is None else "refusal"
                for piece in self._pieces(choice):
                    yield self._delta(index, {field: piece})
            yield self._delta(index, {}, choice.reason)
        if self._call.streams_usage:
            yield self._event([], self._usage())
        yield b"data: [DONE]\n\n"

    def _tool_deltas(self, index: int, arguments: str) -> Iterator[bytes]:
        opening = {"index": 0, **self._tool_call(index, "")}
        delta = {"role": "assistant", "content": None, "tool_calls": [opening], "refusal": None}
        yield self._delta(index, delta)
        for piece in PIECES.findall(arguments):
            call = {"index": 0, "function": {"arguments": piece}}
            yield self._delta(index, {"tool_calls": [call]})

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._event([choice])

    @staticmethod
    def _pieces(choice: Choice) -> list[str]:
        return PIECES.findall(choice.refusal or choice.text or "")

    def _event(self, choices: list[Any], usage: dict[str, Any] | None = None) -> bytes:
        chunk = self._chunk(choices)
        if self._call.streams_usage:
            chunk["usage"] = usage
        return data_event(chunk)

    def _chunk(self, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": int(self._now),
            "model": self._call.model,
            "service_tier": _TIER,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


OPENAI_CHAT = ChatFormat()
