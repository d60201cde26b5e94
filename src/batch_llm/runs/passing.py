"""Passes over the rows of an input that are finished, without reading them again.

What each row of a known block asks is in the index (``row_index``), and what is finished is in the
ledger; so a row is read only when it is to be sent, or written. All else goes the long way: read,
made a request, looked up.
"""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from itertools import islice
from typing import TYPE_CHECKING, Any

from batch_llm.core.schema import as_shaped
from batch_llm.inputs import Problem, Row
from batch_llm.runs.plan import Plan, Survey, chunks, content_of_item, look_up
from batch_llm.runs.row_index import WIDTH, Entry
from batch_llm.stores.base import ItemState
from batch_llm.stores.values import reused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

    from batch_llm.base import LLMWorkItem, WorkItemResult
    from batch_llm.core.schema import OutputSchema
    from batch_llm.inputs.blocks import Block
    from batch_llm.runs.indexed_input import IndexedInput
    from batch_llm.runs.recipe import Variant
    from batch_llm.runs.row_index import IndexedBlock
    from batch_llm.stores.base import Record
    from batch_llm.stores.sqlite import SqliteLedger

    Item = LLMWorkItem[Any, Any, Row]
    Result = WorkItemResult[Any, Row]
    #: A row; it as an item, where it is to be sent; its result, where it is not.
    _Left = tuple[Row, Item | None, Result | None]

#: What is known of a line. A row in it is to be sent, as far as is known; done; done, and where it
#: was; done, and written; failed. Or it is no row's first.
TO_DO, DONE, IN_PLACE, WRITTEN, FAILED, NO_ROW = range(6)
#: Items that are read from the ledger together, and how many may wait for their rows.
_PAGE, _MOST = 1000, 4000
_ROWS_AT_ONCE = 100


class DuplicateRowsError(Exception):
    """Two rows have one id: which of them is at fault, only reading all of them tells."""


class _Window:
    """Finds items by what they ask, if asked about in the order of their numbers."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self._ledger = ledger
        self._rows: dict[bytes, tuple[int, bytes, bool]] = {}
        self._last, self._is_at_end = 0, False

    def go_to(self, number: int) -> None:
        """Look from an item on, and from some that were begun before it."""
        self._rows.clear()
        self._last, self._is_at_end = max(0, number - _PAGE // 4), False

    def find(self, contents: Sequence[bytes]) -> list[tuple[int, bytes, bool] | None]:
        """Return for each content number, content and whether it is done; None is not certain."""
        take = self._rows.pop
        found = [take(content, None) for content in contents]
        missing = [place for place, row in enumerate(found) if row is None]
        turns = 2 + len(contents) // _PAGE
        while missing and turns and not self._is_at_end:
            turns -= 1
            self._read_on()
            for place in missing:
                found[place] = take(contents[place], None)
            missing = [place for place in missing if found[place] is None]
        return found

    def _read_on(self) -> None:
        rows = self._ledger.settled_after(self._last, _PAGE)
        self._is_at_end = not rows
        if rows:
            self._last = rows[-1][0]
        self._rows.update({row[1]: row for row in rows})
        too_many = len(self._rows) - _MOST
        if too_many > 0:
            for content in list(islice(self._rows, too_many)):
                del self._rows[content]


class _Numbers:
    """A set of numbers from 1, in one bit each."""

    def __init__(self) -> None:
        self.bits = bytearray()

    def add(self, number: int) -> None:
        """Add one."""
        place = number >> 3
        if place >= len(self.bits):
            self.bits.extend(bytes(max(place + 1 - len(self.bits), len(self.bits))))
        self.bits[place] |= 1 << (number & 7)

    def meets(self, other: _Numbers) -> bool:
        """Tell whether a number is in both."""
        mine, theirs = (int.from_bytes(one.bits, "little") for one in (self, other))
        return bool(mine & theirs)


class Passing:
    """What of a plan's rows its ledger has done, and the rows that are left.

    Args:
        plan: The plan; it is indexed.
        ledger: The ledger, which nobody else has.
        variants: What rows were retried with.
        shape: What the answers of earlier sessions are read as; None leaves them plain data.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: SqliteLedger,
        variants: Sequence[Variant] = (),
        shape: OutputSchema | None = None,
    ) -> None:
        assert plan.indexed is not None  # noqa: S101 - see above
        self._shape = shape
        #: Rows whose result was handed over: done, and failed.
        self.passed_over = [0, 0]
        self._plan, self._ledger, self._variants = plan, ledger, variants
        self._input: IndexedInput = plan.indexed
        self._window = _Window(ledger)
        #: What is known of each line, by its number.
        self.lines = bytearray([NO_ROW]) * (self._input.lines + 2)
        #: Items whose rows were passed over, and such as were read.
        self._passed, self._read = _Numbers(), _Numbers()
        self._kept = self._failed = self._changed = 0
        #: What was not come to yet: blocks, and rows of the one before them.
        self._blocks = iter(self._input.blocks)
        self._rows: Iterator[_Left] = iter(())

    # ---- what is done ----

    def survey(self) -> Survey:
        """Find out how much is done.

        Raises:
            DuplicateRowsError: Two rows have one id.
        """
        if not (self._input.knows_some or any(self._ledger.counts().values())):
            return Survey(self._plan.rows)
        for block in self._input.blocks:
            known = self._input.known(block)
            if known is None:
                items = self._plan.items(self._input.records(block))
                for row, record in self._survey_rows(items):
                    self.lines[row.line] = _state_of(record)
            else:
                self._survey_known(block, known)
        if self._passed.meets(self._read):
            raise DuplicateRowsError
        return Survey(self._plan.rows, self._kept, self._failed, self._changed)

    def _survey_known(self, block: Block, known: IndexedBlock) -> None:
        whole = known.contents
        contents = [whole[at : at + WIDTH] for at in range(0, len(whole), WIDTH)]
        found = self._window.find(contents)
        if found.count(None) > len(found) // 2:
            self._look_elsewhere(block, contents, found)
        is_done = IN_PLACE if known.line == block.line else DONE
        states = bytearray(len(found))
        pass_over = self._passed.add
        for place, row in enumerate(found):
            if row is not None:
                states[place] = is_done if row[2] else FAILED
                pass_over(row[0])
        self._kept += states.count(is_done)
        self._failed += states.count(FAILED)
        missing = {place for place, row in enumerate(found) if row is None}
        if missing:
            records = list(self._input.some(block, missing, is_known=False))
            if any(isinstance(record, Problem) for record in records):
                raise DuplicateRowsError
            places = dict(zip((one.line for one in records), sorted(missing), strict=True))
            for read, record in self._survey_rows(self._plan.items(records)):
                if record is not None:
                    is_failed = record.state is ItemState.FAILED
                    states[places[read.line]] = FAILED if is_failed else is_done
        if known.starts:
            for start, state in zip(known.lines_of_records(), states, strict=True):
                self.lines[block.line + start] = state
        else:
            self.lines[block.line : block.line + len(states)] = states

    def _look_elsewhere(
        self, block: Block, contents: list[bytes], found: list[tuple[int, bytes, bool] | None]
    ) -> None:
        """Look where the first row that was not found is: rows may have moved."""
        first = found.index(None)
        (record,) = self._input.some(block, {first})
        number = self._ledger.numbers_of([record.item_id or ""])[0]
        if number is None:
            return
        self._window.go_to(number)
        places = [place for place, row in enumerate(found) if row is None]
        again = self._window.find([contents[place] for place in places])
        for place, one in zip(places, again, strict=True):
            found[place] = one

    def _survey_rows(self, items: Iterator[Item]) -> Iterator[tuple[Row, Record | None]]:
        for chunk in chunks(items):
            if self._input.has_ids:
                for number in self._ledger.numbers_of([item.item_id for item in chunk]):
                    if number is not None:
                        self._read.add(number)
            for found in look_up(self._ledger, chunk, self._variants, finds_changes=True):
                record, row = found.record, found.item.context
                assert row is not None  # noqa: S101 - each item comes with its row
                self._changed += found.is_changed
                if record is not None:
                    is_done = record.state is ItemState.DONE
                    self._kept += is_done
                    self._failed += not is_done
                yield row, record

    def moved_lines(self) -> array[int] | None:
        """Return where the last session's lines are now, 0 for unknown; None: where they were."""
        known = [
            (block, block.known) for block in self._input.blocks if isinstance(block.known, Entry)
        ]
        if all(block.line == entry.line for block, entry in known):
            return None
        last = max(entry.line + entry.lines for _, entry in known)
        moved = array("I", bytes(4 * last))
        for block, entry in known:
            now = array("I", range(block.line, block.line + entry.lines))
            moved[entry.line : entry.line + entry.lines] = now
        return moved

    # ---- what is left ----

    def all_items(self) -> Iterator[Item]:
        """Give all rows as items, and keep what they ask. For a ledger without results."""
        for block in self._input.blocks:
            lines: list[int] = []
            contents: list[bytes] = []
            for item in self._plan.items(self._input.records(block)):
                assert item.context is not None  # noqa: S101 - each item comes with its row
                yield item
                lines.append(item.context.line)
                contents.append(content_of_item(item))
            if block.known is None:
                self._input.add(block, lines, contents)

    async def items_left(
        self,
        take: Callable[[Result], Awaitable[None] | None],
        on_row: Callable[[Row], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Item]:
        """Give the rows that are to be sent; hand over the results of such as are to be written.

        Args:
            take: Gets the results; what it returns is waited for.
            on_row: Called with each row before.
        """
        for block in self._blocks:
            is_new = block.known is None
            self._rows = self._new_rows(block) if is_new else self._known_rows(block)
            for row, item, result in self._rows:
                if on_row is not None:
                    await on_row(row)
                if result is None:
                    assert item is not None  # noqa: S101 - one of the two is there
                    yield item
                elif (waiting := take(result)) is not None:
                    await waiting
            await asyncio.sleep(0)

    async def hand_over_rest(self, take: Callable[[Result], Awaitable[None] | None]) -> None:
        """Hand over the results of rows that ``items_left`` did not come to: the run was stopped.

        Args:
            take: Gets the results; what it returns is waited for.
        """
        await self._hand_over(self._rows, take)
        for block in self._blocks:
            states = self.lines[block.line : block.line + block.lines]
            if not any(state in states for state in (DONE, IN_PLACE, FAILED)):
                continue
            if block.known is None:
                items = self._plan.items(self._input.records(block))
                for chunk in chunks(items):
                    await self._hand_over(self._looked_up(chunk), take)
            else:
                await self._hand_over(self._known_rows(block, passes=(WRITTEN, TO_DO)), take)
            await asyncio.sleep(0)

    async def _hand_over(
        self, rows: Iterable[_Left], take: Callable[[Result], Awaitable[None] | None]
    ) -> None:
        for _, _, result in rows:
            if result is not None and (waiting := take(result)) is not None:
                await waiting

    def _as_given(self, result: Result, row: Row) -> Result:
        """Complete a kept result of a row."""
        result.context = row
        self.passed_over[not result.success] += 1
        if self._shape is not None:
            result.output = as_shaped(self._shape, result.output)
        return result

    def _new_rows(self, block: Block) -> Iterator[_Left]:
        lines: list[int] = []
        contents: list[bytes] = []
        for chunk in chunks(self._plan.items(self._input.records(block))):
            for item in chunk:
                assert item.context is not None  # noqa: S101 - each item comes with its row
                lines.append(item.context.line)
                contents.append(content_of_item(item))
            yield from self._looked_up(chunk)
        self._input.add(block, lines, contents)

    def _looked_up(self, chunk: Sequence[Item]) -> Iterator[_Left]:
        for found in look_up(self._ledger, chunk, self._variants):
            assert found.item.context is not None  # noqa: S101 - see above
            record, row = found.record, found.item.context
            yield row, found.item, None if record is None else self._as_given(reused(record), row)

    def _known_rows(self, block: Block, passes: Sequence[int] = (WRITTEN,)) -> Iterator[_Left]:
        states = self.lines[block.line : block.line + block.lines]
        if sum(map(states.count, (*passes, NO_ROW))) == len(states):
            return
        known = self._input.known(block)
        assert known is not None  # noqa: S101 - the caller has looked
        starts = known.lines_of_records()
        wanted = {place for place, start in enumerate(starts) if states[start] not in passes}
        rows = (row for row in self._input.some(block, wanted) if isinstance(row, Row))
        # Not so many, where the input is written to at this moment.
        both = zip(sorted(wanted), rows, strict=False)
        while some := list(islice(both, _ROWS_AT_ONCE)):
            yield from self._some_known(some, [states[starts[place]] for place, _ in some], known)

    def _some_known(
        self, some: Sequence[tuple[int, Row]], states: Sequence[int], known: IndexedBlock
    ) -> Iterator[_Left]:
        contents = known.contents
        found = iter(
            self._ledger.results_of(
                [
                    (row.item_id, contents[place * WIDTH : (place + 1) * WIDTH])
                    for (place, row), state in zip(some, states, strict=True)
                    if state != TO_DO
                ]
            )
        )
        results = [None if state == TO_DO else next(found) for state in states]
        # Those of a retry with other settings are done, and ask something else.
        long_way = [row for (_, row), one in zip(some, results, strict=True) if one is None]
        items = list(self._plan.items(long_way)) if long_way else []
        others = {left[0].line: left for left in self._looked_up(items)}
        for (_, row), result in zip(some, results, strict=True):
            if result is not None:
                yield row, None, self._as_given(result, row)
            elif row.line in others:
                yield others[row.line]


def _state_of(record: Record | None) -> int:
    """Return what is known of the line of a row that was looked up."""
    if record is None:
        return TO_DO
    return FAILED if record.state is ItemState.FAILED else DONE


def pass_over(
    plan: Plan,
    ledger: SqliteLedger,
    variants: Sequence[Variant] = (),
    shape: OutputSchema | None = None,
) -> tuple[Plan, Passing | None, Survey]:
    """Find out what of an indexed plan is done; where only reading all will do, with another one.

    Args:
        plan: It.
        ledger: See ``Passing``.
        variants: See ``Passing``.
        shape: See ``Passing``.

    Returns:
        The plan to go on with; what it passes over, None where it reads all; how much is done.

    Raises:
        InputError: Rows have the same id.
    """
    assert plan.indexed is not None  # noqa: S101 - see above
    if plan.indexed.settle():
        passing = Passing(plan, ledger, variants, shape)
        with contextlib.suppress(DuplicateRowsError):
            return plan, passing, passing.survey()
    plan = Plan(plan.brief, plan.source)
    return plan, None, plan.survey(ledger, variants)
