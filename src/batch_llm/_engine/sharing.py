"""One answer for all who ask the same: from an item that is in work, or from a cache.

A layer around the attempts. The first item that asks something leads: it looks into the cache and
makes the calls. Others that ask the same meanwhile follow: they are parked until the leader's end,
and hold no place. What the leader brought is theirs too, tokens and calls stay booked with it.

Which items ask the same is for the caller to tell (``providers.base.Repeatable``).
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from batch_llm.core.usage import no_usage
from batch_llm.providers.base import Outcome, content_digest
from batch_llm.stores.base import CACHED, OF_AN_ANSWER, SHARED, Attempt
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from batch_llm._engine.pool import Worker
    from batch_llm._engine.progress import Progress
    from batch_llm._engine.statistics import Counts
    from batch_llm.base import LLMWorkItem
    from batch_llm.core.request import Request
    from batch_llm.providers.base import Repeatable
    from batch_llm.stores.base import Cache

    Item = LLMWorkItem[Any, Any, Any]

#: So many followers are woken at once; the loop turns in between.
WOKEN_AT_ONCE = 16


class Answerer(Protocol):
    """Brings an item its outcome."""

    async def answer(self, item: Item, worker: Worker, progress: Progress, /) -> Outcome:
        """Return the first good outcome, or the last bad one.

        Raises:
            asyncio.CancelledError: Passed on at once; nothing of the item is under way any more.
        """
        ...


class _Landing(NamedTuple):
    """What a leader brought."""

    outcome: Outcome
    code: ErrorCode | None
    item_id: str
    shape: object


class _Flight:
    """A question that is under way.

    Followers wait in order. What wakes one is the landing, or None: it is to lead.
    """

    __slots__ = ("followers", "has_landed", "key", "leaders", "width")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.leaders = 0
        #: How many may lead at a time: one more with each failure that says nothing of the content,
        #: so that two follow each that failed, and a bad hour is not lived through one by one.
        self.width = 1
        self.followers: deque[asyncio.Future[_Landing | None]] = deque()
        self.has_landed = False


class Sharing:
    """Shares answers among the items of one run, and with other runs by a cache.

    Args:
        answerer: Makes an item's attempts.
        repeats: Tells exchanges apart, and reads answers again.
        dedupes: Whether items that ask the same share an answer while one is in work; otherwise
            only the cache is asked, and answers in it are for an item's id.
        counts: Of the run.
        cache: None: answers are not kept.
    """

    def __init__(
        self,
        answerer: Answerer,
        repeats: Repeatable,
        counts: Counts,
        *,
        dedupes: bool,
        cache: Cache | None = None,
    ) -> None:
        self._answerer = answerer
        self._repeats = repeats
        self._counts = counts
        self._dedupes = dedupes
        self._cache = cache
        self._loop = asyncio.get_running_loop()
        self._flights: dict[bytes, _Flight] = {}
        #: Items that wait for another one's answer.
        self.following = 0

    def answer(
        self, item: Item, worker: Worker, progress: Progress, /
    ) -> Coroutine[Any, Any, Outcome]:
        """Return what an item's attempts bring, or those of one that asks the same.

        Of code nobody knows what it asks: its attempts are all there is, and cost nothing more.

        Raises:
            asyncio.CancelledError: Passed on at once; a follower leads then.
        """
        if item.request is None:
            return self._answerer.answer(item, worker, progress)
        return self._answer(item, worker, progress)

    async def _answer(self, item: Item, worker: Worker, progress: Progress) -> Outcome:
        key = self._key_of(item)
        if key is None:
            return await self._answerer.answer(item, worker, progress)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(key)
            flight.leaders = 1
        else:
            since = self._loop.time()
            landing = await self._follow(flight, worker)
            if landing is not None:
                shared = self._taken_over(item, landing, progress, since)
                # What fits the other item's shape need not fit this one's.
                return shared or await self._answerer.answer(item, worker, progress)
        return await self._lead(flight, item, worker, progress)

    def _key_of(self, item: Item) -> bytes | None:
        """Return under what an item's answer is known; None when it is for nobody else."""
        if item.request is None:
            return None
        is_shared = self._dedupes and may_share(item, item.request)
        if not is_shared and self._cache is None:
            return None
        try:
            exchange = self._repeats.exchange(item)
        except Exception:  # noqa: BLE001 - the call will say what is wrong, of this item alone
            return None
        return None if exchange is None else key_of(item, exchange, is_shared=is_shared)

    def _read_again(self, item: Item, answer: bytes) -> Outcome | None:
        """Read an answer as what an item asks for; None when it does not fit."""
        try:
            outcome = self._repeats.read_again(item, answer)
        except Exception:  # noqa: BLE001 - of the user's own shape; the item's own call will show it
            return None
        return outcome if outcome.error is None else None

    async def _lead(
        self, flight: _Flight, item: Item, worker: Worker, progress: Progress
    ) -> Outcome:
        outcome = None
        try:
            outcome = await self._ask(flight.key, item, worker, progress)
            return outcome
        finally:
            flight.leaders -= 1
            if not flight.has_landed:
                self._conclude(flight, item, outcome, progress.error_code)

    async def _ask(self, key: bytes, item: Item, worker: Worker, progress: Progress) -> Outcome:
        cache = self._cache
        if cache is None:
            return await self._answerer.answer(item, worker, progress)
        since = self._loop.time()
        answer = await cache.look_up(key)
        # The shape may have changed since it was kept.
        kept = None if answer is None else self._read_again(item, answer)
        if kept is not None:
            self._counts.cached += 1
            progress.origin = self._origin(CACHED, since, None)
            return kept
        outcome = await self._answerer.answer(item, worker, progress)
        if outcome.error is None and outcome.answer is not None:
            assert item.request is not None  # noqa: S101 - others have no key
            cache.put(key, outcome.answer, model=item.request.model)
        return outcome

    def _conclude(
        self, flight: _Flight, item: Item, outcome: Outcome | None, code: ErrorCode | None
    ) -> None:
        """Let the followers know how a leader ended; without an outcome it was cancelled."""
        if outcome is not None and (outcome.error is None or code in OF_AN_ANSWER):
            assert item.request is not None  # noqa: S101 - others have no flight
            del self._flights[flight.key]
            flight.has_landed = True
            code = None if outcome.error is None else code
            self._land(flight, _Landing(outcome, code, item.item_id, item.request.output))
            return
        if outcome is not None:
            flight.width += 1
        self._appoint(flight)

    def _appoint(self, flight: _Flight) -> None:
        """Let followers lead, as many as may; without any, the flight is over."""
        while flight.followers and flight.leaders < flight.width:
            follower = flight.followers.popleft()
            if not follower.done():
                flight.leaders += 1
                follower.set_result(None)
        if not flight.leaders:
            del self._flights[flight.key]

    def _land(self, flight: _Flight, landing: _Landing) -> None:
        followers = flight.followers
        for _ in range(min(len(followers), WOKEN_AT_ONCE)):
            follower = followers.popleft()
            if not follower.done():
                follower.set_result(landing)
        if followers:
            self._loop.call_soon(self._land, flight, landing)

    async def _follow(self, flight: _Flight, worker: Worker) -> _Landing | None:
        """Wait for the landing; None when this item is to lead."""
        turn: asyncio.Future[_Landing | None] = self._loop.create_future()
        flight.followers.append(turn)
        self.following += 1
        try:
            with worker.parking():
                return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result() is None:
                # Cancelled in the moment in which it was to lead: that is for the next one.
                flight.leaders -= 1
                if not flight.has_landed:
                    self._appoint(flight)
            raise
        finally:
            self.following -= 1

    def _taken_over(
        self, item: Item, landing: _Landing, progress: Progress, since: float
    ) -> Outcome | None:
        """Return another item's outcome as this one's; None when it does not fit."""
        assert item.request is not None  # noqa: S101 - others follow nobody
        outcome = landing.outcome
        has_same_shape = item.request.output is landing.shape
        if outcome.error is not None:
            if landing.code is ErrorCode.BAD_OUTPUT and not has_same_shape:
                return None
            # Each item writes its own tokens onto its error.
            outcome = msgspec.structs.replace(outcome, error=_copied(outcome.error))
        elif not (has_same_shape and isinstance(outcome.output, str)):
            # An output that can be changed is each item's own.
            if outcome.answer is not None:
                again = self._read_again(item, outcome.answer)
                if again is None:
                    return None
                outcome = again
            elif has_same_shape:
                outcome = msgspec.structs.replace(outcome, output=copy.deepcopy(outcome.output))
            else:
                return None
        self._counts.shared += 1
        progress.origin = self._origin(SHARED, since, landing.item_id)
        progress.error_code = landing.code
        return outcome

    def _origin(self, verdict: str, since: float, item_id: str | None) -> Attempt:
        seconds = self._loop.time() - since
        return Attempt(0, since, seconds, no_usage(), verdict, item_id)


def may_share(item: Item, request: Request) -> bool:
    """Tell whether an item's answer may be another's that asks the same."""
    return not request.settings.is_sampled if item.can_share is None else item.can_share


def key_of(item: Item, exchange: bytes, *, is_shared: bool) -> bytes:
    """Return under what an item's answer is known: what it asks, or that and its id."""
    if is_shared:
        return exchange
    return content_digest(exchange, item.item_id.encode("utf-8", "surrogatepass"))


def _copied(error: Exception) -> Exception:
    try:
        return copy.copy(error)
    except Exception:  # noqa: BLE001 - a stranger's class
        return error
