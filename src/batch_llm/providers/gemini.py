"""The Gemini generateContent codec (``POST /v1/models/…:generateContent``).

Shapes: the API reference and what the official SDK reads.
"""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from batch_llm.core.request import Image, Text
from batch_llm.core.usage import count_of, usage_by_kind
from batch_llm.exceptions import ContentFilteredError, TruncatedError, UnsupportedRequestError
from batch_llm.providers.base import Outcome
from batch_llm.providers.codec import (
    Codec,
    answered,
    complaint,
    other_fields,
    stops,
    system_apart,
    text_of,
)
from batch_llm.providers.data_urls import split_data_url
from batch_llm.providers.failures import inner_status, malformed, status_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.core.request import Message, Part, Request
    from batch_llm.exceptions import BadOutputError

_NAME = "The generateContent format"
_ROLES = {"user": "user", "assistant": "model", "model": "model"}
#: Fields of the body; a setting of another name belongs into its ``generationConfig``.
_TOP_FIELDS = {
    *("contents", "systemInstruction", "system_instruction", "generationConfig"),
    *("generation_config", "tools", "toolConfig", "tool_config", "safetySettings"),
    *("safety_settings", "cachedContent", "cached_content", "labels", "serviceTier"),
    *("service_tier", "store"),
}
#: Of what the provider says beside that.
_MOST_WORDS = 200
#: Why an answer was withheld; any other odd end may be better next time.
_WITHHELD: Final = {
    *("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE"),
    *("MODEL_ARMOR", "PUP_LIMITED_DISABLED"),
}
_GOOD: Final = {None, "STOP", "FINISH_REASON_UNSPECIFIED"}
_CUT: Final = {"MAX_TOKENS", "CONTINUATION"}


class _UsageMetadata(msgspec.Struct, rename="camel"):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    cached_content_token_count: int | None = None


class _Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    thought: bool = False
    function_call: Any = None


class _Content(msgspec.Struct):
    parts: list[_Part] | None = None


class _Rating(msgspec.Struct):
    category: str | None = None
    probability: str | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    safety_ratings: list[_Rating] | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None
    safety_ratings: list[_Rating] | None = None


class _Response(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _UsageMetadata | None = None
    model_version: str | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Response).decode


@dataclass(frozen=True, slots=True)
class GenerateCodec(Codec):
    """The generateContent format. The model's name is in the path, not in the body."""

    _answer_name = "of Gemini's kind"
    _answer_fields = frozenset({"candidates", "promptFeedback", "error"})
    _read = staticmethod(_decode)

    def path(self, model: str, /) -> str:
        """Return the path of a model's calls."""
        return f"/models/{quote(model, safe='')}:generateContent"

    def _body(
        self,
        request: Request,
        attempt: int,
        model: str,  # noqa: ARG002
        feedback: BadOutputError | None,
        /,
    ) -> dict[str, Any]:
        settings = request.settings
        of_system, others = system_apart(request.messages)
        system = [part for message in of_system for part in _parts(message)]
        contents: list[dict[str, Any]] = [
            {"role": _role(message), "parts": _parts(message)} for message in others
        ]
        if feedback is not None:
            said = {"text": feedback.text or "(nothing)"}
            contents += [
                {"role": "model", "parts": [said]},
                {"role": "user", "parts": [{"text": complaint(feedback)}]},
            ]
        body: dict[str, Any] = {"contents": contents}
        if system:
            body["systemInstruction"] = {"parts": system}
        config: dict[str, Any] = {}
        temperature = settings.temperature_for(attempt)
        if settings.extra:
            for name, value in other_fields(settings).items():
                if name in {"generationConfig", "generation_config"} and isinstance(value, dict):
                    config |= value
                else:
                    (body if name in _TOP_FIELDS else config)[name] = value
        length, ends = settings.longest_answer, stops(settings)
        if temperature is not None:
            config["temperature"] = temperature
        if settings.top_p is not None:
            config["topP"] = settings.top_p
        if length is not None:
            config["maxOutputTokens"] = length
        if settings.seed is not None:
            config["seed"] = settings.seed
        if ends is not None:
            config["stopSequences"] = ends
        if request.output is not None:
            config["responseMimeType"] = "application/json"
            config["responseJsonSchema"] = request.output.schema
        if config:
            body["generationConfig"] = config
        return body

    @staticmethod
    def _read_fields(raw: dict[str, Any], /) -> _Response:
        return _Response(
            [_candidate_of(one) for one in _dicts(raw.get("candidates"))],
            _feedback_of(raw.get("promptFeedback")),
            _usage_of(raw.get("usageMetadata")),
            text_of(raw.get("modelVersion")),
            raw.get("error"),
        )

    def _outcome(
        self,
        response: _Response,
        headers: Mapping[str, str],
        answer: bytes,
        request: Request,
        secret: str,
        /,
    ) -> Outcome:
        usage, model = _usage(response.usage_metadata), response.model_version
        if response.error:
            trouble = response.error
            inner = status_error(inner_status(trouble), headers, answer, secret, trouble)
            return Outcome(usage=usage, error=inner, model=model)
        error: Exception
        if not response.candidates:
            asked = response.prompt_feedback or _Feedback()
            ratings = _ratings(asked.safety_ratings)
            if asked.block_reason is not None:
                error = ContentFilteredError(f"the prompt was blocked ({asked.block_reason})")
            else:
                error = malformed("The answer has no candidates", answer, secret)
            return Outcome(None, usage, error, model, ratings)
        candidate = response.candidates[0]
        ratings, reason = _ratings(candidate.safety_ratings), candidate.finish_reason
        parts = (candidate.content.parts if candidate.content else None) or []
        texts = [part.text for part in parts if part.text is not None and not part.thought]
        text = "".join(texts) if texts else None
        if reason in _CUT:
            error = TruncatedError(text or "", request.settings.longest_answer)
        elif reason in _WITHHELD or (reason is not None and reason.startswith("IMAGE_")):
            words = (candidate.finish_message or "")[:_MOST_WORDS]
            error = ContentFilteredError(f"{reason}: {words}" if words else str(reason))
        elif reason not in _GOOD:
            error = malformed(f"The answer ended with {reason}"[:80], answer, secret)
        elif text is None and request.output is None and any(part.function_call for part in parts):
            calls = [part.function_call for part in parts if part.function_call]
            return Outcome(calls, usage, None, model, ratings)
        elif text is None:
            error = malformed("The answer is without content", answer, secret)
        else:
            return answered(text, usage, model, request, ratings)
        return Outcome(None, usage, error, model, ratings)


GENERATE = GenerateCodec()


def _role(message: Message) -> str:
    role = _ROLES.get(message.role)
    if role is None:
        raise UnsupportedRequestError(_NAME, f"a message of the role {message.role[:40]!r}")
    if message.extra.get("tool_calls"):
        raise UnsupportedRequestError(_NAME, "tool calls in the shape of chat completions")
    return role


def _parts(message: Message) -> list[Mapping[str, Any]]:
    content = message.content
    if isinstance(content, tuple):
        return [_part(part) for part in content]
    return [{"text": content or ""}]


def _part(part: Part) -> Mapping[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    if isinstance(part, Image):
        held = split_data_url(part.url)
        if held is not None:
            return {"inlineData": {"mimeType": held.media_type, "data": held.base64}}
        kind = mimetypes.guess_type(urlsplit(part.url).path)[0]
        told = {"mimeType": kind} if kind else {}
        return {"fileData": {"fileUri": part.url} | told}
    return part.data


def _ratings(ratings: list[_Rating] | None) -> dict[str, str] | None:
    """Return the probability of each category of harm, as the provider words it."""
    found = {
        rating.category: rating.probability
        for rating in ratings or ()
        if rating.category is not None and rating.probability is not None
    }
    return found or None


def _candidate_of(raw: dict[str, Any]) -> _Candidate:
    content = raw.get("content")
    parts = None
    if isinstance(content, dict):
        parts = [
            _Part(text_of(one.get("text")), one.get("thought") is True, one.get("functionCall"))
            for one in _dicts(content.get("parts"))
        ]
    return _Candidate(
        _Content(parts),
        text_of(raw.get("finishReason")),
        text_of(raw.get("finishMessage")),
        _ratings_of(raw.get("safetyRatings")),
    )


def _feedback_of(raw: Any) -> _Feedback | None:
    if not isinstance(raw, dict):
        return None
    return _Feedback(text_of(raw.get("blockReason")), _ratings_of(raw.get("safetyRatings")))


def _ratings_of(raw: Any) -> list[_Rating]:
    return [
        _Rating(text_of(one.get("category")), text_of(one.get("probability")))
        for one in _dicts(raw)
    ]


def _usage_of(raw: Any) -> _UsageMetadata | None:
    if not isinstance(raw, dict):
        return None
    return _UsageMetadata(
        *(count_of(raw.get(name)) for name in _UsageMetadata.__struct_encode_fields__)
    )


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _usage(usage: _UsageMetadata | None) -> dict[str, int] | None:
    """Return the tokens by kind: the provider tells output without what was thought."""
    if usage is None:
        return None
    if usage.prompt_token_count is None and usage.candidates_token_count is None:
        return None
    thought = usage.thoughts_token_count
    return usage_by_kind(
        max(0, usage.prompt_token_count or 0) + max(0, usage.tool_use_prompt_token_count or 0),
        max(0, usage.candidates_token_count or 0) + max(0, thought or 0),
        read=usage.cached_content_token_count,
        thought=thought,
    )
