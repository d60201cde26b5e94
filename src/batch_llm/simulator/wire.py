"""How an endpoint of a provider speaks: what all wire formats have in common.

No network and no account. Each format has a module of its own, which says all this in its own way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from batch_llm.simulator.completions import NO_SHARES
from batch_llm.simulator.fields import encode
from batch_llm.simulator.refusals import BAD_KEY, FORBIDDEN_KEY, MISSING_MODEL, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.simulator.calls import Call
    from batch_llm.simulator.completions import Completion, Shares
    from batch_llm.simulator.fields import Headers
    from batch_llm.simulator.limits import Limit
    from batch_llm.simulator.refusals import Excess, Flaw, Trouble

#: What a 429 out of the blue claims to be the limit, where the profile has none.
CLAIMED_LIMIT = 500
CLAIMED_WAIT_SECONDS = 0.3
LISTED_MODELS = ("fast", "flaky", "slow")
MODELS_CREATED = 1_700_000_000
_BAD_GATEWAY = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
)


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
