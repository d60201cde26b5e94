"""OpenAI chat completions, as the service answers them. Values in, values out; no network.

Bodies, headers and wordings follow the API reference and what the official SDK reads.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.simulator.answers import count_tokens, echo_of, plain_answer
from batch_llm.simulator.instances import SchemaError, conforming, violating

if TYPE_CHECKING:
    from collections.abc import Iterator

FINGERPRINT = "fp_simulator"
MAX_CHOICES = 128
_JSON_OBJECT = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
}
_ROLES = ("system", "assistant", "user", "function", "tool", "developer")
_TIER = "default"
_KEY_PAGE = "https://platform.openai.com/account/api-keys"
_REFUSAL = "I'm sorry, I cannot assist with that request."
#: Pieces of about four characters, as tokens are.
_PIECES = re.compile(r"[\s\S]{1,4}")
#: What a 429 out of the blue claims to be the limit, where the profile has none.
_CLAIMED_LIMIT = 500
_CLAIMED_WAIT_SECONDS = 0.3
#: Of each kind of limit: the error's ``type``, and how the message calls it.
_PER = {
    "requests": ("requests", "requests per min (RPM)"),
    "tokens": ("tokens", "tokens per min (TPM)"),
    "requests_a_day": ("requests", "requests per day (RPD)"),
}

_ids = itertools.count(1)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """An answer with an error status.

    Args:
        status: The HTTP status.
        message: For people.
        kind: ``error.type``.
        code: ``error.code``.
        param: ``error.param``.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str | None,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.body = _encode({"error": error})


class Call:
    """A chat call, checked and understood.

    Attributes:
        model: The model's name.
        conversation: What identifies it over all its attempts: model, system, first question.
        prompt: The last user message, as text.
        input_tokens: Of all messages.
        max_tokens: Asked for, or None.
        choices: How many answers are wanted.
        schema: What they must conform to, or None for plain text.
        streams: Whether the answer is wanted in pieces.
        streams_usage: Whether the pieces end with the usage.

    Raises:
        Refusal: The body is wrong, with the status and the wording of the service.
    """

    __slots__ = (
        "choices",
        "conversation",
        "input_tokens",
        "max_tokens",
        "model",
        "prompt",
        "schema",
        "streams",
        "streams_usage",
    )

    def __init__(self, body: bytes) -> None:
        fields = _fields(body)
        self.model = _model_name(fields)
        self._read_messages(_messages(fields))
        self.max_tokens = _max_tokens(fields)
        self.choices = _whole_number(fields, "n", MAX_CHOICES) or 1
        self.streams, self.streams_usage = _streaming(fields)
        self.schema = _schema(fields)

    def _read_messages(self, messages: list[Any]) -> None:
        tokens = 3
        system = first = last = None
        for number, message in enumerate(messages):
            role, text = _message(number, message)
            tokens += count_tokens(text)
            if role == "user":
                first, last = text if first is None else first, text
            elif role in {"system", "developer"} and system is None:
                system = text
        self.conversation = f"{self.model}\x00{system or ''}\x00{first or ''}"
        self.prompt: str = last or ""
        self.input_tokens = tokens

    @property
    def reserved_tokens(self) -> int:
        """What the call counts against the token limit before it is answered."""
        return max(self.input_tokens, self.max_tokens or 0)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = (
            "We could not parse the JSON body of your request. (HINT: This likely means you "
            "aren't using your HTTP library correctly. The OpenAI API expects a JSON payload.)"
        )
        raise _invalid(message, None) from None
    if not isinstance(fields, dict):
        raise _wrong_type("body", "an object", fields)
    return fields


def _model_name(fields: dict[str, Any]) -> str:
    model = fields.get("model")
    if model is None or model == "":
        raise _invalid("you must provide a model parameter", None)
    if not isinstance(model, str):
        raise _wrong_type("model", "a string", model)
    check_model(model)
    return model


def check_model(model: str) -> None:
    """Refuse models whose name starts with ``missing``; every other one is there."""
    if model.startswith("missing"):
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise Refusal(404, message, "invalid_request_error", "model_not_found")


def _messages(fields: dict[str, Any]) -> list[Any]:
    messages = fields.get("messages")
    if messages is None:
        raise _missing("messages")
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array of objects", messages)
    if not messages:
        message = (
            "Invalid 'messages': empty array. Expected an array with minimum length 1, "
            "but got an empty array instead."
        )
        raise _invalid(message, "messages", "empty_array")
    return messages


def _message(number: int, message: Any) -> tuple[str, str]:
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        raise _wrong_type(where, "an object", message)
    role = message.get("role")
    if role is None:
        raise _missing(f"{where}.role")
    if role not in _ROLES:
        listed = ", ".join(f"'{name}'" for name in _ROLES[:-1])
        text = f"Invalid value: '{role}'. Supported values are: {listed}, and '{_ROLES[-1]}'."
        raise _invalid(text, f"{where}.role", "invalid_value")
    return role, _text_of(message.get("content"), role, where)


def _text_of(content: Any, role: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_part_text(part, f"{where}.content") for part in content)
    if content is None and role in {"assistant", "function"}:
        return ""
    raise _wrong_type(f"{where}.content", "a string or an array of objects", content)


def _part_text(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise _wrong_type(where, "an array of objects", part)
    text = part.get("text", "")
    return text if isinstance(text, str) else ""


def _max_tokens(fields: dict[str, Any]) -> int | None:
    newer = _whole_number(fields, "max_completion_tokens")
    older = _whole_number(fields, "max_tokens")
    return older if newer is None else newer


def _whole_number(fields: dict[str, Any], name: str, most: int | None = None) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(name, "an integer", value)
    if value < 1:
        message = (
            f"Invalid '{name}': integer below minimum value. "
            f"Expected a value >= 1, but got {value} instead."
        )
        raise _invalid(message, name, "integer_below_min_value")
    if most is not None and value > most:
        message = (
            f"Invalid '{name}': integer above maximum value. "
            f"Expected a value <= {most}, but got {value} instead."
        )
        raise _invalid(message, name, "integer_above_max_value")
    return value


def _streaming(fields: dict[str, Any]) -> tuple[bool, bool]:
    streams, options = fields.get("stream"), fields.get("stream_options")
    if streams is not None and not isinstance(streams, bool):
        raise _wrong_type("stream", "a boolean", streams)
    if options is None:
        return bool(streams), False
    if not isinstance(options, dict):
        raise _wrong_type("stream_options", "an object", options)
    if not streams:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise _invalid(message, "stream_options")
    return True, options.get("include_usage") is True


def _schema(fields: dict[str, Any]) -> Any:
    shape = fields.get("response_format")
    if shape is None:
        return None
    if not isinstance(shape, dict):
        raise _wrong_type("response_format", "an object", shape)
    kind = shape.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return _JSON_OBJECT
    if kind != "json_schema":
        supported = "'json_object', 'json_schema', and 'text'"
        message = f"Invalid value: '{kind}'. Supported values are: {supported}."
        raise _invalid(message, "response_format.type", "invalid_value")
    return _named_schema(shape.get("json_schema"))


def _named_schema(inner: Any) -> Any:
    if not isinstance(inner, dict):
        raise _missing("response_format.json_schema")
    if not isinstance(inner.get("name"), str):
        raise _missing("response_format.json_schema.name")
    return inner.get("schema", {})


def _invalid(message: str, param: str | None, code: str | None = None) -> Refusal:
    return Refusal(400, message, "invalid_request_error", code, param)


def _missing(param: str) -> Refusal:
    message = f"Missing required parameter: '{param}'."
    return _invalid(message, param, "missing_required_parameter")


def _wrong_type(param: str, expected: str, value: Any) -> Refusal:
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a decimal"}
    names |= {dict: "an object", list: "an array", type(None): "null"}
    got = names[type(value)]
    message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
    return _invalid(message, param, "invalid_type")


def check_key(authorization: bytes) -> None:
    """Refuse a call without a bearer key, and the key ``invalid``; every other one is good."""
    scheme, _, key = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        message = (
            "You didn't provide an API key. You need to provide your API key in an Authorization "
            "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY). You can obtain an "
            f"API key from {_KEY_PAGE}."
        )
        raise Refusal(401, message, "invalid_request_error")
    if key.strip() == b"invalid":
        message = f"Incorrect API key provided: invalid. You can find your API key at {_KEY_PAGE}."
        raise Refusal(401, message, "invalid_request_error", "invalid_api_key")


def fault(name: str, call: Call, retry_after: str) -> Refusal | None:
    """Return the error answer of a fault, or None where the fault is not an error answer."""
    if name == "p429":
        claimed = _CLAIMED_LIMIT
        wait = _CLAIMED_WAIT_SECONDS
        return rate_limited("requests", call, wait, retry_after, limit=claimed, used=claimed)
    if name == "pquota":
        return out_of_quota()
    if name == "p500":
        message = "The server had an error while processing your request. Sorry about that!"
        return Refusal(500, message, "server_error")
    if name == "p503":
        return unavailable()
    if name == "p529":
        return Refusal(529, "Overloaded", "overloaded", "overloaded")
    return None


def unavailable() -> Refusal:
    """Return the 503 of an overloaded service."""
    message = "The engine is currently overloaded, please try again later."
    return Refusal(503, message, "service_unavailable", "server_is_overloaded")


def out_of_quota() -> Refusal:
    """Return the 429 that no waiting heals."""
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more "
        "information on this error, read the docs: "
        "https://platform.openai.com/docs/guides/error-codes/api-errors."
    )
    return Refusal(429, message, "insufficient_quota", "insufficient_quota")


def rate_limited(
    kind: str, call: Call, seconds: float, retry_after: str, *, limit: float, used: float
) -> Refusal:
    """Return the 429 of a limit, with its wait in the header that the profile says.

    Args:
        kind: ``requests`` or ``tokens`` per minute, or ``requests_a_day``.
        call: What was asked.
        seconds: Until it may pass.
        retry_after: ``header``, ``ms`` or ``none``.
        limit: What may pass.
        used: What has passed.
    """
    headers = {}
    if retry_after == "header":
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    elif retry_after == "ms":
        headers["retry-after-ms"] = str(max(1, math.ceil(seconds * 1000)))
    about, per = _PER[kind]
    asked = call.reserved_tokens if kind == "tokens" else 1
    message = (
        f"Rate limit reached for {call.model} in organization org-simulator on {per}: "
        f"Limit {limit:.0f}, Used {used:.0f}, Requested {asked}. "
        f"Please try again in {go_duration(seconds)}. "
        "Visit https://platform.openai.com/account/rate-limits to learn more."
    )
    return Refusal(429, message, about, "rate_limit_exceeded", headers=headers)


def too_many_at_once(most: int) -> Refusal:
    """Return the 429 of a limit on calls in work, in the words of Moonshot; OpenAI has none."""
    message = (
        f"Your account org-simulator request reached max organization concurrency: {most}, "
        "please try again later"
    )
    return Refusal(429, message, "rate_limit_reached_error")


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


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer.

    Attributes:
        text: What the model wrote; None when it refused.
        refusal: Its words when it refused.
        reason: ``finish_reason``.
        tokens: Billed.
    """

    text: str | None
    refusal: str | None
    reason: str
    tokens: int


class Completion:
    """A good answer, or a spoilt one.

    Args:
        call: What was asked.
        fault_name: How the answer is spoilt, or None.
        now: Seconds since 1970, for ``created``.

    Attributes:
        input_tokens: Billed.
        output_tokens: Billed.

    Raises:
        Refusal: The schema is broken, or nothing was found that conforms to it.
    """

    __slots__ = ("_call", "_choices", "_created", "_id", "input_tokens", "output_tokens")

    def __init__(self, call: Call, fault_name: str | None, now: float) -> None:
        self._call = call
        self._choices = [_choice(call, fault_name, index) for index in range(call.choices)]
        self._id = f"chatcmpl-{next(_ids):029x}"
        self._created = int(now)
        self.input_tokens = call.input_tokens
        self.output_tokens = sum(choice.tokens for choice in self._choices)

    def body(self) -> bytes:
        """Return the wire JSON of the whole answer."""
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
        return _encode(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": self._created,
                "model": self._call.model,
                "choices": choices,
                "usage": self._usage(),
                "service_tier": _TIER,
                "system_fingerprint": FINGERPRINT,
            }
        )

    def events(self) -> Iterator[bytes]:
        """Return the same answer as server-sent events: deltas, usage if asked for, ``[DONE]``."""
        for index, choice in enumerate(self._choices):
            yield self._delta(index, {"role": "assistant", "content": "", "refusal": None})
            field = "content" if choice.refusal is None else "refusal"
            for piece in _PIECES.findall(choice.refusal or choice.text or ""):
                yield self._delta(index, {field: piece})
            yield self._delta(index, {}, choice.reason)
        if self._call.streams_usage:
            yield self._event([], self._usage())
        yield b"data: [DONE]\n\n"

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._event([choice])

    def _event(self, choices: list[Any], usage: dict[str, Any] | None = None) -> bytes:
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._call.model,
            "service_tier": _TIER,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }
        if self._call.streams_usage:
            chunk["usage"] = usage
        return b"data: %b\n\n" % _encode(chunk)

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


def _choice(call: Call, fault_name: str | None, index: int) -> Choice:
    if fault_name == "prefuse":
        return Choice(None, _REFUSAL, "stop", count_tokens(_REFUSAL))
    if fault_name == "pfilter":
        return Choice("", None, "content_filter", 0)
    text = _answer(call, fault_name, index)
    if fault_name == "ptruncate":
        text = text[: len(text) // 2]
    tokens = count_tokens(text)
    if call.max_tokens is not None and tokens > call.max_tokens:
        # Four characters to the token, so the cut text counts exactly what was allowed.
        text, tokens = text[: call.max_tokens * 4], call.max_tokens
        return Choice(text, None, "length", tokens)
    return Choice(text, None, "length" if fault_name == "ptruncate" else "stop", tokens)


def _answer(call: Call, fault_name: str | None, index: int) -> str:
    echo = echo_of(call.prompt)
    if call.schema is None:
        return plain_answer(call.prompt, index) if echo is None else echo
    seed = f"{call.conversation}\x00{call.prompt}\x00{index}"
    if fault_name == "pschema":
        return _wrong_answer(call.schema, seed)
    if echo is not None:
        return echo
    try:
        return _encode(conforming(call.schema, seed)).decode()
    except SchemaError as error:
        message = f"Invalid schema for response_format: {error}"
        raise _invalid(message, "response_format") from None


def _wrong_answer(schema: Any, seed: str) -> str:
    try:
        return _encode(violating(schema, seed)).decode()
    except SchemaError:
        return "Sure! Here is what you asked for:"  # not even JSON, whatever the schema allows
