"""One run over a file: send, and write each result as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_llm.cli.command import check_outputs_are_free
from batch_llm.cli.conclusion import Conclusion, code_of_stop
from batch_llm.cli.exit_codes import ExitCode
from batch_llm.cli.progress import say, show_progress, tell
from batch_llm.cli.result_files import ResultFiles
from batch_llm.core.text import counted
from batch_llm.outputs import finished
from batch_llm.runs.ledgers import default_ledger, name_of, open_ledger, put_aside, variants_at
from batch_llm.runs.passing import pass_over
from batch_llm.runs.plan import Plan, Survey
from batch_llm.runs.pools import is_short_of_connections, open_cache, open_pools
from batch_llm.runs.session import Session
from batch_llm.stores.sqlite import SqliteLedger

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from batch_llm._engine.statistics import Statistics
    from batch_llm.base import LLMWorkItem, WorkItemResult
    from batch_llm.cli.command import Command
    from batch_llm.inputs import Row
    from batch_llm.runs.brief import Brief
    from batch_llm.runs.passing import Passing

    Item = LLMWorkItem[Any, Any, Row]
    Result = WorkItemResult[Any, Row]

#: Not on Windows.
_HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)


def run_command(command: Command) -> ExitCode:
    """Do it. Everything that can be checked is checked before the first call."""
    return run_plan(Plan(command, uses_index=True), command)[0]


@contextlib.contextmanager
def _telling_of_stops_itself() -> Iterator[None]:
    """Keep the log from it: the end says it, with what to do next."""
    logger = logging.getLogger("batch_llm.stops")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def run_plan(
    plan: Plan, command: Command, *, pilot: Callable[[Result], None] | None = None
) -> tuple[ExitCode, Statistics]:
    """Send a plan's rows and write what comes back; return the code and the last numbers.

    Args:
        plan: The rows.
        command: What to do with them.
        pilot: For a plan of some rows only: gets each result, and with a ledger no files are
            written, because the run itself will write them.
    """
    plan.check_unchanged()
    with contextlib.ExitStack() as opened:
        opened.enter_context(_telling_of_stops_itself())
        is_anew = command.ledger is None or (command.overwrite and pilot is None)
        variants = [] if is_anew else variants_at(str(command.ledger))
        pools = opened.enter_context(open_pools(command, variants))
        if is_short_of_connections(command, pools.possible):
            say(
                f"warning: calls in flight are held at {pools.possible:,}, as many as the limit on "
                "open files allows (ulimit -n)"
            )
        ledger = None
        if command.ledger is not None:
            ledger = opened.enter_context(
                open_run(command, plan, pools.servers, is_pilot=pilot is not None)
            )
        survey, passing = Survey(plan.rows), None
        if ledger is not None:
            is_known = any(ledger.counts().values())
            if pilot is None and plan.indexed is not None:
                opened.callback(plan.close)
                plan, passing, survey = pass_over(plan, ledger, variants)
            elif is_known:
                survey = plan.survey(ledger, variants)
            if is_known and not command.quiet and command.progress != "json":
                say(_continuing(ledger, survey))
        cache = None if command.cache is None else opened.enter_context(open_cache(command))
        writers = None
        if pilot is None or ledger is None:
            writers = ResultFiles(plan, command, ledger, passing)
            opened.callback(writers.close)
            writers.failed.remove_old()
            for problem in plan.problems:
                writers.failed.write_problem(problem)
        is_done_in_part = survey.left < survey.rows or bool(variants)
        passes = passing is not None and is_done_in_part
        on_row = writers.expect if writers is not None and command.order == "input" else None
        session = Session(
            command,
            pools,
            ledger,
            cache=cache,
            variants=variants,
            keep_bodies=plan.source.format == "openai-batch",
            looks_up=is_done_in_part and not passes,
            on_row=None if passes else on_row,
        )
        execution = _Execution(plan, command, session, writers, pilot, ledger, survey)
        if passing is not None:
            if passes:
                execution.hand_over(passing, on_row)
            else:
                execution.items = passing.all_items()
        return asyncio.run(execution.run()), session.statistics()


def open_run(
    command: Command, plan: Plan, servers: Sequence[str], *, is_pilot: bool = False
) -> SqliteLedger:
    """Open a command's ledger, and look whether its output may be written.

    Raises:
        OutputExistsError: A file with results is there that the ledger does not know.
        LedgerError: See ``open_ledger``.
    """
    assert command.ledger is not None  # noqa: S101 - the caller has looked
    path = Path(command.ledger)
    if command.overwrite and path.exists() and not is_pilot:
        put_aside(path)
    if not path.exists() and not is_pilot:
        check_outputs_are_free(command)

    def check(before: Mapping[str, Any]) -> None:
        is_its_own = before.get("output") == command.output or (
            not before and _is_named_after(command, path)
        )
        if not is_its_own and not is_pilot:
            check_outputs_are_free(command)
        elsewhere = before.get("servers", servers)
        if set(servers) != set(elsewhere) and not command.quiet:
            say(
                f"note: earlier rows were answered by {_places(elsewhere)}; "
                f"these go to {_places(servers)}"
            )

    return open_ledger(command, plan.source.format, servers, check)


def _is_named_after(command: Command, ledger: Path) -> bool:
    """Tell whether a ledger that says nothing of its run is a command's all the same, by its name.

    Its answers are there, so the output can be replaced.
    """
    if ledger != Path(default_ledger(command.input, command.output)):
        return False
    with SqliteLedger(ledger, read_only=True) as found:
        return any(found.counts().values())


def _places(servers: Sequence[str]) -> str:
    return ", ".join(sorted(set(servers))) or "the provider's own address"


def _continuing(ledger: SqliteLedger, survey: Survey) -> str:
    name = name_of(ledger.path)
    said = f"Continuing {name}: {survey.kept:,} reused, {survey.left:,} to do"
    if survey.changed:
        said += f", of which {survey.changed:,} changed since"
    if survey.failed:
        said += f" ({survey.failed:,} failed ones are kept; batch-llm retry {name} runs them)"
    return said


class _Execution:
    """Shows a session to people, writes its results, and listens to Ctrl-C."""

    def __init__(
        self,
        plan: Plan,
        command: Command,
        session: Session,
        writers: ResultFiles | None,
        pilot: Callable[[Result], None] | None,
        ledger: SqliteLedger | None,
        survey: Survey,
    ) -> None:
        self._pilot = pilot
        #: What is to be sent.
        self.items: Iterable[Item] | AsyncIterable[Item] = plan.items()
        self._plan, self._command, self._session = plan, command, session
        self._writers, self._ledger, self._survey = writers, ledger, survey
        self._signal: int | None = None
        self._has_reader = True
        #: Lines of the rows that have their result, where no ledger knows them and a limit may stop
        #: the run before the end.
        self._done: set[int] = set()
        self._keeps_done = ledger is None and _has_limit(command)
        self._not_sent = 0
        #: By code, the first error of a row.
        self._examples: dict[str, str] = {}
        self._passing: Passing | None = None

    def hand_over(
        self, passing: Passing, on_row: Callable[[Row], Awaitable[None]] | None = None
    ) -> None:
        """Have the results written of rows that are passed over; the others are to be sent."""
        self._passing = passing
        self.items = passing.items_left(self.take, on_row)

    async def run(self) -> ExitCode:
        command, session = self._command, self._session
        self._listen_to_signals()
        shown = asyncio.create_task(
            show_progress(
                "none" if command.quiet else command.progress,
                session.statistics,
                title=f"{command.model}  {self._plan.source.name} → {command.output}",
                total=self._survey.left,
                prices=command.prices,
                cap=command.max_cost_usd,
            )
        )
        if command.as_json:
            tell({"event": "launch", "model": command.model, "rows": self._plan.rows})
        try:
            await session.run(self.items, self.take)
            if self._passing is not None and self._has_reader:
                if self._writers is not None:
                    self._writers.end_order()
                await self._passing.hand_over_rest(self.take)
        finally:
            shown.cancel()
            await asyncio.wait([shown])
            if self._writers is not None:
                self._writers.write_held()
        stopped = code_of_stop(session, has_reader=self._has_reader)
        if self._keeps_done and stopped is ExitCode.STOPPED_BY_LIMIT:
            self._record_not_sent()
        return Conclusion(
            command=command,
            plan=self._plan,
            survey=self._survey,
            session=session,
            ledger=self._ledger,
            writers=self._writers,
            signal=self._signal,
            has_reader=self._has_reader,
            not_sent=self._not_sent,
            examples=self._examples,
        ).tell()

    def take(self, result: Result) -> None:
        """Write a result."""
        if result.error_code == "cancelled" or result.context is None:
            return
        if result.error is not None and not result.is_reused:
            self._examples.setdefault(result.error_code or "", result.error)
        if self._pilot is not None:
            self._pilot(result)
        if self._keeps_done:
            self._done.add(result.context.line)
        if self._writers is None:
            return
        self._writers.write(finished(result, result.context), is_kept=result.is_reused)
        if not self._writers.has_reader and self._has_reader:
            self._has_reader = False
            self._session.end()

    def _record_not_sent(self) -> None:
        """Put the rows that have no result into the file of failed rows, ready to be run.

        With a ledger that is not needed: the same command again sends them.
        """
        assert self._writers is not None  # noqa: S101 - without a ledger there are files
        for row in self._plan.rows_as_given():
            if row.line not in self._done:
                self._writers.failed.write(row, "not sent: the run was stopped by a limit")
                self._not_sent += 1

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGINT, signal.SIGTERM]
        # Of a terminal that is closed; not under nohup, which goes on without it.
        if _HANG_UP is not None and signal.getsignal(_HANG_UP) is not signal.SIG_IGN:
            numbers.append(_HANG_UP)
        for number in numbers:
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self._signal is not None:
            if number != _HANG_UP:  # which the shell and the system both send
                self._session.end(drain=False)
            return
        self._signal = number
        waiting = self._session.statistics().in_flight
        if waiting:
            say(
                f"Stopping: waiting for {counted(waiting, 'call')} in flight. "
                "Press Ctrl-C again to abandon them."
            )
        else:
            say("Stopping: nothing is in flight.")
        self._session.end()


def _has_limit(brief: Brief) -> bool:
    limits = (
        brief.max_cost_usd,
        brief.max_tokens_total,
        brief.deadline_seconds,
        brief.max_failed,
        brief.max_failed_share,
    )
    return any(limit is not None for limit in limits)
