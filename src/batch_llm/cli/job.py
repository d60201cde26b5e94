"""One run over a file: check everything, send, write each result as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_llm.base import LLMWorkItem, WorkItemResult
from batch_llm.cli.display import live_lines, log_line, summary_lines
from batch_llm.cli.exit_codes import ExitCode
from batch_llm.core.config import ProcessorConfig, RetryConfig
from batch_llm.core.request import Request, Settings
from batch_llm.core.text import safe
from batch_llm.exceptions import BatchLLMError
from batch_llm.inputs import Problem, Row, Source, Template
from batch_llm.outputs import FailedWriter, Finished, ResultWriter
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.providers import openai
from batch_llm.providers.registry import Endpoint, open_endpoint
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import HttpTransport, raise_file_limit
from batch_llm.strategies.rate_limit import ExponentialBackoffStrategy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batch_llm._engine.statistics import Statistics
    from batch_llm.core.schema import OutputSchema

MAX_SHOWN = 10
PLAIN_SECONDS = 10.0
FATAL_IN_A_ROW = 20
_FATAL = {"auth", "quota", "not_found"}
_FRAMES_PER_SECOND = 4
_DRAINED_AFTER_SECONDS = 0.2


class InputError(BatchLLMError):
    """The input cannot be used as it is. Nothing was sent."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to do. The flags of ``run``, understood."""

    input: str
    model: str
    base_url: str | None = None
    format: str | None = None
    columns: tuple[str, ...] | None = None
    id_column: str | None = None
    limit: int | None = None
    prompt: str | None = None
    system: str | None = None
    settings: Settings = field(default_factory=Settings)
    shape: OutputSchema | None = None
    bad_rows: str = "stop"
    output: str = "results.jsonl"
    failed: str = "failed.jsonl"
    order: str = "done"
    overwrite: bool = False
    concurrency: int = 50
    timeout: float = 120.0
    retries: int = 5
    fail_over: tuple[float, bool] | None = None
    progress: str = "auto"
    as_json: bool = False
    quiet: bool = False


class Plan:
    """A job whose input has been read through once and found good.

    Raises:
        InputError: It is not; the message shows the places.
        ConfigError: A flag is wrong.
        OSError: A file cannot be read.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._template = Template(job.prompt) if job.prompt is not None else None
        self._system = Template(job.system) if job.system is not None else None
        numbered = any(t is not None and t.is_numbered for t in (self._template, self._system))
        self.source = Source(
            job.input,
            format=job.format,
            columns=job.columns,
            has_header=False if numbered else None,
            id_column=job.id_column,
            limit=job.limit,
        )
        self._check_columns()
        self.rows = self.characters = 0
        self._names: dict[str, None] = dict.fromkeys(self.source.columns)
        self.problems: list[Problem] = []
        self._read_through()

    def _check_columns(self) -> None:
        source = self.source
        self._check_flags_are_used()
        if not source.columns:
            return  # not one good record: what is wrong with them says more
        has_prompts = source.format not in {"rows", "csv", "tsv"} or "prompt" in source.columns
        if self._template is None and not has_prompts:
            columns = ", ".join(safe(column, 40) for column in source.columns)
            raise InputError(
                f"{source.name} has rows of columns, so it needs a prompt\n\n"
                f"  columns: {columns}\n"
                "  --prompt 'Classify {{ column }}' makes one from each row"
            )
        for template in (self._template, self._system):
            problem = template.check(source.columns, source.name) if template else None
            if problem:
                raise InputError(problem)
        if self.job.id_column and self.job.id_column not in source.columns:
            raise InputError(
                f'{source.name} has no column "{safe(self.job.id_column)}" for the ids'
            )

    def _check_flags_are_used(self) -> None:
        """Refuse flags that this shape of input would leave without effect."""
        job, shape = self.job, self.source.format
        flags: dict[str, bool] = {}
        if shape == "openai-batch":
            flags = {
                "--prompt": job.prompt is not None,
                "--system": job.system is not None,
                "--schema or --choices": job.shape is not None,
                "--set": job.settings != Settings(),
            }
        elif shape == "chat" and job.prompt is None:
            flags = {"--system": job.system is not None}
        given = ", ".join(name for name, is_given in flags.items() if is_given)
        if given:
            raise InputError(
                f"{self.source.name} has whole requests ({shape}), which {given} cannot change\n\n"
                "  Leave the flag out, or put it into each line's own request."
            )

    def _read_through(self) -> None:
        count = 0
        for record in self.source:
            if isinstance(record, Problem):
                count += 1
                self.problems.append(record)
                continue
            try:
                request = self.request_for(record)
            except ValueError as error:
                self.problems.append(
                    Problem(
                        record.line,
                        "invalid_row",
                        safe(error),
                        data=record.data,
                        item_id=record.item_id,
                    )
                )
                continue
            self.rows += 1
            self._names.update(dict.fromkeys(record.data))
            for message in request.messages:
                content = message.content
                self.characters += len(content) if isinstance(content, str) else 0
        if not self.rows and not self.problems:
            raise InputError(f"{self.source.name} is empty; there is nothing to send")
        if self.problems and self.job.bad_rows == "stop":
            raise InputError(self._explain())
        if self.job.bad_rows == "skip":
            self.problems = []

    @property
    def columns(self) -> list[str]:
        """All columns that any record has, those of records that cannot be used among them."""
        of_problems = [name for problem in self.problems for name in problem.data or ()]
        return list(dict.fromkeys([*self._names, *of_problems]))

    def _explain(self) -> str:
        name, bad = self.source.name, len(self.problems)
        noun = "line" if bad == 1 else "lines"
        lines = [f"{name} has {bad} bad {noun} of {bad + self.rows}; nothing was sent", ""]
        for problem in self.problems[:MAX_SHOWN]:
            lines += [problem.render(name), ""]
        if bad > MAX_SHOWN:
            lines += [f"  … and {bad - MAX_SHOWN} more", ""]
        lines += [
            "Fix the lines, or run with --bad-rows fail to record them as failed",
            "rows and send the rest (--bad-rows skip leaves them out).",
        ]
        return "\n".join(lines)

    def request_for(self, row: Row) -> Request:
        """Make a row's request.

        Raises:
            ValueError: The row does not give one.
        """
        job, data = self.job, row.data
        if self.source.format == "openai-batch":
            if not isinstance(data.get("body"), dict):
                raise ValueError("`body` must be an object")
            provider = job.model.partition(":")[0]
            return openai.read({"model": "-"} | data["body"], provider)
        if self.source.format == "chat" and self._template is None:
            request = openai.read(
                {"model": "-", "messages": data.get("messages")} | _wire(job), "chat"
            )
            # The wire knows JSON schemas only; a choice comes back as the bare name.
            return request if job.shape is None else replace(request, output=job.shape)
        if self._template is not None:
            prompt = self._template.render(data)
        else:
            prompt = data.get("prompt")  # type: ignore[assignment]
            if not isinstance(prompt, str):
                raise ValueError("`prompt` must be a text")
        system = self._system.render(data) if self._system is not None else None
        return Request.of(job.model, prompt, system=system, output=job.shape, settings=job.settings)

    def items(self) -> Iterator[LLMWorkItem[Any, Any, Row]]:
        """Give the good rows as items, reading the input a second time."""
        for record in self.source:
            if isinstance(record, Row):
                with contextlib.suppress(ValueError):  # found before, and told
                    yield LLMWorkItem(
                        record.item_id, request=self.request_for(record), context=record
                    )


def _wire(job: Job) -> dict[str, Any]:
    """Return the settings and the shape of a job, as fields of a wire body."""
    body: dict[str, Any] = json.loads(
        openai.encode(Request.of("x:-", "-", output=job.shape, settings=job.settings))
    )
    del body["messages"], body["model"]
    return body


class _Writers:
    """The two output files, and the order in which rows reach them."""

    def __init__(self, plan: Plan) -> None:
        job = plan.job
        is_batch = plan.source.format == "openai-batch"
        self.failed = FailedWriter(job.failed, columns=plan.columns, overwrite=job.overwrite)
        self.results = ResultWriter(
            job.output, is_batch=is_batch, columns=plan.columns, overwrite=job.overwrite
        )
        self._held: dict[int, Finished] = {}
        self._order: Iterator[int] | None = None
        self._next: int | None = None
        if job.order == "input":
            self._order = (r.line for r in plan.source if isinstance(r, Row))
            self._next = next(self._order, None)

    def write(self, finished: Finished) -> None:
        if self._order is None:
            self._put(finished)
            return
        self._held[finished.row.line] = finished
        while self._next in self._held:
            self._put(self._held.pop(self._next))
            self._next = next(self._order, None)

    def _put(self, finished: Finished) -> None:
        if finished.error is None:
            self.results.write(finished)
        else:
            self.failed.write(finished.row.data, finished.error)

    def close(self) -> None:
        for finished in sorted(self._held.values(), key=lambda one: one.row.line):
            self._put(finished)
        self.results.close()
        self.failed.close()


def run_job(job: Job) -> ExitCode:
    """Do it. Everything that can be checked is checked before the first call."""
    plan = Plan(job)
    with open_endpoint(job.model, base_url=job.base_url) as endpoint:
        possible = raise_file_limit(job.concurrency)
        if possible is not None:
            say(f"warning: only {possible} connections are possible here; taking as many")
        writers = _Writers(plan)
        for problem in plan.problems:
            writers.failed.write(
                problem.data or {"line": problem.line}, f"{problem.code}: {problem.message}"
            )
        try:
            return asyncio.run(
                _Execution(plan, endpoint, writers, possible or job.concurrency).run()
            )
        except BrokenPipeError:
            return ExitCode.OK
        finally:
            with contextlib.suppress(BrokenPipeError):
                writers.close()


class _Execution:
    def __init__(self, plan: Plan, endpoint: Endpoint, writers: _Writers, concurrency: int) -> None:
        self._plan, self._job, self._writers = plan, plan.job, writers
        self._endpoint = endpoint
        self._signal: int | None = None
        self._stop_code: ExitCode | None = None
        self._stop_reason = ""
        self._fatal_code, self._fatal_count = "", 0
        self._draining: asyncio.Task[None] | None = None
        self._transport = HttpTransport()
        self._processor: ParallelBatchProcessor[Any, Any, Row] = ParallelBatchProcessor(
            config=ProcessorConfig(
                max_workers=concurrency,
                timeout_per_item=self._job.timeout,
                retry=RetryConfig(max_attempts=self._job.retries + 1, initial_wait=0.5),
                progress_interval=0,
            ),
            rate_limit_strategy=ExponentialBackoffStrategy(
                initial_cooldown=1.0,
                max_cooldown=60.0,
                slow_start_items=10,
                slow_start_initial_delay=0.02,
                slow_start_final_delay=0.002,
            ),
            requests=RequestCaller(endpoint, self._transport),
        )

    async def run(self) -> ExitCode:
        self._listen_to_signals()
        shown = asyncio.create_task(self._show())
        if self._job.as_json:
            _print_json({"event": "launch", "model": self._job.model, "rows": self._plan.rows})
        try:
            async with contextlib.aclosing(self._processor.stream(self._plan.items())) as results:
                async for result in results:
                    self._take(result)
        finally:
            helpers = [task for task in (shown, self._draining) if task is not None]
            for task in helpers:
                task.cancel()
            await asyncio.wait(helpers)
            await self._transport.aclose()
        return self._conclude()

    def _take(self, result: WorkItemResult[Any, Row]) -> None:
        if result.error_code == "cancelled" or result.context is None:
            return
        usage = result.token_usage
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
            )
        )
        self._watch(result)

    def _watch(self, result: WorkItemResult[Any, Row]) -> None:
        """Stop when the provider refuses everything, or too much has failed."""
        if result.success:
            self._fatal_count = 0
            return
        code = result.error_code or ""
        if code in _FATAL:
            self._fatal_count = self._fatal_count + 1 if code == self._fatal_code else 1
            self._fatal_code = code
            if self._fatal_count >= FATAL_IN_A_ROW:
                self._stop(
                    ExitCode.PROVIDER_REFUSES, f"the provider refuses everything: {result.error}"
                )
        if self._job.fail_over is not None:
            bound, is_share = self._job.fail_over
            if self._processor.statistics().failed > (
                bound * self._plan.rows if is_share else bound
            ):
                self._stop(ExitCode.STOPPED_BY_LIMIT, "more rows failed than --fail-over allows")

    def _stop(self, code: ExitCode, reason: str) -> None:
        if self._stop_code is None:
            self._stop_code, self._stop_reason = code, reason
            self._drain()

    def _drain(self) -> None:
        self._processor.stop()
        if self._draining is None:
            self._draining = asyncio.create_task(self._abandon_what_only_waits())

    async def _abandon_what_only_waits(self) -> None:
        """End a drain when no call is under way any more.

        What is left then waits for a cooldown or for its next attempt, perhaps for an hour, and
        nothing has been paid for it. Two looks in a row: an answer that came just before the
        first is in its file by the second.
        """
        quiet = 0
        while quiet < 2:
            await asyncio.sleep(_DRAINED_AFTER_SECONDS)
            quiet = quiet + 1 if self._processor.statistics().in_flight == 0 else 0
        self._processor.stop(drain=False)

    # -- signals

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
        say(
            f"Stopping: waiting for {waiting} requests in flight. "
            "Press Ctrl-C again to abandon them."
        )
        self._drain()

    # -- what people see

    async def _show(self) -> None:
        mode = self._job.progress
        if self._job.quiet or mode == "none":
            return
        if mode == "auto":
            mode = "rich" if sys.stderr.isatty() else "plain"
        if mode == "rich":
            await self._show_live()
        else:
            await self._show_lines(as_json=mode == "json")

    async def _show_live(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(stderr=True)
        title = f"{self._job.model}  {self._plan.source.name} → {self._job.output}"

        def frame() -> Text:
            lines = live_lines(
                self._processor.statistics(),
                title=title,
                total=self._plan.rows,
                width=console.width,
            )
            return Text("\n".join(lines), no_wrap=True)

        with Live(frame(), console=console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(frame(), refresh=True)
                await asyncio.sleep(1 / _FRAMES_PER_SECOND)

    async def _show_lines(self, *, as_json: bool) -> None:
        last_state, next_at = "running", PLAIN_SECONDS
        while True:
            await asyncio.sleep(0.5)
            now = self._processor.statistics()
            if now.elapsed_seconds < next_at and now.state in {last_state, "cooling", "running"}:
                continue
            last_state, next_at = now.state, now.elapsed_seconds + PLAIN_SECONDS
            clock = time.strftime("%H:%M:%S")
            say(_as_json(now) if as_json else f"{clock} {log_line(now, self._plan.rows)}")

    def _conclude(self) -> ExitCode:
        now = self._processor.statistics()
        done, bad = self._writers.results.rows, len(self._plan.problems)
        cancelled = now.failures_by_code.get("cancelled", 0)
        left = self._plan.rows - now.processed + cancelled
        code = self._exit_code(now, bad)
        if self._job.as_json:
            _print_json(
                {
                    "event": "done",
                    "exit_code": int(code),
                    "succeeded": now.succeeded,
                    "failed": now.failed - cancelled + bad,
                    "not_done": left,
                    "retries": now.retries_by_code,
                    "failures": now.failures_by_code,
                    "input_tokens": now.input_tokens,
                    "output_tokens": now.output_tokens,
                    "seconds": round(now.elapsed_seconds, 3),
                    "output": self._job.output,
                }
            )
        if self._job.quiet:
            return code
        verb = "Stopped after" if self._signal or self._stop_code else "Done in"
        say(f"{verb} {now.elapsed_seconds:.1f} s  {self._job.model}")
        if self._stop_reason:
            say(f"\nerror: {safe(self._stop_reason)}")
        say("\n" + "\n".join(summary_lines(now, not_done=left, cancelled=cancelled)) + "\n")
        if self._job.output != "-":
            say(f"  results   {self._job.output} ({done:,} rows)")
        if self._writers.failed.rows:
            say(f"  failed    {self._job.failed} ({self._writers.failed.rows:,} rows)")
            say(f"  next      batch-llm run {self._job.failed} … runs just those again")
        return code

    def _exit_code(self, now: Statistics, bad: int) -> ExitCode:
        if self._signal is not None:
            return ExitCode.TERMINATED if self._signal == signal.SIGTERM else ExitCode.INTERRUPTED
        if self._stop_code is not None:
            return self._stop_code
        return ExitCode.SOME_FAILED if now.failed or bad else ExitCode.OK


def say(text: str) -> None:
    """Talk to people: on standard error."""
    print(text, file=sys.stderr, flush=True)


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps({"schema": 1} | record), flush=True)


def _as_json(now: Statistics) -> str:
    import msgspec

    return msgspec.json.encode(now).decode()


def default_paths(source: str) -> tuple[str, str]:
    """Return where results and failed rows go when nobody says."""
    if source == "-":
        return "results.jsonl", "failed.jsonl"
    path = Path(source)
    suffix = path.suffix if path.suffix.lower() in {".csv", ".tsv"} else ".jsonl"
    return f"{path.stem}.results.jsonl", f"{path.stem}.failed{suffix}"


def check_paths(source: str, outputs: Iterable[str]) -> None:
    """Refuse to write over the input, or twice into one file.

    Raises:
        InputError: Two of the paths are the same file.
    """
    seen = {Path(source).resolve()} if source != "-" else set()
    for path in outputs:
        if path == "-":
            continue
        if Path(path).resolve() in seen:
            raise InputError(f"{path} is used twice: input, --output and --failed must differ")
        seen.add(Path(path).resolve())
        if not Path(path).resolve().parent.is_dir():
            raise InputError(f"the folder of {path} does not exist")
