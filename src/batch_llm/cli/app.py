"""The commands. The flags of those that run rows are in ``flags``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from importlib import metadata, util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.config import Env, Toml

from batch_llm.cli.exit_codes import ExitCode
from batch_llm.cli.flags import SECOND_NAMES, Flags, Pace, command_from

app = App(
    name="batch-llm",
    help="Send many prompts through a provider: one result for each row.",
    version=metadata.version("batch-llm"),
    result_action="return_value",
    default_parameter=Parameter(negative=(), show_default=lambda value: value or None),
    suppress_keyboard_interrupt=False,  # `main` says a word about it
)
#: Where the flags of ``run`` and ``check`` come from when the command line does not say.
_SOURCES = [
    Env("BATCH_LLM_", command=False, show=False),
    Toml("batch-llm.toml", use_commands_as_keys=False),
    Toml("pyproject.toml", root_keys=["tool", "batch-llm"], use_commands_as_keys=False),
]
_EPILOGUE = """\
Every flag can also be set in the environment (`BATCH_LLM_CONCURRENCY=200`), in `batch-llm.toml` or
in `[tool.batch-llm]` of `pyproject.toml` (`concurrency = 200`). Keys are read from the environment
and `./.env`.

Exit codes: 0 every row succeeded, 1 some failed, 2 refused and nothing was sent, 3 stopped by
`--max-cost`, `--max-tokens-total`, `--deadline` or `--max-failed`, 4 the provider refuses
everything, 70 a bug, 74 a result could not be written, 129, 130 and 143 stopped by a closed
terminal, Ctrl-C and SIGTERM."""


Input = Annotated[str, Parameter(name="INPUT", allow_leading_hyphen=True)]
FlagsOfRun = Annotated[Flags | None, Parameter(name="*")]
FlagsOfPace = Annotated[Pace | None, Parameter(name="*")]


@app.command(config=_SOURCES, help_epilogue=_EPILOGUE)
def run(input: Input, /, *, flags: FlagsOfRun = None) -> int:  # noqa: A002
    """Send every row of INPUT (a file, or - for standard input) and write the results.

    The same command again continues: finished rows are not sent a second time.
    """
    return _run(input, flags or Flags())


def _run(source: str, flags: Flags) -> int:
    from batch_llm.cli.command import check_paths
    from batch_llm.cli.execution import run_command
    from batch_llm.exceptions import InputError

    if flags.verbose:
        _log_attempts()
    command = command_from(source, flags)
    if command.as_json and command.output == "-":
        raise InputError("--json and --output - both want standard output; choose one")
    check_paths(source, [command.output, command.failed], command.ledger)
    return run_command(command)


def _log_attempts() -> None:
    import logging

    from batch_llm.core.text import safe

    class Plain(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return safe(record.getMessage())  # providers' words are in it

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Plain())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("batch_llm.calls").setLevel(logging.DEBUG)


@app.command(config=_SOURCES, help_epilogue=_EPILOGUE)
def check(input: Input, /, *, flags: FlagsOfRun = None) -> int:  # noqa: A002
    """Do everything that `run` does before it sends: rows, ids, prompt, model, key, files."""
    from batch_llm.cli.planning import run_check

    return run_check(command_from(input, flags or Flags()))


@app.command(config=_SOURCES, help_epilogue=_EPILOGUE)
def plan(input: Input, /, *, pilot: str | None = None, flags: FlagsOfRun = None) -> int:  # noqa: A002
    """Say what INPUT will take before it is sent: tokens, cost, time, live and as batch jobs.

    Args:
        input: The file.
        pilot: Really send so many rows, spread over the file: their results are kept for the run,
            and the estimate goes by what they took.
        flags: Those of `run`.
    """
    from batch_llm.cli import values
    from batch_llm.cli.planning import run_planning

    count = None if pilot is None else values.read_count("--pilot", pilot, at_least=1)
    return run_planning(command_from(input, flags or Flags()), count)


cache_app = App(name="cache", help="Look into a cache of answers, and clear it.")
app.command(cache_app)
Folder = Annotated[str, Parameter(name="FOLDER")]


@cache_app.command(name="ls")
def list_cache(folder: Folder, /, *, json: bool = False) -> int:
    """Tell what the cache in FOLDER holds, model by model."""
    from batch_llm.cli.caches import list_cache

    return list_cache(folder, as_json=json)


@cache_app.command(name="clear")
def clear_cache(
    folder: Folder, /, *, model: str | None = None, older_than: str | None = None
) -> int:
    """Remove answers from the cache in FOLDER; all, where nothing narrows that down.

    Parameters
    ----------
    folder
        As given with `--cache`.
    model
        Only this model's, as `cache ls` shows it.
    older_than
        Only what was kept longer ago: 12h, 30d
    """
    from batch_llm.cli import values
    from batch_llm.cli.caches import clear_cache

    age = None if older_than is None else values.read_seconds("--older-than", older_than)
    return clear_cache(folder, model=model, older_than_seconds=age)


Run = Annotated[str | None, Parameter(name="RUN")]


@app.command
def resume(run: Run = None, /, *, flags: FlagsOfPace = None) -> int:
    """Continue an unfinished run: RUN as `ls` calls it, or the one used last.

    What it asks stays as it was. The flags here replace those that it was last run with.
    """
    from batch_llm.runs.ledgers import find_ledger

    return _run(*_command_of(find_ledger(run), flags or Pace()))


@app.command
def retry(
    run: Run = None,
    /,
    *,
    only: str = "failed",
    set: Annotated[list[str] | None, Parameter(name=["--set", "-s"])] = None,  # noqa: A002
    model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None,
    flags: FlagsOfPace = None,
) -> int:
    """Run failed rows again, and whatever else is left to do.

    Parameters
    ----------
    run
        As `ls` calls it, or the one used last.
    only
        Failures of these kinds: timeout,truncated; failed: all of them
    set
        A setting for these rows alone, instead of the run's: max_tokens=2000 (repeat)
    model
        A model for these rows alone, instead of the run's
    flags
        Replace those that the run was last run with.
    """
    from batch_llm.cli.progress import say
    from batch_llm.cli.values import read_settings
    from batch_llm.exceptions import ConfigError
    from batch_llm.runs.ledgers import find_ledger, name_of, retry_failed
    from batch_llm.runs.pools import check_model
    from batch_llm.stores.sqlite import SqliteLedger
    from batch_llm.strategies.errors import ErrorCode

    path = find_ledger(run)
    codes = None if only == "failed" else {code.strip() for code in only.split(",")}
    if codes is not None and not codes <= frozenset(ErrorCode):
        raise ConfigError("--only", only, f"failed, or some of {', '.join(ErrorCode)}")
    source, given = _command_of(path, flags or Pace())
    if given.agent is not None and (set or model is not None):
        flag = "--set" if set else "--model"
        raise ConfigError(flag, flag, f"left out: the agent {given.agent} answers this run's rows")
    if model is not None:  # refused before anything is noted
        keys = given.keys.split(",") if given.keys else ()
        check_model(model, given.model or "sim:fast", given.base_url, keys)
    with SqliteLedger(path) as ledger:
        count = retry_failed(ledger, codes, settings=read_settings(set or []), model=model)
    if not given.quiet:
        say(f"{name_of(path)}: {count:,} failed rows are run again")
    return _run(source, given)


def _command_of(path: Path, pace: Pace | None = None) -> tuple[str, Flags]:
    """Return the input and the flags that a run was last made with, and those given now."""
    from batch_llm.exceptions import InputError
    from batch_llm.runs.ledgers import name_of
    from batch_llm.stores.sqlite import SqliteLedger

    with SqliteLedger(path, read_only=True) as ledger:
        kept = dict(ledger.manifest().get("flags") or {})
    given = {
        name: value for name, value in vars(pace or Pace()).items() if value not in {None, False}
    }
    source, has_hidden_url = kept.pop("input", None), kept.pop("has_hidden_url", False)
    if source is None or source == "-" or (has_hidden_url and "base_url" not in given):
        what = (
            "the address of its server was not kept" if has_hidden_url else "its rows are not here"
        )
        raise InputError(f"{name_of(path)}: {what}; give the same command again to continue")
    known = {field.name for field in dataclasses.fields(Flags)}
    kept = {SECOND_NAMES.get(name, name): value for name, value in kept.items()}
    kept = {name: value for name, value in kept.items() if name in known}
    return source, Flags(**kept | given | {"store": str(path)})


@app.command
def ls(*, json: bool = False) -> int:
    """List the runs of this folder, the one used last first."""
    from batch_llm.cli.inspection import list_runs

    return list_runs(as_json=json)


@app.command
def show(
    run: Run = None,
    /,
    *,
    failed: bool = False,
    id: str | None = None,  # noqa: A002
    settings: bool = False,
) -> int:
    """Show a run: what is done, what failed and why, and its tokens.

    Parameters
    ----------
    run
        As `ls` calls it, or the one used last.
    failed
        List the failed rows.
    id
        Show one row with all its attempts.
    settings
        Show what the run was made with.
    """
    from batch_llm.cli.inspection import show_run

    return show_run(run, failed=failed, item_id=id, settings=settings)


@app.command
def export(
    run: Run = None,
    /,
    *,
    output: Annotated[str, Parameter(name=["--output", "-o"])],
    overwrite: bool = False,
) -> int:
    """Write a run's finished and failed rows, as its ledger has them, by suffix.

    .jsonl, .csv, .tsv or .parquet.
    """
    from batch_llm.cli.inspection import export_run

    return export_run(run, output, overwrite=overwrite)


@app.command
def verify(run: Run = None, /) -> int:
    """Check a run: its ledger, its ids against the input, its output file. 0: all is well."""
    from batch_llm.cli.progress import say
    from batch_llm.cli.verification import verify_run
    from batch_llm.exceptions import BatchLLMError
    from batch_llm.runs.ledgers import find_ledger

    path = find_ledger(run)
    try:
        command = command_from(*_command_of(path))
    except BatchLLMError as error:
        say(f"its input and output are not compared: {error}")
        command = None
    return verify_run(path, command)


@app.command
def demo(*, prompts: int = 1000, concurrency: str = "auto") -> int:
    """Run sample prompts through the simulator with its faults on. No key, no network."""
    from batch_llm.cli import values
    from batch_llm.cli.command import Command
    from batch_llm.cli.execution import run_command
    from batch_llm.cli.progress import say
    from batch_llm.exceptions import ConfigError

    if prompts < 1:
        raise ConfigError("--prompts", prompts, ">= 1")
    say(f"{prompts:,} sample prompts → simulator (429s, errors and bad JSON switched on)")
    say("Like: batch-llm run PROMPTS -m sim:flaky --timeout 5s --overwrite \\")
    say("        -o demo.results.jsonl\n")
    with TemporaryDirectory(prefix="batch-llm-") as folder:
        source = Path(folder, "demo.jsonl")
        cities = ("Lima", "Oslo", "Accra", "Hanoi", "Quito", "Riga", "Suva", "Tunis")
        with source.open("w", encoding="utf-8") as file:
            for number in range(1, prompts + 1):
                city = cities[number % len(cities)]
                row = {"id": f"demo-{number}", "prompt": f"Fact {number} about {city}?"}
                file.write(f"{_dumps(row)}\n")
        return run_command(
            Command(
                input=str(source),
                model="sim:flaky",
                output="demo.results.jsonl",
                failed="demo.failed.jsonl",
                overwrite=True,
                concurrency=values.read_concurrency(concurrency),
                timeout_seconds=5.0,
            )
        )


@app.command
def sim(profile: str = "fast", *, port: int = 0) -> int:
    """Serve the provider simulator on this machine until Ctrl-C.

    One port speaks the formats of OpenAI (chat completions and responses), Anthropic, Gemini,
    Mistral and Groq, with their errors and limits. It answers any key. The base URLs for the SDKs
    are printed; docs/simulator.md has all options, and what can be asked for in a prompt.

    PROFILE is the name of a profile (fast, slow, flaky) and options:
    fast?rpm=500&itpm=100k&p429=0.05
    """
    from batch_llm.simulator.addresses import ADDRESSES, sdk_url
    from batch_llm.simulator.server import serve

    def announce(url: str) -> None:
        print(url, flush=True)
        lines = ["", "Base URLs for the SDKs (any key will do):"]
        for provider, address in ADDRESSES.items():
            variable = address.variables[0] or "server_url="
            lines.append(f"  {provider:<10} {variable:<23} {sdk_url(url, provider)}")
        lines += [
            "",
            f"Try it:  export OPENAI_BASE_URL={url} OPENAI_API_KEY=anything",
            f"         curl {url.removesuffix('/v1')}/sim/stats",
            "Stop it: Ctrl-C",
        ]
        print("\n".join(lines), file=sys.stderr, flush=True)

    try:
        serve(profile, port=port, on_started=announce)
    except OSError as error:
        from batch_llm.exceptions import InputError

        raise InputError(error.strerror or str(error)) from error
    return ExitCode.OK


@app.command
def models(*, json: bool = False) -> int:
    """List the providers, their keys, and the simulator's profiles."""
    from batch_llm.providers.table import PROVIDERS, SIMULATED
    from batch_llm.simulator import PROFILES

    rows: list[dict[str, Any]] = [
        {
            "name": f"{provider.name}:MODEL",
            "base_url": provider.base_url,
            "key_variable": None if provider.is_local else provider.key_variable,
            "has_key": provider.is_local or bool(provider.find_key(os.environ)),
        }
        for provider in PROVIDERS.values()
    ]
    rows += [{"name": f"sim:{name}", "has_key": True} for name in PROFILES]
    rows += [{"name": f"{prefix}:fast", "has_key": True} for prefix in SIMULATED if "-" in prefix]
    if json:
        print(_dumps({"schema": 1, "models": rows}))
        return ExitCode.OK
    for row in rows:
        key = row.get("key_variable")
        state = f"{key} is {'set' if row['has_key'] else 'not set'}" if key else "needs no key"
        print(f"{row['name']:<22} {state}")
    print("\nAny OpenAI-compatible server: openai-chat:MODEL --base-url http://host/v1")
    return ExitCode.OK


@app.command
def doctor() -> int:
    """Look at this machine: versions, keys (never their values), limits, the folder."""
    import platform

    from batch_llm.providers.table import PROVIDERS
    from batch_llm.providers.transport import raise_file_limit

    is_writable = os.access(".", os.W_OK)
    possible = raise_file_limit(5000)
    print(f"batch-llm   {metadata.version('batch-llm')}")
    print(f"python      {platform.python_version()} on {platform.system()}")
    for package in ("aiohttp", "msgspec", "uvicorn", "pydantic", "pydantic_ai"):
        found = util.find_spec(package) is not None
        name = "pydantic-ai-slim" if package == "pydantic_ai" else package
        print(f"{package:<11} {metadata.version(name) if found else 'not installed'}")
    keys = {
        one.key_variable: bool(one.find_key(os.environ))
        for one in PROVIDERS.values()
        if not one.is_local
    }
    for variable, is_set in keys.items():
        print(f"key         {variable} is {'set' if is_set else 'not set'}")
    print(f"connections {'5000 or more' if possible is None else possible}")
    print(f"this folder {'writable' if is_writable else 'NOT writable'}")
    return ExitCode.OK if is_writable else ExitCode.SOME_FAILED


def _dumps(value: Any) -> str:
    return json.dumps(value)
