"""The command's flags and the arguments of ``run``: the table in ``docs/python.md``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from batch_llm import Limits, ProcessorConfig, run
from batch_llm.cli.app import app
from batch_llm.cli.flags import Flags, command_from
from batch_llm.runs.brief import Brief
from batch_llm.runs.options import RunOptions, brief_from

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
#: A flag is called as the argument, but for its unit, and but for these.
OTHER_NAMES = {
    "--choices": "schema",
    "--set": "settings",
    "--rpm": "limits",
    "--tpm": "limits",
    "--itpm": "limits",
    "--otpm": "limits",
    "--rpd": "limits",
    "--fallback": "fallbacks",  # may be repeated
    "--no-dedupe": "dedupe",
    "--no-store": "store",
}
UNITS = ("", "_seconds", "_usd", "_share")
#: Each flag, and the arguments that say the same.
SAME = [
    (["--prompt", "{{ text }}?"], {"prompt": "{{ text }}?"}),
    (["--system", "Be brief"], {"system": "Be brief"}),
    (["--image", "picture"], {"image": "picture"}),
    (["--schema", "shape.json"], {"schema": {"type": "object"}}),
    (["--choices", "yes,no"], {"schema": ["yes", "no"]}),
    (["--set", "max_tokens=5"], {"settings": {"max_tokens": 5}}),
    (["--base-url", "http://h/v1"], {"base_url": "http://h/v1"}),
    (["--keys", "A,B"], {"keys": ["A", "B"]}),
    (["--format", "csv"], {"format": "csv"}),
    (["--columns", "a,b"], {"columns": ["a", "b"]}),
    (["--id-column", "a"], {"id_column": "a"}),
    (["--limit", "1k"], {"limit": 1000}),
    (["--bad-rows", "skip"], {"bad_rows": "skip"}),
    (["--concurrency", "7"], {"concurrency": 7}),
    (["--concurrency", "knee"], {"concurrency": "knee"}),
    (["--ignore-slots"], {"ignore_slots": True}),
    (["--rpm", "5"], {"limits": Limits(requests_per_minute=5)}),
    (["--tpm", "5k"], {"limits": Limits(tokens_per_minute=5000)}),
    (["--itpm", "5"], {"limits": Limits(input_tokens_per_minute=5)}),
    (["--otpm", "5"], {"limits": Limits(output_tokens_per_minute=5)}),
    (["--rpd", "5"], {"limits": Limits(requests_per_day=5)}),
    (["--longest-pause", "10m"], {"longest_pause_seconds": 600}),
    (["--forget-limits"], {"forget_limits": True}),
    (["--timeout", "2m"], {"timeout_seconds": 120}),
    (["--timeout", "3"], {"timeout_seconds": 3}),
    (["--retries", "0"], {"retries": 0}),
    (["--fallback", "a:b,c:d"], {"fallbacks": ["a:b", "c:d"]}),
    (["--fallback-on", "quota,timeout"], {"fallback_on": ["quota", "timeout"]}),
    (["--max-tokens-cap", "8k"], {"max_tokens_cap": 8000}),
    (["--hedge"], {"hedge": True}),
    (["--max-cost", "0.50"], {"max_cost_usd": 0.5}),
    (["--max-tokens-total", "50M"], {"max_tokens_total": 50_000_000}),
    (["--deadline", "1h"], {"deadline_seconds": 3600}),
    (["--max-failed", "50"], {"max_failed": 50}),
    (["--max-failed", "1%"], {"max_failed_share": 0.01}),
    (["--fail-over", "1%"], {"max_failed_share": 0.01}),
    (["--plot", "run.svg"], {"plot": "run.svg"}),
    (["--cache", "c"], {"cache": "c"}),
    (["--cache", "c", "--cache-expires", "7d"], {"cache": "c", "cache_expires_seconds": 604_800}),
    (["--no-dedupe"], {"dedupe": False}),
    (["--name", "n"], {"name": "n"}),
    (["--store", "x.sqlite"], {"store": "x.sqlite"}),
    (["--no-store"], {}),
]
#: What is asked, and who is: no settings of a processor.
NOT_OPTIONS = {"model", "agent"}
#: Looked at elsewhere, or not to be told from no flag by the brief alone.
SEEN_ELSEWHERE = {"--agent", "--count-tokens", "--model", "--prices", "--overwrite"}


def rows_of_the_table():
    section = PAGE.read_text("utf-8").split("## Arguments\n")[1]
    lines = [line for line in section.splitlines() if line.startswith("| `--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def table():
    """One entry for each flag and argument: flag, argument, default, the processor's."""
    return [
        (flag, argument.strip("`"), default, processor)
        for flags, argument, _, default, processor in rows_of_the_table()
        for flag in re.findall(r"`(--[a-z-]+)`", flags)
    ]


def flag_of(field):
    return f"--{field.name.replace('_', '-')}"


FLAGS = {flag_of(field) for field in dataclasses.fields(Flags)}
ARGUMENTS = (set(inspect.signature(run).parameters) | set(RunOptions.__annotations__)) - {
    "rows",
    "options",
}
BOTH = [row for row in table() if row[1] != "—"]


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Understand a command line, and arguments, as what they ask for."""
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("text\nx\n", "utf-8")
    Path("shape.json").write_text('{"type": "object"}', "utf-8")

    def understood(brief):
        asked = {one.name: getattr(brief, one.name) for one in dataclasses.fields(Brief)}
        return asked | {"facts": None, "prices": None}

    def flags(*argv):
        bound = app.parse_args(["run", "in.csv", "--model", "sim:fast", *argv])[1]
        return understood(command_from("in.csv", bound.arguments["flags"]))

    def arguments(schema=None, **options):
        return understood(brief_from("in.csv", "sim:fast", schema, options))

    return flags, arguments


def test_each_flag_has_its_row():
    assert {flag for flag, *_ in table()} == FLAGS


def test_each_argument_has_its_row():
    assert {argument for _, argument, *_ in BOTH} == ARGUMENTS


@pytest.mark.parametrize(("flag", "argument"), [row[:2] for row in BOTH])
def test_an_argument_is_called_as_its_flag(flag, argument):
    name = flag.removeprefix("--").replace("-", "_")

    assert argument in {name + unit for unit in UNITS} or OTHER_NAMES[flag] == argument


def test_each_flag_is_compared_with_its_argument():
    compared = {flag for argv, _ in SAME for flag in argv if flag.startswith("--")}

    assert compared - {"--fail-over"} == {flag for flag, *_ in BOTH} - SEEN_ELSEWHERE


@pytest.mark.parametrize(("argv", "options"), SAME, ids=lambda value: str(value)[:40])
def test_a_flag_and_its_argument_ask_the_same(read, argv, options):
    flags, arguments = read
    kept = {} if {"--name", "--store"} & set(argv) else {"ledger": None}

    assert flags(*argv) | kept == arguments(**options) | kept


def test_the_command_and_run_have_the_same_defaults(read):
    flags, arguments = read

    assert flags("--no-store") == arguments()


@pytest.mark.parametrize(
    ("argument", "default"), [row[1:3] for row in BOTH if row[1] not in NOT_OPTIONS]
)
def test_the_default_in_the_table_is_what_no_argument_means(read, argument, default):
    _, arguments = read
    told = ast.literal_eval(default.split(";")[0].strip("`"))

    assert arguments(**{argument: told}) == arguments()


@pytest.mark.parametrize(
    ("argument", "default", "told"),
    [row[1:] for row in BOTH if row[3] and row[1] not in {*NOT_OPTIONS, "prices"}],
)
def test_the_processors_setting_has_that_default_or_the_one_that_is_told(argument, default, told):
    path, *_ = re.findall(r"`([a-z_.]+)`", told)
    found = ProcessorConfig()
    for name in path.split("."):
        found = getattr(found, name)
    _, colon, other = told.partition(": ")

    assert found == ast.literal_eval((other if colon else default).strip("`"))
    assert argument == path.rpartition(".")[2] or path in {"timeout_per_item", "retry.max_attempts"}
