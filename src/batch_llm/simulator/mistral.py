"""Mistral's chat completions, as the service answers them. Values in, values out; no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batch_llm.simulator.completions import NO_SHARES, Choice, Completion, Shares, number
from batch_llm.simulator.fields import bearer, encode
from batch_llm.simulator.openai_chat import ChatCall, ChatCompletion, ChatFormat, wait_headers
from batch_llm.simulator.refusals import Excess, Flaw, Refusal, Trouble
from batch_llm.simulator.wire import MODELS_CREATED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batch_llm.simulator.calls import Call
    from batch_llm.simulator.fields import Headers
    from batch_llm.simulator.limits import Limit

_INVALID = "invalid_request_error"
_TYPES = {
    "a string": ("string_type", "Input should be a valid string"),
    "an integer": ("int_type", "Input should be a valid integer"),
    "a boolean": ("bool_type", "Input should be a valid boolean"),
    "an object": ("model_attributes_type", "Input should be a valid dictionary or object"),
}
_LIST_TYPE = ("list_type", "Input should be a valid list")
_NAMES = {"requests": "Requests", "tokens": "Tokens", "requests_a_day": "Daily requests"}


class MistralFormat(ChatFormat):
    """Mistral's chat completions."""

    provider = "mistral"
    tells_limits_of_streams = False
    owner = "mistralai"
    troubles = {  # noqa: RUF012 - see the base class
        "no_key": Trouble(401, None, None, "Unauthorized"),
        "bad_key": Trouble(401, None, None, "Unauthorized"),
        "forbidden": Trouble(403, None, None, "Forbidden"),
        "missing_model": Trouble(400, "invalid_model", "1500", "Invalid model: {model}"),
        "wrong_method": Trouble(405, None, None, "Method Not Allowed"),
        "no_path": Trouble(404, None, None, "no Route matched with those values"),
        "context": Trouble(
            400,
            _INVALID,
            "3051",
            "Prompt contains {tokens} tokens, too large for model with {most} maximum context "
            "length",
        ),
        "too_large": Trouble(413, None, None, "Request size limit exceeded"),
        "quota": Trouble(
            402,
            "payment_required",
            None,
            "The workspace has reached its spending limit. API access is suspended until next "
            "month.",
        ),
        "p408": Trouble(408, "timeout", None, "Request timed out"),
        "p500": Trouble(500, "internal_server_error", "1000", "Internal Server Error"),
        "p503": Trouble(503, "unreachable_backend", "1100", "Service unavailable."),
        "p504": Trouble(504, "unreachable_backend", "1100", "Gateway Timeout"),
        "p529": Trouble(
            429,
            "service_tier_capacity_exceeded",
            "3505",
            "Service tier capacity exceeded for this model.",
        ),
        "busy": Trouble(
            429, "rate_limited", "1300", "Requests rate limit exceeded: {most} at once"
        ),
    }

    def check_key(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> None:  # noqa: ARG002
        """See ``WireFormat``."""
        self.check_secret(bearer(headers))

    def error(
        self,
        status: int,
        message: str,
        kind: str | None,
        code: str | None,
        param: str | None = None,
    ) -> Refusal:
        """See ``WireFormat``. What the gateway says has a shape of its own."""
        if kind is None:
            key = "detail" if status == 401 else "message"
            return Refusal(status, message, encode({key: message}))
        error = {"object": "error", "message": message, "type": kind, "param": param, "code": code}
        return Refusal(status, message, encode(error))

    def flawed(self, flaw: Flaw) -> Refusal:
        """See ``WireFormat``: what does not fit is a 422 with a list of places."""
        where = _place(flaw.where)
        if flaw.kind == "other" and flaw.message.startswith("you must provide a model"):
            flaw, where = Flaw("missing", "model"), ["body", "model"]
        if flaw.kind == "schema":
            message = f"Invalid json schema: {flaw.message}"
            return self.error(400, message, _INVALID, None, "response_format")
        if flaw.kind == "other":
            return self.error(400, flaw.message, _INVALID, None, flaw.where or None)
        kind, message = _said(flaw)
        detail = {"type": kind, "loc": where, "msg": message, "input": _shown(flaw.value)}
        return Refusal(422, message, encode({"detail": [detail]}))

    def limited(self, excess: Excess) -> Refusal:
        """See ``WireFormat``."""
        name = _NAMES.get(excess.kind, "Tokens")
        message = f"{name} rate limit exceeded"
        refusal = self.error(429, message, "rate_limited", "1300")
        refusal.headers = wait_headers(excess)
        return refusal

    def out_of_quota(self, word: str, model: str) -> Refusal:  # noqa: ARG002
        """See ``WireFormat``."""
        return self.trouble("quota")

    def limit_headers(self, limits: Iterable[tuple[str, Limit]], now: float) -> dict[str, str]:  # noqa: ARG002
        """See ``WireFormat``: nothing tells of resets."""
        headers: dict[str, str] = {}
        for kind, limit in limits:
            if kind in {"requests", "tokens"}:
                name = "req-minute" if kind == "requests" else "tokens-minute"
                headers[f"x-ratelimit-limit-{name}"] = f"{limit.limit:.0f}"
                headers[f"x-ratelimit-remaining-{name}"] = str(limit.remaining())
        return headers

    def cost_headers(self, done: Completion) -> dict[str, str]:
        """See ``WireFormat``."""
        return {"x-ratelimit-tokens-query-cost": str(done.input_tokens + done.output_tokens)}

    def own_headers(self, request_id: bytes, seconds: float) -> Headers:  # noqa: ARG002
        """See ``WireFormat``."""
        return [(b"mistral-correlation-id", request_id or b"%032x" % number())]

    def _model(self, name: str) -> dict[str, Any]:
        capabilities = {
            "completion_chat": True,
            "function_calling": True,
            "completion_fim": False,
            "fine_tuning": False,
            "vision": True,
        }
        return {
            "id": name,
            "object": "model",
            "created": MODELS_CREATED,
            "owned_by": self.owner,
            "capabilities": capabilities,
            "name": name,
            "description": "Simulated",
            "max_context_length": 131_072,
            "aliases": [],
            "type": "base",
        }

    def knows_midway(self, call: Call) -> bool:  # noqa: ARG002 - nothing is known of that
        """See ``WireFormat``."""
        return False

    def complete(
        self, call: ChatCall, fault_name: str | None, now: float, shares: Shares = NO_SHARES
    ) -> MistralCompletion:
        """See ``WireFormat``."""
        return MistralCompletion(call, fault_name, now, shares)


def _place(where: str) -> list[Any]:
    """Write ``messages[0].role`` as a list of steps."""
    steps: list[Any] = ["body"]
    for part in where.split("."):
        name, *numbers = part.split("[")
        steps += [name] if name and name != "body" else []
        steps += [int(index.rstrip("]")) for index in numbers]
    return steps


def _said(flaw: Flaw) -> tuple[str, str]:
    expected = flaw.expected
    if flaw.kind == "json":
        return "json_invalid", "JSON decode error"
    if flaw.kind == "missing":
        return "missing", "Field required"
    if flaw.kind == "type":
        return _TYPES.get(expected, _LIST_TYPE)
    if flaw.kind == "empty":
        return "too_short", "List should have at least 1 item after validation, not 0"
    if flaw.kind == "below":
        return "greater_than_equal", f"Input should be greater than or equal to {expected}"
    if flaw.kind == "above":
        return "less_than_equal", f"Input should be less than or equal to {expected}"
    return "enum", f"Input should be {expected}"


def _shown(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | type(None)) else {}


class MistralCompletion(ChatCompletion):
    """An answer to a call of Mistral's."""

    __slots__ = ()

    def body(self) -> bytes:
        """See ``Completion``."""
        return encode(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": int(self._now),
                "model": self._call.model,
                "choices": [
                    {
                        "index": index,
                        "message": self._message(index, choice),
                        "finish_reason": _ended(choice),
                    }
                    for index, choice in enumerate(self._choices)
                ],
                "usage": self._usage(),
            }
        )

    @property
    def _id(self) -> str:
        return f"{self._number:032x}"

    def _message(self, index: int, choice: Choice) -> dict[str, Any]:
        calls = None
        text = choice.refusal or choice.text or ""
        if self._call.tool is not None and choice.text:
            calls, text = [self._tool_call(index, choice.text)], ""
        return {"role": "assistant", "content": text, "tool_calls": calls, "prefix": False}

    def _tool_call(self, index: int, arguments: str) -> dict[str, Any]:
        function = {"name": self._call.tool, "arguments": arguments}
        # Nine letters and digits, as the service demands when it gets them back.
        identity = f"{self._number % 16**7:07x}{index:02x}"
        return {"id": identity, "type": "function", "function": function, "index": 0}

    def events(self) -> Iterator[bytes]:
        """Return the same answer as server-sent events; the last one has the usage."""
        for index, choice in enumerate(self._choices):
            if self._call.tool is not None and choice.text:
                call = self._tool_call(index, choice.text)
                delta = {"role": "assistant", "content": "", "tool_calls": [call]}
            else:
                delta = {"role": "assistant", "content": ""}
                yield self._piece(index, delta)
                for piece in self._pieces(choice):
                    yield self._piece(index, {"content": piece})
                delta = {"content": ""}
            is_last = index == len(self._choices) - 1
            yield self._piece(index, delta, _ended(choice), self._usage() if is_last else None)
        yield b"data: [DONE]\n\n"

    def _piece(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": int(self._now),
            "model": self._call.model,
            "choices": [{"index": index, "delta": delta, "finish_reason": reason}],
        }
        return b"data: %b\n\n" % encode(chunk | ({"usage": usage} if usage else {}))

    def _usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
        }
        if self.cached_tokens:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return usage


def _ended(choice: Choice) -> str:
    return "error" if choice.reason == "content_filter" else choice.reason


MISTRAL = MistralFormat()
