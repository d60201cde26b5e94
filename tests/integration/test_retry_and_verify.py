"""Retrying rows with other settings, names of runs, Parquet, and what ``verify`` finds."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from decimal import Decimal

import pyarrow.parquet as pq
import pytest

from batch_llm.core.prices import usd
from batch_llm.simulator.server import Simulator
from command import ENVIRON, rows

KEY = {"OPENAI_API_KEY": "any"}


@pytest.fixture
def cli(cli):
    return lambda *arguments, env=None: cli(*arguments, env=KEY | (env or {}))


@pytest.fixture
def questions(tmp_path):
    lines = [json.dumps({"id": f"q{n}", "prompt": f"Question {n}?"}) for n in range(30)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))


def test_rows_are_retried_with_settings_of_their_own_and_the_history_is_kept(
    cli, tmp_path, questions
):
    model = "sim:fast?prefuse=0.4&seed=2"
    first = cli("run", "q.jsonl", "-m", model)
    failed = {row["id"] for row in rows(tmp_path / "q.failed.jsonl")}
    assert first.returncode == 1

    refused = cli("retry", "--model", "nobody:x")
    retried = cli("retry", "--only", "content_filter", "--set", "max_tokens=99", "-m", "sim:fast")
    again = cli("run", "q.jsonl", "-m", model)

    assert refused.returncode == 2
    assert retried.returncode == 0, retried.stderr
    found = rows(tmp_path / "q.results.jsonl")
    assert {row["id"] for row in found if row["model"] == "fast"} == failed
    assert len(found) == 30
    assert "30 reused, 0 to do" in again.stderr
    settings = cli("show", "--settings").stdout
    assert f"{len(failed)} rows (content_filter) with max_tokens=99, model=sim:fast" in settings
    assert "retry 2" not in settings  # the refused one was not noted
    assert cli("verify").returncode == 0


def test_a_key_that_a_retry_needed_is_not_needed_for_ever(cli, tmp_path, questions):
    model = "sim:fast?prefuse=0.4&seed=2"
    cli("run", "q.jsonl", "-m", model)
    with Simulator("fast") as other:
        refused = cli("retry", "-m", "openai-chat:x", env={"OPENAI_API_KEY": ""})
        retried = cli("retry", "-m", "openai-chat:x", env={"OPENAI_BASE_URL": other.base_url})
        sent = other.stats().calls

    again = cli("run", "q.jsonl", "-m", model, env={"OPENAI_API_KEY": ""})

    assert "no key for openai-chat" in refused.stderr
    assert retried.returncode == 0, retried.stderr
    assert 0 < sent < 30
    assert again.returncode == 0, again.stderr
    assert "30 reused, 0 to do" in again.stderr


def test_what_a_retried_row_is_asked_with_outlives_a_kill(cli, tmp_path, questions):
    cli("run", "q.jsonl", "-m", "sim:fast?prefuse=0.4&seed=2")
    failed = {row["id"] for row in rows(tmp_path / "q.failed.jsonl")}
    slow = "sim:fast?latency=3"
    process = subprocess.Popen(
        [sys.executable, "-m", "batch_llm", "retry", "-m", slow, "--progress", "json"],
        cwd=tmp_path, env=ENVIRON, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if '"in_flight":' in line and json.loads(line)["in_flight"]:
            break
    process.kill()
    process.wait()
    process.stderr.close()

    done = cli("resume")

    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "q.results.jsonl")
    assert {row["id"] for row in found if row["model"] == "fast?latency=3"} == failed
    assert len(found) == 30


def test_a_run_has_the_name_that_it_is_given(cli, tmp_path, questions):
    assert cli("run", "q.jsonl", "--name", "nightly", "--limit", "5").returncode == 0

    assert "nightly" in cli("ls").stdout
    assert "5 reused, 0 to do" in cli("resume", "nightly").stderr
    assert (tmp_path / ".batch-llm/runs/nightly.sqlite").is_file()
    assert cli("run", "q.jsonl", "--name", "../x").returncode == 2
    assert "one at a time" in cli("run", "q.jsonl", "--name", "x", "--no-store").stderr


def test_a_new_run_has_files_of_its_own(cli, tmp_path, questions):
    cli("run", "q.jsonl", "--limit", "3")

    new = cli("run", "q.jsonl", "--new", "--set", "seed=1", "--limit", "4")
    resumed = cli("resume")
    refused = cli("run", "q.jsonl", "--new", "-o", "q.results.jsonl")

    assert new.returncode == 0, new.stderr
    assert "Continuing" not in new.stderr
    assert len(rows(tmp_path / "q.results.jsonl")) == 3
    assert len(rows(tmp_path / "q.2.results.jsonl")) == 4
    assert "Continuing q.2.results.jsonl: 4 reused" in resumed.stderr
    assert refused.returncode == 2
    assert "--new wants another --output or --name" in refused.stderr


def test_what_is_shown_is_not_repeated_and_paces_can_be_given(cli, tmp_path, questions):
    cli("run", "q.jsonl", "-q", "--max-tokens-total", "300", "-s", "max_tokens=30")

    told = cli("resume", "--max-tokens-total", "1M")
    silent = cli("resume", "-q")

    assert told.returncode == 0
    assert "Continuing q.results.jsonl" in told.stderr
    assert silent.stderr == ""


def test_another_server_is_told_and_not_refused(cli, questions):
    with Simulator("fast") as one, Simulator("fast") as other:
        command = ["run", "q.jsonl", "-m", "openai-chat:x", "--base-url"]
        cli(*command, one.base_url, "--limit", "3")
        moved = cli(*command, other.base_url, "--limit", "3")

    assert moved.returncode == 0
    old, new = (url.removeprefix("http://") for url in (one.base_url, other.base_url))
    assert f"earlier rows were answered by {old}; these go to {new}" in moved.stderr


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_each_damage_of_an_output_is_found_and_mended(cli, tmp_path, questions, suffix):
    output = tmp_path / f"o.{suffix}"
    done = cli("run", "q.jsonl", "-o", output.name, "--limit", "6", "--order", "input")
    assert done.returncode == 0, done.stderr
    good = output.read_bytes()

    for damage in ("torn", "twice", "other", "strange"):
        output.write_bytes(good)
        said = damaged(output, damage)
        found = cli("verify")

        assert found.returncode == 1
        assert said in found.stdout

    assert cli("resume").returncode == 0
    assert cli("verify").stdout.endswith("all is well\n")


def damaged(output, damage):
    if output.suffix == ".parquet":
        table = pq.read_table(output)
        if damage == "torn":
            output.write_bytes(output.read_bytes()[:-20])
            return "no Parquet file"
        columns = table.to_pydict()
        changed_columns(columns, damage)
        pq.write_table(type(table).from_pydict(columns, schema=table.schema), output)
    else:
        lines = output.read_text().splitlines()
        if damage == "torn":
            output.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:3])
            return "lacks 1 results"
        lines[-1] = {
            "twice": lines[-2],
            "other": lines[-1].replace("Answer", "Lie"),
            "strange": lines[-1].replace("q5", "z9"),
        }[damage]
        output.write_text("\n".join(lines) + "\n")
    return {
        "twice": "is a second result of q4",
        "other": "has another output for q5 than the ledger",
        "strange": "is no result of this run: z9",
    }[damage]


def changed_columns(columns, damage):
    if damage == "twice":
        for values in columns.values():
            values[-1] = values[-2]
    elif damage == "other":
        columns["output"][-1] = "Lie"
    else:
        columns["id"][-1] = "z9"


def test_outputs_that_do_not_fit_the_schema_are_found(cli, tmp_path, questions):
    cli("run", "q.jsonl", "--choices", "yes,no", "--limit", "3")
    assert cli("verify").returncode == 0
    with sqlite3.connect(tmp_path / ".batch-llm/runs/q.results.jsonl.sqlite") as ledger:
        ledger.execute("""UPDATE payloads SET output = '"perhaps"' WHERE number = 2""")
    ledger.close()

    found = cli("verify")

    assert found.returncode == 1
    assert "does not fit: choose exactly one of: yes, no" in found.stdout


def test_rows_that_are_missing_and_rows_that_changed_are_told_apart(cli, tmp_path, questions):
    cli("run", "q.jsonl", "--limit", "6")
    lines = (tmp_path / "q.jsonl").read_text().replace("Question 3?", "Changed?").splitlines()
    (tmp_path / "q.jsonl").write_text("\n".join([lines[8], *lines[:6]]))

    found = cli("verify").stdout

    assert "1 row has no result; `batch-llm resume q.results.jsonl` sends" in found
    assert "1 row changed since it was answered" in found


def test_parquet_goes_in_and_comes_out_with_types(cli, tmp_path, questions):
    cli("run", "q.jsonl", "-o", "a.parquet", "--limit", "20", "--order", "input")
    first = pq.read_table(tmp_path / "a.parquet")
    done = cli("run", "a.parquet", "--prompt", "Judge {{ output }}", "-o", "b.parquet")

    assert done.returncode == 0, done.stderr
    found = pq.read_table(tmp_path / "b.parquet").to_pydict()
    assert sorted(found["id"]) == sorted(f"q{n}" for n in range(20))
    assert sorted(found["input_output"]) == sorted(first["output"].to_pylist())
    kinds = {field.name: str(field.type) for field in first.schema}
    assert kinds["input_tokens"] == "int64"
    assert kinds["seconds"] == "double"
    assert kinds["error"] == kinds["output"] == "string"
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["a.parquet", "b.parquet"]
    assert cli("export", "-o", "c.parquet").returncode == 0
    assert pq.read_table(tmp_path / "c.parquet").num_rows == 20


def test_without_pyarrow_the_extra_is_named_before_anything_is_sent(cli, tmp_path, questions):
    (tmp_path / "pyarrow.py").write_text("raise ImportError")

    done = cli("run", "q.jsonl", "-o", "a.parquet", env={"PYTHONPATH": str(tmp_path)})

    assert done.returncode == 2
    assert "Parquet needs an extra: uv add 'batch-llm[parquet]'" in done.stderr
    assert not (tmp_path / ".batch-llm").exists()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            "UPDATE manifest SET value = '{' WHERE name = 'settings'",
            "what is noted of settings is no JSON",
        ),
        ("UPDATE payloads SET output = '{' WHERE number = 3", "the result of 'q2' is no JSON"),
        ("UPDATE payloads SET usage = x'ff00' WHERE number = 3", "the result of 'q2' is no JSON"),
    ],
)
def test_damaged_texts_in_a_ledger_are_named(cli, tmp_path, damage, named):
    rows = [{"id": f"q{n}", "prompt": f"Question {n}?"} for n in range(5)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))

    assert cli("run", "q.jsonl").returncode == 0
    ledger = sqlite3.connect(tmp_path / ".batch-llm/runs/q.results.jsonl.sqlite")
    with ledger:
        ledger.execute(damage)
    ledger.close()

    checked = cli("verify")
    (tmp_path / "q.results.jsonl").unlink()  # so that all answers are read
    ran = cli("run", "q.jsonl")

    assert checked.returncode == 1, checked.stderr
    assert named in checked.stdout
    assert ran.returncode == 2
    assert "the file is damaged; `batch-llm verify` says more" in ran.stderr


def test_a_ledger_without_its_manifest_is_named_and_noted_anew(tmp_path):
    rows = [{"id": f"q{n}", "prompt": f"Question {n}?"} for n in range(5)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def cli(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "batch_llm", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert cli("run", "q.jsonl").returncode == 0
    ledger = sqlite3.connect(tmp_path / ".batch-llm/runs/q.results.jsonl.sqlite")
    with ledger:
        ledger.execute("DELETE FROM manifest")
    ledger.close()

    listed, checked = cli("ls"), cli("verify")
    again, healed = cli("run", "q.jsonl"), cli("verify")

    assert "its settings are gone" in listed.stdout
    assert checked.returncode == 1
    assert "nothing says what it was made with" in checked.stdout
    assert again.returncode == 0, again.stderr
    assert "5 reused, 0 to do" in again.stderr
    assert healed.returncode == 0


def test_show_tells_what_a_run_has_cost(tmp_path):
    rows = [{"id": f"q{n}", "prompt": f"Question {n}?"} for n in range(5)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "prices.toml").write_text('["sim:fast"]\ninput = 1000.0\noutput = 0.0\n')

    def cli(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "batch_llm", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    ran = cli("run", "q.jsonl", "--prices", "prices.toml", "--json")
    done = json.loads(ran.stdout.splitlines()[-1])
    shown = cli("show")

    assert f"cost      {usd(Decimal(done['cost_usd']))}\n" in shown.stdout
    (tmp_path / "prices.toml").unlink()  # the run's end has noted its bill
    assert cli("show").stdout == shown.stdout
    ledger = tmp_path / ".batch-llm" / "runs" / "q.results.jsonl.sqlite"
    with closing(sqlite3.connect(ledger)) as connection, connection:
        assert connection.execute("DELETE FROM manifest WHERE name = 'bill'").rowcount == 1
    assert "its prices in prices.toml cannot be read" in cli("show").stdout
    (tmp_path / "prices.toml").write_text('["sim:fast"]\ninput = 1000.0\noutput = 0.0\n')
    assert cli("show").stdout == shown.stdout
