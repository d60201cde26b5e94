"""Keeps a run's caps: a gate before the gate, that holds the worst case of each call in flight.

A call that the caps have no room for waits until others have ended and given back what they did not
take. When nothing is in flight any more and there is still no room, the caps are reached: the run
is told, once, and lets nobody in any more. The arithmetic is in ``strategies/caps.py``.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from batch_llm._engine.metering import may_have_cost, tier_of
from batch_llm.core.prices import ModelUsage, usd
from batch_llm.core.request import Image, Text
from batch_llm.core.text import counted
from batch_llm.core.usage import tokens
from batch_llm.exceptions import UnknownPriceError
from batch_llm.strategies.caps import MARGIN, Bounds, Purse, Reservation, Size, Worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from decimal import Decimal

    from batch_llm._engine.gate import Gate, Held
    from batch_llm._engine.statistics import LanePause, LearnedLimit
    from batch_llm.base import LLMWorkItem
    from batch_llm.core.prices import Prices, Rate
    from batch_llm.core.request import Request
    from batch_llm.providers.base import Caller, Outcome
    from batch_llm.stores.base import Spent
    from batch_llm.strategies.errors import ErrorCode

    Item = LLMWorkItem[Any, Any, Any]

#: What a picture may be billed as input, at the most that providers tell of.
IMAGE_TOKENS = 3000
#: Makes a ``Size`` of its six fields: without the Python function in between, on the hot path.
_size: Callable[[tuple[int, int, int | None, bool, int | None, int | None]], Size] = partial(
    tuple.__new__, Size
)
#: What is said around the answer that did not fit, when the model is told so.
FEEDBACK_TOKENS = 500


class Charge(NamedTuple):
    """What is held for a call, and how to price it."""

    reservation: Reservation
    account: _Account
    size: Size


class Admitted(NamedTuple):
    """The ticket of a call that was let in."""

    inner: Any
    charge: Charge


class _Account:
    """What is known of one model's calls: their bounds, and what they cost."""

    def __init__(self, model: str, server: str, tier: str, prices: Prices | None) -> None:
        self.bounds = Bounds()
        self.model = model
        self._rate = None if prices is None else partial(prices.rate_of_call, model, server, tier)

    def price(self, input_tokens: int) -> Rate:
        """Return the rate of a call with so much input.

        Raises:
            UnknownPriceError: There is none.
        """
        assert self._rate is not None  # noqa: S101 - asked for only where money is capped
        rate = self._rate(input_tokens)
        if rate is None:
            raise UnknownPriceError(self.model)
        return rate

    def worst(self, size: Size) -> Worst:
        """Return the most that a call may cost.

        Raises:
            UnknownPriceError: Nobody knows.
        """
        return self.bounds.worst(size, None if self._rate is None else self.price)

    def cost(self, usage: dict[str, int]) -> Decimal:
        """Return what a call did cost; nothing where money is not capped."""
        if self._rate is None:
            return Worst(0).usd
        return self.price(tokens(usage, "input_tokens")).cost(usage)


def _of_unknown_cost(usages: Iterable[ModelUsage]) -> tuple[list[ModelUsage], int]:
    """Return the calls of earlier sessions of which nobody knows what they took.

    What was held for them is forgotten by now: they count like two of the same model's others.
    Those of models without any others are only counted.
    """
    by_model: dict[tuple[str, str, str], list[ModelUsage]] = {}
    for one in usages:
        by_model.setdefault((one.model, one.server, one.tier), []).append(one)
    found, alone = [], 0
    for (model, server, tier), all_of_it in by_model.items():
        unknown = sum(one.unmeasured_calls for one in all_of_it)
        known = sum(one.calls for one in all_of_it)
        if not known:
            alone += unknown
        elif unknown:
            share = MARGIN * unknown / known
            usage = ModelUsage(model=model, server=server, tier=tier, calls=unknown)
            usage.input_tokens = math.ceil(share * sum(one.input_tokens for one in all_of_it))
            usage.output_tokens = math.ceil(share * sum(one.output_tokens for one in all_of_it))
            found.append(usage)
    return found, alone


class SpendingGate:
    """Lets calls in that a run's caps have room for, through the gate behind.

    Args:
        gate: The one behind.
        caller: Knows what an item's tokens are counted under.
        purse: The caps.
        prices: What tokens cost; used where money is capped.
        on_reached: Called once, with the setting and a sentence, when nothing more fits.
    """

    def __init__(
        self,
        gate: Gate,
        caller: Caller,
        purse: Purse,
        prices: Prices,
        on_reached: Callable[[str, str], None],
    ) -> None:
        self._gate = gate
        self._caller = caller
        self._purse = purse
        self._prices = prices if purse.max_usd is not None else None
        self._on_reached = on_reached
        self._accounts: dict[tuple[str, str], _Account] = {}
        #: Calls that wait for others to give something back.
        self._queue: deque[tuple[asyncio.Future[Charge], _Account, Size]] = deque()
        self._is_reached = False
        #: Calls of earlier sessions that are booked when it is known what the next one may take.
        self._unbooked = 0

    def begin_with(self, before: Spent) -> None:
        """Count what earlier sessions of the run have spent, at the most, against the caps."""
        purse = self._purse
        unknown, self._unbooked = _of_unknown_cost(before.usage)
        at_most = [*before.at_most, *unknown]
        for one in (*before.usage, *at_most):
            purse.spent_tokens += one.input_tokens + one.output_tokens
        purse.unknown_calls += sum(one.calls for one in at_most)
        if self._prices is not None:
            purse.spent_usd += self._prices.bill(before.usage).usd
            purse.spent_usd += self._prices.at_most(at_most).usd

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return self._gate.in_flight

    @property
    def consecutive(self) -> int:
        """Refusals in a row."""
        return self._gate.consecutive

    @property
    def is_cooling(self) -> bool:
        """Whether everyone waits for the provider."""
        return self._gate.is_cooling

    @property
    def cooldown_seconds(self) -> float:
        """Seconds spent in cooldowns so far."""
        return self._gate.cooldown_seconds

    @property
    def cooldown_remaining_seconds(self) -> float:
        """Seconds until everyone goes on; 0 outside of a cooldown."""
        return self._gate.cooldown_remaining_seconds

    @property
    def waiting(self) -> int:
        """Attempts that wait to be let in, for the caps or behind them."""
        return self._gate.waiting + len(self._queue)

    @property
    def most(self) -> int:
        """Calls in flight at the most."""
        return self._gate.most

    def wanted(self, present: int, /) -> int:
        """Return how many items should be in work; no more while some wait for the caps."""
        wanted = self._gate.wanted(present)
        return min(wanted, present) if self._queue else wanted

    def pauses(self) -> list[LanePause]:
        """Return the lanes for which calls wait, where that takes long."""
        return self._gate.pauses()

    def limits(self) -> list[LearnedLimit]:
        """Return what is known of the provider's limits."""
        return self._gate.limits()

    async def enter(self, item: Item, /, *, is_retry: bool) -> Admitted:
        """Wait until the caps have room, and then to be let in.

        Raises:
            asyncio.CancelledError: What was held is given back.
            LimitPauseError: The wait would be longer than is wanted.
            UnknownPriceError: Money is capped, and nobody knows what the call costs.
        """
        account, size = self._account_of(item), self._size_of(item, is_retry=is_retry)
        account.worst(size)  # where there is no price, here: whoever pumps has no use for the error
        charge = None if self._queue else self._hold(account, size)
        if charge is None:
            charge = await self._wait(account, size, is_retry=is_retry)
        try:
            return Admitted(await self._gate.enter(item, is_retry=is_retry), charge)
        except BaseException:
            self._release(charge)
            raise

    def enter_now(
        self, item: Item, /, *, is_retry: bool = True, apart_from: Admitted | None = None
    ) -> Admitted | None:
        """Return a ticket if there is room at once, of both kinds, and nobody waits for it.

        Raises:
            UnknownPriceError: Money is capped, and nobody knows what the call costs.
        """
        if self._queue or self._is_reached:
            return None
        charge = self._hold(self._account_of(item), self._size_of(item, is_retry=is_retry))
        if charge is None:
            return None
        other = None if apart_from is None else apart_from.inner
        ticket = self._gate.enter_now(item, is_retry=is_retry, apart_from=other)
        if ticket is None:
            self._release(charge)
            return None
        return Admitted(ticket, charge)

    def is_overloaded(self, item: Item, /) -> bool:
        """Whether the item's lane deals with no calls, and no call is due to find out."""
        return self._gate.is_overloaded(item)

    def has_answered(self, item: Item, /) -> bool | None:
        """Whether anybody in the item's lane ever dealt with a call; None: that is not seen."""
        return self._gate.has_answered(item)

    def place(self, ticket: Admitted, /) -> int | None:
        """Return which of the lane's places the call goes to; None where nobody chose."""
        return self._gate.place(ticket.inner)

    def leave(self, ticket: Admitted, /, *, was_sent: bool = True) -> None:
        """Give the room to the next one; a call whose end nobody told is booked at its worst."""
        self._gate.leave(ticket.inner, was_sent=was_sent)
        reservation = ticket.charge.reservation
        if not was_sent:
            self._purse.release(reservation)
        else:
            self._purse.settle_unknown(reservation)
        self._pump()

    def succeeded(self, ticket: Admitted, item: Item, outcome: Outcome, /) -> None:
        """Tell that a call was answered."""
        self._gate.succeeded(ticket.inner, item, outcome)
        self._settle(ticket.charge, outcome)

    def failed(
        self,
        ticket: Admitted,
        item: Item,
        outcome: Outcome,
        code: ErrorCode,
        suggested_seconds: float | None = None,
        /,
    ) -> Held:
        """Tell that a call failed, other than by a rate limit; learn whether it is held for it."""
        held = self._gate.failed(ticket.inner, item, outcome, code, suggested_seconds)
        error = outcome.error
        if outcome.usage or (error is not None and may_have_cost(error, code)):
            self._settle(ticket.charge, outcome)
        else:
            self._purse.release(ticket.charge.reservation)
        return held

    def refused(
        self,
        ticket: Admitted,
        worker_id: int,
        suggested_seconds: float | None,
        outcome: Outcome,
        /,
    ) -> float:
        """Tell that a call was refused by a rate limit; return how long its item waits."""
        wait = self._gate.refused(ticket.inner, worker_id, suggested_seconds, outcome)
        if outcome.usage:
            self._settle(ticket.charge, outcome)
        else:
            self._purse.release(ticket.charge.reservation)
        return wait

    async def close(self) -> None:
        """Stop what the gate behind has going on."""
        await self._gate.close()

    def _account_of(self, item: Item) -> _Account:
        key = (self._caller.lane(item), tier_of(item))
        account = self._accounts.get(key)
        if account is None:
            facts = self._caller.facts(item)
            account = _Account(facts.model, facts.server, key[1], self._prices)
            self._accounts[key] = account
        return account

    def _size_of(self, item: Item, *, is_retry: bool) -> Size:
        size = size_of(item)
        request = item.request
        if is_retry and request is not None and request.output is not None:
            # The model may be shown its last answer, which did not fit.
            shown = self._account_of(item).bounds.output_tokens(size)
            size = size._replace(further_tokens=size.further_tokens + shown + FEEDBACK_TOKENS)
        return size

    def _hold(self, account: _Account, size: Size) -> Charge | None:
        worst = account.worst(size)
        if self._unbooked:
            self._purse.book_unknown(worst, self._unbooked)
            self._unbooked = 0
        reservation = self._purse.reserve(worst)
        return None if reservation is None else Charge(reservation, account, size)

    async def _wait(self, account: _Account, size: Size, *, is_retry: bool) -> Charge:
        future: asyncio.Future[Charge] = asyncio.get_running_loop().create_future()
        entry = (future, account, size)
        # An item that was paid for already goes before those that were not.
        if is_retry:
            self._queue.appendleft(entry)
        else:
            self._queue.append(entry)
        self._pump()
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled():  # held and cancelled in the same step
                self._release(future.result())
            elif entry in self._queue:
                self._queue.remove(entry)
                self._pump()
            raise

    def _release(self, charge: Charge) -> None:
        self._purse.release(charge.reservation)
        self._pump()

    def _settle(self, charge: Charge, outcome: Outcome) -> None:
        usage = outcome.usage
        if not usage:
            self._purse.settle_unknown(charge.reservation)
            return
        sent, got = tokens(usage, "input_tokens"), tokens(usage, "output_tokens")
        charge.account.bounds.learn(charge.size, sent, got)
        self._purse.settle(charge.reservation, charge.account.cost(usage), sent + got)

    def _pump(self) -> None:
        """Let those go on that there is room for now, in order; see whether that is the end."""
        while self._queue:
            future, account, size = self._queue[0]
            if future.done():  # cancelled
                self._queue.popleft()
                continue
            charge = self._hold(account, size)
            if charge is None:
                self._end_if_reached(account.worst(size), size)
                return
            self._queue.popleft()
            future.set_result(charge)

    def _end_if_reached(self, worst: Worst, size: Size) -> None:
        if self._purse.has_reservations or self._is_reached:
            return
        self._is_reached = True
        setting = self._purse.hindrance(worst)
        assert setting is not None  # noqa: S101 - else there would have been room
        self._on_reached(setting, _reason(self._purse, setting, worst, size))


def _reason(purse: Purse, setting: str, worst: Worst, size: Size) -> str:
    if setting == "max_cost_usd":
        assert purse.max_usd is not None  # noqa: S101 - it is what was reached
        spent, most, next_one = usd(purse.spent_usd), usd(purse.max_usd), usd(worst.usd)
    else:
        spent, most = f"{purse.spent_tokens:,} tokens", f"{purse.max_tokens:,}"
        next_one = f"{worst.tokens:,}"
    unknown = ""
    if purse.unknown_calls:
        calls = counted(purse.unknown_calls, "call")
        unknown = f" ({calls} of unknown cost booked at their most)"
    hint = "" if size.max_output_tokens is not None else " (max_tokens would bound it)"
    return f"{spent} of {most} are spent{unknown}, and the next call may take {next_one}{hint}"


def size_of(item: Item) -> Size:
    """Tell what can be seen of a call before it is sent."""
    told, got = item.estimated_input_tokens, item.estimated_output_tokens
    request = item.request
    if request is None:
        return _size((_bytes(item.prompt), 0, None, False, told, got))
    seen = 0
    further = 0
    for message in request.messages:
        content = message.content
        if isinstance(content, str):
            seen += _bytes(content)
        else:
            for part in content or ():
                if isinstance(part, Text):
                    seen += _bytes(part.text)
                elif isinstance(part, Image):
                    further += IMAGE_TOKENS
                else:
                    seen += _bytes(str(part.data))
                    further += IMAGE_TOKENS
        if message.extra:
            seen += _bytes(str(message.extra))
        seen += _MESSAGE_BYTES
    settings = request.settings
    if settings.extra:
        seen += _bytes(str(settings.extra))
    if request.output is not None:
        seen += _bytes(str(request.output.schema))
    return Size(seen, further, _asked(request), True, told, got)


#: What a message's role and frame may take.
_MESSAGE_BYTES = 16


def _asked(request: Request) -> int | None:
    """Return the longest output that was asked for, of all choices together."""
    settings = request.settings
    asked, choices = settings.longest_answer, 1
    if extra := settings.extra:
        wanted = extra.get("n")
        choices = wanted if isinstance(wanted, int) and wanted > 1 else 1
    return None if asked is None else asked * choices


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
