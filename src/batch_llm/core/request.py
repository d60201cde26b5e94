"""A request: an item as plain data, which a codec turns into a provider's wire JSON.

Requests can be hashed, compared, priced, cached and stored, because nothing in them is code.
How they look on the wire is the codecs' business (``providers``).
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.core.schema import OutputSchema

#: What wire formats call the bound of an answer's length. Of several that are given, the first
#: counts.
LENGTH_FIELDS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
#: Characters of text to a token, as long as no answer has told better.
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a message.

    Attributes:
        url: Where the provider fetches it, or a ``data:`` URL that holds it.
        detail: ``"low"``, ``"high"`` or ``"auto"``; None leaves it to the provider.
    """

    url: str
    detail: str | None = None

    @classmethod
    def from_file(cls, path: str | Path, detail: str | None = None) -> Image:
        """Read a picture (PNG, JPEG, GIF or WebP) into a ``data:`` URL.

        Raises:
            ConfigError: The file begins like none of these.
            OSError: It cannot be read.
        """
        data = Path(path).read_bytes()
        media_type = next((kind for start, kind in _PICTURES if data.startswith(start)), None)
        if media_type is None or (media_type == "image/webp" and data[8:12] != b"WEBP"):
            raise ConfigError("image", str(path), "a PNG, JPEG, GIF or WebP file")
        return cls(f"data:{media_type};base64,{b64encode(data).decode()}", detail)


#: How files of pictures begin.
_PICTURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)


@dataclass(frozen=True, slots=True)
class OtherPart:
    """A content part of a kind this package does not model, passed through as it is.

    Attributes:
        data: The part, in the shape of the provider that it goes to.
    """

    data: Mapping[str, Any] = field(hash=False)


Part = Text | Image | OtherPart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: Plain text, or parts; None where the wire has none (a tool call has no text).
        extra: Further fields of the wire message (``name``, ``tool_calls`` …), passed through.
    """

    role: str
    content: str | tuple[Part, ...] | None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """How the model is to answer. None leaves a setting to the provider's default.

    Attributes:
        temperature: One value, or one per attempt: the first for attempt 1, and so on; the last
            one serves all later attempts.
        max_tokens: Upper bound of the answer's length.
        top_p: Nucleus sampling.
        seed: Asks for repeatable sampling, where the provider supports it.
        stop: Sequences that end the answer.
        extra: Further wire fields, passed through as they are (``logprobs``, ``tools`` …).
    """

    temperature: float | tuple[float, ...] | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def longest_answer(self) -> int | None:
        """The bound of an answer's length in tokens, also where ``extra`` has it; None: none."""
        if self.max_tokens is not None or not self.extra:
            return self.max_tokens
        found = (self.extra.get(name) for name in LENGTH_FIELDS)
        return next((value for value in found if type(value) is int), None)

    def with_longest_answer(self, tokens: int) -> Settings:
        """Return settings with another bound, where ``longest_answer`` was read."""
        extra = self.extra
        if self.max_tokens is None:
            for name in LENGTH_FIELDS:
                if type(extra.get(name)) is int:
                    return replace(self, extra={**extra, name: tokens})
        return replace(self, max_tokens=tokens)

    @property
    def is_sampled(self) -> bool:
        """Whether equal requests are to have answers of their own.

        That is so with a temperature above 0 and no seed. Without a temperature most providers
        draw too, but nobody has asked for it.
        """
        first = self.temperature_for(1)
        return self.seed is None and isinstance(first, int | float) and first > 0

    def temperature_for(self, attempt: int) -> float | None:
        """Return the temperature of attempt ``attempt``, 1-based."""
        value = self.temperature
        if not isinstance(value, tuple):
            return value
        return value[min(attempt, len(value)) - 1] if value else None


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask of which model.

    Attributes:
        model: ``"provider:model"``, for example ``"openai:gpt-6-luna"`` or ``"sim:fast"``.
        messages: The conversation, oldest first. Never empty.
        settings: Sampling and limits.
        output: The shape of the answer, or None for plain text.
    """

    model: str
    messages: tuple[Message, ...]
    settings: Settings = Settings()
    output: OutputSchema | None = None

    @property
    def characters(self) -> int:
        """Characters of its messages' texts; pictures and other parts are not in it."""
        count = 0
        for message in self.messages:
            content = message.content
            if isinstance(content, str):
                count += len(content)
            elif content is not None:
                count += sum(len(part.text) for part in content if isinstance(part, Text))
        return count

    @property
    def texts(self) -> list[str]:
        """Its messages' texts, in order."""
        texts: list[str] = []
        for message in self.messages:
            content = message.content
            if isinstance(content, str):
                texts.append(content)
            elif content is not None:
                texts += [part.text for part in content if isinstance(part, Text)]
        return texts

    @classmethod
    def of(
        cls,
        model: str,
        prompt: str,
        *,
        system: str | None = None,
        output: OutputSchema | None = None,
        settings: Settings | None = None,
    ) -> Request:
        """Build the common case: one prompt, perhaps with a system message."""
        turn = Message("user", prompt)
        messages = (turn,) if system is None else (Message("system", system), turn)
        return cls(model, messages, settings or Settings(), output)
