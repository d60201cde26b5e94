"""A brief that is ready to be sent: its rows are good, its keys are there, its ledger is open."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from batch_llm.base import WorkItemResult
from batch_llm.core.config import DEFAULT_WORKERS
from batch_llm.exceptions import InputError
from batch_llm.inputs import Row
from batch_llm.runs.ledgers import open_ledger, put_aside, variants_at
from batch_llm.runs.options import in_python
from batch_llm.runs.passing import pass_over
from batch_llm.runs.plan import Plan
from batch_llm.runs.pools import open_cache, open_pools
from batch_llm.runs.results import RunResult
from batch_llm.runs.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batch_llm._engine.statistics import Statistics
    from batch_llm.base import LLMWorkItem
    from batch_llm.inputs import Problem
    from batch_llm.runs.answering_agent import AnsweringAgent
    from batch_llm.runs.brief import Brief
    from batch_llm.runs.passing import Passing
    from batch_llm.runs.results import RowData
    from batch_llm.runs.rows_once import RowsOnce
    from batch_llm.stores.base import Record
    from batch_llm.stores.sqlite import SqliteLedger

    Item = LLMWorkItem[Any, Any, Row]
    Result = WorkItemResult[Any, Row]
    Shown = WorkItemResult[Any, RowData]

NOT_SENT = "not sent: the run was stopped before"


class Prepared:
    """A brief with all that it needs open. ``close`` it; both may take a moment, and block.

    Args:
        brief: The brief.
        rows: Its rows, read through, or such as can be read once.
        overwrite: Whether a ledger that is there is put aside.

    Raises:
        BatchLLMError: Something is wrong; nothing was sent.
    """

    def __init__(self, brief: Brief, rows: Plan | RowsOnce, *, overwrite: bool = False) -> None:
        self.brief = brief
        #: The rows: one of the two.
        self.plan = rows if isinstance(rows, Plan) else None
        self._once = None if isinstance(rows, Plan) else rows
        self._format = rows.source.format if isinstance(rows, Plan) else rows.format
        #: The column that holds the ids.
        self.id_column = rows.source.id_column if isinstance(rows, Plan) else rows.id_column
        self._opened = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            self._open(opened, overwrite=overwrite)
            self._opened = opened.pop_all()

    def _open(self, opened: contextlib.ExitStack, *, overwrite: bool) -> None:
        brief = self.brief
        if self.plan is not None:
            opened.callback(self.plan.close)
        path = None if brief.ledger is None else Path(brief.ledger)
        if path is not None and path.exists() and overwrite:
            put_aside(path)
        self._variants = [] if path is None else variants_at(path)
        pools = opened.enter_context(open_pools(brief, self._variants))
        self.ledger: SqliteLedger | None = None
        if path is not None:
            self.ledger = opened.enter_context(open_ledger(brief, self._format, pools.servers))
        cache = None if brief.cache is None else opened.enter_context(open_cache(brief))
        is_known = self.ledger is not None and any(self.ledger.counts().values())
        #: What is known of the plan's rows without reading them; None: all are read.
        self._passing: Passing | None = None
        self._is_begun = bool(self._variants)
        if self.plan is not None and self.plan.indexed is not None and self.ledger is not None:
            self.plan, self._passing, survey = pass_over(
                self.plan, self.ledger, self._variants, brief.shape
            )
            self._is_begun = self._is_begun or survey.left < survey.rows
        self.session = Session(
            brief,
            pools,
            self.ledger,
            cache=cache,
            variants=self._variants,
            looks_up=self.plan is not None and self._passing is None and is_known,
        )

    def close(self) -> None:
        """Let go of everything."""
        self._opened.close()

    async def send(self, take: Callable[[Result], Awaitable[None] | None]) -> None:
        """Send what is left; hand over each row's result.

        Raises:
            InputError: A row that was read as it came cannot be used; those before are finished.
            SourceError: The rows' own iterable raised.
            StoreError: A result could not be saved.
        """
        if self.brief.agent is not None:
            take = _as_answered(self.brief.agent, take)
        try:
            if self.plan is not None:
                for problem in self.plan.problems:
                    await _hand(take, failed_row(problem))
                await self._send_plan(self.plan, take)
            elif self._once is not None:
                await self._send_once(self._once, take)
        finally:
            await asyncio.to_thread(self.close)

    async def _send_plan(
        self, plan: Plan, take: Callable[[Result], Awaitable[None] | None]
    ) -> None:
        if self._passing is None:
            await self.session.run(plan.items(), take)
        elif not self._is_begun:
            await self.session.run(self._passing.all_items(), take)
        else:
            await self.session.run(self._passing.items_left(take), take)
            await self._passing.hand_over_rest(take)

    async def _send_once(
        self, once: RowsOnce, take: Callable[[Result], Awaitable[None] | None]
    ) -> None:
        problems: deque[Problem] = deque()

        async def take_all(result: Result) -> None:
            while problems:
                await _hand(take, failed_row(problems.popleft()))
            await _hand(take, result)

        async def take_kept(item: Item, record: Record) -> None:
            await self.session.hand_over(item, record, take_all)

        items = once.items(self.ledger, self._variants, problems.append, take_kept)
        await self.session.run(items, take_all)
        for problem in problems:
            await _hand(take, failed_row(problem))
        if once.error is not None:
            raise once.error

    def statistics(self) -> Statistics:
        """Return the session's numbers; rows that it passed over count as reused."""
        now = self.session.statistics()
        passed = self.session if self._passing is None else self._passing
        done, failed = passed.passed_over
        if not (done or failed):
            return now
        return msgspec.structs.replace(
            now,
            started=now.started + done + failed,
            processed=now.processed + done + failed,
            succeeded=now.succeeded + done,
            failed=now.failed + failed,
            reused=now.reused + done + failed,
        )

    @property
    def buffer(self) -> int:
        """Results that may wait for a consumer, as far as nobody says."""
        most = self.brief.concurrency
        return 2 * (most if isinstance(most, int) else DEFAULT_WORKERS)

    def conclude(self, results: dict[int, Result]) -> RunResult[Any]:
        """Return the results by the rows' places, with those of rows that were not sent."""
        plan = self.plan
        assert plan is not None  # noqa: S101 - only such are collected
        not_done = 0
        if len(results) < plan.rows + len(plan.problems):
            for row in plan.rows_as_given():
                if row.line not in results:
                    result: Result = WorkItemResult(row.item_id, success=False, error=NOT_SENT)
                    result.context, result.error_code = row, "cancelled"
                    results[row.line] = result
        shown = [show(results[place]) for place in sorted(results)]
        not_done = sum(one.error_code == "cancelled" for one in shown)
        reason = self.session.stop_reason or self.session.pause
        if reason is None and not_done:
            reason = "it was cancelled"
        return RunResult(
            results=shown,
            statistics=self.statistics(),
            bill=self.brief.prices.bill(self.statistics().usage),
            ledger=self.brief.ledger,
            stop_reason=None if reason is None else in_python(reason),
            not_done=not_done,
            id_column=self.id_column,
        )


def _as_answered(
    agent: AnsweringAgent, take: Callable[[Result], Awaitable[None] | None]
) -> Callable[[Result], Awaitable[None] | None]:
    """Hand over what a ledger has kept as the agent gave it."""

    def read(result: Result) -> Awaitable[None] | None:
        if result.is_reused and result.success:
            result.output = agent.as_answered(result.output)
        return take(result)

    return read


async def _hand(take: Callable[[Result], Awaitable[None] | None], result: Result) -> None:
    waiting = take(result)
    if waiting is not None:
        await waiting


def show(result: Result) -> Shown:
    """Return a result as the caller gets it: its context is the row's columns."""
    row = result.context
    shown = cast("Shown", result)  # the same object, with another context
    shown.context = None if row is None else row.data
    return shown


def failed_row(problem: Problem) -> Result:
    """Return the result of a row that could not be used."""
    row = Row(problem.item_id or f"row-{problem.line}", problem.line, problem.data or {})
    result: Result = WorkItemResult(row.item_id, success=False)
    result.error = f"{InputError.__name__}: {problem.code}: {problem.message}"
    result.error_code, result.context = "bad_request", row
    return result
