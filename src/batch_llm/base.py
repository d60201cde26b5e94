"""The values that go in and come out: items, results, and who turns one into the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from batch_llm.core.usage import no_usage, tokens

if TYPE_CHECKING:
    from batch_llm.core.protocols import AgentLike
    from batch_llm.core.request import Request

TInput = TypeVar("TInput")
TOutput = TypeVar("TOutput")
TContext = TypeVar("TContext")

#: Takes the attempt's number (from 1) and its timeout in seconds, and the item's ``input_data``
#: when it has a third positional parameter; returns the output and a dict of token counts.
DirectCall = Callable[..., Awaitable[tuple[Any, Any]]]
#: Called with an item's result, before anyone else sees it; sync or async.
PostProcessor = Callable[["WorkItemResult[Any, Any]"], Awaitable[None] | None]

_MODES = "agent, agent_factory, direct_call, request"


@dataclass(slots=True)
class LLMWorkItem(Generic[TInput, TOutput, TContext]):
    """What is asked for once. Exactly one of the four modes says how.

    Attributes:
        item_id: The item's name, unique in a run. Any text.
        agent: Mode 1: a pydantic-ai ``Agent``, or anything with ``async run(prompt)``.
        prompt: What the agent gets.
        context: Handed through untouched to the result, the post-processor and middleware.
        agent_factory: Mode 2: makes the agent for an attempt, whose number (from 1) it gets.
        direct_call: Mode 3: any API, see ``DirectCall``.
        input_data: Data for ``direct_call``.
        request: Mode 4: the call as plain data.
        priority: Of a run's items that wait to be let in, the highest goes first. Each tenth call
            goes to the one that has waited longest all the same.
        estimated_input_tokens: Where limits are learned: what the call will take of them. None
            estimates it from the length of prompt or messages.
        estimated_output_tokens: The same; None estimates it from the answers so far.
        version: Where results are kept in a ledger, for items that are code: changed whenever the
            answer would be another, be it a prompt's version or a digest of ``input_data``. Of
            code, a ledger sees nothing but the id, the prompt and this.
        fallbacks: Who is asked in turn where the item fails at its own model
            (``RetryConfig.fallback_on`` says after which failures): for a request, names of models;
            for an agent, other agents, or names of models for the same pydantic-ai agent. Each is a
            lane of its own. None: those of the run (``ProcessorConfig.fallbacks``); ``()``: nobody.
            Items with an ``agent_factory`` or a ``direct_call`` have none: their code can choose by
            the attempt's number.
        can_hedge: Where the run hedges (``ProcessorConfig.hedge``): whether two calls of the item
            may be under way at the same time. None: those of a ``request`` may; callables may have
            effects beside their answer, so only those that say so are called twice.
        can_share: Of a ``request``: whether another item that asks the same may answer it, and one
            of an earlier run where answers are cached. None: yes, unless it asks for a temperature
            above 0 without a seed; then the answer in a cache is for this ``item_id`` only.

    Raises:
        ValueError: None or several modes were given, or fallbacks that the mode cannot have.
    """

    item_id: str
    agent: AgentLike | None = None
    prompt: str = ""
    context: TContext | None = None
    agent_factory: Callable[[int], AgentLike] | None = None
    direct_call: DirectCall | None = None
    input_data: TInput | None = None
    request: Request | None = None
    priority: int = 0
    estimated_input_tokens: int | None = None
    estimated_output_tokens: int | None = None
    can_hedge: bool | None = None
    version: str = ""
    can_share: bool | None = None
    fallbacks: Sequence[AgentLike | str] | None = None
    #: The name of the fallback that is asked in place of the item's own model: set by the engine,
    #: in a copy of the item.
    asked_model: str | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        modes = (
            (self.agent is not None)
            + (self.agent_factory is not None)
            + (self.direct_call is not None)
            + (self.request is not None)
        )
        if modes == 0:
            raise ValueError(f"Must provide one of {_MODES}; item {self.item_id!r} has none.")
        if modes > 1:
            raise ValueError(f"Only one of {_MODES} may be given; item {self.item_id!r} has more.")
        if type(self.priority) is not int:
            raise ValueError(f"priority must be a whole number; {self.item_id!r} has another.")
        if self.estimated_input_tokens is not None:
            self._check_estimate(self.estimated_input_tokens)
        if self.estimated_output_tokens is not None:
            self._check_estimate(self.estimated_output_tokens)
        if self.fallbacks:
            self._check_fallbacks(self.fallbacks)

    def _check_estimate(self, tokens: int) -> None:
        if type(tokens) is not int or tokens < 0:
            raise ValueError(f"estimated tokens must be >= 0; {self.item_id!r} has {tokens!r}.")

    def _check_fallbacks(self, fallbacks: Sequence[AgentLike | str]) -> None:
        if isinstance(fallbacks, str):
            raise ValueError(f"fallbacks must be a list; {self.item_id!r} has {fallbacks!r}.")  # noqa: TRY004 - a bad value like any other
        if self.request is None and self.agent is None:
            raise ValueError(
                f"Only a request or an agent has fallbacks; item {self.item_id!r} has a mode whose "
                "code can choose by the attempt's number."
            )
        if self.request is not None and not all(isinstance(one, str) for one in fallbacks):
            raise ValueError(f"fallbacks of a request are names; {self.item_id!r} has others.")


@dataclass(slots=True)
class WorkItemResult(Generic[TOutput, TContext]):
    """What became of one item.

    Attributes:
        item_id: The item's name.
        success: Whether there is a usable output.
        output: The answer; None after a failure.
        error: ``ExceptionType: message`` of the last attempt; None after a success.
        context: The item's, untouched.
        token_usage: Tokens of all attempts together, failed ones included: ``input_tokens``,
            ``output_tokens``, ``total_tokens``, and further kinds where they are known.
        gemini_safety_ratings: Gemini's ratings by category, when it sent any.
        error_code: The failure's code from the closed list (``strategies.errors.ErrorCode``).
        attempts: Calls made for the item, refused and failed ones included.
        duration_seconds: From when the item was taken to its result, hooks and waits included.
        model: The model's name as the provider answered it, when it did.
        response_body: The provider's answer as it came, where the caller keeps it.
        changes: What attempts asked otherwise than the one before, in order, such as
            ``"max_tokens 256 → 512"`` or ``"bad_output: anthropic:claude-haiku-5-5 is asked"``.
        is_reused: Whether it comes from the ledger of an earlier run, and no call was made.
        is_cached: Whether it comes from a cache, and no call was made.
        shared_with: The id of the item whose answer, or failure, this is: it asked the same, and
            was in work; None where there is no such item. Its tokens are booked there.
        stop: What keeps the item from being sent, where that is no fault of it and others fail
            with it too: a ``LaneStoppedError`` or ``LimitPauseError`` of this session.
    """

    item_id: str
    success: bool
    output: TOutput | None = None
    error: str | None = None
    context: TContext | None = None
    token_usage: dict[str, int] = field(default_factory=no_usage)
    gemini_safety_ratings: dict[str, str] | None = None
    error_code: str | None = None
    attempts: int = 0
    duration_seconds: float = 0.0
    model: str | None = None
    response_body: bytes | None = None
    is_reused: bool = False
    is_cached: bool = False
    shared_with: str | None = None
    changes: tuple[str, ...] = ()
    stop: Exception | None = field(default=None, repr=False, compare=False)


@dataclass(slots=True)
class BatchResult(Generic[TOutput, TContext]):
    """All results of a run, in the order in which they were finished.

    The counts are taken from ``results`` once, when the object is made:
    ``total_items == succeeded + failed == len(results)``.

    Attributes:
        results: One for each item.
        total_items: Their number.
        succeeded: Those with an output.
        failed: All others.
        total_input_tokens: Tokens over all attempts, failed ones included; what nobody told is 0.
        total_output_tokens: The same of answers, reasoning included.
    """

    results: list[WorkItemResult[TOutput, TContext]] = field(default_factory=list)
    total_items: int = field(init=False)
    succeeded: int = field(init=False)
    failed: int = field(init=False)
    total_input_tokens: int = field(init=False)
    total_output_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        succeeded = sent = got = 0
        for result in self.results:
            if result.success:
                succeeded += 1
            if usage := result.token_usage:
                sent += tokens(usage, "input_tokens")
                got += tokens(usage, "output_tokens")
        self.total_items, self.succeeded = len(self.results), succeeded
        self.failed = self.total_items - succeeded
        self.total_input_tokens, self.total_output_tokens = sent, got


class BatchProcessor(ABC, Generic[TInput, TOutput, TContext]):
    """Turns items into results, one each."""

    @abstractmethod
    async def add_work(self, work_item: LLMWorkItem[TInput, TOutput, TContext]) -> None:
        """Queue an item."""

    @abstractmethod
    async def process_all(self) -> BatchResult[TOutput, TContext]:
        """Process all queued items and return their results."""

    @abstractmethod
    async def get_stats(self) -> dict[str, Any]:
        """Return a consistent snapshot of the counts."""
