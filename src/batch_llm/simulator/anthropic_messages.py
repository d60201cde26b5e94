"""Anthropic's Messages API, as the service answers it. Values in, values out; no network."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.simulator.answers import count_tokens
from batch_llm.simulator.calls import Call, Tool, Turns, pick_tool
from batch_llm.simulator.completions import NO_SHARES, Choice, Completion, Shares, number
from batch_llm.simulator.fields import (
    bearer,
    decode,
    encode,
    event,
    fields_of,
    flag,
    header,
    whole_number,
)
from batch_llm.simulator.openai_chat import PIECES, wait_headers
from batch_llm.simulator.refusals import Excess, Flaw, Refusal, Trouble
from batch_llm.simulator.wire import LISTED_MODELS, WireFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batch_llm.simulator.fields import Headers
    from batch_llm.simulator.limits import Limit

#: What a picture of usual size counts.
IMAGE_TOKENS = 1600
_INVALID = "invalid_request_error"
_LIMITS_PAGE = "https://docs.claude.com/en/api/rate-limits"
_PER = {
    "requests": "{limit:.0f} requests per minute",
    "tokens": "{limit:.0f} tokens per minute",
    "input_tokens": "{limit:.0f} input tokens per minute",
    "output_tokens": "{limit:.0f} output tokens per minute",
    "requests_a_day": "{limit:.0f} requests per day",
}
_TYPES = {
    "a string": "Input should be a valid string",
    "an integer": "Input should be a valid integer",
    "a boolean": "Input should be a valid boolean",
    "an object": "Input should be an object",
}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
#: Looked up by what callers send, which may be anything: no sets.
_ROLES = ("user", "assistant", "system")
_SOURCES = ("base64", "url", "file")
_THINKS = ("enabled", "adaptive")
_THOUGHT = "The question is plain. I answer it in a few words."
_SIGNATURE = "c2ltdWxhdG9y"
#: The ways to be out of credit: status, type, ``details.error_code`` and text.
_QUOTAS = {
    "credit_balance_too_low": Trouble(
        400,
        _INVALID,
        None,
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing "
        "to upgrade or purchase credits.",
    ),
    "billing_error": Trouble(
        402,
        "billing_error",
        None,
        "There is an issue with your billing or payment information.",
    ),
    "contract_spend_limit_reached": Trouble(
        429,
        "rate_limit_error",
        "contract_spend_limit_reached",
        "Your organization has reached the spend limit of its contract.",
    ),
    "enforced_spend_limit_reached": Trouble(
        429,
        "rate_limit_error",
        "enforced_spend_limit_reached",
        "Your organization has reached its monthly spend limit.",
    ),
    "ramp_limit_exceeded": Trouble(
        429,
        "rate_limit_error",
        "ramp_limit_exceeded",
        "Your usage has grown faster than your organization's acceleration limit allows.",
    ),
    "linked_organization_spend_limit_reached": Trouble(
        402,
        "billing_error",
        "linked_organization_spend_limit_reached",
        "The linked organization has reached its spend limit.",
    ),
    "linked_organization_billing_unavailable": Trouble(
        402,
        "billing_error",
        "linked_organization_billing_unavailable",
        "The billing of the linked organization is unavailable.",
    ),
}


class MessagesCall(Call):
    """A call of the Messages API, checked and understood.

    Args:
        body: What was sent.
        needs_cap: Whether ``max_tokens`` must be there.

    Attributes:
        thinks: Whether thought is wanted in the answer.

    Raises:
        Flaw: The body is wrong.
    """

    __slots__ = ("thinks",)

    def __init__(self, body: bytes, *, needs_cap: bool = True) -> None:
        fields = fields_of(body)
        model = fields.get("model")
        if model is None:
            raise Flaw("missing", "model")
        if not isinstance(model, str):
            raise Flaw("type", "model", "a string", model)
        turns = Turns()
        _read_system(fields.get("system"), turns)
        _read_messages(fields, turns)
        turns.tell(self, model)
        self.max_tokens = whole_number(fields, "max_tokens")
        if self.max_tokens is None and needs_cap:
            raise Flaw("missing", "max_tokens")
        self.streams = flag(fields, "stream")
        thinking = fields.get("thinking")
        self.thinks = isinstance(thinking, dict) and thinking.get("type") in _THINKS
        self.schema = _schema(fields)
        self.tool = None
        if fields.get("tools"):
            self._read_tools(fields, turns)

    def _read_tools(self, fields: dict[str, Any], turns: Turns) -> None:
        tools = _functions(fields["tools"])
        choice = fields.get("tool_choice") or {"type": "auto"}
        if not isinstance(choice, dict):
            raise Flaw("type", "tool_choice", "an object", choice)
        kind = choice.get("type")
        if kind == "tool":
            name = choice.get("name")
            tools = [tool for tool in tools if tool.name == name]
            if not tools:
                raise Flaw("other", message=f"Tool '{name}' not found in provided tools")
        if kind == "none":
            return
        picked = pick_tool(tools, turns.called, self.prompt, is_due=kind in ("any", "tool"))
        if picked is not None:
            self.tool, self.schema = picked


def _read_system(system: Any, turns: Turns) -> None:
    if system is None:
        return
    if isinstance(system, str):
        turns.instruct(system)
        return
    if not isinstance(system, list):
        raise Flaw("type", "system", "an array", system)
    turns.instruct("\n".join(_text(part, "system") for part in system))


def _read_messages(fields: dict[str, Any], turns: Turns) -> None:
    messages = fields.get("messages")
    if messages is None:
        raise Flaw("missing", "messages")
    if not isinstance(messages, list):
        raise Flaw("type", "messages", "an array", messages)
    if not messages:
        raise Flaw("empty", "messages")
    for place, message in enumerate(messages):
        _read_message(message, f"messages.{place}", turns)


def _read_message(message: Any, where: str, turns: Turns) -> None:
    if not isinstance(message, dict):
        raise Flaw("type", where, "an object", message)
    role = message.get("role")
    if role is None:
        raise Flaw("missing", f"{where}.role")
    if role not in _ROLES:
        raise Flaw("value", f"{where}.role", "'user' or 'assistant'", role)
    content = message.get("content")
    if content is None:
        raise Flaw("missing", f"{where}.content")
    texts = _read_content(content, f"{where}.content", turns)
    if texts is None:
        return
    if role == "user":
        turns.ask(texts)
    elif role == "system":
        turns.instruct(texts)
    else:
        turns.tokens += count_tokens(texts)


def _read_content(content: Any, where: str, turns: Turns) -> str | None:
    """Return a message's text; None where it has none, as one with the results of tools."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Flaw("type", where, "an array", content)
    texts = []
    for place, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts.append(_text(block, f"{where}.{place}"))
        elif kind == "image":
            _check_image(block, f"{where}.{place}")
            turns.tokens += IMAGE_TOKENS
        elif kind == "tool_use":
            turns.called.append(str(block.get("name")))
        elif kind == "tool_result":
            turns.tokens += count_tokens(str(block.get("content")))
        elif kind is None:
            raise Flaw("missing", f"{where}.{place}.type")
    return "\n".join(texts) if texts else None


def _text(block: Any, where: str) -> str:
    text = block.get("text") if isinstance(block, dict) else None
    if not isinstance(text, str):
        raise Flaw("missing", f"{where}.text")
    if not text:
        raise Flaw("other", message=f"{where}: text content blocks must be non-empty")
    return text


def _check_image(block: dict[str, Any], where: str) -> None:
    source = block.get("source")
    if not isinstance(source, dict):
        raise Flaw("missing", f"{where}.image.source")
    kind = source.get("type")
    if kind not in _SOURCES:
        raise Flaw("value", f"{where}.image.source.type", "'base64', 'url' or 'file'", kind)
    if kind == "base64" and not source.get("data"):
        raise Flaw("missing", f"{where}.image.source.base64.data")


def _schema(fields: dict[str, Any]) -> Any:
    settings = fields.get("output_config")
    shape = settings.get("format") if isinstance(settings, dict) else fields.get("output_format")
    if shape is None:
        return None
    if not isinstance(shape, dict):
        raise Flaw("type", "output_config.format", "an object", shape)
    if shape.get("type") != "json_schema":
        raise Flaw("value", "output_config.format.type", "'json_schema'", shape.get("type"))
    if shape.get("schema") is None:
        raise Flaw("missing", "output_config.format.schema")
    return shape["schema"]


def _functions(tools: Any) -> list[Tool]:
    if not isinstance(tools, list):
        raise Flaw("type", "tools", "an array", tools)
    functions = []
    for place, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise Flaw("type", f"tools.{place}", "an object", tool)
        if tool.get("type", "custom") != "custom":
            continue  # the service's own tools are never called
        if not isinstance(tool.get("name"), str):
            raise Flaw("missing", f"tools.{place}.custom.name")
        if not isinstance(tool.get("input_schema"), dict):
            raise Flaw("missing", f"tools.{place}.custom.input_schema")
        functions.append(Tool(tool["name"], tool["input_schema"]))
    return functions


class MessagesFormat(WireFormat):
    """Anthropic's Messages API."""

    provider = "anthropic"
    troubles = {  # noqa: RUF012 - see the base class
        "no_key": Trouble(
            401,
            "authentication_error",
            None,
            "x-api-key header is required",
        ),
        "bad_key": Trouble(401, "authentication_error", None, "invalid x-api-key"),
        "forbidden": Trouble(403, "permission_error", None, "Request not allowed"),
        "missing_model": Trouble(404, "not_found_error", None, "model: {model}"),
        "wrong_method": Trouble(405, _INVALID, None, "Method Not Allowed"),
        "no_path": Trouble(404, "not_found_error", None, "Not Found"),
        "context": Trouble(
            400, _INVALID, None, "prompt is too long: {tokens} tokens > {most} maximum"
        ),
        "too_large": Trouble(413, "request_too_large", None, "Request exceeds the maximum size"),
        "p408": Trouble(408, "timeout_error", None, "Request timed out"),
        "p500": Trouble(500, "api_error", None, "Internal server error"),
        "p503": Trouble(503, "api_error", None, "Service unavailable"),
        "p504": Trouble(504, "timeout_error", None, "Gateway timeout"),
        "p529": Trouble(529, "overloaded_error", None, "Overloaded"),
        "busy": Trouble(
            429,
            "rate_limit_error",
            None,
            "Number of concurrent connections has exceeded your rate limit of {most}. Please try "
            "again later or contact sales at https://www.anthropic.com/contact-sales to discuss "
            "your options for a rate limit increase.",
        ),
    }

    def check_key(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> None:  # noqa: ARG002
        """See ``WireFormat``. Older SDKs send ``x-api-key``, newer ones a bearer key."""
        self.check_secret(header(headers, b"x-api-key") or bearer(headers))

    def read(self, body: bytes, model: str) -> MessagesCall:  # noqa: ARG002 - it stands in the body
        """See ``WireFormat``."""
        return self._read(body, needs_cap=True)

    def read_to_count(self, body: bytes, model: str) -> Call:  # noqa: ARG002
        """See ``WireFormat``."""
        return self._read(body, needs_cap=False)

    def _read(self, body: bytes, *, needs_cap: bool) -> MessagesCall:
        try:
            call = MessagesCall(body, needs_cap=needs_cap)
        except Flaw as flaw:
            raise self.flawed(flaw) from None
        self.checked_model(call.model)
        return call

    def complete(
        self,
        call: MessagesCall,
        fault_name: str | None,
        now: float,
        shares: Shares = NO_SHARES,
    ) -> Message:
        """See ``WireFormat``."""
        return Message(call, fault_name, now, shares)

    def flawed(self, flaw: Flaw) -> Refusal:
        """See ``WireFormat``."""
        text = {
            "json": "The request body is not valid JSON",
            "missing": f"{flaw.where}: Field required",
            "type": f"{flaw.where}: {_TYPES.get(flaw.expected, 'Input should be a valid list')}",
            "value": f"{flaw.where}: Input should be {flaw.expected}",
            "empty": f"{flaw.where}: at least one message is required",
            "below": f"{flaw.where}: Input should be greater than or equal to {flaw.expected}",
            "above": f"{flaw.where}: Input should be less than or equal to {flaw.expected}",
            "schema": f"output_config.format.schema: Invalid schema: {flaw.message}",
        }.get(flaw.kind, flaw.message)
        return self.error(400, text, _INVALID, None)

    def error(self, status: int, message: str, kind: str | None, code: str | None) -> Refusal:
        """See ``WireFormat``."""
        request_id = b"req_%024x" % number()
        error: dict[str, Any] = {"type": kind, "message": message}
        if code is not None:
            error["details"] = {"error_code": code}
        body = {"type": "error", "error": error, "request_id": request_id.decode()}
        return Refusal(status, message, encode(body), request_id=request_id)

    def limited(self, excess: Excess) -> Refusal:
        """See ``WireFormat``."""
        per = _PER[excess.kind].format(limit=excess.limit)
        message = (
            f"This request would exceed your organization's rate limit of {per} (org: "
            f"00000000-0000-4000-8000-000000000000, model: {excess.model}). For details, refer "
            f"to: {_LIMITS_PAGE}."
        )
        refusal = self.error(429, message, "rate_limit_error", None)
        refusal.headers = wait_headers(excess)
        return refusal

    def out_of_quota(self, word: str, model: str) -> Refusal:  # noqa: ARG002
        """See ``WireFormat``."""
        status, kind, code, text = _QUOTAS.get(word, _QUOTAS["credit_balance_too_low"])
        refusal = self.error(status, text, kind, code)
        if code == "ramp_limit_exceeded":
            refusal.headers["retry-after"] = "1"
        return refusal

    def limit_headers(self, limits: Iterable[tuple[str, Limit]], now: float) -> dict[str, str]:
        """See ``WireFormat``: of both kinds of tokens, the scarcer one is told once more."""
        headers: dict[str, str] = {}
        told = {kind: limit for kind, limit in limits if kind != "requests_a_day"}
        if "tokens" not in told and (kinds := told.keys() & {"input_tokens", "output_tokens"}):
            told["tokens"] = min(
                (told[kind] for kind in kinds), key=lambda limit: limit.remaining() / limit.limit
            )
        for kind, limit in told.items():
            name = f"anthropic-ratelimit-{kind.replace('_', '-')}"
            remaining = limit.remaining()
            if kind != "requests":
                remaining = min(int(limit.limit), round(remaining, -3))
            headers[f"{name}-limit"] = f"{limit.limit:.0f}"
            headers[f"{name}-remaining"] = str(remaining)
            headers[f"{name}-reset"] = _date(now + limit.reset_seconds())
        return headers

    def own_headers(self, request_id: bytes, seconds: float) -> Headers:  # noqa: ARG002
        """See ``WireFormat``."""
        return [
            (b"request-id", request_id or b"req_%024x" % number()),
            (b"anthropic-organization-id", b"00000000-0000-4000-8000-000000000000"),
        ]

    def models(self) -> bytes:
        """See ``WireFormat``."""
        data = [_model(name) for name in LISTED_MODELS]
        ends = {"first_id": LISTED_MODELS[0], "last_id": LISTED_MODELS[-1]}
        return encode({"data": data, "has_more": False, **ends})

    def model(self, name: str) -> bytes:
        """See ``WireFormat``."""
        return encode(_model(self.checked_model(name)))

    def midway(self, request_id: bytes) -> bytes:
        """See ``WireFormat``."""
        error = {"type": "overloaded_error", "message": "Overloaded"}
        return event("error", {"type": "error", "error": error, "request_id": request_id.decode()})


def _model(name: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": "2023-11-14T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(math.ceil(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Message(Completion):
    """An answer of the Messages API."""

    __slots__ = ()
    _call: MessagesCall

    def __init__(
        self, call: Call, fault_name: str | None, now: float, shares: Shares = NO_SHARES
    ) -> None:
        super().__init__(call, fault_name, now, shares)
        self.request_id = b"req_%024x" % self._number

    def body(self) -> bytes:
        """See ``Completion``."""
        choice = self._choices[0]
        return encode(
            self._message()
            | {
                "content": self._blocks(choice),
                "stop_reason": self._reason(choice),
                "stop_details": self._details(choice),
            }
        )

    def _message(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self._number:024x}",
            "type": "message",
            "role": "assistant",
            "model": self._call.model,
            "content": [],
            "stop_reason": None,
            "stop_details": None,
            "stop_sequence": None,
            "usage": self._usage(self.output_tokens),
        }

    @staticmethod
    def _reason(choice: Choice) -> str:
        if choice.refusal is not None or choice.reason == "content_filter":
            return "refusal"
        return _REASONS[choice.reason]

    @staticmethod
    def _details(choice: Choice) -> dict[str, Any] | None:
        if choice.refusal is not None:
            return {"type": "refusal", "category": None, "explanation": choice.refusal}
        if choice.reason == "content_filter":
            text = "This request triggered the usage policy's restrictions."
            return {"type": "refusal", "category": "general_harms", "explanation": text}
        return None

    def _blocks(self, choice: Choice) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        if choice.reasoning and self._call.thinks:
            blocks.append({"type": "thinking", "thinking": _THOUGHT, "signature": _SIGNATURE})
        if self._call.tool is not None and choice.text:
            blocks.append(
                {
                    "type": "tool_use",
                    "id": f"toolu_{self._number:024x}",
                    "name": self._call.tool,
                    "input": _object(choice.text),
                    "caller": {"type": "direct"},
                }
            )
        elif text := choice.refusal or choice.text:
            blocks.append({"type": "text", "text": text, "citations": None})
        return blocks

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens - self.cached_tokens - self.written_tokens,
            "cache_creation_input_tokens": self.written_tokens,
            "cache_read_input_tokens": self.cached_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.written_tokens,
                "ephemeral_1h_input_tokens": 0,
            },
            "output_tokens": output_tokens,
            "output_tokens_details": {"thinking_tokens": self.reasoning_tokens},
            "service_tier": "standard",
            "inference_geo": "not_available",
        }

    def events(self) -> Iterator[bytes]:
        """Return the same answer as server-sent events."""
        choice = self._choices[0]
        opening = self._message() | {"usage": self._usage(1)}
        yield event("message_start", {"type": "message_start", "message": opening})
        for index, block in enumerate(self._blocks(choice)):
            yield _block_event("start", index, {"content_block": _OPENINGS[block["type"]](block)})
            if index == 0:
                yield event("ping", {"type": "ping"})
            for delta in self._deltas(block, choice):
                yield _block_event("delta", index, {"delta": delta})
            yield _block_event("stop", index, {})
        delta = {
            "stop_reason": self._reason(choice),
            "stop_details": self._details(choice),
            "stop_sequence": None,
        }
        usage = self._usage(self.output_tokens)
        yield event("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
        yield event("message_stop", {"type": "message_stop"})

    @staticmethod
    def _deltas(block: dict[str, Any], choice: Choice) -> Iterator[dict[str, Any]]:
        if block["type"] == "text":
            for piece in PIECES.findall(block["text"]):
                yield {"type": "text_delta", "text": piece}
        elif block["type"] == "tool_use":
            for piece in PIECES.findall(choice.text or ""):
                yield {"type": "input_json_delta", "partial_json": piece}
        else:
            yield {"type": "thinking_delta", "thinking": block["thinking"]}
            yield {"type": "signature_delta", "signature": block["signature"]}


#: How a block begins in a stream.
_OPENINGS = {
    "text": lambda block: block | {"text": ""},
    "tool_use": lambda block: block | {"input": {}},
    "thinking": lambda block: block | {"thinking": "", "signature": ""},
}


def _block_event(what: str, index: int, data: dict[str, Any]) -> bytes:
    kind = f"content_block_{what}"
    return event(kind, {"type": kind, "index": index} | data)


def _object(text: str) -> dict[str, Any]:
    """Return the arguments of a function; nothing where they were cut off."""
    try:
        value = decode(text)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


ANTHROPIC = MessagesFormat()
