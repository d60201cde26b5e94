from __future__ import annotations

import shlex

import pytest

from batch_llm.cli.flags import Flags, command_from
from batch_llm.cli.next_command import next_command


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(source="a.csv", **flags):
        (tmp_path / source).write_text("text\nhi\n")
        return command_from(source, Flags(**flags))

    return make


def test_with_a_ledger_the_run_goes_on(command):
    assert next_command(command(), "csv", ["a.csv"]) == "batch-llm retry a.results.jsonl"


@pytest.mark.parametrize(
    "words",
    [
        ["a.csv", "-o", "x.jsonl", "--failed=f.csv", "--no-store", "-c", "9"],
        ["--overwrite", "a.csv", "-ox.jsonl", "--limit", "5", "--no-store", "-c", "9"],
    ],
)
def test_without_one_the_failed_rows_are_the_input_and_no_file_is_written_twice(command, words):
    built = command(no_store=True, output="x.jsonl", failed="f.csv")
    told = shlex.split(next_command(built, "csv", words))

    assert told[:2] == ["batch-llm", "run"]
    assert "f.csv" in told
    assert {"a.csv", "x.jsonl", "-ox.jsonl", "--overwrite", "--limit", "5"}.isdisjoint(told)
    assert told[told.index("-c") + 1] == "9"
    outputs = told[told.index("-o") + 1], told[told.index("--failed") + 1]
    assert len({*outputs, "f.csv", "x.jsonl"}) == 4


def test_a_format_that_was_given_is_that_of_the_failed_rows(command):
    built = command("a.txt", no_store=True, format="txt")
    told = shlex.split(next_command(built, "txt", ["a.txt", "--format", "txt"]))

    assert told.count("--format") == 1
    assert told[told.index("--format") + 1] == "prompt"
