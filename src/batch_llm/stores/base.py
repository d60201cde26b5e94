"""What a store is: the record of which items of a run are in work, and what became of the rest.

A ``Store`` is what the engine needs. A ``Ledger`` is a store that outlives the process: a run that
was cut off goes on with it. ``batch_llm.testing.ledgers`` has the tests that each must pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Collection,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from typing import Self

    from batch_llm.base import WorkItemResult
    from batch_llm.core.prices import ModelUsage
    from batch_llm.strategies.caps import Size

#: The code of attempts, and of them only, that the end of the process has cut off.
INTERRUPTED = "interrupted"


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One try of an item, as it was: the facts on which everything else is computed.

    Attributes:
        number: The attempt's number, from 1. A call refused by a rate limit has the number of
            the attempt that it did not use up. 0: no call was made, see ``error_code``.
        started_at: Seconds on the event loop's clock; as a ledger gives it back, since 1970.
        seconds: How long the call took.
        usage: Tokens spent, or None where nobody knows.
        error_code: A value of ``strategies.errors.ErrorCode``, or None after a success; of an
            attempt that a crash has cut off, ``INTERRUPTED``; or where the result came from
            instead of a call: ``SHARED``, ``CACHED``.
        error: ``ExceptionType: message``, or None after a success; or from whom it came.
        billed_as: Model, server and tier under which the tokens are counted; None where the call
            cost nothing. With it and without ``usage``, nobody knows what it cost.
        change: What was asked otherwise than in the attempt before; None: nothing.
    """

    number: int
    started_at: float
    seconds: float
    usage: dict[str, int] | None
    error_code: str | None = None
    error: str | None = None
    billed_as: tuple[str, str, str] | None = None
    change: str | None = None


class ItemState(StrEnum):
    """Where an item is on its way: pending, running, done or failed.

    There are no other steps than these in turn, and those back to pending: an item in work was
    abandoned or cut off, a finished one asks something else by now or is to be tried again.
    """

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


#: Failures that say nothing of the item: key, credit, model or the user stood in the way. They are
#: tried again whenever the run goes on; so is what failed without a single call.
NOT_OF_THE_ITEM = frozenset({"auth", "quota", "not_found", "cancelled"})
#: Failures that only an answer can bring: an item that has one without a call of its own shares it
#: with an item that asked the same.
OF_AN_ANSWER = frozenset({"bad_output", "truncated", "content_filter", "context_length"})
#: Verdicts of "attempts" that were none: another item's answer, or a cache's.
SHARED, CACHED = "shared", "cached"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a ledger knows of one item.

    Attributes:
        item_id: The item's name.
        content: The digest of what was asked.
        state: Where it is.
        output: The answer, as plain data.
        error: ``ExceptionType: message`` of the last attempt; of strangers, hostile.
        error_code: The failure's code.
        model: The model's name as the provider answered it.
        usage: Tokens of all attempts that led to the result.
        attempts: Calls made for the result.
        seconds: From when the item was taken to its result.
        safety_ratings: Gemini's, when there were any.
        response_body: The provider's answer as it came, where it was kept.
    """

    item_id: str
    content: bytes
    state: ItemState
    output: Any = None
    error: str | None = None
    error_code: str | None = None
    model: str | None = None
    usage: dict[str, int] = {}
    attempts: int = 0
    seconds: float = 0.0
    safety_ratings: dict[str, str] | None = None
    response_body: bytes | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the item has a result that is kept when the run goes on."""
        return is_settled(self.state, self.error_code, self.attempts)


def is_settled(state: str, error_code: str | None, attempts: int) -> bool:
    """Tell whether a result is kept when the run goes on."""
    if state == ItemState.FAILED:
        if error_code in NOT_OF_THE_ITEM:
            return False
        return attempts > 0 or error_code in OF_AN_ANSWER
    return state == ItemState.DONE


class Saving(ABC):
    """The saving of one result. It ends by itself, whatever becomes of those who wait for it.

    It can be awaited more than once; each time ends when the result is safe, or raises.
    """

    __slots__ = ()

    @property
    def takes_long(self) -> bool:
        """Whether it is likely to take so long that others should go on meanwhile."""
        return False

    @property
    def is_stuck(self) -> bool:
        """Whether nothing can be saved for now: then nobody should go on meanwhile."""
        return False

    @abstractmethod
    def then(self, call: Callable[..., None], value: Any, /) -> None:
        """Have ``call`` called when it has ended, with the error or None and then ``value``.

        In the event loop.
        """

    @abstractmethod
    def __await__(self) -> Generator[Any, None, None]:
        """Wait for it."""


class Spent(NamedTuple):
    """What a run has spent so far, in this process and in others before.

    Attributes:
        usage: Tokens by model, of all calls that are booked.
        at_most: What calls may have taken of which nobody knows, as the process ended while they
            were under way: ``calls`` is their number, and the tokens are the most.
        likely: What the same calls are likely to have taken, as the run's other calls tell; without
            those of models that have had no other call.
    """

    usage: list[ModelUsage]
    at_most: list[ModelUsage]
    likely: Sequence[ModelUsage] = ()


@runtime_checkable
class Keeper(Protocol):
    """A store that can tell of many items at once whether their results are kept."""

    @property
    def has_results(self) -> bool:
        """Whether there are any, of earlier runs."""
        ...

    def may_have(self, item_id: str, /) -> bool:
        """Tell whether it may know an item; False is certain."""
        ...

    def kept(self, items: Sequence[tuple[str, bytes]], /) -> list[WorkItemResult[Any, Any] | None]:
        """Return for each id and content the kept result, as ``start`` would, or None.

        None is also for what ``start`` refuses: that is its to say.
        """
        ...


class NotedCall(Protocol):
    """A call in a store's book. Nothing that is told of it after its end changes anything."""

    def goes(self) -> None:
        """Note that it leaves the process now: from here on it may cost."""
        ...

    def took(self, usage: Mapping[str, int], /) -> None:
        """Note what its answer has told it to have taken: it is there, and not settled yet."""
        ...


@runtime_checkable
class CallBook(Protocol):
    """A store that also knows which calls are under way, so that a crash hides no cost."""

    def call_begins(
        self,
        item_id: str,
        attempt: int,
        started_at: float,
        billed_as: tuple[str, str, str],
        size: Size,
        is_held: bool,  # noqa: FBT001 - for every call
        /,
    ) -> NotedCall | None:
        """Note that a call is about to be sent.

        Args:
            item_id: The item in work.
            attempt: The attempt's number.
            started_at: Seconds on the event loop's clock, as the attempt will have it.
            billed_as: Model, server and tier under which its tokens are counted.
            size: What can be seen of it.
            is_held: It has not left the process for certain, until it is told to go. Otherwise it
                may have.

        Returns:
            What is told of it from now on; None when it could not be noted.
        """
        ...

    def call_ended(self, item_id: str, call: Any, attempt: Attempt | None, /) -> None:
        """Note how it ended, in the same step as ``attempt`` joins its item's history.

        Args:
            item_id: The item; it may have its result already.
            call: From ``call_begins``.
            attempt: What became of it; None when it was not sent.
        """
        ...

    def spent(self) -> Spent:
        """Return what was spent in earlier sessions of the run, as is known by now; within a run.

        Cheap enough to be asked a few times a second. What is known of calls that a crash has cut
        off may become more as the run goes on; their most never grows.
        """
        ...


class Store(Protocol):
    """Records a run's items: pending → running → done or failed, each step once.

    One instance serves one run at a time.
    """

    @property
    def compares_content(self) -> bool:
        """Whether ``start`` wants to know what is asked; finding that out costs a little."""
        ...

    def begin_run(self, *, keeps_ids: bool) -> Awaitable[None] | None:
        """Get ready for a run in the current event loop.

        Args:
            keeps_ids: Whether every id is to be told from all earlier ones of the run, at the
                cost of some memory for each.

        Returns:
            None when it is ready, else an awaitable that ends when it is.

        Raises:
            LedgerError: Another run uses the store, or it cannot be written. The awaitable may
                raise it too.
        """
        ...

    def end_run(self) -> None:
        """Hear that the run is over."""
        ...

    def start(self, item_id: str, content: bytes, /) -> WorkItemResult[Any, Any] | None:
        """Note that an item is in work, unless an earlier run has its result.

        Args:
            item_id: The item's name.
            content: The digest of what is asked; empty where ``compares_content`` is False.

        Returns:
            The kept result, for the same content; nothing was noted then. Otherwise None.

        Raises:
            DuplicateItemError: An item of this id is in work or has a result in this run. Nothing
                changed.
            StoreError: The store is not usable any more.
        """
        ...

    def forget(self, item_id: str, history: Sequence[Attempt], /) -> None:
        """Make an item pending again: it was abandoned in work, without a result.

        Args:
            item_id: The item's name.
            history: The attempts that were made; they may have cost.
        """
        ...

    def finish(
        self, result: WorkItemResult[Any, Any], history: Sequence[Attempt], /
    ) -> Saving | Awaitable[None] | None:
        """Accept an item's only result, and save it whatever becomes of the caller.

        Returns:
            None when the result is safe already, else an awaitable that ends when it is; best a
            ``Saving``.

        Raises:
            Exception: It could not be saved; the run stops. The awaitable may raise it too.
        """
        ...


class Cache(Protocol):
    """Answers of earlier runs, kept as they came, by the digest of what was asked."""

    def begin_run(self) -> None:
        """Get ready for a run in the current event loop; several may go on at a time.

        Raises:
            CacheError: It cannot be used.
        """
        ...

    def look_up(self, key: bytes, /) -> Awaitable[bytes | None]:
        """Return the answer that is kept and has not expired; without any, or in trouble, None."""
        ...

    def put(self, key: bytes, answer: bytes, /, *, model: str) -> None:
        """Keep an answer as far as possible; whoever asks for it from now on gets it.

        Args:
            key: Under which it is looked up.
            answer: As it came.
            model: The model's name, so that its answers can be cleared.
        """
        ...


class Ledger(Store, Protocol):
    """A store that outlives the process. Whoever opened it closes it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def close(self) -> None:
        """Save what was accepted, and let go of the file."""
        ...

    def manifest(self) -> dict[str, Any]:
        """Return what is noted of the run as a whole; empty for a new one."""
        ...

    def note(self, facts: Mapping[str, Any], /) -> None:
        """Add to the manifest. Values are plain data.

        Raises:
            LedgerError: It could not be saved.
        """
        ...

    def counts(self) -> dict[ItemState, int]:
        """Count the items by state; each state has an entry."""
        ...

    def look_up(self, items: Iterable[tuple[str, bytes]], /) -> list[Record | None]:
        """Return, for each id and content, the result that would be kept, or None."""
        ...

    def find(self, item_id: str, /) -> Record | None:
        """Return what is known of an item."""
        ...

    def records(self, *states: ItemState) -> Iterator[Record]:
        """Give all items in these states, in the order in which they were first started."""
        ...

    def attempts(self, item_id: str, /) -> list[Attempt]:
        """Return all attempts of an item, those of earlier runs first."""
        ...

    def retry(self, codes: Collection[str] | None = None, content: bytes | None = None) -> int:
        """Make failed items pending, so that they are tried again.

        Args:
            codes: Only those that failed so; None for all.
            content: Stands for what they asked until they are started; None leaves it.

        Returns:
            Their number.

        Raises:
            LedgerError: It could not be saved; nothing changed.
        """
        ...
