"""Rows that can be read only once, as they come: of a generator, a queue, another service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import InputError
from batch_llm.inputs import Identifier, Problem, Row, id_column_of, read_value, shape_of
from batch_llm.inputs.values import NAME, ValueSource, apart
from batch_llm.runs.plan import Found, bad_row, look_up
from batch_llm.runs.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Sequence,
    )

    from batch_llm.base import LLMWorkItem
    from batch_llm.runs.brief import Brief
    from batch_llm.runs.recipe import Variant
    from batch_llm.stores.base import Record
    from batch_llm.stores.sqlite import SqliteLedger

    Item = LLMWorkItem[Any, Any, Row]

#: Rows that are read before others have their turn.
_ROWS_AT_ONCE = 100


class RowsOnce:
    """Rows that are read while they are sent. What is wrong with one is found when it comes.

    Args:
        brief: What is asked about them.
        rows: They.
    """

    def __init__(self, brief: Brief, rows: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._brief = brief
        self._values = _as_async(rows)
        self._first: list[Any] = []
        self._recipe: Recipe | None = None
        self._identifier = Identifier(None, ValueSource.unit)
        self.format = "rows"
        self.id_column: str | None = None
        #: What ended the reading early.
        self.error: InputError | None = None

    async def open(self) -> None:
        """Look at the first row: it says which shape they have.

        Raises:
            InputError: There is none, it cannot be used, or the prompt does not go with it.
        """
        async for value in self._values:
            self._first.append(value)
            break
        else:
            raise InputError("there are no rows; there is nothing to send")
        row = read_value(self._first[0], 1)
        if isinstance(row, Problem):
            raise InputError(
                f"the first row cannot be used\n\n{row.render(NAME, ValueSource.unit)}"
            )
        self.format = shape_of(row.data)
        self._recipe = Recipe(self._brief, NAME, self.format, list(row.data))
        self.id_column = self._brief.id_column or id_column_of(row.data)
        self._identifier = Identifier(self.id_column, ValueSource.unit)

    async def items(
        self,
        ledger: SqliteLedger | None,
        variants: Sequence[Variant],
        on_problem: Callable[[Problem], object],
        on_kept: Callable[[Item, Record], Awaitable[None]],
    ) -> AsyncIterator[Item]:
        """Give the rows that are to be sent as items.

        Args:
            ledger: Where rows may be known; it is in a run.
            variants: With what they may have been retried.
            on_problem: Gets rows that cannot be used, where the brief says that these fail.
            on_kept: Gets rows that have their result, and what that is.
        """
        assert self._recipe is not None  # noqa: S101 - it was opened
        number = passed = 0
        async for value in self._all():
            number += 1
            if self._brief.limit is not None and number > self._brief.limit:
                return
            record = read_value(value, number)
            if isinstance(record, Row):
                record = self._identifier.identify(record, number)
            if isinstance(record, Row):
                try:
                    item = self._recipe.item_for(record)
                except ValueError as error:
                    record = bad_row(record, error)
                else:
                    found = self._found(item, ledger, variants)
                    if found.record is None:
                        yield found.item
                        continue
                    await on_kept(found.item, found.record)
                    passed += 1
                    if passed % _ROWS_AT_ONCE == 0:
                        await asyncio.sleep(0)
            if isinstance(record, Problem):
                if self._brief.bad_rows == "stop":
                    self.error = InputError(
                        f"row {number} cannot be used; the rows before it were finished\n\n"
                        f"{record.render(NAME, ValueSource.unit)}\n\n"
                        'bad_rows="fail" gives such rows a failed result, "skip" leaves them out.'
                    )
                    return
                if self._brief.bad_rows == "fail":
                    on_problem(record)

    @staticmethod
    def _found(item: Item, ledger: SqliteLedger | None, variants: Sequence[Variant]) -> Found:
        if ledger is None or not ledger.may_have(item.item_id):
            return Found(item, None)
        return look_up(ledger, [item], variants)[0]

    async def _all(self) -> AsyncIterator[Any]:
        while self._first:
            yield self._first.pop()
        async for value in self._values:
            yield value


async def _as_async(rows: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if hasattr(rows, "__aiter__"):
        async for value in rows:
            yield apart(value)
        return
    for number, value in enumerate(rows):
        if number % _ROWS_AT_ONCE == _ROWS_AT_ONCE - 1:
            await asyncio.sleep(0)
        yield apart(value)
