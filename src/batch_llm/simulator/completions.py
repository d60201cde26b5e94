"""Answers before they are written: what the model says, and what it bills."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from batch_llm.simulator.answers import count_tokens, echo_of, plain_answer
from batch_llm.simulator.fields import encode
from batch_llm.simulator.instances import SchemaError, conforming, violating
from batch_llm.simulator.refusals import Flaw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batch_llm.simulator.calls import Call

REFUSAL = "I'm sorry, I cannot assist with that request."
_numbers = itertools.count(1)


def number() -> int:
    """Return another number than ever before in this process, for ids."""
    return next(_numbers)


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
