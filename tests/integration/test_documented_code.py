"""README and docs: Python in them runs, commands in them are commands, flags in them are flags."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from batch_llm.cli.app import app
from batch_llm.cli.flags import SECOND_NAMES
from command import ENVIRON, rows, run_command

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What the pages take for given: names of the reader's own, and imports that were shown before.
GIVEN = """
import asyncio, contextlib
import pandas
import batch_llm as bl
from batch_llm import *
from batch_llm.runs.plot import Plot
from pydantic import BaseModel
from pydantic_ai import Agent
from typing import Literal

rows = [{"id": str(n), "text": f"Text {n}", "prompt": f"Hi {n}"} for n in range(3)]
frame = pandas.DataFrame(rows)
items = [LLMWorkItem(f"i{n}", request=Request.of("sim:fast", f"Hi {n}")) for n in range(3)]
of_one_model = [LLMWorkItem(f"a{n}", request=Request.of("sim:fast", f"Hi {n}")) for n in range(3)]
of_the_other = [LLMWorkItem(f"b{n}", request=Request.of("sim:slow", f"Hi {n}")) for n in range(3)]
processor = ParallelBatchProcessor()
my_agent = Agent(bl.agents.model("openai:gpt-6-luna", api_key="any"))

def endless_source():
    yield from ("a", "b")

async def save(result):
    assert result.success

async def main():
"""


PRICES = 'Prices({"sim:fast": Price(input=1, output=1)})'


def blocks(page, *kinds):
    text = page.read_text("utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: one.start()].count("\n") + 1, one[2]) for one in found if one[1] in kinds]


def named(page, line):
    return f"{page.name}:{line}"


PYTHON = [
    pytest.param(code, id=named(page, line))
    for page in PAGES
    for line, code in blocks(page, "python")
]
COMMANDS = [
    pytest.param(command, id=named(page, line))
    for page in PAGES
    for line, text in blocks(page, "sh", "bash", "")
    for command in re.findall(
        r"^(?:\$ |uv run )?(batch-llm .*)$", text.replace("\\\n", " "), re.MULTILINE
    )
]
SPANS = [
    pytest.param(span, id=f"{page.name} {span[:50]}")
    for page in PAGES
    for span in re.findall(r"`(batch-llm [^`]+)`", page.read_text("utf-8").replace("\n", " "))
]


def in_simulation(code):
    """The code, asking the simulator; and in a loop's coroutine, where it awaits outside of one."""
    code = code.replace("model=...", 'model="sim:fast"')
    code = code.replace("max_cost_usd=20", f"max_cost_usd=20, prices={PRICES}")
    if "run.resume(" in code:  # whose rows are in a file
        code = f'frame.to_csv("rows.csv")\nrows = "rows.csv"\n{code}'
    code = re.sub(r'(model=|open_model\()"openai:[^"]+"(, keys=\[.*?\])?', r'\1"sim:fast"', code)
    if "asyncio.run(" in code or ("await" not in code and "async" not in code):
        given, body = GIVEN.removesuffix("async def main():\n"), code
        return given + body
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    return f"{GIVEN}{lines}\nasyncio.run(main())\n"


@pytest.mark.parametrize("code", PYTHON)
def test_python_in_the_pages_runs(tmp_path, code):
    (tmp_path / "run.py").write_text(in_simulation(code))
    env = ENVIRON | {"OPENAI_API_KEY": "any", "BATCH_LLM_LIMITS_FILE": ""}

    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [*COMMANDS, *SPANS])
def test_commands_in_the_pages_are_commands(command):
    words = shlex.split(command.replace("…", ""), comments=True)[1:]
    words = [word for word in words if word != "--help"]
    if words == ["COMMAND"]:
        return
    if len(words) == 1 and words[0] in app:  # a command's name, and no more
        return

    # It raises for what is no command and no flag.
    app.parse_args(words, exit_on_error=False, print_error=False)


def flags_of(command):
    found = {"--help", "--version"}
    for argument in command.assemble_argument_collection():
        found |= {name for name in argument.names if name.startswith("-")}
    return found


def test_flags_in_the_pages_are_flags():
    known = {f"--{name.replace('_', '-')}" for name in SECOND_NAMES}
    for script in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', script.read_text("utf-8")))
    commands = [app[name] for name in app if not name.startswith("-")]
    commands += [app["cache"][name] for name in app["cache"] if not name.startswith("-")]
    for command in commands:
        if command.default_command is not None:
            known |= flags_of(command)
    told = {
        (page.name, flag)
        for page in PAGES
        for span in re.findall(r"`[^`]+`|```.*?```", page.read_text("utf-8"), re.DOTALL)
        if not re.search(r"\b(uv|vllm|pytest|llama-server)\b", span)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)
    }

    assert {(page, flag) for page, flag in told if flag not in known} == set()


def test_the_commands_of_the_readme_run(tmp_path):
    (tmp_path / "reviews.csv").write_text(
        "id,text\n" + "".join(f"r{n},Text {n}\n" for n in range(40))
    )
    (tmp_path / "prices.toml").write_text('["sim:fast"]\ninput = 1\noutput = 1\n')
    commands = [
        shlex.split(command.values[0].replace("openai:gpt-6-luna", "sim:fast"), comments=True)
        for command in COMMANDS
        if command.id.startswith("README") and "reviews.csv" in command.values[0]
    ]
    assert [words[1] for words in commands] == ["check", "plan", "run"]

    for words in commands:
        done = run_command(tmp_path, *words[1:], "--prices", "prices.toml")
        assert done.returncode == 0, done.stderr

    assert "20 reused, 20 to do" in done.stderr  # the pilot's
    assert len(rows(tmp_path / "results.jsonl")) == 40


def test_python_in_the_pages_is_python():
    for code in PYTHON:
        ast.parse(code.values[0].replace("await ", ""), mode="exec")
