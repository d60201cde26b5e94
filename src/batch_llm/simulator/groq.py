"""Groq's chat completions: OpenAI's, with its own errors, headers and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batch_llm.simulator.completions import NO_SHARES, Choice, Shares, number
from batch_llm.simulator.fields import encode
from batch_llm.simulator.openai_chat import (
    LIMIT_HEADERS,
    ChatCall,
    ChatCompletion,
    ChatFormat,
    go_duration,
    wait_headers,
)
from batch_llm.simulator.refusals import Excess, Flaw, Refusal, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batch_llm.simulator.calls import Call
    from batch_llm.simulator.fields import Headers
    from batch_llm.simulator.limits import Limit

_INVALID = "invalid_request_error"
_PER = {
    "requests": ("requests", "requests per minute (RPM)"),
    "tokens": ("tokens", "tokens per minute (TPM)"),
    "input_tokens": ("tokens", "input tokens per minute (ITPM)"),
    "output_tokens": ("tokens", "output tokens per minute (OTPM)"),
    "requests_a_day": ("requests", "requests per day (RPD)"),
    "tokens_a_day": ("tokens", "tokens per day (TPD)"),
}
#: What a day's tokens are said to be where they are used up.
_TOKENS_A_DAY = 100_000
_DAY_WAIT_SECONDS = 864.0


class GroqFormat(ChatFormat):
    """Groq's chat completions."""

    provider = "groq"
    organization = "org_simulator"
    troubles = {  # noqa: RUF012 - see the base class
        "no_key": Trouble(401, _INVALID, "invalid_api_key", "Invalid API Key"),
        "bad_key": Trouble(401, _INVALID, "invalid_api_key", "Invalid API Key"),
        "forbidden": Trouble(
            403, _INVALID, None, "Access denied. Please check your network settings."
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
            "method_not_allowed",
            "Method {method} not allowed on {path}",
        ),
        "no_path": Trouble(
            404,
            _INVALID,
            "unknown_url",
            "Unknown request URL: {method} {path}. Please check the URL for typos.",
        ),
        "context": Trouble(
            400,
            _INVALID,
            "context_length_exceeded",
            "Please reduce the length of the messages or completion. The prompt has {tokens} "
            "tokens, the model's maximum context length is {most}.",
        ),
        "too_large": Trouble(413, _INVALID, "request_too_large", "Request Entity Too Large"),
        "p408": Trouble(408, "timeout", None, "Request timed out"),
        "p500": Trouble(500, "internal_server_error", None, "Internal Server Error"),
        "p503": Trouble(503, "internal_server_error", None, "Service Unavailable"),
        "p504": Trouble(504, "internal_server_error", None, "Gateway Timeout"),
        # The status of Groq's own for "no capacity" on the flex tier.
        "p529": Trouble(498, "tokens", "capacity_exceeded", "Flex tier capacity exceeded"),
        "busy": Trouble(
            429,
            "requests",
            "rate_limit_exceeded",
            "Too many requests in work at the same time: {most} at the most",
        ),
    }

    def error(
        self,
        status: int,
        message: str,
        kind: str | None,
        code: str | None,
        param: str | None = None,
    ) -> Refusal:
        """See ``WireFormat``."""
        error = {"message": message, "type": kind}
        error |= {"code": code} if code is not None else {}
        error |= {"param": param} if param is not None else {}
        return Refusal(status, message, encode({"error": error}))

    def flawed(self, flaw: Flaw) -> Refusal:
        """See ``WireFormat``."""
        refusal = super().flawed(flaw)
        where, value = flaw.where, flaw.value
        message = {
            "missing": f"'{where}' : property '{where}' is missing",
            "type": f"'{where}' : value must be {flaw.expected}",
            "empty": f"'{where}' : minimum number of items is 1",
            "below": f"'{where}' : number must be at least {flaw.expected}",
            "above": f"'{where}' : number must be at most {flaw.expected}",
            "value": f"'{where}' : value '{value}' must be one of {flaw.expected}",
        }.get(flaw.kind, str(refusal))
        return self.error(400, message, _INVALID, None)

    def _exceeded(self, excess: Excess, status: int, ending: str) -> Refusal:
        about, per = _PER[excess.kind]
        opening = "Request too large" if status == 413 else "Rate limit reached"
        message = (
            f"{opening} for model `{excess.model}` in organization `{self.organization}` service "
            f"tier `on_demand` on {per}: Limit {excess.limit:.0f}, Used {excess.used:.0f}, "
            f"Requested {excess.asked}{ending}"
        )
        refusal = self.error(status, message, about, "rate_limit_exceeded")
        refusal.headers = wait_headers(excess)
        return refusal

    def limited(self, excess: Excess) -> Refusal:
        """See ``WireFormat``."""
        ending = (
            f". Please try again in {go_duration(excess.seconds)}. Need more tokens? Upgrade to "
            "Dev Tier today at https://console.groq.com/settings/billing"
        )
        return self._exceeded(excess, 429, ending)

    def too_large_for(self, excess: Excess) -> Refusal:
        """See ``WireFormat``."""
        return self._exceeded(excess, 413, ", please reduce your message size and try again.")

    def out_of_quota(self, word: str, model: str) -> Refusal:  # noqa: ARG002
        """See ``WireFormat``."""
        most = _TOKENS_A_DAY
        return self.limited(
            Excess("tokens_a_day", model, most, most - 1000, 2000, _DAY_WAIT_SECONDS, "header")
        )

    def limit_headers(self, limits: Iterable[tuple[str, Limit]], now: float) -> dict[str, str]:  # noqa: ARG002
        """See ``WireFormat``: requests are told per day, tokens per minute."""
        headers: dict[str, str] = {}
        for kind, limit in limits:
            if kind in ("requests_a_day", "tokens"):
                is_day = kind == "requests_a_day"
                most, remaining, reset = LIMIT_HEADERS["requests" if is_day else kind]
                headers[most] = f"{limit.most if is_day else limit.limit:.0f}"
                headers[remaining] = str(limit.remaining())
                headers[reset] = go_duration(limit.reset_seconds())
        return headers

    def own_headers(self, request_id: bytes, seconds: float) -> Headers:  # noqa: ARG002
        """See ``WireFormat``."""
        return [
            (b"x-request-id", request_id or b"req_%026x" % number()),
            (b"x-groq-region", b"sim"),
        ]

    def knows_midway(self, call: Call) -> bool:
        """See ``WireFormat``."""
        return call.streams

    def complete(
        self, call: ChatCall, fault_name: str | None, now: float, shares: Shares = NO_SHARES
    ) -> GroqCompletion:
        """See ``WireFormat``."""
        return GroqCompletion(call, fault_name, now, shares)


class GroqCompletion(ChatCompletion):
    """An answer to a call of Groq's."""

    __slots__ = ()

    def __init__(
        self, call: Call, fault_name: str | None, now: float, shares: Shares = NO_SHARES
    ) -> None:
        super().__init__(call, fault_name, now, shares)
        self.request_id = b"req_%026x" % self._number

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
                        "logprobs": None,
                        "finish_reason": _ended(choice),
                    }
                    for index, choice in enumerate(self._choices)
                ],
                "usage": self._usage(),
                "usage_breakdown": None,
                "system_fingerprint": "fp_simulator",
                "x_groq": self._mark(),
                "service_tier": "on_demand",
            }
        )

    def _message(self, index: int, choice: Choice) -> dict[str, Any]:
        if self._call.tool is not None and choice.text:
            return {"role": "assistant", "tool_calls": [self._tool_call(index, choice.text)]}
        # There is no field for refusals: the model's words stand where the answer would.
        return {"role": "assistant", "content": choice.refusal or choice.text or ""}

    def events(self) -> Iterator[bytes]:
        """Return the same answer as server-sent events."""
        for index, choice in enumerate(self._choices):
            if self._call.tool is not None and choice.text:
                call = {"index": 0, **self._tool_call(index, choice.text)}
                yield self._piece(index, {"role": "assistant", "tool_calls": [call]}, self._mark())
            else:
                yield self._piece(index, {"role": "assistant", "content": ""}, self._mark())
                for piece in self._pieces(choice):
                    yield self._piece(index, {"content": piece})
            mark = self._mark() | {"usage": self._usage()}
            yield self._piece(index, {}, mark, _ended(choice))
        if self._call.streams_usage:
            yield self._event([], self._usage())
        yield b"data: [DONE]\n\n"

    def _piece(
        self,
        index: int,
        delta: dict[str, Any],
        mark: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk = self._chunk([choice]) | ({"x_groq": mark} if mark else {})
        return b"data: %b\n\n" % encode(chunk)

    def _mark(self) -> dict[str, Any]:
        return {"id": self.request_id.decode()}

    def _usage(self) -> dict[str, Any]:
        return {
            "queue_time": 0.001,
            "prompt_tokens": self.input_tokens,
            "prompt_time": 0.002,
            "completion_tokens": self.output_tokens,
            "completion_time": 0.002,
            "total_tokens": self.input_tokens + self.output_tokens,
            "total_time": 0.004,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


def _ended(choice: Choice) -> str:
    return "stop" if choice.reason == "content_filter" else choice.reason


GROQ = GroqFormat()
