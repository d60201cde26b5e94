"""What is written in one transaction, and how results and attempts become its rows.

A result is taken in the moment in which it comes, and made into rows a little later, together with
others: the same steps one after the other cost a third of what they do one by one, between all that
the engine does for an item.
"""

from __future__ import annotations

import asyncio
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batch_llm.exceptions import StoreError
from batch_llm.stores.base import Attempt, ItemState, Saving
from batch_llm.stores.values import UsageColumns, clean, key_of, to_json, usage_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from batch_llm.base import WorkItemResult
    from batch_llm.stores.call_notes import BilledAs


#: Fields of a result that was taken.
_FIELDS = 3
#: So many results are made into rows at a time: few enough that nobody waits for it.
_AT_A_TIME = 64
MOST_TAKEN: Final = _AT_A_TIME * _FIELDS
#: A group that takes longer is no reason for workers to do nothing meanwhile.
_LONG_SECONDS = 0.1
_NO_USAGE: UsageColumns = (None, None, None, "{}")
#: Models' names that are known to hold nothing that must not be kept; strangers' text, so not all.
_MOST_NAMES = 64

#: The kinds of rows in the order in which they are written, with their columns. What nearly all
#: results are (a new item's answer, at the first call) has kinds of its own, without the columns
#: that are empty then: ``sqlite3`` takes longer to bind a None than all other values of a row.
KINDS: Final = {
    "billed_as": 4,
    "reopen": 1,
    "start": 3,
    "insert": 8,
    "insert_done": 7,
    "forget": 1,
    "finish": 6,
    "payload": 8,
    "payload_answer": 5,
    "try": 12,
    "try_told": 9,
}


class Work(msgspec.Struct, gc=False):
    """An item in work, and then the saving of its result, with all others of its group.

    Many of them live at a time, so the garbage collector is spared them: whoever makes a group
    point at its items takes that away again (``Group.let_go``).
    """

    number: int
    item_id: str
    content: bytes
    #: When it began, in looks of the ledger at what has been in work for long.
    began_at: int
    #: The file has no row of it; it has one with a result; it knows that the item is in work.
    is_new: bool = False
    is_reopened: bool = False
    is_written: bool = False
    #: Neither given up nor finished; finished.
    is_open: bool = True
    is_finished: bool = False
    #: Notes of its calls that have ended: the first one, and the others.
    slot: int | None = None
    slots: tuple[int, ...] = ()
    #: Where its result is, from when that is taken.
    group: Group = None  # type: ignore[assignment]

    @property
    def takes_long(self) -> bool:
        """Whether the groups before took long."""
        return self.group.pace.seconds > _LONG_SECONDS

    @property
    def is_stuck(self) -> bool:
        """Whether the groups before wait for room."""
        return self.group.pace.is_stuck

    def then(self, call: Callable[..., None], value: Any, /) -> None:
        """Have ``call`` called when it has ended. Not for one that has."""
        self.group.waiting += (self, call, value)

    def __await__(self) -> Generator[Any, None, None]:
        group = self.group
        if not group.is_settled:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def wake(_error: Exception | None, _value: None) -> None:
                if not future.done():
                    future.set_result(None)

            self.then(wake, None)
            yield from future
        error = group.error_of(self)
        if error is not None:
            raise error


Saving.register(Work)  # a struct has a metaclass of its own


class Pace:
    """How the writing goes."""

    __slots__ = ("error_of", "is_stuck", "seconds")

    def __init__(self, error_of: Callable[[BaseException, str], Exception]) -> None:
        #: Makes an error of writing that of one item.
        self.error_of = error_of
        #: How long the last transaction took.
        self.seconds = 0.0
        #: Whether one waits for room on the disk.
        self.is_stuck = False


class Group:
    """Steps of items, to be written together.

    No item takes two steps in one group, but that it starts and ends: then the rows can be written
    kind by kind, whatever their order was.
    """

    __slots__ = (
        "answers", "done", "error", "finish", "forget", "insert", "is_settled", "names", "pace",
        "payload", "refused", "reopen", "results", "slots", "start", "taken", "told", "tries",
        "waiting", "works",
    )  # fmt: skip

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        #: Results of which no rows are made yet, field by field: item, result, and its only attempt
        #: or a tuple of all.
        self.taken: list[Any] = []
        # One list of values for each kind, row after row.
        self.names: list[Any] = []
        self.reopen: list[Any] = []
        self.start: list[Any] = []
        self.insert: list[Any] = []
        self.done: list[Any] = []
        self.forget: list[Any] = []
        self.finish: list[Any] = []
        self.payload: list[Any] = []
        self.answers: list[Any] = []
        self.tries: list[Any] = []
        self.told: list[Any] = []
        #: The items whose last step is in here.
        self.works: list[Work] = []
        #: Notes of calls that are booked with this group.
        self.slots: list[int] = []
        self.results = 0
        #: Who waits: item, call, and what it is called with, one after the other. (Of objects that
        #: stay for a while the garbage collector has to look at each one, and here are many.)
        self.waiting: list[Any] = []
        self.is_settled = False
        #: Why it was not written.
        self.error: BaseException | None = None
        #: Results that cannot be written, by id, whatever becomes of the others.
        self.refused: dict[str, StoreError] = {}

    def rows(self) -> tuple[tuple[str, list[Any]], ...]:
        """Return the values of all rows, by the names of their statements, in order."""
        return (
            ("billed_as", self.names),
            ("reopen", self.reopen),
            ("start", self.start),
            ("insert", self.insert),
            ("insert_done", self.done),
            ("forget", self.forget),
            ("finish", self.finish),
            ("payload", self.payload),
            ("payload_answer", self.answers),
            ("try", self.tries),
            ("try_told", self.told),
        )

    @property
    def is_of_new_items(self) -> bool:
        """Whether it only adds rows, of items that the file does not know: they have no order."""
        return not (self.reopen or self.start or self.forget or self.finish)

    @property
    def ends(self) -> int:
        """How many items' last steps are in here."""
        return len(self.works) + len(self.taken) // _FIELDS

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write, and nobody to be told anything."""
        return not (self.taken or self.refused or any(values for _, values in self.rows()))

    def let_go(self) -> None:
        """Point at no item any more: nobody waits, or will."""
        self.works, self.waiting, self.taken = [], [], []

    def error_of(self, work: Work) -> Exception | None:
        """Return why an item's result is not saved; of a group that is settled."""
        refusal = self.refused.get(work.item_id)
        if refusal is not None or self.error is None:
            return refusal
        return self.pace.error_of(self.error, work.item_id)


def in_order(groups: Iterable[Group]) -> Iterator[tuple[tuple[str, list[Any]], ...]]:
    """Give the rows of groups, of each kind as many at once as their order allows.

    Whoever writes them waits for the interpreter after each statement, beside a busy event loop for
    milliseconds.
    """
    for is_of_new_items, some in groupby(groups, lambda group: group.is_of_new_items):
        rows = [group.rows() for group in some]
        if is_of_new_items and len(rows) > 1:
            yield tuple(
                (kind[0][0], list(chain.from_iterable(values for _, values in kind)))
                for kind in zip(*rows, strict=True)
            )
        else:
            yield from rows


class RowMaker:
    """Makes the rows of one session: of what begins, of what ends, and of what is given up.

    Args:
        session: The session's number.
        clock_offset: What makes a time on the event loop's clock one since 1970.
        billed_as: The names under which tokens are counted, with their numbers; more are added.
        now: The time, in seconds since 1970.
    """

    def __init__(
        self,
        session: int,
        clock_offset: float,
        billed_as: dict[BilledAs, int],
        now: Callable[[], float],
    ) -> None:
        self.session, self.clock_offset = session, clock_offset
        self._now = now
        self._billed_as = billed_as
        self._models: set[str] = set()

    def start(self, group: Group, work: Work) -> None:
        """Write down that an item is in work."""
        work.is_written = True
        if work.is_new:
            key, running = key_of(work.item_id), ItemState.RUNNING
            group.insert += (
                work.number, key, work.content, running, self.session, None, 0, None
            )  # fmt: skip
            return
        if work.is_reopened:
            group.reopen.append(work.number)
        group.start += (work.number, work.content, self.session)

    def forget(self, group: Group, work: Work, history: Sequence[Attempt]) -> None:
        """Write down that an item is pending again, and what was tried."""
        if not work.is_written:
            self.start(group, work)
        group.forget.append(work.number)
        for attempt in history:
            self.book(group, work.number, attempt)
        _conclude(group, work)

    def make_rows(self, group: Group) -> None:
        """Make the rows of all results that were taken.

        One that cannot be written is refused: its item is pending again, and its calls are booked.
        """
        taken = group.taken
        if not taken:
            return
        session, offset, names = self.session, self.clock_offset, self._billed_as
        done, answers, told = group.done, group.answers, group.told
        each = iter(taken)
        for work, result, made in zip(each, each, each, strict=True):
            attempt, history = (None, made) if made.__class__ is tuple else (made, (made,))
            success, ratings = result.success, result.gemini_safety_ratings
            try:
                output = to_json(result.output) if success else None
                rated = None if ratings is None else to_json(ratings)
            except Exception as error:  # noqa: BLE001 - a stranger's ``model_dump``
                reason = f"{error}; return what JSON can hold"
                group.refused[work.item_id] = StoreError(work.item_id, reason)
                group.results -= 1
                self.forget(group, work, history)
                continue
            model, usage = result.model, result.token_usage
            if model is not None:
                model = self._cleaned(model)
            sent, got, further, all_kinds = columns = usage_columns(usage)
            body = result.response_body
            if (
                success
                and attempt is not None
                and attempt.error_code is None
                and attempt.billed_as is not None
                and attempt.usage == usage
                and rated is body is attempt.change is None
                and work.is_new
                and not work.is_written
            ):
                number, item_id, started_at = work.number, work.item_id, attempt.started_at + offset
                seconds = attempt.seconds
                done += (
                    number, item_id if item_id.isascii() else key_of(item_id),
                    bytearray(work.content), "done", session, result.attempts, started_at + seconds,
                )  # fmt: skip
                answers += (number, output, model, all_kinds, result.duration_seconds)
                told += (
                    number, session, attempt.number, started_at, seconds, sent, got, further,
                    names.get(attempt.billed_as) or self._name_of(group, attempt.billed_as),
                )  # fmt: skip
            else:
                self._end(group, work, result, history)
                group.payload += (
                    work.number, output, None if success else clean(result.error or "failed"),
                    model, all_kinds, result.duration_seconds, rated, body,
                )  # fmt: skip
                for attempt in history:
                    self.book(group, work.number, attempt, usage, columns)
            _conclude(group, work)
        taken.clear()

    def _end(
        self,
        group: Group,
        work: Work,
        result: WorkItemResult[Any, Any],
        history: Sequence[Attempt],
    ) -> None:
        """Write down that an item has a result."""
        number, state = work.number, "done" if result.success else "failed"
        code = None if result.error_code is None else clean(result.error_code)
        ended_at = self._now()
        if history:
            ended_at = history[-1].started_at + history[-1].seconds + self.clock_offset
        if work.is_new and not work.is_written:
            group.insert += (
                number, key_of(work.item_id), work.content, state, self.session, code,
                result.attempts, ended_at,
            )  # fmt: skip
            return
        if not work.is_written:
            self.start(group, work)
        group.finish += (number, state, self.session, code, result.attempts, ended_at)

    def book(
        self,
        group: Group,
        number: int,
        attempt: Attempt,
        known: Mapping[str, Any] | None = None,
        known_columns: UsageColumns = _NO_USAGE,
    ) -> None:
        """Write down an attempt of the item with this number.

        Args:
            group: Where to.
            number: The item's.
            attempt: What happened.
            known: Tokens of which the columns are known; often the same ones.
            known_columns: What they are.
        """
        usage, error, billed_as = attempt.usage, attempt.error, attempt.billed_as
        sent = got = further = None
        if usage is not None:
            sent, got, further, _ = known_columns if usage == known else usage_columns(usage)
        name = None if billed_as is None else self._name_of(group, billed_as)
        group.tries += (
            number, self.session, attempt.number, attempt.started_at + self.clock_offset,
            attempt.seconds, sent, got, further, attempt.error_code,
            None if error is None else clean(error), name, attempt.change,
        )  # fmt: skip

    def _name_of(self, group: Group, billed_as: BilledAs) -> int:
        number = self._billed_as.get(billed_as)
        if number is None:  # from 1
            number = self._billed_as[billed_as] = len(self._billed_as) + 1
            group.names += (number, *billed_as)
        return number

    def _cleaned(self, model: Any) -> str | None:
        if model.__class__ is str and model in self._models:
            return model
        found = clean(model)
        if found == model and len(self._models) < _MOST_NAMES:
            self._models.add(model)
        return found


def _conclude(group: Group, work: Work) -> None:
    group.works.append(work)
    if work.slot is not None:
        group.slots.append(work.slot)
        group.slots += work.slots
