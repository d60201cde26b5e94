"""Two copies of a slow call, while a run drains: the first answer wins.

A layer around the call. The first copy of a call is made in its worker's own task, as without
hedging. When nothing else is left to send, calls that are unusually slow get a second copy, in a
task that belongs to the worker's call and always ends before it. A copy is let in by the gate at
once or not at all: none ever waits, so none is sent for an item that has its answer meanwhile.

Which calls are slow, and whether a copy is affordable, is decided in ``strategies/hedging.py``.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm._engine.gate import Held
from batch_llm.core.usage import tokens
from batch_llm.providers.base import SPENT
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.hedging import Hedges, Size, Slowness, multiple_of, telling

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm._engine.calls import Ended, MakeCall, Owner
    from batch_llm._engine.deadlines import Deadline
    from batch_llm._engine.gate import Gate
    from batch_llm._engine.progress import Progress
    from batch_llm._engine.statistics import Counts
    from batch_llm.base import LLMWorkItem
    from batch_llm.providers.base import Try

    Item = LLMWorkItem[Any, Any, Any]

#: After a call has started or ended, slow ones are looked for once within so many seconds.
LOOK_SECONDS = 0.05
#: While there is something else to send, or no room, it is looked again after so long.
LOOK_AGAIN_SECONDS = 1.0


class _Call:
    """A call under way, and its second copy when it has one."""

    __slots__ = (
        "attempt",
        "context",
        "copy",
        "item",
        "owner",
        "progress",
        "size",
        "started_at",
        "ticket",
    )

    def __init__(
        self,
        item: Item,
        owner: Owner,
        ticket: Any,
        attempt: Try,
        progress: Progress,
        started_at: float,
    ) -> None:
        self.item = item
        self.owner = owner
        self.ticket = ticket
        self.attempt = attempt
        self.progress = progress
        self.started_at = started_at
        self.size = _size_of(item)
        #: What the worker's task sees in its context variables, the copy's sees too.
        self.context = contextvars.copy_context()
        self.copy: _Copy | None = None


class _Copy:
    """A second copy, in a task of its own: stands where a worker stands for the first."""

    __slots__ = (
        "_deadline",
        "cost",
        "ended",
        "id",
        "is_cancelled",
        "is_unwanted",
        "task",
        "ticket",
    )

    task: asyncio.Task[None]

    def __init__(self, worker_id: int, ticket: Any, cost: float) -> None:
        self.id = worker_id
        self.ticket = ticket
        self.cost = cost
        self.ended: Ended | None = None
        self.is_unwanted = self.is_cancelled = False
        self._deadline: Deadline | None = None

    @property
    def deadline(self) -> Deadline:
        """Bounds the copy's call."""
        assert self._deadline is not None  # noqa: S101 - only asked for while the task runs
        return self._deadline

    def take_back_cancellation(self) -> None:
        """Go on after a cancellation that has been dealt with."""
        while self.task.cancelling():
            self.task.uncancel()

    def open_deadline(self, other: Deadline) -> None:
        """Take note that the task has begun."""
        self._deadline = other.sweeper.open_deadline(self.task)

    def close_deadline(self) -> None:
        """Take note that the task is about to end."""
        self.deadline.sweeper.close_deadline(self.deadline)

    def cut(self) -> None:
        """End its call, because the first copy was answered."""
        self.is_unwanted = True
        # A task that is cancelled before its first step never begins, and could hand nothing back:
        # so one that has not begun is left to see the flag.
        if self._deadline is not None:
            self._deadline.cut()

    def cancel(self) -> None:
        """End it, because its worker was cancelled."""
        self.is_unwanted = self.is_cancelled = True
        if self._deadline is not None:
            self.task.cancel()


class Hedging:
    """Makes calls, and second copies of the slow ones.

    Args:
        make_call: Makes one call, and settles it.
        gate: Lets the copies in, as it lets in any call.
        counts: Of the run.
        can_send: Tells whether nothing else is left to send, or waits to be let in.
    """

    def __init__(
        self, *, make_call: MakeCall, gate: Gate, counts: Counts, can_send: Callable[[], bool]
    ) -> None:
        self._make_call = make_call
        self._gate = gate
        self._counts = counts
        self._can_send = can_send
        self._loop = asyncio.get_running_loop()
        #: Calls under way, the oldest first.
        self._under_way: dict[_Call, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._slowness = Slowness()
        self._hedges = Hedges()

    async def make(
        self, item: Item, owner: Owner, ticket: Any, attempt: Try, progress: Progress, /
    ) -> Ended:
        """Make a call, and a second copy when it is slow; return the first answer.

        When both fail, the failure that says more is returned, and counts as the attempt's.

        Raises:
            asyncio.CancelledError: Passed on when both copies have ended.
        """
        now = self._loop.time()
        call = _Call(item, owner, ticket, attempt, progress, now)
        self._under_way[call] = None
        self._look_soon(now)
        try:
            try:
                ended = await self._make_call(item, owner, ticket, attempt, progress)
            finally:
                del self._under_way[call]
            self._note(call, ended)
            if call.copy is None:
                return ended
            return await self._conclude(call.copy, ended)
        finally:
            if call.copy is not None:
                await self._clear(call.copy)
            # As in `Calls.make`: an error leads back to this frame, and so to the item.
            ended = call = None  # type: ignore[assignment]

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    async def _conclude(self, copy: _Copy, first: Ended) -> Ended:
        """Return which of two copies counts, when both have ended, and book the other."""
        if copy.ended is not None and copy.ended.is_good:
            is_copy_taken = True
        elif first.is_good:
            copy.cut()
            await _ends(copy)
            is_copy_taken = False
        else:
            await _ends(copy)
            is_copy_taken = copy.ended is not None and (
                copy.ended.is_good or _says_more(copy.ended, first)
            )
        second = copy.ended
        if second is None:  # cut before it began
            return first
        taken, lost = (second, first) if is_copy_taken else (first, second)
        if is_copy_taken and taken.is_good:
            self._counts.hedges_won += 1
        if taken.is_good:
            self._counts.hedge_tokens_lost += _tokens_lost(lost, taken, copy.cost)
        return taken

    @staticmethod
    async def _clear(copy: _Copy) -> None:
        """Leave nothing of a copy behind; when its worker was cancelled it still goes on."""
        if not copy.task.done():
            copy.cancel()
            await _ends(copy)
        copy.ended = None  # its error leads back to the frame that made the call, and so to itself

    def _look_soon(self, now: float) -> None:
        soon = now + LOOK_SECONDS
        if self._timer is None or self._timer.when() > soon:
            self._look_at(soon)

    def _look_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        """Send copies of the calls that are slow, the oldest first; set the timer for the next."""
        self._timer = None
        if not self._under_way:
            return
        now = self._loop.time()
        if not self._can_send():
            # That the source has ended may be seen long after the last call but the slow ones.
            self._look_at(now + LOOK_AGAIN_SECONDS)
            return
        factor = self._slowness.slow_factor(self._multiples(now))
        if factor is None:
            return  # the next answer comes back here
        counts = self._counts
        next_at = math.inf
        for call in self._under_way:
            if call.copy is not None or not _can_hedge(call.item):
                continue
            multiple = factor * self._hedges.patience(items=counts.started, tokens=counts.tokens)
            slow_at = call.started_at + multiple * self._slowness.expected_seconds(call.size)
            if slow_at <= now:
                slow_at = now + self._send_copy(call, now, factor)
            next_at = min(next_at, slow_at)
        if next_at < math.inf:
            self._look_at(max(next_at, now + LOOK_SECONDS))

    def _multiples(self, now: float) -> list[float]:
        return [
            multiple_of(now - call.started_at, self._slowness.expected_seconds(call.size))
            for call in self._under_way
        ]

    def _send_copy(self, call: _Call, now: float, factor: float) -> float:
        """Send a copy; return infinity then, else the seconds until it may be tried again."""
        cost = self._hedges.cost(call.size, self._slowness.expected_tokens(call.size), factor)
        counts = self._counts
        wait = self._hedges.wait(now, cost, items=counts.started, tokens=counts.tokens)
        if wait > 0:
            return wait
        # Where the first copy is slow, a second one may be slow for the same reason.
        ticket = self._gate.enter_now(call.item, apart_from=call.ticket)
        if ticket is None:
            return LOOK_AGAIN_SECONDS
        self._hedges.note_sent(cost)
        counts.hedged += 1
        call.copy = copy = _Copy(call.owner.id, ticket, cost)
        copy.task = self._loop.create_task(self._make_copy(call, copy), context=call.context)
        return math.inf

    async def _make_copy(self, call: _Call, copy: _Copy) -> None:
        if copy.is_unwanted:
            self._counts.hedged -= 1
            self._hedges.take_back(copy.cost)
            self._gate.leave(copy.ticket, was_sent=False)
            return
        copy.open_deadline(call.owner.deadline)
        try:
            copy.ended = await self._make_call(
                call.item, copy, copy.ticket, self._attempt_of(call, copy), call.progress
            )
            self._note(call, copy.ended)
            if copy.ended.usage:
                self._hedges.note_cost(copy.cost, _total(copy.ended.usage))
            if copy.ended.is_good:
                # Nothing is under way there when the first copy has failed.
                call.owner.deadline.cut()
        finally:
            copy.close_deadline()
            # As in `Calls.make`: an error leads back to this frame, and so to the item.
            call = copy = None  # type: ignore[assignment]

    def _attempt_of(self, call: _Call, copy: _Copy) -> Try:
        """Return the same attempt for the second copy."""
        # What a caller keeps of a call while it goes on is that call's alone.
        memory = {key: value for key, value in call.attempt.memory.items() if key != SPENT}
        place = self._gate.place(copy.ticket)
        return msgspec.structs.replace(call.attempt, memory=memory, place=place)

    def _note(self, call: _Call, ended: Ended) -> None:
        now = self._loop.time()
        self._look_soon(now)
        if ended.is_cut_short:
            return
        code = ended.code
        if ended.verdict is not None and ended.verdict.is_rate_limit:
            code = ErrorCode.RATE_LIMITED
        self._hedges.note_end(now, code)
        if not ended.is_good:
            return
        usage = ended.usage
        self._slowness.note(
            ended.seconds, call.size, tokens(usage, "output_tokens") if usage else None
        )
        if usage:
            self._hedges.note_input(tokens(usage, "input_tokens"))


async def _ends(copy: _Copy) -> None:
    """Wait until a copy has ended, whatever happens to us meanwhile: it is never left alone.

    Raises:
        Exception: What the copy's task let escape.
        asyncio.CancelledError: We were cancelled, and so was the copy.
    """
    was_cancelled = False
    while not copy.task.done():
        try:
            await asyncio.wait([copy.task])
        except asyncio.CancelledError:
            was_cancelled = True
            copy.cancel()
    if was_cancelled:
        raise asyncio.CancelledError
    if not copy.task.cancelled():
        copy.task.result()


def _can_hedge(item: Item) -> bool:
    return item.request is not None if item.can_hedge is None else item.can_hedge


def _size_of(item: Item) -> Size:
    asked = item.request.settings.longest_answer if item.request is not None else None
    return Size(item.estimated_input_tokens, item.estimated_output_tokens, asked)


def _says_more(one: Ended, other: Ended) -> bool:
    return _telling(one) > _telling(other)


def _telling(ended: Ended) -> int:
    """Return how much a failure says; that of a lane that is busy says nothing of the item."""
    if ended.verdict is None or ended.code is None or ended.held is not Held.NO:
        return -1
    if ended.verdict.is_rate_limit:
        return telling(ErrorCode.RATE_LIMITED, is_final=False)
    return telling(ended.code, is_final=not ended.verdict.is_retryable)


def _tokens_lost(lost: Ended, taken: Ended, expected: float) -> float:
    """Return what the copy that was not taken cost; one that failed on its own says so itself."""
    if lost.usage:
        return _total(lost.usage)
    if not lost.is_cut_short:
        return 0.0
    return _total(taken.usage) if taken.usage else expected  # both were asked the same


def _total(usage: dict[str, int]) -> int:
    return tokens(usage, "input_tokens") + tokens(usage, "output_tokens")
