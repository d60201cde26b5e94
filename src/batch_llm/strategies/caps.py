"""Caps on money and tokens, kept by reserving the worst case of what is in flight. No I/O.

Before a call is sent, the most that it can cost is reserved; when it has ended, what it did cost
is booked and the rest given back. As long as no call costs more than was reserved for it, what is
spent and what is reserved never pass a cap together. Two things bound a call:

- input: no more tokens than its text has bytes; once there are answers, twice the most tokens to a
  byte so far;
- output: ``max_tokens`` where the call has one. Without it, twice the longest answer so far, and
  never less than a floor until enough answers were seen. A longer answer than that passes the cap
  by what it is longer: only ``max_tokens`` makes a promise of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm.core.prices import Rate

#: Until so many answers were seen, what they took says little of the next one.
FEW_ANSWERS = 20
#: What an answer without ``max_tokens`` may take at the least, before and after that.
FIRST_OUTPUT_TOKENS, LEAST_OUTPUT_TOKENS = 4096, 256
#: How far beyond the most that was seen so far the next call may go.
MARGIN = 2.0
#: What the wire adds around the text, in tokens: roles, a provider's preamble.
OVERHEAD_TOKENS = 32
#: What a callable may send besides the prompt that is seen, until answers tell.
FIRST_HIDDEN_TOKENS = 4096
_NOTHING = Decimal(0)


class Size(NamedTuple):
    """What is known of a call before it is sent.

    Attributes:
        input_bytes: Of all text that it sends, as far as that can be seen.
        further_tokens: Of input that is no text: pictures; or what a model's first answer brings
            into its second attempt.
        max_output_tokens: What was asked for at the most, of all choices together; None: nothing.
        is_seen: Whether all that it sends can be seen. An agent's instructions cannot.
        told_input_tokens: What the user estimates; None: nothing.
        told_output_tokens: The same.
    """

    input_bytes: int
    further_tokens: int = 0
    max_output_tokens: int | None = None
    is_seen: bool = True
    told_input_tokens: int | None = None
    told_output_tokens: int | None = None


class Worst(NamedTuple):
    """What a call costs at the most."""

    tokens: int
    usd: Decimal = _NOTHING


class Bounds:
    """What calls of one model take at the most, learned from those before."""

    def __init__(self) -> None:
        self._answers = 0
        self._longest_output = 0
        self._tokens_per_byte = 0.0
        #: The most input that no byte of ours accounts for: instructions of an agent, preambles.
        self._hidden_tokens = 0

    def input_tokens(self, size: Size) -> int:
        """Return the most input that a call may be billed."""
        has_learned = self._answers >= FEW_ANSWERS
        text = size.input_bytes
        if has_learned:
            text = min(text, math.ceil(text * self._tokens_per_byte * MARGIN))
        first = 0 if size.is_seen or has_learned else FIRST_HIDDEN_TOKENS
        hidden = OVERHEAD_TOKENS + max(first, math.ceil(self._hidden_tokens * MARGIN))
        told = math.ceil((size.told_input_tokens or 0) * MARGIN)
        return max(text + hidden, told) + size.further_tokens

    def output_tokens(self, size: Size) -> int:
        """Return the most output that a call may be billed."""
        if size.max_output_tokens is not None:
            return size.max_output_tokens
        floor = FIRST_OUTPUT_TOKENS if self._answers < FEW_ANSWERS else LEAST_OUTPUT_TOKENS
        told = math.ceil((size.told_output_tokens or 0) * MARGIN)
        return max(floor, math.ceil(self._longest_output * MARGIN), told)

    def worst(self, size: Size, price: Callable[[int], Rate] | None) -> Worst:
        """Return the most that a call may cost.

        Args:
            size: What is known of it.
            price: Returns the rate of a call with so much input; None where money is not capped.
        """
        sent, got = self.input_tokens(size), self.output_tokens(size)
        return Worst(sent + got, price(sent).most(sent, got) if price is not None else _NOTHING)

    def learn(self, size: Size, input_tokens: int, output_tokens: int) -> None:
        """Take note of what a call took."""
        self._answers += 1
        self._longest_output = max(self._longest_output, output_tokens)
        text = max(0, input_tokens - size.further_tokens - OVERHEAD_TOKENS)
        self._hidden_tokens = max(self._hidden_tokens, text - size.input_bytes)
        share = min(1.0, text / max(1, size.input_bytes))
        self._tokens_per_byte = max(self._tokens_per_byte, share)


@dataclass(slots=True)
class Reservation:
    """What is held for a call that may be sent, until it is settled."""

    worst: Worst
    is_open: bool = True


class Purse:
    """What may be spent, what was, and what is held for calls in flight.

    While no call costs more than was reserved for it, ``spent + reserved`` never passes a cap.

    Args:
        max_usd: What may be spent; None: as much as it takes.
        max_tokens: The same of tokens, input and output together.
    """

    def __init__(self, max_usd: Decimal | None = None, max_tokens: int | None = None) -> None:
        self.max_usd = max_usd
        self.max_tokens = max_tokens
        self.spent_usd = self.reserved_usd = _NOTHING
        self.spent_tokens = self.reserved_tokens = 0
        #: Calls whose cost nobody told: they are booked at their worst.
        self.unknown_calls = 0
        self._open = 0

    @property
    def has_reservations(self) -> bool:
        """Whether calls in flight may still give something back."""
        return self._open > 0

    def hindrance(self, worst: Worst) -> str | None:
        """Return the setting that does not let a call go now; None when it may."""
        if self.max_usd is not None:
            taken = self.spent_usd + self.reserved_usd
            if taken + worst.usd > self.max_usd:
                return "max_cost_usd"
        if self.max_tokens is not None:
            held = self.spent_tokens + self.reserved_tokens
            if held + worst.tokens > self.max_tokens:
                return "max_tokens_total"
        return None

    def reserve(self, worst: Worst) -> Reservation | None:
        """Hold what a call may cost; None when that is not there."""
        if self.hindrance(worst) is not None:
            return None
        self.reserved_usd += worst.usd
        self.reserved_tokens += worst.tokens
        self._open += 1
        return Reservation(worst)

    def settle(self, reservation: Reservation, usd: Decimal, tokens: int) -> None:
        """Book what a call did cost, and give the rest back. A second time does nothing."""
        if not self._close(reservation):
            return
        self.spent_usd += usd
        self.spent_tokens += tokens

    def settle_unknown(self, reservation: Reservation) -> None:
        """Book the worst for a call of which nobody knows what it cost."""
        if self._close(reservation):
            self.book_unknown(reservation.worst)

    def book_unknown(self, worst: Worst, calls: int = 1) -> None:
        """Book the worst for so many calls for which nothing is held."""
        self.spent_usd += calls * worst.usd
        self.spent_tokens += calls * worst.tokens
        self.unknown_calls += calls

    def release(self, reservation: Reservation) -> None:
        """Give all back: the call was not sent, or cost nothing."""
        self._close(reservation)

    def _close(self, reservation: Reservation) -> bool:
        if not reservation.is_open:
            return False
        reservation.is_open = False
        self.reserved_usd -= reservation.worst.usd
        self.reserved_tokens -= reservation.worst.tokens
        self._open -= 1
        return True
