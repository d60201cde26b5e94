"""One lane: what shares limits.

It has one queue (``turns.py``) and one or more *places* (``places.py``): interchangeable keys or
deployments of its model, each with an admission of its own. A call goes where most room is. A
place that fails for good (no credit, a wrong key) is set aside, and tried again with single calls.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batch_llm._engine.sizes import Sizes
from batch_llm._engine.turns import Queue
from batch_llm._engine.uncharged import Uncharged
from batch_llm.core.text import safe
from batch_llm.strategies.costs import PENDING
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    import asyncio

    from batch_llm._engine.places import Place
    from batch_llm.base import LLMWorkItem
    from batch_llm.providers.base import LaneFacts
    from batch_llm.strategies.admission.grants import Grant
    from batch_llm.strategies.costs import Cost

    Item = LLMWorkItem[Any, Any, Any]

logger = logging.getLogger("batch_llm.lanes")

#: Failures that are the place's and not the call's, where there are other places.
_OF_THE_PLACE = {ErrorCode.AUTH, ErrorCode.QUOTA, ErrorCode.NOT_FOUND}
#: Failures that show that a place takes our key and has the model.
_OF_THE_CALL = {
    ErrorCode.BAD_OUTPUT,
    ErrorCode.TRUNCATED,
    ErrorCode.CONTENT_FILTER,
    ErrorCode.CONTEXT_LENGTH,
    ErrorCode.BAD_REQUEST,
}
#: What a place's room loses when it is avoided, and when another one is asked for: each is more
#: than all that a room can be.
_AVOIDED, _NOT_WANTED = 2.0, 4.0


class Ticket(msgspec.Struct):
    """A call that was let in.

    Attributes:
        lane: Its lane.
        place: Where it goes.
        grant: What its place's admission knows of it.
        is_charged: Whether the admission was told what it takes (else: ``Uncharged``).
        item: What is asked, as long as it is there.
        ended_at: When it was answered; kept until it is charged.
        usage: The tokens that it took then.
    """

    lane: Lane
    place: Place
    grant: Grant
    is_charged: bool = True
    item: Item | None = None
    ended_at: float | None = None
    usage: dict[str, int] | None = None


class Pause(NamedTuple):
    """Why a lane lets nobody in, and for how long.

    Attributes:
        seconds: Until the next call.
        reason: ``refused``, ``overloaded``, ``set aside``, or the dimension that is used up.
    """

    seconds: float
    reason: str


class Lane:
    """What shares limits: its places, its queue, what is known of its calls' sizes."""

    def __init__(self, name: str, facts: LaneFacts, places: list[Place]) -> None:
        self.name = name
        self.facts = facts
        self.places = places
        self.timer: asyncio.TimerHandle | None = None
        #: Until when the next call waits for the lane's own limits, as far as that can be told;
        #: not later than now when none waits for them.
        self.shut_until = -math.inf
        #: When its turn was, of the lanes that wait for calls in flight to end.
        self.turn = 0
        #: Whether its servers were asked what they work on at once; and the task that asks them.
        #: Nobody is let in before it has ended.
        self.was_asked = False
        self.asking: asyncio.Task[None] | None = None
        self.queue = Queue(name)
        self.sizes = Sizes(facts.charges)
        #: The one place, where there are no others to choose from.
        self.only = places[0] if len(places) == 1 else None
        #: What is not charged there yet.
        self.uncharged = None if self.only is None else Uncharged(self.only.admission, self.sizes)

    def book(self) -> None:
        """Charge all that was put down for later: whatever comes now may depend on it."""
        if self.uncharged is not None:
            self.uncharged.book()

    def cost_of(self, item: Item) -> Cost:
        """Estimate what a call of the item takes."""
        self.book()
        return self.sizes.cost_of(item)

    def best_place(
        self, now: float, cost: Cost, apart_from: Place | None = None
    ) -> tuple[Place, float]:
        """Return the place where a call may start first, and the seconds until then.

        Of several it is the one with most room; ``apart_from`` only where no other has any.
        """
        places = self.places
        if self.asking is not None:
            return places[0], math.inf
        if self.only is not None:
            return self.only, self.only.wait(now, cost)
        best, shortest, most_room = places[0], math.inf, -math.inf
        for place in places:
            wait = place.wait(now, cost)
            room = place.admission.room(now) if wait <= 0 else 0.0
            if place.avoided_until > now:
                room -= _AVOIDED
            if place is apart_from:
                room -= _NOT_WANTED
            if wait < shortest or (wait == shortest and room > most_room):
                best, shortest, most_room = place, wait, room
        return best, shortest

    def overloaded_seconds(self, now: float) -> float:
        """Return the seconds since all places stopped dealing with calls; 0 while one does."""
        since = [place.admission.overloaded_since for place in self.places]
        return min(now - at if at is not None else 0.0 for at in since)

    @property
    def has_answered(self) -> bool:
        """Whether any place ever dealt with a call."""
        return any(place.admission.has_answered for place in self.places)

    def has_other(self, now: float, place: Place) -> bool:
        """Whether a call that found a place busy or gone may try another one at once."""
        return any(other.is_well(now) for other in self.places if other is not place)

    def ended(self, now: float, place: Place, grant: Grant, *, is_good: bool | None) -> None:
        """Note that a call ended; None when it says nothing of its place."""
        if place.ended(now, grant, is_good=is_good):
            logger.warning("%s is used again", self._called(place))

    def failed(
        self, now: float, place: Place, grant: Grant, code: ErrorCode, error: object
    ) -> bool:
        """Note a failure; return whether another place may take the call instead.

        The last place is never set aside: when all fail, that is to be seen at once.
        """
        self.ended(now, place, grant, is_good=True if code in _OF_THE_CALL else None)
        if code not in _OF_THE_PLACE:
            if code in {ErrorCode.TIMEOUT, ErrorCode.SERVER_ERROR}:
                place.avoid(now)
            return False
        if not any(other.aside_until <= now for other in self.places if other is not place):
            return False
        if place.set_aside(now, grant):
            logger.warning("%s is set aside: %s", self._called(place), safe(error))
        return True

    def _called(self, place: Place) -> str:
        """Return what a place is called for people."""
        kind = safe(self.name) if self.name else "Key or server"
        called = f"{kind} #{place.number + 1} of {len(self.places)}"
        label = self.facts.labels[place.number] if place.number < len(self.facts.labels) else ""
        return f"{called} ({safe(label)})" if label else called

    def pause(self, now: float) -> Pause | None:
        """Return why nobody is let in, when calls wait for the lane and none may go."""
        waiting = self.queue.next()
        if waiting is None:
            return None
        place, wait = self.best_place(now, waiting.cost)
        return (
            Pause(wait, waits_for(place, now, wait, waiting.cost)) if 0 < wait < math.inf else None
        )


def waits_for(place: Place, now: float, wait: float, cost: Cost) -> str:
    """Say what a call waits for: a ``Pause``'s reason."""
    admission = place.admission
    if place.aside_until - now >= wait:
        return "set aside"
    if admission.closed_until - now >= wait:
        return "refused"
    if admission.overloaded_since is not None:
        return "overloaded"
    longest, reason = -1.0, ""
    for name, budget in admission.budgets.items():
        pending = cost[PENDING] if budget.counts_output else 0.0
        seconds = budget.wait(now, cost[budget.field], pending)
        if seconds > longest:
            longest, reason = seconds, name
    return reason
