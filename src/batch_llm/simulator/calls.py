"""Calls, as they are understood whatever format they come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from batch_llm.simulator.answers import count_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

JSON_OBJECT = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
}


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
