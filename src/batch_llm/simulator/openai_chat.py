"""OpenAI chat completions, as the service answers them.

Bodies, headers and wordings follow the API reference and what the official SDK reads.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec

from batch_llm.simulator.answers import conforming, count_tokens, plain_answer

DEFAULT_ANSWER_TOKENS = 100_000
_ids = itertools.count(1)
_encode = msgspec.json.Encoder().encode


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
    """

    def __init__(self, body: bytes) -> None:
        try:
            fields = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _invalid("We could not parse the JSON body of your request.", None) from None
        if not isinstance(fields, dict):
            raise _invalid("The body must be a JSON object.", None)
        self.fields = fields
        self.model = fields.get("model")
        if not isinstance(self.model, str) or not self.model:
            raise _invalid("you must provide a model parameter", "model")
        if self.model.startswith("missing"):
            message = f"The model `{self.model}` does not exist or you do not have access to it."
            raise Refusal(404, message, "invalid_request_error", "model_not_found")
        messages = fields.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _invalid("Missing required parameter: 'messages'.", "messages")
        self._read_messages(messages)
        limit = fields.get("max_completion_tokens", fields.get("max_tokens"))
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise _invalid("Invalid 'max_tokens': expected a value >= 1.", "max_tokens")
        self.max_tokens: int | None = limit
        self.choices = fields.get("n") or 1
        if fields.get("stream"):
            raise _invalid("This simulator does not stream.", "stream")
        self.schema = _schema_of(fields)

    def _read_messages(self, messages: list[Any]) -> None:
        texts: list[str] = []
        system = first = last = ""
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise _invalid(f"Invalid message at messages[{number}].", "messages")
            text = _text_of(message.get("content"))
            texts.append(text)
            if message["role"] == "user":
                first, last = first or text, text
            elif message["role"] in {"system", "developer"}:
                system = system or text
        self.conversation = f"{self.model}\x00{system}\x00{first}"
        self.first, self.prompt = first, last
        self.input_tokens = sum(map(count_tokens, texts)) + 3

    @property
    def reserved_tokens(self) -> int:
        """What the call counts against the token limit before it is answered."""
        return max(self.input_tokens, self.max_tokens or 0)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            part.get("text", "") for part in content if isinstance(part, dict) and "text" in part
        )
    return ""


def _schema_of(fields: dict[str, Any]) -> Any:
    shape = fields.get("response_format")
    if not isinstance(shape, dict):
        return None
    if shape.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    if shape.get("type") != "json_schema":
        return None
    inner = shape.get("json_schema")
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        missing = "response_format.json_schema.name"
        raise _invalid(f"Missing required parameter: '{missing}'.", missing)
    return inner.get("schema", {})


def _invalid(message: str, param: str | None) -> Refusal:
    return Refusal(400, message, "invalid_request_error", None, param)


def fault(name: str, call: Call, retry_after: str) -> Refusal | None:
    """Return the error answer of a fault, or None where the fault is not an error answer."""
    if name == "p429":
        return rate_limited("requests", call, 0.3, retry_after, limit=0, used=0)
    if name == "pquota":
        return out_of_quota()
    if name == "p500":
        message = "The server had an error while processing your request. Sorry about that!"
        return Refusal(500, message, "server_error")
    if name == "p503":
        message = "The engine is currently overloaded, please try again later."
        return Refusal(503, message, "service_unavailable", "server_is_overloaded")
    if name == "p529":
        return Refusal(529, "Overloaded", "overloaded", "overloaded")
    return None


def out_of_quota() -> Refusal:
    """Return the 429 that no waiting heals."""
    message = "You exceeded your current quota, please check your plan and billing details."
    return Refusal(429, message, "insufficient_quota", "insufficient_quota")


def rate_limited(
    kind: str, call: Call, seconds: float, retry_after: str, *, limit: float, used: float
) -> Refusal:
    """Return the 429 of a limit, with its wait in the header that the profile says."""
    headers = {}
    if retry_after == "header":
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    elif retry_after == "ms":
        headers["retry-after-ms"] = str(max(1, math.ceil(seconds * 1000)))
    per = "requests per min (RPM)" if kind == "requests" else "tokens per min (TPM)"
    asked = 1 if kind == "requests" else call.reserved_tokens
    message = (
        f"Rate limit reached for {call.model} in organization org-simulator on {per}: "
        f"Limit {limit:.0f}, Used {used:.0f}, Requested {asked}. "
        f"Please try again in {go_duration(seconds)}."
    )
    return Refusal(429, message, kind, "rate_limit_exceeded", headers=headers)


def go_duration(seconds: float) -> str:
    """Write seconds as Go does: ``1m23s``, ``7.66s``, ``20ms``."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


class Completion:
    """A good answer, or a spoilt one.

    Attributes:
        body: The wire JSON.
        input_tokens: Billed.
        output_tokens: Billed.
    """

    def __init__(self, call: Call, fault_name: str | None, now: float) -> None:
        choices = [self._choice(call, fault_name, index) for index in range(call.choices)]
        self.input_tokens = call.input_tokens
        self.output_tokens = sum(tokens for _, tokens in choices)
        self.id = f"chatcmpl-{next(_ids):012x}"
        self.body = _encode(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": int(now),
                "model": call.model,
                "choices": [choice for choice, _ in choices],
                "usage": {
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
                },
                "service_tier": "default",
                "system_fingerprint": "fp_simulator",
            }
        )

    @staticmethod
    def _choice(call: Call, fault_name: str | None, index: int) -> tuple[dict[str, Any], int]:
        text: str | None
        refusal, reason = None, "stop"
        if call.schema is None:
            text = plain_answer(call.prompt)
        elif fault_name == "pschema":
            text = '{"unexpected": ["not", "what", "was", "asked"]}'
        else:
            seed = f"{call.conversation}/{index}"
            text = msgspec.json.encode(conforming(call.schema, seed)).decode()
        if fault_name == "prefuse":
            text, refusal = None, "I'm sorry, I cannot assist with that request."
        elif fault_name == "pfilter":
            text, reason = "", "content_filter"
        tokens = count_tokens(text or refusal or "")
        limit = call.max_tokens
        if fault_name == "ptruncate" or (limit is not None and tokens > limit):
            tokens = min(tokens // 2 + 1, limit or DEFAULT_ANSWER_TOKENS)
            text, reason = (text or "")[: tokens * 4 - 1], "length"
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text,
            "refusal": refusal,
            "annotations": [],
        }
        choice = {"index": index, "message": message, "logprobs": None, "finish_reason": reason}
        return choice, tokens
