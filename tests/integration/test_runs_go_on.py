"""The command and its ledger: the same command again continues, whatever has happened."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest

from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator
from batch_llm.stores import ItemState, SqliteLedger
from command import ENVIRON, rows

LEDGER = ".batch-llm/runs/q.results.jsonl.sqlite"


def write_questions(tmp_path, count, *, changed=()):
    lines = [
        json.dumps({"id": f"q{n}", "prompt": f"{'Changed' if n in changed else 'Question'} {n}?"})
        for n in range(count)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))


@pytest.fixture
def simulator():
    with Simulator("fast") as running:
        yield running


@pytest.fixture
def run(cli, simulator):
    """Run ``q.jsonl`` against one simulator, that counts the calls of all runs."""

    def run(*arguments, model="openai-chat:x"):
        where = ["--base-url", simulator.base_url]
        return cli("run", "q.jsonl", "-m", model, *where, *arguments, env={"OPENAI_API_KEY": "any"})

    return run


def test_the_same_command_again_sends_nothing(tmp_path, run, simulator):
    write_questions(tmp_path, 30)
    assert run().returncode == 0
    first = sorted((tmp_path / "q.results.jsonl").read_text().splitlines())

    again = run()

    assert again.returncode == 0
    assert "Continuing q.results.jsonl: 30 reused, 0 to do" in again.stderr
    assert sorted((tmp_path / "q.results.jsonl").read_text().splitlines()) == first
    assert simulator.stats().calls == 30


@pytest.mark.parametrize("order", ["done", "input"])
def test_new_and_changed_rows_are_sent_and_no_others(tmp_path, run, simulator, order):
    write_questions(tmp_path, 30)
    run("--order", order)
    write_questions(tmp_path, 33, changed={7})
    lines = (tmp_path / "q.jsonl").read_text().splitlines()
    (tmp_path / "q.jsonl").write_text("\n".join(reversed(lines)))

    again = run("--order", order)

    assert again.returncode == 0, again.stderr
    assert "29 reused, 4 to do, of which 1 changed since" in again.stderr
    assert simulator.stats().calls == 34
    found = rows(tmp_path / "q.results.jsonl")
    assert sorted(row["id"] for row in found) == sorted(f"q{n}" for n in range(33))
    assert all(answer_digest(row["prompt"]) in row["output"] for row in found)
    if order == "input":
        assert [row["id"] for row in found] == [f"q{n}" for n in range(32, -1, -1)]


def test_changed_settings_are_refused_with_the_difference(tmp_path, run, simulator):
    write_questions(tmp_path, 3)
    run("-s", "temperature=0")
    before = (tmp_path / "q.results.jsonl").read_bytes()

    again = run("-s", "temperature=0.7", model="openai-chat:y")

    assert again.returncode == 2
    assert "model         openai-chat:x  →  openai-chat:y" in again.stderr
    assert "temperature   0              →  0.7" in again.stderr
    assert "--new" in again.stderr
    assert "batch-llm resume q.results.jsonl" in again.stderr
    assert (tmp_path / "q.results.jsonl").read_bytes() == before
    assert simulator.stats().calls == 3


def test_to_overwrite_begins_anew_and_keeps_the_old_ledger_aside(tmp_path, run, simulator):
    write_questions(tmp_path, 3)
    run()

    assert run("--overwrite", model="openai-chat:y").returncode == 0

    assert simulator.stats().calls == 6
    with SqliteLedger(tmp_path / f"{LEDGER}.old") as old:
        assert old.counts()[ItemState.DONE] == 3


def test_a_damaged_ledger_can_be_begun_anew_and_a_stranger_s_file_is_left(tmp_path, run, simulator):
    write_questions(tmp_path, 3)
    run()
    ledger = tmp_path / LEDGER
    damaged = b"SQLite format 3\0" + b"\xff" * 4000
    ledger.write_bytes(damaged)
    Path(f"{ledger}-wal").write_bytes(b"left")

    refused = run()
    assert (refused.returncode, "--overwrite" in refused.stderr) == (2, True)
    assert run("--overwrite").returncode == 0

    assert simulator.stats().calls == 6
    assert Path(f"{ledger}.old").read_bytes() == damaged
    with SqliteLedger(ledger) as found:
        assert found.counts()[ItemState.DONE] == 3
    with contextlib.closing(sqlite3.connect(tmp_path / "theirs.db")) as theirs:
        theirs.execute("CREATE TABLE precious (x)")
    assert run("--overwrite", "--store", "theirs.db").returncode == 2
    assert not (tmp_path / "theirs.db.old").exists()


def test_files_that_no_ledger_knows_are_not_written_over(tmp_path, run):
    write_questions(tmp_path, 3)
    (tmp_path / "q.results.jsonl").write_text("precious")

    done = run()

    assert done.returncode == 2
    assert "q.results.jsonl exists" in done.stderr
    assert (tmp_path / "q.results.jsonl").read_text() == "precious"
    assert not (tmp_path / LEDGER).exists()


@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_an_output_that_is_torn_or_gone_is_written_anew(tmp_path, cli, run, simulator, damage):
    write_questions(tmp_path, 20)
    run()
    output = tmp_path / "q.results.jsonl"
    good = sorted(output.read_bytes().splitlines())
    output.unlink() if damage == "gone" else output.write_bytes(output.read_bytes()[:-40])
    assert cli("verify").returncode == 1

    assert run().returncode == 0

    assert sorted(output.read_bytes().splitlines()) == good
    assert simulator.stats().calls == 20
    assert cli("verify").returncode == 0


def test_failed_rows_are_kept_until_they_are_retried(tmp_path, cli):
    write_questions(tmp_path, 30)
    command = ["run", "q.jsonl", "-m", "sim:fast?prefuse=0.3"]
    first = cli(*command)
    failed = len(rows(tmp_path / "q.failed.jsonl"))
    assert 0 < failed < 30

    again = cli(*command)

    assert again.returncode == 1
    assert f"0 to do ({failed} failed ones are kept" in again.stderr
    assert len(rows(tmp_path / "q.failed.jsonl")) == failed
    (line,) = [line for line in first.stderr.splitlines() if line.startswith("  next")]
    assert line.split()[1:] == ["batch-llm", "retry", "q.results.jsonl"]

    assert "0 failed rows are run again" in cli("retry", "--only", "timeout").stderr
    retried = cli(*shlex.split(line)[2:])

    assert f"{failed} failed rows are run again" in retried.stderr
    assert f"{30 - failed} reused, {failed} to do" in retried.stderr
    left = rows(tmp_path / "q.failed.jsonl") if (tmp_path / "q.failed.jsonl").exists() else []
    assert len(rows(tmp_path / "q.results.jsonl")) + len(left) == 30
    assert cli("retry", "--only", "nonsense").returncode == 2


@pytest.mark.parametrize("order", ["done", "input"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])  # passed over by blocks; row by row
def test_a_run_that_is_stopped_has_all_kept_rows_in_its_files(tmp_path, cli, order, suffix):
    source = tmp_path / f"q{suffix}"

    def write(count, new):
        asked = [f"n{n}" for n in range(new)] + [f"q{n}" for n in range(count)]
        found = [{"id": one, "prompt": f"Question {one}?"} for one in asked]
        if suffix == ".parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(found), source)
        else:
            source.write_text("\n".join(map(json.dumps, found)))

    command = [
        "run", source.name, "-m", "sim:fast?prefuse=0.1&seed=3", "--order", order,
        "-o", "q.results.jsonl", "--failed", "q.failed.jsonl",
    ]  # fmt: skip
    write(2100, new=0)
    assert cli(*command).returncode == 1
    kept = {row["id"] for row in rows(tmp_path / "q.results.jsonl")}
    failed = {row["id"] for row in rows(tmp_path / "q.failed.jsonl")}
    write(2100, new=800)  # more than are read ahead, all before the kept ones

    stopped = cli(*command, "--max-tokens-total", "1")

    assert stopped.returncode == 3
    written = [row["id"] for row in rows(tmp_path / "q.results.jsonl")]
    assert len(written) == len(kept)
    assert set(written) == kept
    assert {row["id"] for row in rows(tmp_path / "q.failed.jsonl")} == failed
    if order == "input":
        assert written == sorted(written, key=lambda name: int(name[1:]))
    assert cli(*command).returncode == 1
    assert len(rows(tmp_path / "q.results.jsonl")) + len(rows(tmp_path / "q.failed.jsonl")) == 2900
    assert cli("verify").returncode == 0


def test_a_run_that_the_provider_refused_goes_on_when_the_key_is_good(tmp_path, cli, simulator):
    write_questions(tmp_path, 40)
    command = ["run", "q.jsonl", "-m", "openai-chat:x", "--base-url", simulator.base_url]
    refused = cli(*command, env={"OPENAI_API_KEY": "invalid"})
    assert refused.returncode == 4
    assert "  continue  batch-llm resume q.results.jsonl" in refused.stderr

    done = cli("resume", env={"OPENAI_API_KEY": "good"})

    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "q.results.jsonl")) == 40
    assert not (tmp_path / "q.failed.jsonl").exists()


def test_no_key_and_no_password_gets_into_the_ledger(tmp_path, cli, simulator):
    write_questions(tmp_path, 3)
    url = simulator.base_url.replace("//", "//user:pass-word-1234@")
    key = {"OPENAI_API_KEY": "a-very-secret-key"}
    command = ["run", "q.jsonl", "-m", "openai-chat:x", "--base-url", url]
    assert cli(*command, env=key).returncode == 4  # the simulator knows no passwords

    for path in (tmp_path / ".batch-llm").rglob("*"):
        if path.is_file():
            assert b"pass-word-1234" not in path.read_bytes()
            assert b"a-very-secret-key" not in path.read_bytes()
    refused = cli("resume", env=key)
    assert refused.returncode == 2
    assert "give the same command again" in refused.stderr


def test_the_manifest_says_what_was_asked_of_whom_and_by_which_versions_and_prices(tmp_path, run):
    write_questions(tmp_path, 2)
    manifests = {}
    for prompt in ("A: {{ prompt }}", "B: {{ prompt }}"):
        path = tmp_path / f"{prompt[0]}.sqlite"
        assert run("--prompt", prompt, "--store", str(path), "-o", f"{path}.jsonl").returncode == 0
        with contextlib.closing(sqlite3.connect(path)) as tool:
            noted = dict(tool.execute("SELECT name, value FROM manifest"))
            manifests[prompt[0]] = {name: json.loads(value) for name, value in noted.items()}
            # As the provider called it, not as it was asked for.
            assert tool.execute("SELECT DISTINCT model FROM results").fetchall() == [("x",)]

    one, other = manifests["A"], manifests["B"]
    assert one["settings"]["model"] == "openai-chat:x"
    assert one["settings"]["prompt"] == "A: {{ prompt }}"
    assert one["digests"].keys() == one["settings"].keys()
    changed = [name for name in one["digests"] if one["digests"][name] != other["digests"][name]]
    assert changed == ["prompt"]
    assert one["version"] == one["made_by_version"] == metadata.version("batch-llm")
    assert one["python"] == platform.python_version()
    assert one["prices"] == f"genai-prices {metadata.version('genai-prices')}"
    assert abs(datetime.now(UTC) - datetime.fromisoformat(one["prices_at"])) < timedelta(hours=1)


def test_without_a_store_there_is_no_ledger(tmp_path, run):
    write_questions(tmp_path, 3)

    assert run("--no-store").returncode == 0

    assert not (tmp_path / ".batch-llm").exists()
    assert run("--no-store").returncode == 2


def test_a_store_may_be_elsewhere_and_is_found_by_its_path(tmp_path, cli, run):
    write_questions(tmp_path, 3)

    assert run("--store", "my.sqlite").returncode == 0

    assert not (tmp_path / ".batch-llm").exists()
    assert cli("verify", "my.sqlite").returncode == 0
    assert "3 to do" not in cli("resume", "my.sqlite", env={"OPENAI_API_KEY": "any"}).stderr


def test_a_run_can_be_looked_at(tmp_path, cli):
    cli = partial(cli, env={"TZ": "XXX3"})
    assert cli("ls").stdout == "no runs here\n"
    assert cli("show").returncode == 2
    write_questions(tmp_path, 5)
    cli("run", "q.jsonl", "-m", "sim:fast?prefuse=1")

    (listed,) = json.loads(cli("ls", "--json").stdout)["runs"]
    assert (listed["run"], listed["failed"]) == ("q.results.jsonl", 5)
    assert listed["changed"].endswith("-03:00")
    assert listed["changed"][:16].replace("T", " ") in cli("ls").stdout
    shown = cli("show").stdout
    assert "content_filter" in shown
    assert max(map(len, shown.splitlines())) < 80
    assert len(cli("show", "--failed").stdout.splitlines()) == 5
    assert "attempt 1" in cli("show", "--id", "q3").stdout
    settings = cli("show", "--settings").stdout
    assert "sim:fast?prefuse=1" in settings
    assert f"genai-prices {metadata.version('genai-prices')}\n" in settings
    assert cli("export", "-o", "e.csv").returncode == 0
    assert len((tmp_path / "e.csv").read_text().splitlines()) == 6


def test_the_folder_of_the_ledgers_is_ignored_by_git(tmp_path, run):
    write_questions(tmp_path, 1)
    run()

    assert (tmp_path / ".batch-llm" / ".gitignore").read_text() == "*\n"


def test_a_second_process_is_refused(tmp_path, run):
    write_questions(tmp_path, 3)
    run()
    with SqliteLedger(tmp_path / LEDGER):
        done = run()

    assert done.returncode == 2
    assert f"process {os.getpid()} is running" in done.stderr


def test_a_damaged_ledger_is_named(tmp_path, run):
    write_questions(tmp_path, 3)
    run()
    (tmp_path / LEDGER).write_bytes(b"no database at all" * 1000)

    done = run()

    assert done.returncode == 2
    assert "it is no ledger" in done.stderr
    assert "Traceback" not in done.stderr


IN_FLIGHT = 20


def saved(path):
    """Return what a ledger holds, by id; read while its run may go on."""
    if not path.exists():
        return {}
    try:
        with SqliteLedger(path, read_only=True) as ledger:
            return {record.item_id: record.output for record in ledger.records(ItemState.DONE)}
    except Exception:  # noqa: BLE001 - killed before its schema was there
        return {}


def kill_and_go_on(tmp_path, *, items, kills, seed):
    """Kill a run again and again; check that it ends whole, and each call that was made twice."""
    dice = random.Random(seed)
    write_questions(tmp_path, items)
    output, ledger = tmp_path / "q.results.jsonl", tmp_path / LEDGER
    with Simulator("fast?latency=0.05") as simulator:
        command = [
            sys.executable, "-m", "batch_llm", "run", "q.jsonl", "-m", "openai-chat:x", "-q",
            "-c", str(IN_FLIGHT), "--base-url", simulator.base_url,
        ]  # fmt: skip
        environ = ENVIRON | {"OPENAI_API_KEY": "any"}
        before = {}
        for _ in range(kills):
            process = subprocess.Popen(command, cwd=tmp_path, env=environ)
            calls = simulator.stats().calls
            deadline = time.monotonic() + 20
            while simulator.stats().calls == calls and time.monotonic() < deadline:
                if process.poll() is not None:
                    break
                time.sleep(0.002)
            time.sleep(dice.uniform(0, 0.25))
            process.send_signal(signal.SIGKILL)
            process.wait()
            shown = output.read_bytes().splitlines() if output.exists() else []
            shown_ids = {json.loads(line)["id"] for line in shown[:-1]}
            found = saved(ledger)
            assert before.items() <= found.items(), "a saved result was lost"
            assert shown_ids <= found.keys(), "a result was shown before it was saved"
            before = found
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        calls = simulator.stats().calls
    assert before.items() <= saved(ledger).items()
    found = rows(output)
    assert sorted(row["id"] for row in found) == sorted(f"q{n}" for n in range(items))
    assert all(answer_digest(row["prompt"]) in row["output"] for row in found)
    with sqlite3.connect(ledger) as tool:
        assert tool.execute("SELECT count(*) FROM results").fetchone() == (items,)
        assert tool.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        cut_off = tool.execute(
            "SELECT count(*) - count(input_tokens), count(*) FROM attempts"
            " WHERE verdict = 'interrupted' GROUP BY session"
        ).fetchall()
    tool.close()
    # What was made again was in flight at a kill, or answered and about to be saved; all is known.
    assert len(cut_off) <= kills
    assert all(in_flight <= IN_FLIGHT for in_flight, _ in cut_off)
    assert items <= calls <= items + sum(known for _, known in cut_off)


def test_a_run_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path, cli):
    kill_and_go_on(tmp_path, items=400, kills=5, seed=1)

    assert cli("verify").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(8))
def test_many_kills_lose_and_double_nothing(tmp_path, seed):
    if not os.environ.get("BATCH_LLM_SLOW_TESTS"):
        pytest.skip("set BATCH_LLM_SLOW_TESTS=1: two hundred kills take some minutes")
    kill_and_go_on(tmp_path, items=2000, kills=25, seed=seed)
