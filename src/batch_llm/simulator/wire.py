"""What all wire formats have in common: calls as understood, answers before they are written.

No network and no account. Each format has a module of its own, which says all this in its own way.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

from batch_llm.simulator.answers import count_tokens, echo_of, plain_answer
from batch_llm.simulator.instances import SchemaError, conforming, violating

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batch_llm.simulator.limits import Limit

    Headers = list[tuple[bytes, bytes]]

JSON_OBJECT = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
}
REFUSAL = "I'm sorry, I cannot assist with that request."
#: Keys and models by which a caller asks for trouble; every other one is good.
BAD_KEY, FORBIDDEN_KEY, MISSING_MODEL = b"invalid", b"forbidden", "missing"
TROUBLING_KEYS = (BAD_KEY, FORBIDDEN_KEY)
#: What a 429 out of the blue claims to be the limit, where the profile has none.
CLAIMED_LIMIT = 500
CLAIMED_WAIT_SECONDS = 0.3
LISTED_MODELS = ("fast", "flaky", "slow")
MODELS_CREATED = 1_700_000_000
_JSON = b"application/json"
_BAD_GATEWAY = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
)

_numbers = itertools.count(1)
encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


def number() -> int:
    """Return another number than ever before in this process, for ids."""
    return next(_numbers)


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """An answer with an error status.

    Args:
        status: The HTTP status.
        message: For people.
        body: What is sent.
        headers: Further headers.
        request_id: The id that stands in the body too; empty where none does.
        kind: The body's content type.
    """

    def __init__(
        self,
        status: int,
        message: str,
        body: bytes,
        headers: dict[str, str] | None = None,
        request_id: bytes = b"",
        kind: bytes = _JSON,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.headers = headers or {}
        self.request_id = request_id
        self.kind = kind


class Flaw(Exception):  # noqa: N818 - a finding; each format turns it into a refusal
    """What is wrong with a call's body, before a format says it in its words.

    Args:
        kind: ``json``, ``missing``, ``type``, ``value``, ``empty``, ``below``, ``above``,
            ``schema`` or ``other``.
        where: The field, such as ``messages[0].role``; empty for the whole body.
        expected: The type, the bound, or the values that would do.
        value: What was there instead.
        message: For people, where the rest does not say it.
    """

    def __init__(
        self, kind: str, where: str = "", expected: str = "", value: Any = None, message: str = ""
    ) -> None:
        super().__init__(message or f"{kind}: {where}")
        self.kind = kind
        self.where = where
        self.expected = expected
        self.value = value
        self.message = message


class Trouble(NamedTuple):
    """An error answer, as data.

    Attributes:
        status: HTTP's.
        kind: What a format calls its ``type`` or ``status``.
        code: What it calls its code or reason.
        text: For people; may name ``{model}``, ``{tokens}``, ``{most}``, ``{method}``, ``{path}``.
    """

    status: int
    kind: str | None
    code: str | None
    text: str


class Tool(NamedTuple):
    """A function that the model may call.

    Attributes:
        name: How it is called.
        schema: Of its arguments.
    """

    name: str
    schema: Any


class Call:
    """A call, checked and understood.

    Attributes:
        model: The model's name.
        conversation: What identifies it over all its attempts: model, system, first question.
        prompt: The last user message, as text.
        input_tokens: Of all messages, those read from a cache included.
        cached_tokens: Those read from a cache.
        max_tokens: Asked for, or None.
        choices: How many answers are wanted.
        schema: What they, or the arguments of ``tool``, must conform to; None for plain text.
        tool: The name of the function to be called instead of an answer, or None.
        streams: Whether the answer is wanted in pieces.
    """

    __slots__ = (
        "cached_tokens",
        "choices",
        "conversation",
        "input_tokens",
        "max_tokens",
        "model",
        "prompt",
        "schema",
        "streams",
        "tool",
    )

    model: str
    conversation: str
    prompt: str
    input_tokens: int
    cached_tokens: int
    max_tokens: int | None
    choices: int
    schema: Any
    tool: str | None
    streams: bool

    @property
    def reserved_tokens(self) -> int:
        """The larger of the prompt and the longest answer."""
        return max(self.input_tokens, self.max_tokens or 0)


class Turns:
    """Takes a conversation in, turn by turn."""

    __slots__ = ("called", "first", "last", "system", "tokens")

    def __init__(self) -> None:
        self.tokens = 3
        self.system: str | None = None
        self.first: str | None = None
        self.last = ""
        #: The names of the functions that were called.
        self.called: list[str] = []

    def instruct(self, text: str) -> None:
        """Take a system prompt in."""
        self.tokens += count_tokens(text)
        if self.system is None:
            self.system = text

    def ask(self, text: str) -> None:
        """Take a user's message in."""
        self.tokens += count_tokens(text)
        self.last = text
        if self.first is None:
            self.first = text

    def tell(self, call: Call, model: str) -> None:
        """Write down what is known now."""
        call.model = model
        call.conversation = f"{model}\x00{self.system or ''}\x00{self.first or ''}"
        call.prompt = self.last
        call.input_tokens = self.tokens
        call.cached_tokens = 0
        call.choices = 1


def pick_tool(
    tools: Sequence[Tool], called: Sequence[str], prompt: str, *, is_due: bool
) -> Tool | None:
    """Return the function that the model calls, or None where it answers.

    Args:
        tools: Those it may call.
        called: The names of those it has called in this conversation.
        prompt: The last user message.
        is_due: Whether it must call one. Then it is the first that it has not called, or the last.
            Otherwise it is one that the prompt names and that it has not called.
    """
    fresh = [tool for tool in tools if tool.name not in called]
    if is_due:
        return fresh[0] if fresh else tools[-1] if tools else None
    return next((tool for tool in fresh if tool.name and tool.name in prompt), None)


class Shares(NamedTuple):
    """How tokens divide.

    Attributes:
        cached: The share of the input that is read from a cache.
        written: The share of the input that is written to a cache, where a provider bills that.
        reasoning: Tokens of thought for each token of the answer.
    """

    cached: float = 0.0
    written: float = 0.0
    reasoning: float = 0.0


NO_SHARES = Shares()


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer.

    Attributes:
        text: What the model wrote, or the arguments of the function; None when it refused.
        refusal: Its words when it refused.
        reason: Why it ends: ``stop``, ``length``, ``content_filter`` or ``tool_calls``.
        tokens: Billed, thought included.
        reasoning: Of them, those of thought.
    """

    text: str | None
    refusal: str | None
    reason: str
    tokens: int
    reasoning: int = 0


class Completion(ABC):
    """A good answer, or a spoilt one.

    Args:
        call: What was asked.
        fault_name: How the answer is spoilt, or None.
        now: Seconds since 1970.
        shares: How its tokens divide.

    Attributes:
        input_tokens: Billed, those read from or written to a cache included.
        cached_tokens: Those read from a cache.
        written_tokens: Those written to one.
        output_tokens: Billed, thought included.
        reasoning_tokens: Those of thought.
        request_id: The id that stands in the body too; empty where none does.

    Raises:
        Flaw: The schema is broken, or nothing was found that conforms to it.
    """

    __slots__ = (
        "_call",
        "_choices",
        "_fault_name",
        "_now",
        "_number",
        "cached_tokens",
        "input_tokens",
        "output_tokens",
        "reasoning_tokens",
        "request_id",
        "written_tokens",
    )

    def __init__(
        self, call: Call, fault_name: str | None, now: float, shares: Shares = NO_SHARES
    ) -> None:
        self._call = call
        self._fault_name = fault_name
        self._number = next(_numbers)
        self._now = now
        choices = [_choice(call, fault_name, index, shares) for index in range(call.choices)]
        self._choices = choices
        self.input_tokens = call.input_tokens
        self.cached_tokens = call.cached_tokens
        self.output_tokens = (
            choices[0].tokens if len(choices) == 1 else sum([one.tokens for one in choices])
        )
        self.written_tokens = self.reasoning_tokens = 0
        if shares is not NO_SHARES:
            self.written_tokens = int((call.input_tokens - call.cached_tokens) * shares.written)
            self.reasoning_tokens = sum([choice.reasoning for choice in choices])
        self.request_id = b""

    @abstractmethod
    def body(self) -> bytes:
        """Return the wire JSON of the whole answer."""

    @abstractmethod
    def events(self) -> Iterator[bytes]:
        """Return the same answer in pieces, as they are sent."""


def _choice(call: Call, fault_name: str | None, index: int, shares: Shares) -> Choice:
    if fault_name == "prefuse":
        return Choice(None, REFUSAL, "stop", count_tokens(REFUSAL))
    if fault_name == "pfilter":
        return Choice("", None, "content_filter", 0)
    text = _answer(call, fault_name, index)
    if fault_name == "ptruncate":
        text = text[: len(text) // 2]
    tokens = count_tokens(text)
    thought = round(tokens * shares.reasoning) if shares.reasoning else 0
    if call.max_tokens is not None and tokens + thought > call.max_tokens:
        # The thought comes first; what is left is for the text. Four characters to the token, so
        # the cut text counts exactly what was allowed.
        thought = min(thought, call.max_tokens)
        text = text[: (call.max_tokens - thought) * 4]
        return Choice(text, None, "length", call.max_tokens, thought)
    if fault_name == "ptruncate":
        return Choice(text, None, "length", tokens + thought, thought)
    reason = "stop" if call.tool is None else "tool_calls"
    return Choice(text, None, reason, tokens + thought, thought)


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
        return encode(conforming(call.schema, seed)).decode()
    except SchemaError as error:
        raise Flaw("schema", message=str(error)) from None


def _wrong_answer(schema: Any, seed: str) -> str:
    try:
        return encode(violating(schema, seed)).decode()
    except SchemaError:
        return "Sure! Here is what you asked for:"  # not even JSON, whatever the schema allows


@dataclass(frozen=True, slots=True)
class Excess:
    """What a call was too much for.

    Attributes:
        kind: The limit: ``requests``, ``tokens``, ``input_tokens`` or ``output_tokens`` per minute,
            or ``requests_a_day``.
        model: The model's name.
        limit: What may pass.
        used: What has passed.
        asked: What the call counts.
        seconds: Until it may pass.
        retry_after: How to say that: ``header``, ``decimal``, ``ms``, ``date`` or
            ``none``.
        now: Seconds since 1970.
    """

    kind: str
    model: str
    limit: float
    used: float
    asked: int
    seconds: float
    retry_after: str
    now: float = 0.0


class WireFormat(ABC):
    """How one endpoint of a provider speaks. It keeps nothing.

    Attributes:
        provider: Whose account, limits and keys they are.
        troubles: Error answers by name: those of faults, and of what callers do.
        stream_type: The content type of an answer in pieces.
        tells_limits_of_streams: Whether answers in pieces tell of the limits too.
    """

    provider: ClassVar[str]
    stream_type: bytes = b"text/event-stream; charset=utf-8"
    tells_limits_of_streams: ClassVar[bool] = True
    troubles: ClassVar[dict[str, Trouble]]

    @abstractmethod
    def check_key(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> None:
        """Refuse a call without a key, and those by which trouble is asked for.

        Raises:
            Refusal: In the words of the provider.
        """

    @abstractmethod
    def read(self, body: bytes, model: str) -> Call:
        """Understand a call.

        Args:
            body: What was sent.
            model: The name in the path, where the provider has it there.

        Raises:
            Refusal: The body is wrong, with the status and the words of the provider.
        """

    def read_to_count(self, body: bytes, model: str) -> Call:
        """Understand a call whose tokens are only to be counted; see ``read``."""
        return self.read(body, model)

    @abstractmethod
    def complete(
        self, call: Any, fault_name: str | None, now: float, shares: Shares = NO_SHARES
    ) -> Completion:
        """Return the answer to a call that ``read`` understood.

        Raises:
            Flaw: The schema is broken, or nothing was found that conforms to it.
        """

    @abstractmethod
    def flawed(self, flaw: Flaw) -> Refusal:
        """Say what is wrong with a body."""

    @abstractmethod
    def error(self, status: int, message: str, kind: str | None, code: str | None) -> Refusal:
        """Return an error answer in the provider's shape."""

    @abstractmethod
    def limited(self, excess: Excess) -> Refusal:
        """Return the 429 of a limit."""

    @abstractmethod
    def out_of_quota(self, word: str, model: str) -> Refusal:
        """Return what the provider says when no waiting heals.

        Args:
            word: Which of its ways to say that; its usual one where it does not know the word.
            model: The model's name.
        """

    @abstractmethod
    def limit_headers(self, limits: Iterable[tuple[str, Limit]], now: float) -> dict[str, str]:
        """Return the headers that tell of the limits.

        Args:
            limits: Kinds and limits, as of now.
            now: Seconds since 1970.
        """

    def cost_headers(self, done: Completion) -> dict[str, str]:  # noqa: ARG002 - most tell nothing
        """Return the headers that tell what an answer took from the limits."""
        return {}

    @abstractmethod
    def own_headers(self, request_id: bytes, seconds: float) -> Headers:
        """Return what all answers have, in a new list.

        Args:
            request_id: Made up where it is empty.
            seconds: Since the call came.
        """

    @abstractmethod
    def models(self) -> bytes:
        """Return the page that lists the models."""

    @abstractmethod
    def model(self, name: str) -> bytes:
        """Return the page of one model.

        Raises:
            Refusal: There is none of that name.
        """

    def counted(self, call: Call) -> bytes:
        """Return the page that says how many tokens a call has."""
        return encode({"input_tokens": call.input_tokens})

    def trouble(self, name: str, **facts: Any) -> Refusal:
        """Return an error answer by its name: that of a fault, or of what the caller did."""
        if name == "p502":
            return Refusal(502, "Bad Gateway", _BAD_GATEWAY, kind=b"text/html")
        status, kind, code, text = self.troubles[name]
        return self.error(status, text.format(**facts) if facts else text, kind, code)

    def checked_model(self, model: str) -> str:
        """Return the model's name.

        Raises:
            Refusal: It begins with ``missing``.
        """
        if model.startswith(MISSING_MODEL):
            raise self.trouble("missing_model", model=model)
        return model

    def check_secret(self, secret: bytes) -> None:
        """Refuse a key that is none, or by which trouble is asked for."""
        if not secret:
            raise self.trouble("no_key")
        if secret == BAD_KEY:
            raise self.trouble("bad_key")
        if secret == FORBIDDEN_KEY:
            raise self.trouble("forbidden")

    def too_large_for(self, excess: Excess) -> Refusal:
        """Return the refusal of a call that is larger than the whole limit, where there is one."""
        return self.limited(excess)

    def knows_midway(self, call: Call) -> bool:
        """Return whether an answer to the call can hold an error although it began as a 200."""
        return call.streams

    @abstractmethod
    def midway(self, request_id: bytes) -> bytes:
        """Return the piece of a stream that says that the rest fails; see ``knows_midway``."""


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the secret of the ``Authorization`` header, or nothing."""
    for name, value in headers:
        if name == b"authorization":
            if value.startswith(b"Bearer "):
                return value[7:].strip()
            scheme, _, secret = value.partition(b" ")
            return secret.strip() if scheme.lower() == b"bearer" else b""
    return b""


def header(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    """Return the value of a header, or nothing."""
    return next((value.strip() for name, value in headers if name == wanted), b"")


def fields_of(body: bytes) -> dict[str, Any]:
    """Return a body's JSON object.

    Raises:
        Flaw: It is none.
    """
    try:
        fields = decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Flaw("json") from None
    if not isinstance(fields, dict):
        raise Flaw("type", "body", "an object", fields)
    return fields


def whole_number(
    fields: dict[str, Any],
    name: str,
    *,
    least: int = 1,
    most: int | None = None,
    where: str | None = None,
) -> int | None:
    """Return a field's whole number, or None without one.

    Raises:
        Flaw: It is something else, or out of bounds.
    """
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise Flaw("type", where or name, "an integer", value)
    if value < least:
        raise Flaw("below", where or name, str(least), value)
    if most is not None and value > most:
        raise Flaw("above", where or name, str(most), value)
    return value


def flag(fields: dict[str, Any], name: str) -> bool:
    """Return whether a field is set.

    Raises:
        Flaw: It is neither true nor false nor absent.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise Flaw("type", name, "a boolean", value)
    return bool(value)


def event(name: str, data: dict[str, Any]) -> bytes:
    """Write a server-sent event that has a name."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data))


def data_event(data: Any) -> bytes:
    """Write a server-sent event without a name."""
    return b"data: %b\n\n" % encode(data)
