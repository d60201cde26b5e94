"""OpenAI's Responses API, as the service answers it. Values in, values out; no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batch_llm.simulator.answers import count_tokens
from batch_llm.simulator.calls import JSON_OBJECT, Call, Tool, Turns, pick_tool
from batch_llm.simulator.completions import NO_SHARES, Choice, Completion, Shares
from batch_llm.simulator.fields import encode, event, fields_of, flag, whole_number
from batch_llm.simulator.openai_chat import (
    IMAGE_TOKENS,
    PIECES,
    OpenAiFormat,
    images_in,
    listed,
    model_name,
    text_of,
)
from batch_llm.simulator.refusals import Flaw, Refusal, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The least that ``max_output_tokens`` may be.
LEAST_TOKENS = 16
_ROLES = ("assistant", "system", "developer", "user")
_TIER = "default"


class ResponsesCall(Call):
    """A call of the Responses API, checked and understood.

    Attributes:
        format: The ``text.format`` that was asked for.
        instructions: The system prompt beside the input, or None.

    Raises:
        Flaw: The body is wrong.
    """

    __slots__ = ("format", "instructions")

    def __init__(self, body: bytes) -> None:
        fields = fields_of(body)
        model = model_name(fields)
        turns = Turns()
        self.instructions = _instructions(fields)
        if self.instructions is not None:
            turns.instruct(self.instructions)
        _read_input(fields, turns)
        turns.tell(self, model)
        self.max_tokens = whole_number(fields, "max_output_tokens", least=LEAST_TOKENS)
        self.streams = flag(fields, "stream")
        self.format, self.schema = _format(fields)
        self.tool = None
        if fields.get("tools"):
            self._read_tools(fields, turns)

    def _read_tools(self, fields: dict[str, Any], turns: Turns) -> None:
        tools = _functions(fields["tools"])
        choice = fields.get("tool_choice") or "auto"
        if isinstance(choice, dict):
            name = choice.get("name")
            tools = [tool for tool in tools if tool.name == name]
            if not tools:
                message = f"Tool choice '{name}' not found in 'tools' parameter."
                raise Flaw("other", "tool_choice", message=message)
        if choice == "none":
            return
        is_due = choice == "required" or isinstance(choice, dict)
        picked = pick_tool(tools, turns.called, self.prompt, is_due=is_due)
        if picked is not None:
            self.tool, self.schema = picked


def _instructions(fields: dict[str, Any]) -> str | None:
    text = fields.get("instructions")
    if text is not None and not isinstance(text, str):
        raise Flaw("type", "instructions", "a string", text)
    return text


def _read_input(fields: dict[str, Any], turns: Turns) -> None:
    given = fields.get("input")
    if given is None:
        raise Flaw("missing", "input")
    if isinstance(given, str):
        turns.ask(given)
        return
    if not isinstance(given, list):
        raise Flaw("type", "input", "a string or an array of objects", given)
    for number, item in enumerate(given):
        _read_item(item, f"input[{number}]", turns)


def _read_item(item: Any, where: str, turns: Turns) -> None:
    if not isinstance(item, dict):
        raise Flaw("type", where, "an object", item)
    kind = item.get("type", "message")
    if kind == "function_call":
        turns.called.append(str(item.get("name")))
        turns.tokens += count_tokens(str(item.get("arguments")))
    elif kind == "function_call_output":
        turns.tokens += count_tokens(str(item.get("output")))
    elif kind == "message":
        _read_message(item, where, turns)
    # What else a conversation holds, such as reasoning, came from here and counts nothing.


def _read_message(item: dict[str, Any], where: str, turns: Turns) -> None:
    role = item.get("role")
    if role is None:
        raise Flaw("missing", f"{where}.role")
    if role not in _ROLES:
        raise Flaw("value", f"{where}.role", listed(_ROLES), role)
    content = item.get("content")
    if isinstance(content, list):
        text = text_of(content, f"{where}.content")
        turns.tokens += images_in(content) * IMAGE_TOKENS
    elif isinstance(content, str):
        text = content
    else:
        raise Flaw("type", f"{where}.content", "a string or an array of objects", content)
    if role == "user":
        turns.ask(text)
    elif role == "assistant":
        turns.tokens += count_tokens(text)
    else:
        turns.instruct(text)


def _format(fields: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    text = fields.get("text") or {}
    if not isinstance(text, dict):
        raise Flaw("type", "text", "an object", text)
    shape = text.get("format") or {"type": "text"}
    if not isinstance(shape, dict):
        raise Flaw("type", "text.format", "an object", shape)
    kind = shape.get("type")
    if kind == "text":
        return shape, None
    if kind == "json_object":
        return shape, JSON_OBJECT
    if kind != "json_schema":
        known = ("text", "json_object", "json_schema")
        raise Flaw("value", "text.format.type", listed(known), kind)
    for field in ("name", "schema"):
        if shape.get(field) is None:
            raise Flaw("missing", f"text.format.{field}")
    return shape, shape["schema"]


def _functions(tools: Any) -> list[Tool]:
    if not isinstance(tools, list):
        raise Flaw("type", "tools", "an array of objects", tools)
    functions = []
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise Flaw("type", f"tools[{number}]", "an object", tool)
        if tool.get("type") != "function":
            continue  # the service's own tools are never called
        if not isinstance(tool.get("name"), str):
            raise Flaw("missing", f"tools[{number}].name")
        schema = tool.get("parameters") or {"type": "object", "properties": {}}
        functions.append(Tool(tool["name"], schema))
    return functions


class ResponsesFormat(OpenAiFormat):
    """OpenAI's Responses API."""

    troubles = OpenAiFormat.troubles | {
        # Unlike the older endpoint, this one has no 404 for it.
        "missing_model": Trouble(
            400,
            "invalid_request_error",
            "model_not_found",
            "The requested model '{model}' does not exist.",
        ),
        "context": Trouble(
            400,
            "invalid_request_error",
            "context_length_exceeded",
            "Your input exceeds the context window of this model. "
            "Please adjust your input and try again.",
        ),
    }

    def read(self, body: bytes, model: str) -> ResponsesCall:  # noqa: ARG002 - it stands in the body
        """See ``WireFormat``."""
        try:
            call = ResponsesCall(body)
        except Flaw as flaw:
            raise self.flawed(flaw) from None
        self.checked_model(call.model)
        return call

    def complete(
        self,
        call: ResponsesCall,
        fault_name: str | None,
        now: float,
        shares: Shares = NO_SHARES,
    ) -> Response:
        """See ``WireFormat``."""
        return Response(call, fault_name, now, shares)

    def flawed(self, flaw: Flaw) -> Refusal:
        """See ``WireFormat``."""
        if flaw.kind == "schema":
            flaw = Flaw("schema", "text.format.schema", message=flaw.message)
        return super().flawed(flaw)

    def counted(self, call: Call) -> bytes:
        """See ``WireFormat``."""
        return encode({"object": "response.input_tokens", "input_tokens": call.input_tokens})

    def midway(self, request_id: bytes) -> bytes:  # noqa: ARG002 - it does not stand there
        """See ``WireFormat``."""
        message = "The server had an error while processing your request. Sorry about that!"
        return event(
            "error",
            {
                "type": "error",
                "code": "server_error",
                "message": message,
                "param": None,
                "sequence_number": 9,
            },
        )


class Response(Completion):
    """An answer of the Responses API."""

    __slots__ = ()
    _call: ResponsesCall

    def body(self) -> bytes:
        """See ``Completion``."""
        if self._fault_name == "pmidway":
            error = {"code": "server_error", "message": "The model failed to generate a response."}
            return encode(self._response("failed", [], error=error))
        return encode(self._finished())

    def _finished(self) -> dict[str, Any]:
        choice = self._choices[0]
        status, details = "completed", None
        if choice.reason in {"length", "content_filter"}:
            is_long = choice.reason == "length"
            reason = "max_output_tokens" if is_long else "content_filter"
            status, details = "incomplete", {"reason": reason}
        return self._response(status, self._output(choice, status), details=details)

    def _output(self, choice: Choice, status: str) -> list[dict[str, Any]]:
        items = [self._thought()] if choice.reasoning else []
        if self._call.tool is not None and choice.text:
            items.append(self._function_call(choice.text, status))
        elif choice.refusal or choice.text:
            items.append(self._message(status, [_part(choice)]))
        return items

    def _thought(self) -> dict[str, Any]:
        return {"id": f"rs_{self._number:048x}", "type": "reasoning", "summary": []}

    def _function_call(self, arguments: str, status: str) -> dict[str, Any]:
        return {
            "id": f"fc_{self._number:048x}",
            "type": "function_call",
            "status": status,
            "arguments": arguments,
            "call_id": f"call_{self._number:024x}",
            "name": self._call.tool,
        }

    def _message(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._number:048x}",
            "type": "message",
            "status": status,
            "content": content,
            "role": "assistant",
        }

    def _response(
        self,
        status: str,
        output: list[Any],
        *,
        details: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        is_over = status in {"completed", "incomplete"}
        return {
            "id": f"resp_{self._number:048x}",
            "object": "response",
            "created_at": int(self._now),
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": details,
            "instructions": self._call.instructions,
            "max_output_tokens": self._call.max_tokens,
            "model": self._call.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": _TIER,
            "store": True,
            "temperature": 1.0,
            "text": {"format": self._call.format},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": self._usage() if is_over else None,
            "user": None,
            "metadata": {},
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }

    def events(self) -> Iterator[bytes]:
        """Return the same answer as server-sent events, which are numbered."""
        for number, data in enumerate(self._events()):
            yield event(data["type"], data | {"sequence_number": number})

    def _events(self) -> Iterator[dict[str, Any]]:
        begun = self._response("in_progress", [])
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        finished = self._finished()
        for place, item in enumerate(finished["output"]):
            opening = item | {"status": "in_progress"} if "status" in item else item
            if item["type"] == "message":
                opening |= {"content": []}
            elif item["type"] == "function_call":
                opening |= {"arguments": ""}
            yield _item_event("added", place, opening)
            if item["type"] == "message":
                yield from _part_events(place, item)
            elif item["type"] == "function_call":
                yield from _argument_events(place, item)
            yield _item_event("done", place, item)
        yield {"type": f"response.{finished['status']}", "response": finished}


def _part(choice: Choice) -> dict[str, Any]:
    if choice.refusal is not None:
        return {"type": "refusal", "refusal": choice.refusal}
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": choice.text}


def _item_event(what: str, place: int, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": f"response.output_item.{what}", "output_index": place, "item": item}


def _part_events(place: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    (part,) = item["content"]
    about = {"item_id": item["id"], "output_index": place, "content_index": 0}
    field = "text" if part["type"] == "output_text" else "refusal"
    extra: dict[str, Any] = {"logprobs": []} if field == "text" else {}
    yield {"type": "response.content_part.added", **about, "part": part | {field: ""}}
    kind = f"response.{part['type']}"
    for piece in PIECES.findall(part[field]):
        yield {"type": f"{kind}.delta", **about, "delta": piece, **extra}
    yield {"type": f"{kind}.done", **about, field: part[field], **extra}
    yield {"type": "response.content_part.done", **about, "part": part}


def _argument_events(place: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    about = {"item_id": item["id"], "output_index": place}
    kind = "response.function_call_arguments"
    for piece in PIECES.findall(item["arguments"]):
        yield {"type": f"{kind}.delta", **about, "delta": piece}
    yield {"type": f"{kind}.done", **about, "arguments": item["arguments"], "name": item["name"]}


OPENAI_RESPONSES = ResponsesFormat()
