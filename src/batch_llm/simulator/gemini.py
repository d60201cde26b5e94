"""Gemini's generateContent, as the service answers it. Values in, values out; no network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.simulator.answers import count_tokens
from batch_llm.simulator.calls import JSON_OBJECT, Call, Tool, Turns, pick_tool
from batch_llm.simulator.completions import NO_SHARES, Choice, Completion, Shares
from batch_llm.simulator.fields import bearer, decode, encode, fields_of, header, whole_number
from batch_llm.simulator.gemini_schema import json_schema
from batch_llm.simulator.openai_chat import PIECES
from batch_llm.simulator.refusals import Excess, Flaw, Refusal, Trouble
from batch_llm.simulator.wire import LISTED_MODELS, WireFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batch_llm.simulator.fields import Headers
    from batch_llm.simulator.limits import Limit

IMAGE_TOKENS = 258
MAX_CANDIDATES = 8
_TYPE = "type.googleapis.com/google.rpc"
_INVALID = "INVALID_ARGUMENT"
_EXHAUSTED = "RESOURCE_EXHAUSTED"
_METRIC = "generativelanguage.googleapis.com"
_OVER_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. "
)
#: Of each kind of limit: metric and id.
_QUOTAS = {
    "requests": ("generate_content_requests", "GenerateRequestsPerMinutePerProjectPerModel"),
    "tokens": (
        "generate_content_input_token_count",
        "GenerateContentInputTokensPerModelPerMinute",
    ),
    "input_tokens": (
        "generate_content_input_token_count",
        "GenerateContentInputTokensPerModelPerMinute",
    ),
    "output_tokens": (
        "generate_content_output_token_count",
        "GenerateContentOutputTokensPerModelPerMinute",
    ),
    "requests_a_day": (
        "generate_content_free_tier_requests",
        "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
    ),
}
#: What the service tells to wait when a day's quota is used up: too short by far.
_DAY_WAIT_SECONDS = 18.0
_REQUESTS_A_DAY = 250
_CATEGORIES = (
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
)
_HARMLESS = [{"category": name, "probability": "NEGLIGIBLE"} for name in _CATEGORIES]
_HARMFUL = [
    {"category": name, "probability": "HIGH", "blocked": True}
    if name == "HARM_CATEGORY_DANGEROUS_CONTENT"
    else {"category": name, "probability": "NEGLIGIBLE"}
    for name in _CATEGORIES
]
#: Looked up by what callers send, which may be anything: no set.
_ROLES = ("user", "model", "function")
_WANTED = {"an integer": "TYPE_INT32", "a string": "TYPE_STRING"}
_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}


class GeminiCall(Call):
    """A generateContent call, checked and understood.

    Args:
        body: What was sent.
        model: The name in its path.

    Raises:
        Flaw: The body is wrong.
    """

    __slots__ = ()

    def __init__(self, body: bytes, model: str) -> None:
        fields = fields_of(body)
        if (inner := _get(fields, "generateContentRequest")) is not None:
            if not isinstance(inner, dict):
                raise Flaw("type", "generate_content_request", "an object", inner)
            fields = inner  # of a call that only counts
        turns = Turns()
        system = _get(fields, "systemInstruction")
        if system is not None:
            text, _ = _read_parts(system, "systemInstruction", turns)
            turns.instruct(text or "")
        _read_contents(fields, turns)
        turns.tell(self, model.removeprefix("models/"))
        settings = _get(fields, "generationConfig") or {}
        if not isinstance(settings, dict):
            raise Flaw("type", "generation_config", "an object", settings)
        self.max_tokens = _number(settings, "maxOutputTokens")
        self.choices = _number(settings, "candidateCount", MAX_CANDIDATES) or 1
        self.schema = _schema(settings)
        self.streams = False
        self.tool = None
        if fields.get("tools"):
            self._read_tools(fields, turns)

    def _read_tools(self, fields: dict[str, Any], turns: Turns) -> None:
        settings = _get(fields, "toolConfig") or {}
        how = _get(settings, "functionCallingConfig") or {} if isinstance(settings, dict) else {}
        mode = str(how.get("mode", "AUTO")).upper() if isinstance(how, dict) else "AUTO"
        if mode == "NONE":
            return
        tools = _functions(fields["tools"])
        allowed = _get(how, "allowedFunctionNames") if isinstance(how, dict) else None
        if isinstance(allowed, list) and allowed:
            tools = [tool for tool in tools if tool.name in allowed]
        picked = pick_tool(tools, turns.called, self.prompt, is_due=mode == "ANY")
        if picked is not None:
            self.tool, self.schema = picked


def _get(fields: dict[str, Any], name: str) -> Any:
    """Return a field, which may be written in either case."""
    if name in fields:
        return fields[name]
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return fields.get(snake)


def _number(settings: dict[str, Any], name: str, most: int | None = None) -> int | None:
    value = _get(settings, name)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)  # as proto3 writes large numbers
    return whole_number({name: value}, name, most=most, where=f"generation_config.{name}")


def _read_contents(fields: dict[str, Any], turns: Turns) -> None:
    contents = fields.get("contents")
    if not contents:
        raise Flaw("empty", "contents")
    if isinstance(contents, dict):
        contents = [contents]
    if not isinstance(contents, list):
        raise Flaw("type", "contents", "an array", contents)
    for place, content in enumerate(contents):
        where = f"contents[{place}]"
        text, called = _read_parts(content, where, turns)
        role = content.get("role") or "user"
        if role not in _ROLES:
            raise Flaw("value", f"{where}.role", "user, model", role)
        turns.called += called
        if text is None:
            continue
        if role == "user":
            turns.ask(text)
        else:
            turns.tokens += count_tokens(text)


def _read_parts(content: Any, where: str, turns: Turns) -> tuple[str | None, list[str]]:
    """Return the text of a content, None without any, and the functions that it calls."""
    if not isinstance(content, dict):
        raise Flaw("type", where, "an object", content)
    parts = content.get("parts") or []
    if isinstance(parts, dict):
        parts = [parts]
    if not isinstance(parts, list):
        raise Flaw("type", f"{where}.parts", "an array", parts)
    texts: list[str] = []
    called: list[str] = []
    for place, part in enumerate(parts):
        if not isinstance(part, dict):
            raise Flaw("type", f"{where}.parts[{place}]", "an object", part)
        text = part.get("text")
        if isinstance(text, str) and not part.get("thought"):
            texts.append(text)
        elif _get(part, "inlineData") or _get(part, "fileData"):
            turns.tokens += IMAGE_TOKENS
        elif isinstance(function := _get(part, "functionCall"), dict):
            called.append(str(function.get("name")))
        elif answer := _get(part, "functionResponse"):
            turns.tokens += count_tokens(str(answer))
        elif not part:
            raise Flaw("data", f"{where}.parts[{place}]")
    return "\n".join(texts) if texts else None, called


def _schema(settings: dict[str, Any]) -> Any:
    kind = _get(settings, "responseMimeType") or "text/plain"
    given = _get(settings, "responseJsonSchema")
    own = _get(settings, "responseSchema")
    if kind == "text/plain":
        if given is None and own is None:
            return None
        raise Flaw(
            "other",
            message="Response schema is only supported with mime type: 'application/json'",
        )
    if kind == "text/x.enum":
        return json_schema(own)
    if kind != "application/json":
        allowed = "`text/plain`, `application/json`, and `text/x.enum`"
        message = f"Invalid response mime type: {kind}. Allowed mimetypes are {allowed}."
        raise Flaw("other", message=f"* GenerateContentRequest.generation_config: {message}")
    if given is not None:
        return given
    return JSON_OBJECT if own is None else json_schema(own)


def _functions(tools: Any) -> list[Tool]:
    if not isinstance(tools, list):
        raise Flaw("type", "tools", "an array", tools)
    functions = []
    for tool in tools:
        declared = _get(tool, "functionDeclarations") if isinstance(tool, dict) else None
        for function in declared if isinstance(declared, list) else []:
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise Flaw("other", message="* GenerateContentRequest.tools: name is required")
            schema = _get(function, "parametersJsonSchema")
            if schema is None:
                schema = json_schema(function.get("parameters") or {"type": "OBJECT"})
            functions.append(Tool(function["name"], schema))
    return functions


class GeminiFormat(WireFormat):
    """Gemini's generateContent.

    Args:
        streams: Whether the answer is wanted in pieces.
        is_sse: Whether they are server-sent events; otherwise they are the members of an array.
    """

    provider = "google"
    troubles = {  # noqa: RUF012 - see the base class
        "no_key": Trouble(
            403,
            "PERMISSION_DENIED",
            None,
            "Method doesn't allow unregistered callers (callers without established identity). "
            "Please use API Key or other form of API consumer identity to call this API.",
        ),
        "bad_key": Trouble(
            400,
            _INVALID,
            "API_KEY_INVALID",
            "API key not valid. Please pass a valid API key.",
        ),
        "forbidden": Trouble(
            403,
            "PERMISSION_DENIED",
            "CONSUMER_SUSPENDED",
            "Permission denied: Consumer has been suspended.",
        ),
        "missing_model": Trouble(
            404,
            "NOT_FOUND",
            None,
            "models/{model} is not found for API version v1beta, or is not supported for "
            "generateContent. Call ListModels to see the list of available models and their "
            "supported methods.",
        ),
        "wrong_method": Trouble(405, "UNIMPLEMENTED", None, "Method {method} is not allowed here."),
        "no_path": Trouble(404, "NOT_FOUND", None, "The requested URL {path} was not found."),
        "context": Trouble(
            400,
            _INVALID,
            None,
            "The input token count ({tokens}) exceeds the maximum number of tokens allowed "
            "({most}).",
        ),
        "too_large": Trouble(
            400,
            _INVALID,
            None,
            "Request payload size exceeds the limit: {most} bytes.",
        ),
        "p408": Trouble(408, "CANCELLED", None, "Request timeout."),
        "p500": Trouble(
            500,
            "INTERNAL",
            None,
            "An internal error has occurred. Please retry or report in "
            "https://developers.generativeai.google/guide/troubleshooting",
        ),
        "p503": Trouble(
            503,
            "UNAVAILABLE",
            None,
            "The model is overloaded. Please try again later.",
        ),
        "p504": Trouble(
            504,
            "DEADLINE_EXCEEDED",
            None,
            "Deadline expired before operation could complete.",
        ),
        "p529": Trouble(503, _EXHAUSTED, None, "Resource has been exhausted (e.g. check quota)."),
        "busy": Trouble(
            429,
            _EXHAUSTED,
            None,
            "Resource has been exhausted (e.g. check quota). Concurrent requests: {most}.",
        ),
    }

    def __init__(self, *, streams: bool = False, is_sse: bool = True) -> None:
        self._streams = streams
        self._is_sse = is_sse
        self.stream_type = b"text/event-stream" if is_sse else b"application/json; charset=UTF-8"

    def check_key(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> None:
        """See ``WireFormat``. The key is in a header, or in the query."""
        secret = header(headers, b"x-goog-api-key")
        if not secret and b"key=" in query:
            pairs = [pair.partition(b"=") for pair in query.split(b"&")]
            secret = next((value for name, _, value in pairs if name == b"key"), b"")
        self.check_secret(secret or bearer(headers))

    def read(self, body: bytes, model: str) -> GeminiCall:
        """See ``WireFormat``."""
        self.checked_model(model)
        try:
            call = GeminiCall(body, model)
        except Flaw as flaw:
            raise self.flawed(flaw) from None
        call.streams = self._streams
        return call

    def complete(
        self, call: GeminiCall, fault_name: str | None, now: float, shares: Shares = NO_SHARES
    ) -> GeminiAnswer:
        """See ``WireFormat``."""
        answer = GeminiAnswer(call, fault_name, now, shares)
        answer.is_sse = self._is_sse
        return answer

    def flawed(self, flaw: Flaw) -> Refusal:
        """See ``WireFormat``."""
        opening = "* GenerateContentRequest"
        wanted = _WANTED.get(flaw.expected, "TYPE_MESSAGE")
        text = {
            "json": "Invalid JSON payload received. Parsing terminated before end of input.",
            "type": f"Invalid value at '{flaw.where}' ({wanted})",
            "value": f"Please use a valid role: {flaw.expected}.",
            "empty": f"{opening}.contents: contents is not specified\n",
            "data": f"{opening}.{flaw.where}.data: required oneof field 'data' must have one "
            "initialized field\n",
            "below": f"{opening}.{flaw.where}: must be at least {flaw.expected}",
            "above": f"{opening}.{flaw.where}: must be at most {flaw.expected}",
            "schema": f"{opening}.generation_config.response_schema: {flaw.message}",
        }.get(flaw.kind, flaw.message)
        return self.error(400, text, _INVALID, None)

    def error(
        self,
        status: int,
        message: str,
        kind: str | None,
        code: str | None,
        details: Sequence[dict[str, Any]] = (),
    ) -> Refusal:
        """See ``WireFormat``; ``code`` is the reason in an ``ErrorInfo``."""
        error: dict[str, Any] = {"code": status, "message": message, "status": kind}
        about = list(details)
        if code is not None:
            domain = {"domain": "googleapis.com", "metadata": {"service": _METRIC}}
            about.insert(0, {"@type": f"{_TYPE}.ErrorInfo", "reason": code, **domain})
        if about:
            error["details"] = about
        return Refusal(status, message, encode({"error": error}))

    def limited(self, excess: Excess) -> Refusal:
        """See ``WireFormat``: the wait is in the body, and where a day is over it says little."""
        is_day = excess.kind == "requests_a_day"
        seconds = min(excess.seconds, _DAY_WAIT_SECONDS) if is_day else excess.seconds
        metric, quota_id = _QUOTAS[excess.kind]
        violation = {
            "quotaMetric": f"{_METRIC}/{metric}",
            "quotaId": quota_id,
            "quotaDimensions": {"location": "global", "model": excess.model},
            "quotaValue": f"{excess.limit:.0f}",
        }
        link = {
            "description": "Learn more about Gemini API quotas",
            "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
        }
        details: list[dict[str, Any]] = [
            {"@type": f"{_TYPE}.QuotaFailure", "violations": [violation]},
            {"@type": f"{_TYPE}.Help", "links": [link]},
        ]
        message = (
            f"{_OVER_QUOTA}\n* Quota exceeded for metric: {_METRIC}/{metric}, limit: "
            f"{excess.limit:.0f}, model: {excess.model}"
        )
        if excess.retry_after != "none":
            message += f"\nPlease retry in {seconds:.9g}s."
            wait = {"@type": f"{_TYPE}.RetryInfo", "retryDelay": _duration(seconds)}
            details.append(wait)
        return self.error(429, message, _EXHAUSTED, None, details)

    def out_of_quota(self, word: str, model: str) -> Refusal:  # noqa: ARG002
        """See ``WireFormat``."""
        most = float(_REQUESTS_A_DAY)
        excess = Excess("requests_a_day", model, most, most, 1, _DAY_WAIT_SECONDS, "header")
        return self.limited(excess)

    def limit_headers(self, limits: Iterable[tuple[str, Limit]], now: float) -> dict[str, str]:  # noqa: ARG002
        """See ``WireFormat``: there are none."""
        return {}

    def own_headers(self, request_id: bytes, seconds: float) -> Headers:  # noqa: ARG002
        """See ``WireFormat``."""
        return [(b"vary", b"Origin, X-Origin, Referer")]

    def models(self) -> bytes:
        """See ``WireFormat``."""
        return encode({"models": [_model(name) for name in LISTED_MODELS]})

    def model(self, name: str) -> bytes:
        """See ``WireFormat``."""
        return encode(_model(self.checked_model(name)))

    def counted(self, call: Call) -> bytes:
        """See ``WireFormat``."""
        tokens = call.input_tokens
        details = [{"modality": "TEXT", "tokenCount": tokens}]
        return encode({"totalTokens": tokens, "promptTokensDetails": details})

    def midway(self, request_id: bytes) -> bytes:  # noqa: ARG002 - it does not stand there
        """See ``WireFormat``."""
        body = self.trouble("p503").body
        return b"data: %b\r\n\r\n" % body if self._is_sse else b",\n%b]" % body


def _duration(seconds: float) -> str:
    """Write seconds as protobuf does."""
    milliseconds = max(1, math.ceil(seconds * 1000))
    whole, rest = divmod(milliseconds, 1000)
    return f"{whole}.{rest:03d}s" if rest else f"{whole}s"


def _model(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "description": "Simulated",
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
        "temperature": 1,
        "topP": 0.95,
        "topK": 64,
    }


class GeminiAnswer(Completion):
    """An answer of generateContent.

    Attributes:
        is_sse: Whether its pieces are server-sent events.
    """

    __slots__ = ("is_sse",)

    def __init__(
        self, call: Call, fault_name: str | None, now: float, shares: Shares = NO_SHARES
    ) -> None:
        super().__init__(call, fault_name, now, shares)
        self.is_sse = True
        if fault_name == "prefuse":
            self.output_tokens = 0  # the prompt is blocked before anything is written

    def body(self) -> bytes:
        """See ``Completion``."""
        return encode(
            self._answer([self._candidate(n, one) for n, one in enumerate(self._choices)])
        )

    def _answer(self, candidates: list[dict[str, Any]]) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        if self._fault_name == "prefuse":
            feedback = {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": _HARMFUL}
            answer["promptFeedback"] = feedback
        else:
            answer["candidates"] = candidates
        return answer | {
            "usageMetadata": self._usage(),
            "modelVersion": self._call.model,
            "responseId": f"{self._number:022x}",
        }

    def _candidate(self, index: int, choice: Choice) -> dict[str, Any]:
        reason = _REASONS.get(choice.reason, "STOP")
        candidate: dict[str, Any] = {"index": index}
        if choice.reason == "content_filter":
            return {"finishReason": reason, "safetyRatings": _HARMFUL} | candidate
        if self._call.tool is not None:
            arguments = _object(choice.text or "")
            if arguments is None:
                is_cut = choice.reason == "length"
                reason = "MAX_TOKENS" if is_cut else "MALFORMED_FUNCTION_CALL"
                return {"content": {"role": "model"}, "finishReason": reason} | candidate
            parts: list[dict[str, Any]] = [
                {"functionCall": {"name": self._call.tool, "args": arguments}}
            ]
        else:
            parts = [{"text": choice.text}] if choice.text else []
        content = {"parts": parts, "role": "model"} if parts else {"role": "model"}
        candidate |= {"content": content, "finishReason": reason, "safetyRatings": _HARMLESS}
        return candidate

    def _usage(self) -> dict[str, Any]:
        written = self.output_tokens - self.reasoning_tokens
        usage: dict[str, Any] = {
            "promptTokenCount": self.input_tokens,
            "totalTokenCount": self.input_tokens + self.output_tokens,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": self.input_tokens}],
        }
        if written:
            usage["candidatesTokenCount"] = written
        if self.reasoning_tokens:
            usage["thoughtsTokenCount"] = self.reasoning_tokens
        if self.cached_tokens:
            usage["cachedContentTokenCount"] = self.cached_tokens
            details = [{"modality": "TEXT", "tokenCount": self.cached_tokens}]
            usage["cacheTokensDetails"] = details
        return usage

    def events(self) -> Iterator[bytes]:
        """Return the same answer in pieces: events, or the members of an array."""
        opening = b"["
        for answer in self._answers():
            if self.is_sse:
                yield b"data: %b\r\n\r\n" % encode(answer)
            else:
                yield opening + encode(answer)
            opening = b",\r\n"
        if not self.is_sse:
            yield b"]"

    def _answers(self) -> Iterator[dict[str, Any]]:
        candidates = [self._candidate(n, one) for n, one in enumerate(self._choices)]
        for candidate in candidates:
            parts = candidate.get("content", {}).get("parts", [])
            if parts and "text" in parts[0]:
                *pieces, last = PIECES.findall(parts[0]["text"])
                for piece in pieces:
                    content = {"parts": [{"text": piece}], "role": "model"}
                    yield self._answer([{"content": content, "index": candidate["index"]}])
                parts[0]["text"] = last
            yield self._answer([candidate])


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = decode(text)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None


GEMINI = GeminiFormat()
GEMINI_STREAM = GeminiFormat(streams=True)
GEMINI_ARRAY = GeminiFormat(streams=True, is_sse=False)
