"""What it costs to go on from Python with a run that is 99 % done.

    uv run --group bench python benchmarks/resume_python.py [--rows N] [--cases A;B]

As ``resume.py`` does for the command: a run with answers that cost nothing kills itself when 99 %
of its rows have their result; each case gives the same call again in a process of its own, on a
copy of what was left. CPU is that of the call alone: rows that are values are made before it. What
the missing 1 % takes, beside nothing, is taken off. Memory is what the process had more at the
most than before the call.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEXT = "word " * 40
USAGE = {"input_tokens": 100, "output_tokens": 40, "total_tokens": 140}
PROMPT = "Say something about this text: {{ text }}"

#: What is given as rows, and how; the ledger is made by the first of each kind.
CASES = {
    "stream a JSONL file": ("jsonl", "stream"),
    "run a JSONL file": ("jsonl", "run"),
    "stream a CSV file": ("csv", "stream"),
    "stream a Parquet file": ("parquet", "stream"),
    "stream a list of mappings": ("mappings", "stream"),
    "run a list of mappings": ("mappings", "run"),
    "run_frame, pandas": ("mappings", "frame"),
    "stream a generator": ("mappings", "generator"),
    "stream a list of texts": ("texts", "stream"),
    "run a list of texts": ("texts", "run"),
}


def row(number):
    return {"id": f"row-{number}", "text": f"{number} {TEXT}", "label": f"l{number % 7}"}


def given(kind, numbers):
    """Return rows of a kind; files are made in this folder, where they are not there yet."""
    rows = map(row, numbers)
    if kind == "mappings":
        return list(rows)
    if kind == "texts":
        return [f"{number} {TEXT}" for number in numbers]
    path = Path(f"big.{kind}")
    if path.exists():
        return path
    if kind == "jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps(one) + "\n" for one in rows)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", "text", "label"])
            table.writerows(one.values() for one in rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema({name: pa.string() for name in row(0)})
        with pq.ParquetWriter(path, schema) as file:
            for at in range(0, len(numbers), 50_000):
                some = [row(number) for number in numbers[at : at + 50_000]]
                file.write_table(pa.Table.from_pylist(some, schema))
    return path


async def go(how, rows, options):
    """Make the call; return how many results came."""
    from batch_llm import runs

    if how == "run":
        return len(await runs.run(rows, **options))
    if how == "frame":
        return len(await runs.run_frame(rows, **options))
    if how == "generator":
        rows = (one for one in rows)
    count = 0
    async for _ in runs.stream(rows, **options):
        count += 1
    return count


def child(kind, how, first, last, most):
    """Make the call and say what it took; kill the process after ``most`` calls, if given."""
    from batch_llm.providers.base import Outcome
    from batch_llm.providers.requests import RequestCaller

    calls = 0

    async def call(self, item, attempt):
        nonlocal calls
        calls += 1
        if most is not None and calls > most:
            await asyncio.sleep(1)  # what was answered is saved by then
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(f"About {item.item_id}: {TEXT}", USAGE, model="nobody")

    RequestCaller.call = call
    if kind == "parquet":
        import pyarrow.parquet  # noqa: F401 - before the clock starts
    rows = given(kind, range(first, last))
    if how == "frame":
        import pandas as pd

        rows = pd.DataFrame(rows)
    options = {"model": "sim:fast", "store": "ledger.sqlite", "concurrency": 100}
    if kind != "texts":
        options["prompt"] = PROMPT
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, began = time.process_time(), time.perf_counter()
    count = asyncio.run(go(how, rows, options))
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([cpu, seconds, more / 1024, count, calls]))


def measured(folder, *words):
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--cases", default=";".join(CASES))
    parser.add_argument("--child", nargs="+")
    arguments = parser.parse_args()
    if arguments.child:
        kind, how, *numbers = arguments.child
        first, last, most = (None if one == "-" else int(one) for one in numbers)
        child(kind, how, first, last, most)
        return
    count = arguments.rows
    done = count * 99 // 100
    Path(".batch-llm").mkdir(exist_ok=True)
    print("| the same call again | CPU µs a finished row | s | MB more |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=".batch-llm") as place:
        for case in arguments.cases.split(";"):
            kind, how = CASES[case]
            made, few, folder = (Path(place, one) for one in (kind, "few", "case"))
            if not made.exists():
                made.mkdir()
                assert measured(made, kind, "stream", 0, count, done) is None
            few.mkdir()
            base = measured(few, kind, how, done, count, "-")
            shutil.copytree(made, folder)
            cpu, seconds, more, results, calls = measured(folder, kind, how, 0, count, "-")
            assert results == count, results
            assert 0 < calls <= count - done + 200, calls
            each = (cpu - base[0]) / done * 1e6
            print(f"| {case} | {each:.1f} | {seconds:.1f} | {more:.0f} |", flush=True)
            shutil.rmtree(few)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
