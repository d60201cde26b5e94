"""What stands before each call: the interface that the engine knows of admission.

``AdmissionGate`` learns limits (``admission_gate.py``), ``CooldownGate`` does what a user's
strategy says (``cooldown_gate.py``), ``SpendingGate`` keeps caps in front of either
(``spending.py``).
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from batch_llm._engine.statistics import LanePause, LearnedLimit
    from batch_llm.base import LLMWorkItem
    from batch_llm.providers.base import Outcome
    from batch_llm.strategies.errors import ErrorCode

    Item = LLMWorkItem[Any, Any, Any]


class Held(Enum):
    """What the gate does about a call that failed."""

    #: Nothing: that is the item's matter.
    NO = auto()
    #: It slows everyone down for a provider that is overloaded or away: no attempt is used up.
    BY_LANE = auto()
    #: Another place takes the call at once, and no attempt is used up.
    ELSEWHERE = auto()


class Gate(Protocol):
    """When an attempt may start. The engine knows no more of admission than this."""

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        ...

    @property
    def consecutive(self) -> int:
        """Refusals in a row, without a success in between."""
        ...

    @property
    def is_cooling(self) -> bool:
        """Whether everyone waits."""
        ...

    @property
    def cooldown_seconds(self) -> float:
        """Seconds spent in cooldowns so far."""
        ...

    @property
    def cooldown_remaining_seconds(self) -> float:
        """Seconds until everyone goes on; 0 outside of a cooldown."""
        ...

    @property
    def waiting(self) -> int:
        """Attempts that wait to be let in."""
        ...

    @property
    def most(self) -> int:
        """Calls in flight at the most."""
        ...

    def wanted(self, present: int, /) -> int:
        """Return how many items should be in work, beside those between two attempts."""
        ...

    def pauses(self) -> list[LanePause]:
        """Return the lanes for which calls wait, where that takes long."""
        ...

    def limits(self) -> list[LearnedLimit]:
        """Return what is known of the provider's limits."""
        ...

    async def enter(self, item: Item, /, *, is_retry: bool) -> Any:
        """Wait to be let in; return a ticket, to be handed back. The caller owes a ``leave``.

        Raises:
            asyncio.CancelledError: What was held of it was given back.
            LimitPauseError: The wait would be longer than is wanted.
        """
        ...

    def enter_now(
        self, item: Item, /, *, is_retry: bool = True, apart_from: Any | None = None
    ) -> Any | None:
        """Return a ticket if there is room at once and nobody waits for it, else None.

        The caller owes a ticket a ``leave``.

        Args:
            item: The call's.
            is_retry: Whether the item's call before has failed, or is another copy of this one.
            apart_from: The ticket of another call, whose place is only taken where no other has
                room.
        """
        ...

    def is_overloaded(self, item: Item, /) -> bool:
        """Whether the item's lane deals with no calls, and no call is due to find out."""
        ...

    def has_answered(self, item: Item, /) -> bool | None:
        """Whether anybody in the item's lane ever dealt with a call; None: that is not seen."""
        ...

    def place(self, ticket: Any, /) -> int | None:
        """Return which of the lane's places the call goes to; None where nobody chose."""
        ...

    def leave(self, ticket: Any, /, *, was_sent: bool = True) -> None:
        """Give the room to the next one; what was never sent costs nothing."""
        ...

    def succeeded(self, ticket: Any, item: Item, outcome: Outcome, /) -> None:
        """Tell that a call was answered."""
        ...

    def failed(
        self,
        ticket: Any,
        item: Item,
        outcome: Outcome,
        code: ErrorCode,
        suggested_seconds: float | None = None,
        /,
    ) -> Held:
        """Tell that a call failed, other than by a rate limit; learn whether it is held for it.

        Args:
            ticket: The call's.
            item: The same.
            outcome: What it brought.
            code: What failed.
            suggested_seconds: How long the provider asked to wait.
        """
        ...

    def refused(
        self, ticket: Any, worker_id: int, suggested_seconds: float | None, outcome: Outcome, /
    ) -> float:
        """Tell that a call was refused by a rate limit, and how long the provider asked to wait.

        Returns:
            Seconds that the item waits on its own before it comes again; the gate may hold it, and
            all others, for longer.
        """
        ...

    async def close(self) -> None:
        """Stop all timers."""
        ...
