"""One run over a file: send, and write each result as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.cli.command import check_outputs_are_free, fresh_paths
from batch_llm.cli.costs import bill_note, bill_of_run, cost_record
from batch_llm.cli.display import summary_lines
from batch_llm.cli.exit_codes import ExitCode
from batch_llm.cli.progress import say, show_progress, tell
from batch_llm.cli.result_files import ResultFiles
from batch_llm.core.text import counted
from batch_llm.exceptions import LedgerError
from batch_llm.outputs import finished
from batch_llm.runs.ledgers import default_ledger, name_of, open_ledger, put_aside, variants_at
from batch_llm.runs.passing import pass_over
from batch_llm.runs.plan import Plan, Survey
from batch_llm.runs.session import (
    Session,
    is_short_of_connections,
    open_cache,
    open_pools,
)
from batch_llm.stores.base import NOT_OF_THE_ITEM
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

#: Flags that say what is left to do does not share with what was done.
_NOT_REPEATED = {
    "-o": 1,
    "--output": 1,
    "--failed": 1,
    "--limit": 1,
    "--format": 1,
    "--overwrite": 0,
}


#: How the settings that end a run are called here.
_FLAGS = {
    "max_cost_usd": "--max-cost",
    "max_tokens_total": "--max-tokens-total",
    "deadline_seconds": "--deadline",
    "max_failed": "--max-failed",
    "max_failed_share": "--max-failed",
}
#: Caps that stand for the run with all its sessions: with the same one it ends at once.
_SPENDING = ("max_cost_usd", "max_tokens_total")

#: Not on Windows.
_HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)
_CODES: dict[int | None, ExitCode] = {
    signal.SIGTERM: ExitCode.TERMINATED,
    _HANG_UP: ExitCode.HUNG_UP,
}


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
        if self._keeps_done and self._exit_code_of_stop() is ExitCode.STOPPED_BY_LIMIT:
            self._record_not_sent()
        return self._conclude()

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

    def _conclude(self) -> ExitCode:
        command, session = self._command, self._session
        now, bad = session.statistics(), len(self._plan.problems)
        cancelled = now.failures_by_code.get("cancelled", 0)
        survey = self._survey
        left = survey.left - now.processed + cancelled
        code = self._exit_code(now, bad or left or survey.failed)
        bill = bill_of_run(command.prices, now)
        if self._ledger is not None:
            noted = bill_note(now, bill, self._ledger.session, command.prices.origin)
            with contextlib.suppress(LedgerError):  # a full disk: the bill is still in the attempts
                self._ledger.note({"bill": noted})
        record = self._record(now, code, left, bad) | cost_record(bill)
        if command.as_json:
            tell(record)
        if session.refusal:
            say(f"error: {session.refusal}")
        for stopped in now.stopped_lanes:
            if stopped.reason != session.refusal:  # a fallback took over
                say(f"warning: {stopped.reason}")
        if now.stopped_by is not None:
            say(f"stopped by {_FLAGS[now.stopped_by]}: {now.stop_reason}")
        if session.pause is not None:
            say(f"error: {session.pause}")
        if command.quiet:
            failed = bad if self._writers is None else self._writers.failed.rows
            if failed and code is ExitCode.SOME_FAILED:
                say(f"error: {counted(failed, 'row')} failed, see {command.failed}")
            return code
        if command.progress == "json":
            say(json.dumps({"schema": 1} | record))
            return code
        was_stopped = (
            self._signal is not None or not self._has_reader or session.stop_reason is not None
        )
        verb = "Stopped after" if was_stopped else "Done in"
        say(f"{verb} {now.elapsed_seconds:.1f} s  {command.model}")
        summary = summary_lines(
            now,
            not_done=left,
            cancelled=cancelled,
            bad_rows=bad,
            left_out=self._plan.left_out,
            reused=survey.kept,
            failed_before=survey.failed,
            bill=bill,
            examples={} if session.refusal or session.pause else self._examples,  # those said it
        )
        say("\n" + "\n".join(summary) + "\n")
        self._tell_files(bad)
        if (left or code is ExitCode.PROVIDER_REFUSES) and self._ledger is not None:
            again = f"batch-llm resume {shlex.quote(name_of(self._ledger.path))}"
            if now.stopped_by in _SPENDING:
                say(f"  continue  {again} {_FLAGS[now.stopped_by]} MORE  (or the command with it)")
            else:
                say(f"  continue  {again}  (or the same command again)")
        if self._plan.source.has_changed():
            say(f"\nwarning: {command.input} changed while it was read; check its rows")
        if self._ledger is not None and not self._ledger.path.exists():
            say(
                f"\nwarning: {self._ledger.path} was removed while the run went on; "
                "its answers are in the results alone"
            )
        return code

    def _record(self, now: Statistics, code: ExitCode, left: int, bad: int) -> dict[str, Any]:
        """Return the run's end for programs, without its bill."""
        return {
            "event": "done",
            "exit_code": int(code),
            "succeeded": now.succeeded,
            "failed": now.failed - now.failures_by_code.get("cancelled", 0),
            "reused": self._survey.kept,
            "failed_before": self._survey.failed,
            "cached": now.cached,
            "shared": now.shared,
            "bad_rows": bad,
            "left_out": self._plan.left_out,
            "not_done": left,
            "retries": now.retries_by_code,
            "failures": now.failures_by_code,
            "input_tokens": now.input_tokens,
            "output_tokens": now.output_tokens,
            "usage": msgspec.to_builtins(now.usage),
            "usage_before": msgspec.to_builtins(now.usage_before),
            "usage_at_most": msgspec.to_builtins(now.usage_at_most),
            "usage_likely": msgspec.to_builtins(now.usage_likely),
            "stopped_by": now.stopped_by,
            "stop_reason": now.stop_reason,
            "hedged": now.hedged,
            "hedges_won": now.hedges_won,
            "hedge_tokens_lost": now.hedge_tokens_lost,
            "stopped_lanes": msgspec.to_builtins(now.stopped_lanes),
            "limits": msgspec.to_builtins(now.limits),
            "seconds": round(now.elapsed_seconds, 3),
            "output": self._command.output,
        }

    def _tell_files(self, bad: int) -> None:
        command, writers = self._command, self._writers
        if writers is None:
            return
        if command.output != "-":
            say(f"  results   {command.output} ({counted(writers.results.rows, 'row')})")
        if writers.failed.rows:
            not_sent = f", {self._not_sent:,} of them not sent" if self._not_sent else ""
            rows = counted(writers.failed.rows, "row")
            say(f"  failed    {command.failed} ({rows}{not_sent})")
            goes_on = self._ledger is not None and bool(self._session.refusal)
            are_kept = set(self._session.statistics().failures_by_code) - NOT_OF_THE_ITEM
            if writers.failed.rows > bad and (are_kept or not goes_on):  # else tried again then
                say(f"  next      {self._next_command()}")
        if command.plot is not None and Path(command.plot).exists():
            say(f"  plot      {command.plot}")

    def _next_command(self) -> str:
        """Return the command that runs the failed rows.

        With a ledger, it goes on with the run; otherwise it is this one, with their file as input.
        What it must not share with this run is said outright, whatever the settings files say.
        """
        if self._ledger is not None:
            return f"batch-llm retry {shlex.quote(name_of(self._ledger.path))}"
        command, words = self._command, []
        arguments = iter(sys.argv[2:])
        is_replaced = False
        for word in arguments:
            name, equals, _ = word.partition("=")
            if name in _NOT_REPEATED:
                if _NOT_REPEATED[name] and not equals:
                    next(arguments, None)
            elif word.startswith("-o"):  # -oFILE
                continue
            elif word == command.input and not is_replaced:
                words.append(command.failed)
                is_replaced = True
            else:
                words.append(word)
        output, failed = fresh_paths(command.failed)
        words += ["-o", output, "--failed", failed]
        if command.format is not None:
            words += ["--format", self._format_of_failed()]
        return shlex.join(["batch-llm", "run", *words])

    def _format_of_failed(self) -> str:
        shape = self._plan.source.format
        suffix = Path(self._command.failed).suffix.lower().removeprefix(".")
        if suffix in {"csv", "tsv"}:
            return suffix
        return {"txt": "prompt", "csv": "rows", "tsv": "rows"}.get(shape, shape)

    def _exit_code(self, now: Statistics, without_answer: int) -> ExitCode:
        if self._signal is not None:
            return _CODES.get(self._signal, ExitCode.INTERRUPTED)
        stopped = self._exit_code_of_stop()
        if stopped is not None:
            return stopped
        return ExitCode.SOME_FAILED if now.failed or without_answer else ExitCode.OK

    def _exit_code_of_stop(self) -> ExitCode | None:
        """Return what the code is where the session ended itself early."""
        if not self._has_reader:
            return ExitCode.OK
        if self._session.refusal:
            return ExitCode.PROVIDER_REFUSES
        return None if self._session.stop_reason is None else ExitCode.STOPPED_BY_LIMIT


def _has_limit(brief: Brief) -> bool:
    limits = (
        brief.max_cost_usd,
        brief.max_tokens_total,
        brief.deadline_seconds,
        brief.max_failed,
        brief.max_failed_share,
    )
    return any(limit is not None for limit in limits)
