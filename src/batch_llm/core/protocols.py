"""What an agent looks like to us. Structural: pydantic-ai's agents fit, and so do your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable


@runtime_checkable
class UsageLike(Protocol):
    """Tokens of one run, under their old names. ``core.usage`` reads the new names too."""

    request_tokens: int | None
    response_tokens: int | None
    total_tokens: int | None


@runtime_checkable
class ResultLike(Protocol):
    """What a run returns. ``usage`` is a method in old libraries and a property in new ones."""

    @property
    def output(self) -> Any:
        """The answer."""
        ...

    @property
    def usage(self) -> Any:
        """The tokens spent, or a method that returns them."""
        ...


@runtime_checkable
class AgentLike(Protocol):
    """Answers one prompt at a time."""

    def run(self, prompt: str, /) -> Awaitable[Any]:
        """Return a ``ResultLike``, when awaited."""
        ...
