"""Going on with a run: passing over what is known gives what reading everything gives.

Two copies of a run go through the same random life (edits of the input, damage to its files,
retries); one passes over what it can, the other one reads every row. Calls, files, exit codes and
ledgers must be the same.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import resumed_runs
from batch_llm.cli import execution, result_files
from batch_llm.cli.command import Command
from batch_llm.core.request import Settings
from batch_llm.exceptions import BatchLLMError
from batch_llm.outputs import notes, writers
from batch_llm.providers.requests import RequestCaller
from batch_llm.runs import passing, plan, row_index
from batch_llm.runs.ledgers import retry_failed
from batch_llm.stores import SqliteLedger
from batch_llm.stores.base import ItemState
from resumed_runs import PROMPT, Life, World, make_small, unsettle

SHAPES = (
    "rows.jsonl", "prompts.jsonl", "plain.txt", "rows.csv", "rows.tsv", "unnamed.csv",
    "rows.parquet",
)  # fmt: skip


def damage(folder, dice, output):
    """Do to a run's files what a crash, an editor or a cleaner does. The ledger stays."""
    what = dice.choice(["tear", "edit", "remove", "rows", "notes", "add", "no", "no", "no"])
    where, byte = dice.random(), dice.randrange(256)
    ledger = folder / "ledger.sqlite"
    path = {"rows": Path(f"{ledger}-rows"), "notes": Path(f"{ledger}-output")}.get(what, output)
    if what == "no" or not path.exists():
        return
    if what == "remove":
        path.unlink()
    elif what == "add":
        with path.open("ab") as file:
            file.write(b'{"id": "r1"')
    elif what == "edit":
        found = bytearray(path.read_bytes())
        if found:
            found[int(where * len(found))] = byte
        path.write_bytes(found)
    else:
        os.truncate(path, int(where * path.stat().st_size))


def session(folder, name, options, *, reads_all):
    """Give the command; return what it did."""
    world, told = World(), None
    output = f"out.{options['suffix']}"
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(RequestCaller, "call", lambda _, item, attempt: world.call(item, attempt))
        if reads_all:
            patch.setattr(plan, "open_index", lambda *_: None)
        command = Command(
            input=name,
            model="openai-chat:m",
            base_url="http://127.0.0.1:9/v1",
            prompt=None if name in {"prompts.jsonl", "plain.txt"} else PROMPT,
            output=output,
            failed="failed.jsonl",
            ledger="ledger.sqlite",
            order=options["order"],
            bad_rows=options["bad_rows"],
            limit=options["limit"],
            concurrency=options["concurrency"],
            ignore_slots=True,
            retries=0,
            quiet=True,
            dedupe=False,
            facts={"output": output},
        )
        try:
            told = int(execution.run_command(command))
        except BatchLLMError as error:
            told = str(error)
    return told, world.asked


def held(folder, suffix, *, keeps_order):
    """Return what a run's files and its ledger say."""
    with SqliteLedger(folder / "ledger.sqlite", read_only=True) as ledger:
        records = [
            (one.item_id, one.content, one.state, one.output, one.error, one.attempts)
            for one in ledger.records(*ItemState)
        ]
    files = []
    for name in (f"out.{suffix}", "failed.jsonl"):
        path = folder / name
        lines = path.read_bytes().split(b"\n") if path.exists() else None
        if lines is not None and name.endswith("jsonl"):
            lines = [
                sorted((json.loads(line) | {"seconds": 0}).items(), key=repr)
                for line in lines
                if line
            ]
        elif lines is not None:  # the time of a call differs
            lines = [line.rpartition(b",")[0] for line in lines]
        files.append(lines if keeps_order or lines is None else sorted(lines, key=repr))
    return sorted(records, key=repr), files


@settings(max_examples=int(os.environ.get("RESUME_EXAMPLES", "30")))
@given(seed=st.integers(0, 2**32), shape=st.sampled_from(SHAPES))
def test_passing_over_known_rows_gives_what_reading_all_gives(tmp_path_factory, seed, shape):
    dice = random.Random(seed)
    life = Life(shape, dice)
    root = tmp_path_factory.mktemp("resume")
    quick, slow = root / "quick", root / "slow"
    quick.mkdir()
    slow.mkdir()
    suffix = dice.choice(["jsonl", "jsonl", "csv"])
    options = {"suffix": suffix, "order": dice.choice(["done", "input"])}
    for turn in range(dice.randint(2, 6)):
        options |= {
            "bad_rows": dice.choice(["stop", "skip", "fail"]),
            "limit": dice.choice([None, None, dice.randint(1, 20)]),
            "concurrency": dice.choice([1, 3]),
        }
        for folder in (quick, slow):
            life.write(folder / shape)
            if turn:
                again = random.Random(seed + turn)
                damage(folder, again, folder / f"out.{suffix}")
                what = again.choice(["retry", "other", "unsettle", "no", "no"])
                if (folder / "ledger.sqlite").exists() and what != "no":
                    if what == "unsettle":
                        unsettle(folder, {again.randint(1, 30) for _ in range(4)})
                    else:
                        other = Settings(temperature=0.5) if what == "other" else None
                        with SqliteLedger(folder / "ledger.sqlite") as ledger:
                            retry_failed(ledger, settings=other)

        found = session(quick, shape, options, reads_all=False)
        expected = session(slow, shape, options, reads_all=True)

        assert found == expected
        if not isinstance(found[0], str):  # refused: nothing was written
            in_order = options["order"] == "input"
            got, due = (held(one, suffix, keeps_order=in_order) for one in (quick, slow))
            assert got[1] == due[1]
            assert got[0] == due[0]
        for _ in range(dice.randint(0, 2)):
            life.edit()
    shutil.rmtree(root)


@pytest.mark.parametrize("count", [2**62, 2**63 - 1, 2**70])
def test_a_run_goes_on_whatever_counts_a_server_has_told(tmp_path, monkeypatch, count):
    told = {"input_tokens": count, "output_tokens": count, "total_tokens": 2 * count}
    monkeypatch.setattr(resumed_runs, "USAGE", told)
    life = Life("plain.txt", random.Random(1))
    life.rows = [{"text": f"one{n}"} for n in range(5)]
    life.write(tmp_path / life.name)
    options = {
        "suffix": "jsonl", "order": "done", "bad_rows": "stop", "limit": None, "concurrency": 1,
    }  # fmt: skip

    first = session(tmp_path, life.name, options, reads_all=False)
    again = session(tmp_path, life.name, options, reads_all=False)

    assert (first[0], again[0]) == (0, 0)
    assert not again[1], "a row was asked again"


@pytest.mark.parametrize("order", ["done", "input"])
@pytest.mark.parametrize("shape", ["rows.jsonl", "plain.txt"])
def test_rows_that_change_while_they_are_read_are_known_by_nothing(tmp_path, shape, order):
    life = Life(shape, random.Random(1))
    before = [{"id": f"r{n}", "text": f"one{n}", "label": "x"} for n in range(10, 50)]
    options = {
        "suffix": "jsonl", "order": order, "bad_rows": "stop", "limit": 8, "concurrency": 1,
    }  # fmt: skip
    life.rows = before
    life.write(tmp_path / life.name)
    session(tmp_path, life.name, options, reads_all=False)
    options["limit"] = None
    settled = row_index.RowIndex.settle

    def settle(*arguments):  # all has been looked at before
        life.rows = [*before[:8], *({**row, "text": f"two{row['id'][1:]}"} for row in before[8:])]
        life.write(tmp_path / life.name)
        os.utime(tmp_path / life.name, (1, 1))
        return settled(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_index.RowIndex, "settle", settle)
        session(tmp_path, life.name, options, reads_all=False)
    life.rows = before
    life.write(tmp_path / life.name)
    session(tmp_path, life.name, options, reads_all=False)

    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    asked = sorted(row["text"] for row in before)
    assert sorted(json.loads(line)["output"].split()[-3] for line in lines) == asked


#: What is changed on the disk on the way, in its order.
MOMENTS = {
    "the index is written anew": (row_index.RowIndex, "_write_anew"),
    "what is done is found out": (passing.Passing, "survey"),
    "the parts that are kept are chosen": (result_files, "keep_parts"),
    "the parts that are kept are moved together": (result_files, "move_together"),
    "the notes are begun anew": (notes.OutputNotes, "__init__"),
    "the ledger hears of the notes": (SqliteLedger, "note"),
    "the output is cut and opened": (writers._LineFile, "__init__"),
    "rows are written": (writers._LineFile, "_write"),
    "a part is noted": (notes.OutputNotes, "_end_part"),
    "a block is indexed": (row_index.RowIndex, "add"),
}


def killed_at(moment, place, when, give):
    """Give a command in a process that is killed at a moment; tell whether that came."""
    owner, name = MOMENTS[moment]
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    try:
        original, calls = getattr(owner, name), itertools.count(1)

        def dying(*arguments, **named):
            is_it = next(calls) == place
            if is_it and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **named)
            if is_it:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, dying)
        give()
    finally:
        os._exit(0)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("seed", range(3))
def test_a_kill_while_a_run_goes_on_changes_nothing(tmp_path, moment, when, seed):
    dice = random.Random(f"{seed} {moment} {when}")
    life = Life("rows.jsonl", dice)
    life.add(0, 30)
    quick, slow = tmp_path / "quick", tmp_path / "slow"
    quick.mkdir()
    life.write(quick / life.name)
    options = {
        "suffix": "jsonl", "order": dice.choice(["done", "input"]), "bad_rows": "stop",
        "limit": 20, "concurrency": 3,
    }  # fmt: skip
    session(quick, life.name, options, reads_all=False)
    if moment == "the index is written anew" or dice.random() < 0.5:
        life.rows[7] = life.rows[7] | {"label": "z"}  # no row asks something else
        life.write(quick / life.name)
    options["limit"] = None
    shutil.copytree(quick, slow)

    was_killed = killed_at(
        moment, 1, when, lambda: session(quick, life.name, options, reads_all=False)
    )
    code, asked = session(quick, life.name, options, reads_all=False)
    expected, due = session(slow, life.name, options, reads_all=True)

    assert was_killed
    assert code == expected
    assert set(asked) <= set(due), "a row was asked that had its result"
    in_order = options["order"] == "input"
    assert (
        held(quick, "jsonl", keeps_order=in_order)[1]
        == held(slow, "jsonl", keeps_order=in_order)[1]
    )


@pytest.mark.parametrize("count", range(1, 7))
def test_a_kill_while_parts_are_moved_together_leaves_each_row_once(tmp_path, monkeypatch, count):
    life = Life("rows.jsonl", random.Random(1))
    life.rows = [{"id": f"r{n}", "text": f"one{n}", "label": "x"} for n in range(40)]
    options = {
        "suffix": "jsonl", "order": "done", "bad_rows": "stop", "limit": None, "concurrency": 1,
    }  # fmt: skip
    life.write(tmp_path / life.name)
    session(tmp_path, life.name, options, reads_all=False)
    life.rows[5] = life.rows[5] | {"label": "y"}
    life.rows.insert(0, {"id": "new", "text": "one", "label": "x"})
    life.write(tmp_path / life.name)
    moved = notes.move_together

    def some(output, parts):
        assert len(parts) > count
        moved(output, parts[:count])

    monkeypatch.setattr(result_files, "move_together", some)
    was_killed = killed_at(
        "the parts that are kept are moved together", 1, "after",
        lambda: session(tmp_path, life.name, options, reads_all=False),
    )  # fmt: skip
    monkeypatch.undo()
    code, asked = session(tmp_path, life.name, options, reads_all=False)

    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = sorted((line["id"], line["label"]) for line in lines)
    assert was_killed
    assert (code, [row for row, *_ in asked]) == (0, ["new"])
    assert found == sorted((row["id"], row["label"]) for row in life.rows)


@pytest.mark.parametrize("order", ["done", "input"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_rows_that_moved_before_a_kill_stand_once_in_the_output(tmp_path, moment, order):
    life = Life("rows.jsonl", random.Random(1))
    life.rows = [{"id": f"r{n}", "text": f"one{n}", "label": "x"} for n in range(24)]
    options = {
        "suffix": "jsonl", "order": order, "bad_rows": "stop", "limit": None, "concurrency": 1,
    }  # fmt: skip
    before = list(life.rows)
    life.write(tmp_path / life.name)
    session(tmp_path, life.name, options, reads_all=False)
    life.rows = [*before[4:8], *before[:4], *before[8:23]]
    life.rows.append({"id": "new", "text": "one", "label": "x"})
    life.write(tmp_path / life.name)

    killed_at(moment, 1, "after", lambda: session(tmp_path, life.name, options, reads_all=False))
    os.truncate(tmp_path / "out.jsonl", (tmp_path / "out.jsonl").stat().st_size // 6)

    for rows in (life.rows, before):
        life.rows = rows
        life.write(tmp_path / life.name)
        assert session(tmp_path, life.name, options, reads_all=False)[0] == 0
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        found, due = [json.loads(line)["id"] for line in lines], [row["id"] for row in rows]
        assert sorted(found) == sorted(due)
        assert order == "done" or found == due
