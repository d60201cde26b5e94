"""One run over a file: send, and write each result as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shlex
import signal
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from batch_llm.cli.costs import cost_record
from batch_llm.cli.display import summary_lines
from batch_llm.cli.exit_codes import ExitCode
from batch_llm.cli.inspection import finished
from batch_llm.cli.job import fresh_paths
from batch_llm.cli.ledgers import name_of, open_ledger
from batch_llm.cli.plan import Plan, Survey, chunks, look_up
from batch_llm.cli.progress import say, show_progress, tell
from batch_llm.core.config import (
    AUTO_MOST,
    AUTO_MOST_KNOWN,
    DEFAULT_WORKERS,
    Limits,
    ProcessorConfig,
    RetryConfig,
)
from batch_llm.exceptions import InputError, LaneStoppedError, LimitPauseError
from batch_llm.outputs import FailedWriter, Finished, ResultWriter
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.providers.registry import open_pool
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import HttpTransport, raise_file_limit
from batch_llm.stores.limit_memory import LimitMemory, limits_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence

    from batch_llm._engine.statistics import Statistics
    from batch_llm.base import LLMWorkItem, WorkItemResult
    from batch_llm.cli.job import Job
    from batch_llm.inputs import Row
    from batch_llm.providers.registry import Endpoint
    from batch_llm.stores.sqlite import SqliteLedger

    Item = LLMWorkItem[Any, Any, Row]

_PAUSE = f"{LimitPauseError.__name__}: "
_STOPPED = f"{LaneStoppedError.__name__}: "
#: With ``--order input``: finished rows that wait for an earlier one.
MAX_HELD = 10_000
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
    "max_total_tokens": "--max-tokens-total",
    "deadline_seconds": "--deadline",
    "max_failed_share": "--fail-over",
}


class _Writers:
    """The two output files, and the order in which rows reach them."""

    def __init__(self, plan: Plan, *, overwrite: bool) -> None:
        job = plan.job
        is_batch = plan.source.format == "openai-batch"
        self.failed = FailedWriter(job.failed, columns=plan.columns, overwrite=overwrite)
        self.results = ResultWriter(
            job.output, is_batch=is_batch, columns=plan.columns, overwrite=overwrite
        )
        self._keeps_order = job.order == "input"
        self._due: deque[int] = deque()
        self._held: dict[int, Finished] = {}
        self.has_reader = True
        self._has_room = asyncio.Event()

    async def expect(self, row: Row) -> None:
        """Note a row's place; wait while too many finished rows wait for an earlier one.

        That one is in work already, so it always comes.
        """
        if not self._keeps_order:
            return
        while len(self._held) >= MAX_HELD:
            self._has_room.clear()
            await self._has_room.wait()
        self._due.append(row.line)

    def write(self, finished: Finished) -> None:
        if not self._keeps_order:
            self._put(finished)
            return
        self._held[finished.row.line] = finished
        while self._due and self._due[0] in self._held:
            self._put(self._held.pop(self._due.popleft()))
        self._has_room.set()

    def _put(self, finished: Finished) -> None:
        if finished.error is None:
            try:
                self.results.write(finished)
            except BrokenPipeError:  # of standard output; whoever read it wants no more
                self.has_reader = False
        else:
            self.failed.write(finished.row, finished.error)

    def write_held(self) -> None:
        """Write what still waits for earlier rows: those will not come any more."""
        held, self._held = self._held, {}
        for row in sorted(held.values(), key=lambda one: one.row.line):
            self._put(row)

    def close(self) -> None:
        self.write_held()
        self.results.close()
        self.failed.close()


def run_job(job: Job) -> ExitCode:
    """Do it. Everything that can be checked is checked before the first call."""
    return run_plan(Plan(job))[0]


def run_plan(
    plan: Plan, on_result: Callable[[WorkItemResult[Any, Row]], None] | None = None
) -> tuple[ExitCode, Statistics]:
    """Send a plan's rows and write what comes back; return the code and the last numbers."""
    job = plan.job
    plan.check_unchanged()
    logging.getLogger("batch_llm.stops").disabled = True  # told at the end, with what to do next
    with open_pool(job.model, base_urls=job.base_url, keys=job.keys) as pool:
        given = job.concurrency if isinstance(job.concurrency, int) else None
        possible = raise_file_limit(given or AUTO_MOST_KNOWN)
        if possible is not None and (given or possible < AUTO_MOST):
            say(f"warning: only {possible} connections are possible here; taking as many")
        if job.forgets_limits and (path := limits_file()) is not None:
            LimitMemory(path).forget([one.account for one in pool if one.account])
        with contextlib.ExitStack() as opened:
            fallbacks = {
                name: opened.enter_context(open_pool(name, **job.places_of(name)))
                for name in job.fallbacks
            }
            # Loaded here, where nothing waits: the display asks in mid-run.
            for one in (pool, *fallbacks.values()):
                check_price(job, one[0])
            ledger = None if job.ledger is None else opened.enter_context(open_ledger(plan))
            survey = Survey(plan.rows)
            if ledger is not None and any(ledger.counts().values()):
                survey = plan.survey(ledger)
                if not job.quiet and job.progress != "json":
                    say(_continuing(ledger, survey))
            # What a ledger knows is written anew: it may be torn, or gone.
            writers = _Writers(plan, overwrite=job.overwrite or ledger is not None)
            opened.callback(writers.close)
            writers.failed.remove_old()
            for problem in plan.problems:
                writers.failed.write_problem(problem)
            execution = _Execution(
                plan, pool, fallbacks, writers, possible, on_result, ledger, survey
            )
            return asyncio.run(execution.run()), execution.statistics()


def _continuing(ledger: SqliteLedger, survey: Survey) -> str:
    name = name_of(ledger.path)
    said = f"Continuing {name}: {survey.kept:,} reused, {survey.left:,} to do"
    if survey.changed:
        said += f", of which {survey.changed:,} changed since"
    if survey.failed:
        said += f" ({survey.failed:,} failed ones are kept; batch-llm retry {name} runs them)"
    return said


def check_price(job: Job, endpoint: Endpoint) -> None:
    """Refuse a cap on cost that cannot be kept, before anything is sent.

    Raises:
        InputError: The model's price is not known.
    """
    model = f"{endpoint.provider}:{endpoint.model}"
    if job.prices.rate(model, endpoint.server) is None and job.max_cost is not None:
        where = f" at {endpoint.server}" if endpoint.server else ""
        raise InputError(
            f"--max-cost cannot be kept: no price is known for {model}{where}; nothing was sent\n\n"
            "  --prices FILE              gives its price, in USD per million tokens:\n"
            f'                             ["{model.partition("?")[0]}"]\n'
            "                             input = 0.25\n"
            "                             output = 2.00\n"
            "  --max-tokens-total 10M     caps tokens instead"
        )


def _concurrency(job: Job, possible: int | None) -> int | Literal["auto", "knee"]:
    """Return what the processor is told; only ``possible`` connections can be opened."""
    if isinstance(job.concurrency, int):
        return possible or job.concurrency
    return job.concurrency or "auto"


class _Execution:
    def __init__(
        self,
        plan: Plan,
        pool: Sequence[Endpoint],
        fallbacks: Mapping[str, Sequence[Endpoint]],
        writers: _Writers,
        possible: int | None,
        on_result: Callable[[WorkItemResult[Any, Row]], None] | None,
        ledger: SqliteLedger | None,
        survey: Survey,
    ) -> None:
        self._on_result = on_result
        self._plan, self._job, self._writers = plan, plan.job, writers
        self._ledger, self._survey = ledger, survey
        self._signal: int | None = None
        self._stop_code: ExitCode | None = None
        self._stop_reason = ""
        self._pause: str | None = None
        #: Lines of the rows that have their result, where a limit may stop the run before the end.
        self._done: set[int] = set()
        self._not_sent = 0
        self._transport = HttpTransport()
        self._processor: ParallelBatchProcessor[Any, Any, Row] = ParallelBatchProcessor(
            config=ProcessorConfig(
                concurrency=_concurrency(self._job, possible),
                max_workers=DEFAULT_WORKERS if possible is None else possible,
                limits=self._job.limits or Limits(),
                longest_pause=self._job.longest_pause,
                timeout_per_item=self._job.timeout,
                hedge="drain" if self._job.hedges else "off",
                retry=RetryConfig(
                    max_attempts=self._job.retries + 1,
                    initial_wait=0.5,
                    max_tokens_cap=self._job.max_tokens_cap,
                    fallback_on=self._job.fallback_on,
                ),
                fallbacks=self._job.fallbacks,
                progress_interval=0,
                max_cost_usd=self._job.max_cost,
                max_total_tokens=self._job.max_tokens_total,
                deadline_seconds=self._job.deadline,
                max_failed_share=self._failed_share,
                prices=self._job.prices,
            ),
            requests=RequestCaller(
                pool,
                self._transport,
                keep_bodies=plan.source.format == "openai-batch",
                asks_servers=self._job.asks_servers,
                fallback=fallbacks.__getitem__,
            ),
            store=ledger,
        )

    def statistics(self) -> Statistics:
        """Return the run's numbers."""
        return self._processor.statistics()

    @property
    def _failed_share(self) -> float | None:
        if self._job.fail_over is None:
            return None
        bound, is_share = self._job.fail_over
        return bound if is_share else None

    @property
    def _stopped_by_limit(self) -> bool:
        return self._stop_code is ExitCode.STOPPED_BY_LIMIT or self._stopped_by is not None

    @property
    def _stopped_by(self) -> str | None:
        return self._processor.statistics().stopped_by

    async def run(self) -> ExitCode:
        self._listen_to_signals()
        shown = asyncio.create_task(
            show_progress(
                "none" if self._job.quiet else self._job.progress,
                self._processor.statistics,
                title=f"{self._job.model}  {self._plan.source.name} → {self._job.output}",
                total=self._survey.left,
                prices=self._job.prices,
                cap=self._job.max_cost,
            )
        )
        if self._job.as_json:
            tell({"event": "launch", "model": self._job.model, "rows": self._plan.rows})
        items: Iterable[Item] | AsyncIterable[Item] = self._plan.items()
        if self._job.order == "input" or self._survey.left < self._survey.rows:
            items = self._unfinished()
        try:
            async with contextlib.aclosing(self._processor.stream(items)) as results:
                async for result in results:
                    self._take(result)
        finally:
            shown.cancel()
            await asyncio.wait([shown])
            await self._transport.aclose()
            self._writers.write_held()
        if self._stopped_by_limit:
            self._record_not_sent()
        return self._conclude()

    async def _unfinished(self) -> AsyncIterator[Item]:
        """Give the items that are to be sent; write the results of the others."""
        for chunk in chunks(self._plan.items()):
            kept = [None] * len(chunk) if self._ledger is None else look_up(self._ledger, chunk)
            for item, record in zip(chunk, kept, strict=True):
                row = item.context
                assert row is not None  # noqa: S101 - each item comes with its row
                await self._writers.expect(row)
                if record is None:
                    yield item
                else:
                    self._done.add(row.line)
                    self._writers.write(finished(record, row))
            await asyncio.sleep(0)

    def _take(self, result: WorkItemResult[Any, Row]) -> None:
        if (result.error or "").startswith(_STOPPED):
            # The row's own lane, or its last fallback's: nobody is left to ask.
            self._stop(ExitCode.PROVIDER_REFUSES, "")
        if result.error_code == "cancelled" or result.context is None:
            return
        usage = result.token_usage
        if self._on_result is not None:
            self._on_result(result)
        if self._has_limit:
            self._done.add(result.context.line)
        self._writers.write(
            Finished(
                row=result.context,
                output=result.output,
                error=result.error,
                error_code=result.error_code,
                model=result.model,
                input_tokens=usage["input_tokens"],
                output_tokens=usage["output_tokens"],
                attempts=result.attempts,
                seconds=result.duration_seconds,
                body=result.response_body,
            )
        )
        if not self._writers.has_reader:
            self._stop(ExitCode.OK, "")
        self._watch(result)

    def _watch(self, result: WorkItemResult[Any, Row]) -> None:
        """Stop when too much has failed."""
        if result.success:
            return
        if (result.error or "").startswith(_PAUSE):
            # All that are left fail so, at once, and are in the file to be run again.
            self._pause = result.error
        if self._job.fail_over is not None:
            bound, is_share = self._job.fail_over
            if not is_share and self._processor.statistics().failed > bound:
                self._stop(ExitCode.STOPPED_BY_LIMIT, "more rows failed than --fail-over allows")

    @property
    def _has_limit(self) -> bool:
        job = self._job
        limits = (job.max_cost, job.max_tokens_total, job.deadline, job.fail_over)
        return any(limit is not None for limit in limits)

    def _record_not_sent(self) -> None:
        """Put the rows that have no result into the file of failed rows, ready to be run."""
        for row in self._plan.rows_as_given():
            if row.line not in self._done:
                self._writers.failed.write(row, "not sent: the run was stopped by a limit")
                self._not_sent += 1

    def _stop(self, code: ExitCode, reason: str) -> None:
        if self._stop_code is None:
            self._stop_code, self._stop_reason = code, reason
            self._processor.stop(retry=False)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self._signal is not None:
            self._processor.stop(drain=False)
            return
        self._signal = number
        waiting = self._processor.statistics().in_flight
        if waiting:
            noun = "request" if waiting == 1 else "requests"
            say(
                f"Stopping: waiting for {waiting} {noun} in flight. "
                "Press Ctrl-C again to abandon them."
            )
        else:
            say("Stopping: nothing is in flight.")
        self._processor.stop(retry=False)

    def _conclude(self) -> ExitCode:
        now = self._processor.statistics()
        done, bad = self._writers.results.rows, len(self._plan.problems)
        cancelled = now.failures_by_code.get("cancelled", 0)
        survey = self._survey
        left = survey.left - now.processed + cancelled
        code = self._exit_code(now, bad or left or survey.failed)
        bill = self._job.prices.bill(now.usage)
        record = {
            "event": "done",
            "exit_code": int(code),
            "succeeded": now.succeeded,
            "failed": now.failed - cancelled,
            "reused": survey.kept,
            "failed_before": survey.failed,
            "bad_rows": bad,
            "not_done": left,
            "retries": now.retries_by_code,
            "failures": now.failures_by_code,
            "input_tokens": now.input_tokens,
            "output_tokens": now.output_tokens,
            "usage": msgspec.to_builtins(now.usage),
            "stopped_by": now.stopped_by,
            "stop_reason": now.stop_reason,
            "hedged": now.hedged,
            "hedges_won": now.hedges_won,
            "hedge_tokens_lost": now.hedge_tokens_lost,
            "stopped_lanes": msgspec.to_builtins(now.stopped_lanes),
            "limits": msgspec.to_builtins(now.limits),
            "seconds": round(now.elapsed_seconds, 3),
            "output": self._job.output,
        } | cost_record(bill)
        if self._job.as_json:
            tell(record)
        if self._stop_reason:
            say(f"error: {self._stop_reason}")
        for stopped in now.stopped_lanes:
            is_end = code is ExitCode.PROVIDER_REFUSES
            say(f"{'error' if is_end else 'warning'}: {stopped.reason}")
        if now.stopped_by is not None:
            say(f"stopped by {_FLAGS[now.stopped_by]}: {now.stop_reason}")
        if self._pause is not None:
            say(f"error: {self._pause.removeprefix(_PAUSE)}")
        if self._job.quiet:
            return code
        if self._job.progress == "json":
            say(json.dumps({"schema": 1} | record))
            return code
        was_stopped = (
            self._signal is not None or self._stop_code is not None or now.stopped_by is not None
        )
        verb = "Stopped after" if was_stopped else "Done in"
        say(f"{verb} {now.elapsed_seconds:.1f} s  {self._job.model}")
        summary = summary_lines(
            now,
            not_done=left,
            cancelled=cancelled,
            bad_rows=bad,
            reused=survey.kept,
            bill=bill,
        )
        say("\n" + "\n".join(summary) + "\n")
        if self._job.output != "-":
            say(f"  results   {self._job.output} ({done:,} rows)")
        if self._writers.failed.rows:
            not_sent = f", {self._not_sent:,} of them not sent" if self._not_sent else ""
            say(f"  failed    {self._job.failed} ({self._writers.failed.rows:,} rows{not_sent})")
            goes_on = self._ledger is not None and code is ExitCode.PROVIDER_REFUSES
            if self._writers.failed.rows > bad + (self._not_sent if self._ledger else 0) and (
                not goes_on  # that tries those again, too
            ):
                say(f"  next      {self._next_command()}")
        if (left or code is ExitCode.PROVIDER_REFUSES) and self._ledger is not None:
            again = f"batch-llm resume {shlex.quote(name_of(self._ledger.path))}"
            say(f"  continue  {again}  (or the same command again)")
        if self._plan.source.has_changed():
            say(f"\nwarning: {self._job.input} changed while it was read; check its rows")
        return code

    def _next_command(self) -> str:
        """Return the command that runs the failed rows.

        With a ledger, it goes on with the run; otherwise it is this one, with their file as input.
        What it must not share with this run is said outright, whatever the settings files say.
        """
        if self._ledger is not None:
            return f"batch-llm retry {shlex.quote(name_of(self._ledger.path))}"
        job, words = self._job, []
        arguments = iter(sys.argv[2:])
        is_replaced = False
        for word in arguments:
            name, equals, _ = word.partition("=")
            if name in _NOT_REPEATED:
                if _NOT_REPEATED[name] and not equals:
                    next(arguments, None)
            elif word.startswith("-o"):  # -oFILE
                continue
            elif word == job.input and not is_replaced:
                words.append(job.failed)
                is_replaced = True
            else:
                words.append(word)
        output, failed = fresh_paths(job.failed)
        words += ["-o", output, "--failed", failed]
        if job.format is not None:
            words += ["--format", self._format_of_failed()]
        return shlex.join(["batch-llm", "run", *words])

    def _format_of_failed(self) -> str:
        shape = self._plan.source.format
        suffix = Path(self._job.failed).suffix.lower().removeprefix(".")
        if suffix in {"csv", "tsv"}:
            return suffix
        return {"txt": "prompt", "csv": "rows", "tsv": "rows"}.get(shape, shape)

    def _exit_code(self, now: Statistics, without_answer: int) -> ExitCode:
        if self._signal is not None:
            return ExitCode.TERMINATED if self._signal == signal.SIGTERM else ExitCode.INTERRUPTED
        if self._stop_code is not None:
            return self._stop_code
        if now.stopped_lanes and not now.succeeded:
            return ExitCode.PROVIDER_REFUSES
        if now.stopped_by is not None:
            return ExitCode.STOPPED_BY_LIMIT
        return ExitCode.SOME_FAILED if now.failed or without_answer else ExitCode.OK
