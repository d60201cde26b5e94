"""The file itself: locks, damage, a full disk, other programs."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, Request
from batch_llm.exceptions import DuplicateItemError, LedgerError, LedgerInUseError, StoreError
from batch_llm.providers.callables import CallByMode
from batch_llm.providers.requests import content_of
from batch_llm.stores import ItemState, SqliteLedger
from batch_llm.stores.statements import migrations
from fakes import Script


def items(*numbers, output="out"):
    return [LLMWorkItem(str(number), direct_call=Script(output)) for number in numbers]


def run(ledger, *numbers, **options):
    built = ParallelBatchProcessor(store=ledger)
    return asyncio.run(built.process(items(*numbers, **options)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.sqlite"


def test_a_second_process_is_refused_and_told_who_the_first_is(path):
    code = (
        "import sys; from batch_llm import SqliteLedger\n"
        "with SqliteLedger(sys.argv[1]): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(LedgerInUseError, match=f"process {other.pid} is running"):
            SqliteLedger(path)
        other.kill()
        other.wait()
        with SqliteLedger(path) as ledger:
            assert ledger.counts()[ItemState.DONE] == 0


def test_a_run_that_goes_on_can_be_read(path):
    with SqliteLedger(path) as ledger:
        run(ledger, 1, 2)
        with SqliteLedger(path, read_only=True) as reading:
            assert [record.output for record in reading.records(ItemState.DONE)] == ["out", "out"]
            with pytest.raises(LedgerError, match="reading only"):
                reading.note({})


def test_the_views_say_what_became_of_each_item(path):
    with SqliteLedger(path) as ledger:
        run(ledger, 1)
        built = ParallelBatchProcessor(store=ledger)
        failing = LLMWorkItem("2", direct_call=Script(*[ValueError("no")] * 9))
        asyncio.run(built.process([failing]))
    with sqlite3.connect(path) as tool:
        assert tool.execute("SELECT item_id, output, input_tokens FROM results").fetchall() == [
            ("1", '"out"', 10)
        ]
        (failed,) = tool.execute("SELECT item_id, error_code, error, attempts FROM failed")
        assert failed == ("2", "internal", "ValueError: no", 3)
        verdicts = [row[0] for row in tool.execute("SELECT verdict FROM attempts")]
        assert verdicts == ["ok", "internal", "internal", "internal"]
    tool.close()


#: All steps that there are.
TRANSITIONS = frozenset(
    {
        (ItemState.PENDING, ItemState.RUNNING),
        (ItemState.RUNNING, ItemState.PENDING),
        (ItemState.RUNNING, ItemState.DONE),
        (ItemState.RUNNING, ItemState.FAILED),
        (ItemState.DONE, ItemState.PENDING),
        (ItemState.FAILED, ItemState.PENDING),
    }
)


@pytest.mark.parametrize("before", ItemState)
@pytest.mark.parametrize("after", ItemState)
def test_the_file_itself_takes_the_steps_that_there_are_and_no_others(path, before, after):
    with SqliteLedger(path) as ledger:
        run(ledger, 1)
    with sqlite3.connect(path) as tool:
        tool.execute("UPDATE items SET state = 'pending'")
        for state in {"pending": [], "running": ["running"]}.get(before, ["running", before]):
            tool.execute("UPDATE items SET state = ?", (state,))
        if (before, after) in TRANSITIONS:
            tool.execute("UPDATE items SET state = ?", (after,))
        else:
            with pytest.raises(sqlite3.IntegrityError, match="no such step"):
                tool.execute("UPDATE items SET state = ?", (after,))
    tool.close()


@pytest.mark.parametrize("content", [b"this is no database, but some text" * 100, b"\0" * 40_000])
def test_a_file_that_is_no_ledger_is_left_as_it_is(path, content):
    path.write_bytes(content)

    with pytest.raises(LedgerError, match="no ledger"):
        SqliteLedger(path)

    assert path.read_bytes() == content


def test_another_programs_database_is_left_as_it_is(path):
    with sqlite3.connect(path) as tool:
        tool.execute("CREATE TABLE t (a)")
    tool.close()

    with pytest.raises(LedgerError, match="it is no ledger"):
        SqliteLedger(path)


def test_a_later_versions_ledger_is_refused(path):
    SqliteLedger(path).close()
    with sqlite3.connect(path) as tool:
        tool.execute("PRAGMA user_version = 99")
    tool.close()

    for read_only in (False, True):
        with pytest.raises(LedgerError, match="a later version of batch-llm made it"):
            SqliteLedger(path, read_only=read_only)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LedgerError, match="No such file"):
        SqliteLedger(tmp_path / "none" / "run.sqlite")
    with pytest.raises(LedgerError, match="no such file"):
        SqliteLedger(tmp_path / "run.sqlite", read_only=True)


def test_a_full_disk_ends_the_run_and_keeps_what_was_accepted(path):
    with SqliteLedger(path, patience_seconds=0.2) as ledger:
        run(ledger, *range(5))
        pages = ledger._file.writing.execute("PRAGMA page_count").fetchone()[0]
        ledger._file.writing.execute(f"PRAGMA max_page_count = {pages + 4}")
        with pytest.raises(StoreError, match="disk is full") as caught:
            run(ledger, *range(50), output="x" * 20_000)
        shown = {result.item_id for result in caught.value.partial.results}
    with SqliteLedger(path) as ledger:
        saved = {record.item_id for record in ledger.records(ItemState.DONE)}
        assert {str(n) for n in range(5)} <= shown <= saved
        assert ledger.problems() == []
        assert run(ledger, *range(50)).succeeded == 50


def test_a_file_that_another_program_holds_ends_the_run_with_its_reason(path):
    with SqliteLedger(path, patience_seconds=0.2) as ledger:
        run(ledger, 1)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="another program holds it"):
            run(ledger, 1, 2)
        holder.close()
        assert run(ledger, 1, 2).succeeded == 2


def test_damage_in_the_middle_is_found(path):
    with SqliteLedger(path) as ledger:
        run(ledger, *range(50), output="x" * 5000)
    with path.open("r+b") as file:
        file.seek(16_384 * 4)
        file.write(b"\xff" * 60_000)

    with SqliteLedger(path, read_only=True) as ledger:
        (problem,) = ledger.problems()

    assert problem.startswith("the file is damaged (database disk image is malformed)")
    assert "verify" not in problem  # it is what verify says


@pytest.mark.parametrize(
    ("table", "column", "read"),
    [
        ("payloads", "output", lambda ledger: ledger.find("1")),
        ("payloads", "usage", lambda ledger: list(ledger.records(ItemState.DONE))),
        ("payloads", "output", lambda ledger: run(ledger, 1)),
        ("tries", "usage", lambda ledger: ledger.attempts("1")),
        ("manifest", "value", lambda ledger: ledger.manifest()),
    ],
)
def test_a_damaged_text_is_told_with_the_path_of_its_ledger(path, table, column, read):
    with SqliteLedger(path) as ledger:
        ledger.note({"a": 1})
        run(ledger, 1)
    with sqlite3.connect(path) as tool:
        tool.execute(f"UPDATE {table} SET {column} = '{{no'")
    tool.close()

    with (
        SqliteLedger(path) as ledger,
        pytest.raises(LedgerError, match="the file is damaged") as told,
    ):
        read(ledger)

    assert told.value.path == str(path)


def test_the_digest_of_a_request_depends_on_what_is_asked_alone():
    def digest(item_id="a", prompt="hi", model="p:m", **settings):
        from batch_llm import Settings

        request = Request.of(model, prompt, settings=Settings(**settings))
        return content_of(item_id, request)

    assert digest() == digest()
    others = [
        digest("b"), digest(prompt="ho"), digest(model="p:n"), digest(model="q:m"),
        digest(temperature=0.0), digest(temperature=(0.0, 0.5)), digest(temperature=(0.0, 0.7)),
        digest(extra={"a": 1}),
    ]  # fmt: skip
    assert len({digest(), *others}) == 1 + len(others)


async def collect(built, given):
    return [result async for result in built.stream(given)]


def test_a_stream_refuses_the_id_of_a_finished_item_and_loses_nothing(path):
    with SqliteLedger(path) as ledger:
        built = ParallelBatchProcessor(store=ledger, max_workers=1)
        with pytest.raises(DuplicateItemError):
            asyncio.run(collect(built, items(1, 2, 3, 1)))
    with SqliteLedger(path) as ledger:
        assert ledger.counts()[ItemState.DONE] == 3


def test_the_event_loop_goes_on_while_another_program_holds_the_file(path):
    async def main(ledger):
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def call(_attempt, _timeout):
            begun.set()
            await may_end.wait()
            return "out", {}

        holder = sqlite3.connect(path, isolation_level=None)
        built = ParallelBatchProcessor(store=ledger)
        running = asyncio.create_task(built.process([LLMWorkItem("b", direct_call=call)]))
        await begun.wait()
        holder.execute("BEGIN IMMEDIATE")
        may_end.set()
        for _ in range(30):
            await asyncio.sleep(0.01)
        assert not running.done()
        assert built.statistics().processed == 0
        holder.execute("ROLLBACK")
        holder.close()
        return await running

    with SqliteLedger(path) as ledger:
        assert asyncio.run(main(ledger)).succeeded == 1


def test_an_item_that_is_long_in_work_is_written_down_as_such(path):
    async def main(ledger):
        is_seen = asyncio.Event()

        async def call(_attempt, _timeout):
            await is_seen.wait()
            return "out", {}

        def items():
            yield LLMWorkItem("slow", direct_call=call)
            number = 0
            while not is_seen.is_set():
                yield LLMWorkItem(str(number), direct_call=Script("out", delay=0.1))
                number += 1

        built = ParallelBatchProcessor(store=ledger, max_workers=2)
        running = asyncio.create_task(built.process(items()))
        async with asyncio.timeout(60):
            while True:
                await asyncio.sleep(0.05)
                found = ledger.find("slow")
                if found is not None and found.state is ItemState.RUNNING:
                    break
        is_seen.set()
        await running

    with SqliteLedger(path) as ledger:
        asyncio.run(main(ledger))
        assert ledger.find("slow").state is ItemState.DONE


def test_an_earlier_versions_ledger_is_read_as_it_would_be_after_its_migration(path):
    earlier = migrations()[1]
    with sqlite3.connect(path) as tool:
        tool.executescript(f"{earlier}\nPRAGMA user_version = 1;")
        tool.execute("INSERT INTO items VALUES (1, 'a', x'01', 'failed', 1, 'timeout', 1, 2)")
        tool.execute(
            "INSERT INTO payloads (number, error, usage, seconds) VALUES (1, 'late', '{}', 1)"
        )
        tool.execute("INSERT INTO tries VALUES (1, 1, 1, 1, 1, 7, 3, NULL, 'timeout', 'late')")
    tool.close()
    before = path.read_bytes()

    with SqliteLedger(path, read_only=True) as ledger:
        assert ledger.counts()[ItemState.FAILED] == 1
        assert [attempt.usage["input_tokens"] for attempt in ledger.attempts("a")] == [7]
        assert [record.error for record in ledger.records(ItemState.FAILED)] == ["late"]
        assert ledger.problems() == []

    assert path.read_bytes() == before
    with SqliteLedger(path) as ledger:
        run(ledger, 1)


@pytest.mark.parametrize("version", range(1, max(migrations())))
def test_a_run_goes_on_with_the_ledger_of_any_earlier_version(path, version):
    scripts = "\n".join(script for number, script in migrations().items() if number <= version)
    done, cut, failed = items(1, 2, 3)
    with sqlite3.connect(path) as tool:
        tool.executescript(f"{scripts}\nPRAGMA user_version = {version};")
        tool.execute("INSERT INTO sessions (session, started_at) VALUES (1, 1)")
        tool.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, 1, ?, ?, 2)",
            [
                (number, item.item_id, CallByMode().content(item), state, code, attempts)
                for number, (item, state, code, attempts) in enumerate(
                    [
                        (done, "done", None, 1),
                        (cut, "running", None, 0),
                        (failed, "failed", "timeout", 3),
                    ],
                    1,
                )
            ],
        )
        tool.executemany(
            "INSERT INTO payloads (number, output, error, usage, seconds) VALUES (?, ?, ?, ?, 1)",
            [(1, '"kept"', None, '{"input_tokens": 7}'), (3, None, "late", "{}")],
        )
        tool.execute(
            "INSERT INTO tries (number, session, attempt, started_at, seconds, input_tokens)"
            " VALUES (1, 1, 1, 1, 1, 7)"
        )
    tool.close()

    with SqliteLedger(path) as ledger:
        found = asyncio.run(ParallelBatchProcessor(store=ledger).process([done, cut, failed]))
        assert ledger.problems() == []

    assert {one.item_id: (one.output, one.is_reused) for one in found.results} == {
        "1": ("kept", True), "2": ("out", False), "3": (None, True),
    }  # fmt: skip
    with sqlite3.connect(path) as tool:
        assert tool.execute("PRAGMA user_version").fetchone() == (max(migrations()),)
        attempts = tool.execute("SELECT item_id, input_tokens, verdict FROM attempts").fetchall()
        assert attempts == [("1", 7, "ok"), ("2", 10, "ok")]
        assert tool.execute("SELECT count(*) FROM results").fetchone() == (2,)
        assert tool.execute("SELECT item_id, error FROM failed").fetchall() == [("3", "late")]
        assert tool.execute("SELECT * FROM changes").fetchall() == []
    tool.close()


def test_a_ledger_whose_making_was_cut_off_is_an_empty_one(path):
    path.write_bytes(b"")  # what a process leaves that was killed before the first transaction

    with SqliteLedger(path, read_only=True) as ledger:
        assert not any(ledger.counts().values())

    assert path.read_bytes() == b""
