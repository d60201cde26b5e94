"""Calls that were let in and not charged yet: booked many at a time.

As long as nothing limits a lane, no decision depends on what its calls take: that matters from the
first refusal on, or from the first header with limits. Until then calls are put down in the order
in which they were let in, and charged when somebody asks. Most have ended by then: those are
charged what they took, and a sum of them costs no more than a single one. Those in flight are
charged an estimate, as always; it is made then, with what was learned until then.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batch_llm._engine.lane import Ticket
    from batch_llm._engine.sizes import Sizes
    from batch_llm.base import LLMWorkItem
    from batch_llm.strategies.admission import Admission
    from batch_llm.strategies.costs import Cost

    Item = LLMWorkItem[Any, Any, Any]

#: So many are put down at the most; what they hold of their items waits as long.
MOST_PUT_DOWN = 128


class Uncharged:
    """What is to be charged in a lane with one place, while nothing limits it.

    Args:
        admission: Of the place.
        sizes: Of the lane.
    """

    __slots__ = ("_admission", "_sizes", "_tickets")

    def __init__(self, admission: Admission, sizes: Sizes) -> None:
        self._admission = admission
        self._sizes = sizes
        #: Of calls that were let in, in that order, and of those that ended after they were
        #: charged.
        self._tickets: list[Ticket] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def put_down(self, ticket: Ticket) -> None:
        """Put down a call that was let in (``Admission.begin``)."""
        tickets = self._tickets
        tickets.append(ticket)
        if len(tickets) >= MOST_PUT_DOWN:
            self.book()

    def note_end(
        self, ticket: Ticket, item: Item, now: float, usage: dict[str, int] | None
    ) -> None:
        """Put down that a call was answered (``Admission.end``)."""
        ticket.item, ticket.ended_at, ticket.usage = item, now, usage
        if ticket.is_charged:
            self._tickets.append(ticket)

    def book(self) -> None:
        """Charge all that was put down."""
        tickets = self._tickets
        if not tickets:
            return
        self._tickets = []
        admission, sizes = self._admission, self._sizes
        ended: list[Cost] = []
        since, until = 0.0, -math.inf
        for ticket in tickets:
            grant, item, ended_at = ticket.grant, ticket.item, ticket.ended_at
            assert item is not None  # noqa: S101 - it was put down with its item
            used = None if ended_at is None else sizes.learn(item, ticket.usage)
            if used is not None and not ticket.is_charged:
                if grant.at >= until:  # what is charged is counted by the second
                    admission.charge_all(since, ended)
                    ended, since, until = [], grant.at, math.floor(grant.at) + 1
                ended.append(used)
            else:
                admission.charge_all(since, ended)
                ended, until = [], -math.inf
                if not ticket.is_charged:
                    admission.charge(grant, sizes.cost_of(item))
                if ended_at is not None:
                    admission.settle(ended_at, grant, used)
            ticket.is_charged = True
            ticket.item = ticket.usage = None
        admission.charge_all(since, ended)
