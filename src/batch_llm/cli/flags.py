"""The flags of the commands that run rows, and the command that they make."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm.cli.command import Command

_T = TypeVar("_T")
#: Flags of one kind stand together in the help.
Asking = Annotated[_T, Parameter(group=Group.create_ordered("What is asked, and whom"))]
Rows = Annotated[_T, Parameter(group=Group.create_ordered("The rows"))]
Results = Annotated[_T, Parameter(group=Group.create_ordered("The results"))]
Reuse = Annotated[_T, Parameter(group=Group.create_ordered("Answers that are there already"))]
Pacing = Annotated[_T, Parameter(group=Group.create_ordered("How fast"))]
Failing = Annotated[_T, Parameter(group=Group.create_ordered("After failures"))]
Capping = Annotated[_T, Parameter(group=Group.create_ordered("Cost and caps"))]
Showing = Annotated[_T, Parameter(group=Group.create_ordered("What is shown"))]

#: Second names of flags, which work wherever the first ones do.
SECOND_NAMES = {"fail_over": "max_failed"}


@dataclasses.dataclass(kw_only=True)
class Pace:
    """Flags that may be others each time a run goes on: how fast, how far, and what is shown."""

    base_url: Asking[str | None] = None
    "another address, as the provider's SDK takes it (OpenAI's kind: up to /v1); several: URL,URL"
    cache: Reuse[str | None] = None
    "folder with answers of earlier runs: what was asked before is not asked again (docs/cache.md)"
    cache_expires: Reuse[str | None] = None
    "ask again what was answered longer ago: 12h, 7d; default: never"
    no_dedupe: Reuse[bool] = False
    "send rows that ask the same each by itself; else one that is in flight answers the others"
    concurrency: Pacing[Annotated[str | None, Parameter(name=["--concurrency", "-c"])]] = None
    "calls in flight at the most; default: as many as limits or a local server allow; or knee"
    ignore_slots: Pacing[bool] = False
    "do not ask a local server (vLLM, llama.cpp) how many calls it works on at once"
    rpm: Pacing[str | None] = None
    "requests per minute that are never passed; where no limit is given, all are learned"
    tpm: Pacing[str | None] = None
    "tokens per minute, input and output together"
    itpm: Pacing[str | None] = None
    "input tokens per minute"
    otpm: Pacing[str | None] = None
    "output tokens per minute"
    rpd: Pacing[str | None] = None
    "requests per day"
    count_tokens: Pacing[str | None] = None
    "count tokens for --tpm and --itpm by tiktoken: o200k_base, gpt-4o; default: from characters"
    longest_pause: Pacing[str | None] = None
    "rows whose limit opens again later than this fail: 10m; default: wait, be it for tomorrow"
    keys: Asking[str | None] = None
    "variables with keys for the model, used side by side: OPENAI_API_KEY,SECOND_KEY"
    forget_limits: Pacing[bool] = False
    "forget what earlier runs have learned of the model's limits, and learn anew"
    timeout: Pacing[str | None] = None
    "for one call; default: 120s"
    hedge: Pacing[bool] = False
    "at the end of the run, send slow rows a second time, and take the first answer"
    retries: Failing[str | None] = None
    "further attempts of a row; refusals by a rate limit do not count; default: 5"
    fallback: Failing[Annotated[list[str] | None, Parameter(name="--fallback")]] = None
    "models that are asked in turn where a row fails at its own: MODEL,MODEL (or repeat)"
    fallback_on: Failing[str | None] = None
    "failures after which they are asked: bad_output,quota; default: the usual ones, docs/errors.md"
    max_tokens_cap: Failing[str | None] = None
    "what a max_tokens that cut an answer off is raised to, once: 8k; default: twice; 0: not at all"
    max_cost: Capping[str | None] = None
    "stop before the run costs more US dollars than this, failed attempts included"
    max_tokens_total: Capping[str | None] = None
    "the same in tokens, input and output together: 50M"
    deadline: Capping[str | None] = None
    "send nothing any more after this: 6h, or 23:30, or 2026-11-30T08:00"
    max_failed: Capping[Annotated[str | None, Parameter(name=["--max-failed", "--fail-over"])]] = (
        None
    )
    "stop when more rows than this have failed: 50, or 1% of those that are finished"
    prices: Capping[str | None] = None
    "TOML file with prices of your own, in USD per million tokens: docs/money.md"
    progress: Showing[Literal["auto", "rich", "plain", "json", "none"] | None] = None
    "a display in terminals, else a line every 10 s; json: records on standard error"
    json: Showing[bool] = False
    "print machine-readable records to standard output"
    quiet: Showing[Annotated[bool, Parameter(name=["--quiet", "-q"])]] = False
    "say nothing but errors"
    plot: Showing[str | None] = None
    "draw what was let in, refused and believed of limits, over time, into an SVG file: run.svg"
    verbose: Showing[Annotated[bool, Parameter(name=["--verbose", "-v"])]] = False
    "log each failed attempt"


@dataclasses.dataclass(kw_only=True)
class Ask:
    """Flags that say what is asked of which rows, and where the results go."""

    model: Asking[Annotated[str | None, Parameter(name=["--model", "-m"])]] = None
    "provider:model, such as openai:gpt-6-luna; default: sim:fast, the simulator"
    agent: Asking[str | None] = None
    "who answers the rows: module:variable, agent.py:variable, or a .yaml or .json of pydantic-ai"
    prompt: Asking[str | None] = None
    "template over columns: 'Classify {{ text }}'; @FILE reads it from a file"
    system: Asking[str | None] = None
    "system message, a template too"
    image: Asking[str | None] = None
    "column with a picture for each row: an address, or a path seen from INPUT's folder"
    format: Rows[
        Literal["openai-batch", "chat", "prompt", "rows", "csv", "tsv", "parquet", "txt"] | None
    ] = None
    "default: seen from the name and the first record"
    columns: Rows[str | None] = None
    "names for a CSV or TSV without a header line: label,text"
    id_column: Rows[str | None] = None
    "default: custom_id, id, else row-N"
    limit: Rows[str | None] = None
    "stop after so many rows: 500, 10k"
    schema: Asking[str | None] = None
    "JSON schema file or module:Type for structured answers"
    choices: Asking[str | None] = None
    "a,b,c: the answer is one of them"
    set: Asking[Annotated[list[str], Parameter(name=["--set", "-s"])]] = dataclasses.field(
        default_factory=list
    )
    "a setting, such as temperature=0 (repeat); temperature=0,0.5 is one per attempt"
    bad_rows: Rows[Literal["stop", "fail", "skip"]] = "stop"
    "what to do about records that cannot be used"
    output: Results[
        Annotated[str | None, Parameter(name=["--output", "-o"], allow_leading_hyphen=True)]
    ] = None
    "default: INPUT.results.jsonl; .csv, .tsv and .parquet write tables; - is standard output"
    failed: Results[str | None] = None
    "the failed rows, ready to be run again; default: beside the results"
    order: Results[Literal["done", "input"]] = "done"
    "write rows as they are done, or in the input's order"
    overwrite: Results[bool] = False
    "begin anew: replace output files that exist, and the run's ledger"
    new: Results[bool] = False
    "begin another run beside those that there are, with files of its own"
    name: Results[str | None] = None
    "how the run is called, by `resume` and the like; default: after its output"
    store: Results[str | None] = None
    "the run's ledger; default: .batch-llm/runs/NAME.sqlite; the same command again continues it"
    no_store: Results[bool] = False
    "keep no ledger: a run that is cut off cannot be continued"


@dataclasses.dataclass(kw_only=True)
class Flags(Pace, Ask):
    """The flags of ``run``, ``check`` and ``plan``."""


def command_from(source: str, flags: Flags) -> Command:
    """Understand the flags of a command.

    Args:
        source: The input: a file, or ``-``.
        flags: As they were given.

    Raises:
        ConfigError: One of them cannot be, or not beside another.
        InputError: A file that is named cannot be read.
    """
    from batch_llm.cli import values
    from batch_llm.cli.command import Command, flags_to_keep, ledger_for, paths_for
    from batch_llm.core.prices import Prices
    from batch_llm.core.tokenizers import open_tokenizer
    from batch_llm.runs.plot import checked_plot
    from batch_llm.strategies.policies import fallback_codes

    _check(source, flags)
    output, failed = paths_for(source, flags.output, flags.failed, is_new=flags.new)
    ledger = ledger_for(flags, source, output)
    fallback_on = None if flags.fallback_on is None else tuple(flags.fallback_on.split(","))
    fallback_codes(fallback_on)
    tolerance = _given(values.read_tolerance, "--max-failed", flags.max_failed)
    max_failed, max_failed_share = tolerance or (None, None)
    agent = None
    if flags.agent is not None:
        from batch_llm.runs.answering_agent import load_agent

        agent = load_agent(flags.agent)
    return Command(
        input=source,
        model=flags.model or (agent.model if agent is not None else "sim:fast"),
        agent=agent,
        agent_model=flags.model if agent is not None else None,
        base_url=flags.base_url,
        format=flags.format,
        columns=tuple(flags.columns.split(",")) if flags.columns else None,
        id_column=flags.id_column,
        limit=_given(values.read_count, "--limit", flags.limit, at_least=1),
        prompt=values.read_text("--prompt", flags.prompt),
        system=values.read_text("--system", flags.system),
        image=flags.image,
        settings=values.read_settings(flags.set),
        shape=values.read_shape(flags.schema, flags.choices),
        bad_rows=flags.bad_rows,
        output=output,
        failed=failed,
        order=flags.order,
        overwrite=flags.overwrite,
        concurrency=values.read_concurrency(flags.concurrency or "auto"),
        ignore_slots=flags.ignore_slots,
        limits=_limits(flags),
        longest_pause_seconds=_given(values.read_seconds, "--longest-pause", flags.longest_pause),
        keys=tuple(flags.keys.split(",")) if flags.keys else (),
        forget_limits=flags.forget_limits,
        timeout_seconds=values.read_seconds("--timeout", flags.timeout or "120s"),
        hedge=flags.hedge,
        retries=values.read_count("--retries", flags.retries or "5"),
        fallbacks=tuple(name for given in flags.fallback or () for name in given.split(",")),
        fallback_on=fallback_on,
        max_tokens_cap=_given(values.read_count, "--max-tokens-cap", flags.max_tokens_cap),
        max_cost_usd=_given(values.read_usd, "--max-cost", flags.max_cost),
        max_tokens_total=_given(
            values.read_count, "--max-tokens-total", flags.max_tokens_total, at_least=1
        ),
        deadline_seconds=_given(
            values.read_deadline, "--deadline", flags.deadline, now=datetime.now(UTC).astimezone()
        ),
        max_failed=max_failed,
        max_failed_share=max_failed_share,
        prices=Prices() if flags.prices is None else Prices.from_file(flags.prices),
        progress=flags.progress or "auto",
        as_json=flags.json,
        quiet=flags.quiet,
        cache=flags.cache,
        cache_expires_seconds=_given(values.read_seconds, "--cache-expires", flags.cache_expires),
        dedupe=not flags.no_dedupe,
        count_tokens=None
        if flags.count_tokens is None
        else open_tokenizer(flags.count_tokens, "--count-tokens"),
        plot=_given(checked_plot, "--plot", flags.plot),
        ledger=ledger,
        facts={
            "output": output,
            "failed": failed,
            "flags": flags_to_keep(flags, source, output, failed),
        },
    )


def _check(source: str, flags: Flags) -> None:
    from batch_llm.exceptions import ConfigError, InputError

    if source != "-" and not Path(source).is_file():
        what = "is not a file" if Path(source).exists() else "is not there"
        raise InputError(f"{source} {what}; INPUT is a file of rows, or - for standard input")
    if flags.base_url is not None and flags.model is None:
        raise ConfigError("--model", None, "given with --base-url: openai-chat:NAME")
    if flags.cache_expires is not None and flags.cache is None:
        raise ConfigError("--cache-expires", flags.cache_expires, "given with --cache FOLDER")


def _given(read: Callable[..., _T], flag: str, text: str | None, **how: Any) -> _T | None:
    """Read what a flag says; None where it is not given."""
    return None if text is None else read(flag, text, **how)


def _limits(flags: Pace) -> Any:
    from batch_llm.cli.values import read_limit
    from batch_llm.core.config import Limits

    limits = Limits(
        requests_per_minute=read_limit("--rpm", flags.rpm),
        tokens_per_minute=read_limit("--tpm", flags.tpm),
        input_tokens_per_minute=read_limit("--itpm", flags.itpm),
        output_tokens_per_minute=read_limit("--otpm", flags.otpm),
        requests_per_day=read_limit("--rpd", flags.rpd),
    )
    return None if limits == Limits() else limits
