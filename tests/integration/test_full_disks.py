"""A file system that is really full, and one that is really read-only.

Each test runs its body in a process of its own with a small file system mounted for it alone, as
root of a namespace. Where the system lets nobody do that, a limit on the size of files stands in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import asyncio, os, sys, threading, time
from pathlib import Path
from batch_llm import LLMWorkItem, ParallelBatchProcessor, SqliteLedger
from batch_llm.exceptions import LedgerError, StoreError
from batch_llm.stores import ItemState

folder = Path(sys.argv[1])
calls = []

def items(count, size):
    def one(n):
        async def call(attempt, timeout):
            calls.append(n)
            await asyncio.sleep(0.001)
            return "x" * size, {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        return LLMWorkItem(str(n), direct_call=call)
    return (one(n) for n in range(count))

def run(ledger, count, size):
    built = ParallelBatchProcessor(store=ledger, max_workers=8)
    return asyncio.run(built.process(items(count, size)))
"""


def in_namespace(script, folder, mount):
    """Run a script as root of a namespace of its own, after a command that mounts something."""
    code = PRELUDE + textwrap.dedent(script)
    inner = f'{mount} && exec "$0" -c "$1" "$2"'
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inner, sys.executable, code,
         str(folder)],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    """Run a script with 8 MB of disk at ``folder``."""
    probe = in_namespace("", tmp_path, f"mount -t tmpfs -o size=8m tmpfs {tmp_path}")
    if probe.returncode:
        pytest.skip(f"no file system can be mounted here: {probe.stderr.strip()}")
    return lambda script: in_namespace(
        script, tmp_path, f"mount -t tmpfs -o size=8m tmpfs {tmp_path}"
    )


def test_a_run_waits_for_room_and_loses_nothing_when_it_comes(small_disk):
    done = small_disk("""
        (folder / "ballast").write_bytes(b"x" * 7_000_000)
        with SqliteLedger(folder / "run.sqlite", patience_seconds=20) as ledger:
            def make_room():
                while not ledger._writer.pace.is_stuck:
                    time.sleep(0.01)
                time.sleep(0.5)
                (folder / "ballast").unlink()
            threading.Thread(target=make_room, daemon=True).start()
            result = run(ledger, 100, 12_000)
            assert result.succeeded == 100, result
            assert len(calls) == 100, len(calls)
            assert ledger.counts()[ItemState.DONE] == 100
    """)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (  # once, and not with each attempt
        "Results cannot be saved now (database or disk is full); trying again for 20 s.\n"
    )


def test_what_could_not_be_saved_is_saved_at_the_end_when_there_is_room(small_disk):
    done = small_disk("""
        (folder / "ballast").write_bytes(b"x" * 7_000_000)
        with SqliteLedger(folder / "run.sqlite", patience_seconds=0.3) as ledger:
            try:
                run(ledger, 200, 12_000)
            except StoreError as error:
                text = str(error)
                shown = {one.item_id for one in error.partial.results}
            else:
                raise AssertionError("saved on a full disk")
            assert "the disk is full" in text and "not saved yet" in text, text
            unsaved = ledger.unsaved_results
            assert unsaved > 0
            saved = ledger.counts()[ItemState.DONE]
            assert len(shown) <= saved
            (folder / "ballast").unlink()
        made = len(calls)
        with SqliteLedger(folder / "run.sqlite") as ledger:
            found = {record.item_id for record in ledger.records(ItemState.DONE)}
            assert shown <= found
            assert len(found) == saved + unsaved == made, (len(found), saved, unsaved, made)
            assert ledger.problems() == []
    """)
    assert done.returncode == 0, done.stderr


def test_what_never_found_room_is_asked_again_and_nothing_else(small_disk):
    done = small_disk("""
        (folder / "ballast").write_bytes(b"x" * 7_000_000)
        with SqliteLedger(folder / "run.sqlite", patience_seconds=0.3) as ledger:
            try:
                run(ledger, 90, 12_000)
            except StoreError:
                pass
            else:
                raise AssertionError("saved on a full disk")
        (folder / "ballast").unlink()
        with SqliteLedger(folder / "run.sqlite") as ledger:
            saved = ledger.counts()[ItemState.DONE]
            assert 0 < saved < 90, saved
            before = len(calls)
            assert run(ledger, 90, 12_000).succeeded == 90
            assert len(calls) - before == 90 - saved
            assert ledger.problems() == []
    """)
    assert done.returncode == 0, done.stderr


def test_a_read_only_disk_is_named_and_can_be_read(tmp_path):
    with_ledger = PRELUDE + 'with SqliteLedger(folder / "run.sqlite") as it: run(it, 3, 10)\n'
    subprocess.run([sys.executable, "-c", with_ledger, str(tmp_path)], check=True, timeout=60)
    mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    done = in_namespace(
        """
        for name in ("run.sqlite", "other.sqlite"):
            try:
                SqliteLedger(folder / name)
            except LedgerError as error:
                assert "Read-only file system" in str(error) and name in str(error), error
            else:
                raise AssertionError("opened")
        with SqliteLedger(folder / "run.sqlite", read_only=True) as ledger:
            assert ledger.counts()[ItemState.DONE] == 3
        """,
        tmp_path,
        mount,
    )
    if "mount:" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def test_a_folder_of_somebody_else_is_named(tmp_path):
    """As a user who may not write there; root may write anywhere, so root becomes another."""
    if os.geteuid() == 0:
        become = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
        tmp_path.chmod(0o755)
        for parent in tmp_path.parents:
            if parent.stat().st_uid == 0 and "pytest" in parent.name:
                parent.chmod(0o755)
    else:
        become = ""
        tmp_path.chmod(0o555)
    code = PRELUDE + textwrap.dedent(f"""
        from batch_llm.stores.statements import migrations, statements
        statements(), migrations()  # who we become may not read our own files
        {become}
        try:
            SqliteLedger(folder / "run.sqlite")
        except LedgerError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    tmp_path.chmod(0o755)
    assert "Permission denied" in done.stdout, done.stdout + done.stderr


def test_a_limit_on_the_size_of_files_ends_the_run_like_a_full_disk(tmp_path):
    code = PRELUDE + textwrap.dedent("""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
        with SqliteLedger(folder / "run.sqlite", patience_seconds=0.2) as ledger:
            try:
                run(ledger, 100, 12_000)
            except StoreError as error:
                shown = {one.item_id for one in error.partial.results}
                print(error)
            else:
                raise AssertionError("saved beyond the limit")
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        with SqliteLedger(folder / "run.sqlite") as ledger:
            found = {record.item_id for record in ledger.records(ItemState.DONE)}
            assert shown <= found and len(found) == len(calls), (len(found), len(calls))
            assert ledger.problems() == []
            assert run(ledger, 100, 12_000).succeeded == 100
        assert len(calls) == 100, len(calls)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not saved yet" in done.stdout


def test_a_limit_on_open_files_holds_the_calls_in_flight_and_is_named(tmp_path):
    (tmp_path / "q.txt").write_text("".join(f"Question {n}?\n" for n in range(20)))

    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 110; exec "$@"', "sh", sys.executable, "-m", "batch_llm", "run",
         "q.txt", "-c", "50"],
        cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "held at 10, as many as the limit on open files allows (ulimit -n)" in done.stderr
