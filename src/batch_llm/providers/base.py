"""What the engine asks of whoever makes the calls, and what comes back."""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from batch_llm.strategies.costs import USUAL_CHARGE, ChargeRule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from batch_llm.base import LLMWorkItem
    from batch_llm.strategies.admission.header_belief import LimitHeader


#: The key in ``Try.memory`` under which a caller leaves the usage object that its library fills in
#: while the call goes on: what was spent is known then even when the call is cut off.
SPENT = "spent"
#: The key in ``Try.memory`` under which a caller finds the call's ``Departure``, where one is kept.
DEPARTURE = "departure"

_LENGTH = Struct(">Q").pack
#: What every digest of contents starts with, worked out once.
_DIGEST = blake2b(digest_size=16, person=b"batch-llm item")


class Departure(Protocol):
    """Takes down that a call leaves the process, and what it took."""

    def goes(self) -> None:
        """Note that from now on it may have left."""
        ...

    def took(self, usage: Mapping[str, int], /) -> None:
        """Note what its answer has told; it is settled later."""
        ...


class Try(msgspec.Struct, frozen=True):
    """What a call may know about the attempt that it belongs to.

    Attributes:
        number: The attempt's number, from 1.
        timeout_seconds: How long the attempt may take.
        previous_error: Why the attempt before failed; None on the first.
        memory: Belongs to the item: a caller may keep there what it needs again in a later
            call of the same item (the agent that a factory made, say).
        place: Which of the lane's places was chosen for the call, from 0; None when nobody chose.
        change: What is asked otherwise than in the attempt before; None: nothing.
    """

    number: int
    timeout_seconds: float
    previous_error: Exception | None
    memory: dict[str, Any]
    place: int | None = None
    change: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What one call brought: an output or an error, and in both cases what it cost.

    Attributes:
        output: The answer, when ``error`` is None.
        usage: Tokens by kind: ``input_tokens``, ``output_tokens``, ``total_tokens`` and, where
            known, ``cache_read_tokens``, ``cache_write_tokens`` (of which
            ``cache_write_1h_tokens``) and ``reasoning_tokens``. Those are contained in the first
            two, never to be added.
        error: Why there is no usable answer, although the call was made and may have cost.
        model: The model's name as the provider answered it.
        safety_ratings: Gemini's ratings, when it sent any.
        body: The provider's answer as it came, when the caller was asked to keep it.
        answer: The same, for ``Repeatable.read_again``; results do not hold it. None where it must
            not be kept.
        limits: What the answer's headers say of the provider's limits, by dimension.
        parts: Where ``usage`` is the sum of several requests: the model and the usage of each; the
            model is empty where it is that of the item's lane.
    """

    output: Any = None
    usage: dict[str, int] | None = None
    error: Exception | None = None
    model: str | None = None
    safety_ratings: dict[str, str] | None = None
    body: bytes | None = None
    limits: Mapping[str, LimitHeader] | None = None
    answer: bytes | None = None
    parts: tuple[tuple[str, dict[str, int]], ...] | None = None


class Capacity(msgspec.Struct, frozen=True):
    """How many calls a server works on at once. It queues the others, and refuses none.

    Attributes:
        slots: The number.
        source: ``server``: told by it; ``assumed``: usual for its kind; ``searched``: nothing is
            known, and a search may start here.
    """

    slots: int
    source: str


class LaneFacts(msgspec.Struct, frozen=True):
    """What is known of a lane before the first call.

    Attributes:
        places: Interchangeable keys or deployments.
        addresses: How many different ones these have.
        burst_seconds: How many seconds of a told limit the provider lets go at once.
        charges: What the provider's limit on tokens counts.
        remembered_as: By place, the name under which its limits are remembered between runs; None
            where they are not.
        ask: By place, finds out what its server works on at once, before the first call; None, and
            a None that comes back, where there is nothing to find out. It does not take long.
        model: ``provider:model``, under which its tokens are counted and priced; empty where that
            cannot be seen.
        server: Where its calls go, when that is not the provider's own address.
        keys: The names of the variables that hold its keys, as far as they are known.
        labels: By place, what it is called for people: the variable of its key, its server, or both
            where both differ; empty where nobody knows.
        url: Where its calls go, for people: without login and query; empty where nobody knows.
    """

    places: int = 1
    addresses: int = 1
    burst_seconds: float = 60.0
    charges: ChargeRule = USUAL_CHARGE
    remembered_as: tuple[str | None, ...] = ()
    ask: tuple[Callable[[], Awaitable[Capacity | None]] | None, ...] = ()
    model: str = ""
    server: str = ""
    keys: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    url: str = ""


class Caller(Protocol):
    """Makes the calls of one mode of item.

    One instance serves all workers at once. It makes exactly one exchange per ``call``; pacing,
    timeouts and retries are done around it.

    One whose ``tells_departures`` is true tells each request's ``Departure`` before anything of the
    call leaves the process. Without that, a call is taken for sent from its beginning.
    """

    def lane(self, item: LLMWorkItem[Any, Any, Any], /) -> str:
        """Name what an item shares limits with: provider, account and model, as far as known."""
        ...

    def facts(self, item: LLMWorkItem[Any, Any, Any], /) -> LaneFacts:
        """Tell what is known of an item's lane; asked once for each lane."""
        ...

    def content(self, item: LLMWorkItem[Any, Any, Any], /) -> bytes:
        """Return the digest of an item's id and of what it asks, as far as that can be seen.

        Equal digests mean the same question: a result that is kept for one answers the other.
        """
        ...

    async def call(self, item: LLMWorkItem[Any, Any, Any], attempt: Try, /) -> Outcome:
        """Make one call.

        Raises:
            Exception: Whatever the network or the user's code raised. An error that came with a
                bill is returned in the outcome instead.
        """
        ...


@runtime_checkable
class Repeatable(Protocol):
    """A caller whose exchanges are plain data: they can be told apart, and read a second time.

    That is what sharing an answer between items, and keeping it for later runs, need.
    """

    def exchange(self, item: LLMWorkItem[Any, Any, Any], /) -> bytes | None:
        """Return the digest of what an item's calls send and where to, whoever asks.

        Equal digests mean that an answer to one is an answer to the other. None: this item's
        cannot be told; it is sent as if there were no other.
        """
        ...

    def read_again(self, item: LLMWorkItem[Any, Any, Any], answer: bytes, /) -> Outcome:
        """Read an ``Outcome.answer`` that came before, as what the item asks for. No network."""
        ...


def content_digest(*parts: bytes) -> bytes:
    """Return 16 bytes that stand for ``parts``, each with its length."""
    whole = b""
    for part in parts:
        whole += _LENGTH(len(part)) + part
    digest = _DIGEST.copy()
    digest.update(whole)
    return digest.digest()
