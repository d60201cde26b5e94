"""What it costs to give the command of a run again that is 99 % done.

    uv run --group bench python benchmarks/resume.py [--rows N] [--format jsonl|csv|parquet]

The run is made by the command itself, with answers that cost nothing, and kills itself when 99 % of
its rows have their result. Each case then gives the same command again in a process of its own,
on a copy of what was left. CPU is user and system time of that process; that of a run of the
missing 1 % alone, beside nothing, is taken off, so start-up and calls do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEXT = "word " * 40
USAGE = {"input_tokens": 100, "output_tokens": 40, "total_tokens": 140}


def write_input(path, rows):
    """A row has an id, a text that is asked about, and a column that no prompt uses."""
    if path.suffix == ".parquet":
        write_parquet(path, rows)
        return
    with path.open("w", newline="") as file:
        table = csv.writer(file) if path.suffix == ".csv" else None
        if table:
            table.writerow(["id", "text", "label"])
        for number in rows:
            row = {"id": f"row-{number}", "text": f"{number} {TEXT}", "label": f"l{number % 7}"}
            if table:
                table.writerow(row.values())
            else:
                file.write(json.dumps(row) + "\n")


def write_parquet(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({name: pa.string() for name in ("id", "text", "label")})
    with pq.ParquetWriter(path, schema) as file:
        for at in range(0, len(rows), 50_000):
            some = [
                {"id": f"row-{number}", "text": f"{number} {TEXT}", "label": f"l{number % 7}"}
                for number in rows[at : at + 50_000]
            ]
            file.write_table(pa.Table.from_pylist(some, schema))


def answer_for_nothing(most):
    """Give the command with calls that cost nothing; kill the process after ``most`` of them."""
    from batch_llm.cli import main
    from batch_llm.providers.base import Outcome
    from batch_llm.providers.requests import RequestCaller

    calls = 0

    async def call(self, item, attempt):
        nonlocal calls
        calls += 1
        if calls > most:
            await asyncio.sleep(1)  # what was answered is saved by then
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(f"About {item.item_id}: {TEXT}", USAGE, model="nobody")

    RequestCaller.call = call
    main()


def command(folder, name, *more):
    prompt = "Say something about this text: {{ text }}"
    words = ["run", name, "-m", "sim:fast", "--prompt", prompt, "-c", "100", "-q", *more]
    return words, {"cwd": folder, "stdout": subprocess.DEVNULL}


def measured(words, where):
    """Return CPU seconds, seconds and the most MB of one process."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], **where)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    return used.ru_utime + used.ru_stime, seconds, used.ru_maxrss / 1024, process.returncode


def given_again(folder, name, *more):
    words, where = command(folder, name, *more)
    found = measured(["-m", "batch_llm", *words], where)
    assert found[3] == 0, found
    return found


def edited(folder, name, what):
    """Change what the case is about."""
    path, output = folder / name, folder / f"{Path(name).stem}.results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if what == "one row changed":
        place = len(lines) // 2
        lines[place] = lines[place].replace(b"word", b"work", 1)
    elif what == "rows inserted in front":
        at = 1 if name.endswith("csv") else 0
        lines[at:at] = [
            line.replace(b"row-", b"new-", 1) for line in lines[1:11]
        ]  # other ids, same texts
    elif what == "output torn":
        os.truncate(output, output.stat().st_size - 100)
    elif what == "output edited in front":
        with output.open("r+b") as file:
            file.write(b"#")
    elif what == "output gone":
        output.unlink()
    if what.startswith(("one", "rows")):
        path.write_bytes(b"".join(lines))


CASES = (
    "as it was killed",
    "one row changed",
    "rows inserted in front",
    "output torn",
    "output edited in front",
    "output gone",
)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--format", default="jsonl", choices=("jsonl", "csv", "parquet"))
    parser.add_argument("--cases", type=int, default=len(CASES))
    parser.add_argument("--answers", type=int)
    parser.add_argument("rest", nargs="*")
    arguments, rest = parser.parse_known_args()
    if arguments.answers is not None:
        sys.argv[1:] = arguments.rest + rest
        answer_for_nothing(arguments.answers)
        return
    count, name = arguments.rows, f"big.{arguments.format}"
    done = count * 99 // 100
    Path(".batch-llm").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=".batch-llm") as place:
        made, few = Path(place, "made"), Path(place, "few")
        made.mkdir()
        few.mkdir()
        write_input(made / name, range(count))
        write_input(few / name, range(done, count))
        words, where = command(made, name)
        first = measured([__file__, "--answers", str(done), "--", *words], where)
        print(f"made: {first[0] / done * 1e6:.1f} µs a row, {first[2]:.0f} MB, ended {first[3]}")
        base = given_again(few, name)
        print(f"the missing 1 % alone: {base[0]:.2f} s of CPU, {base[2]:.0f} MB")
        print(
            "\n| the same command again | CPU µs a finished row | s | MB more |\n|---|---|---|---|"
        )
        cases = CASES[: arguments.cases]
        if name == "big.parquet":  # it has no lines to be edited
            cases = [one for one in cases if "row" not in one]
        for what in cases:
            folder = Path(place, "case")
            shutil.copytree(made, folder)
            # Apart: a process starts with the most memory that its parent had.
            apart = multiprocessing.Process(target=edited, args=(folder, name, what))
            apart.start()
            apart.join()
            cpu, seconds, resident, _ = given_again(folder, name)
            each, more = (cpu - base[0]) / done * 1e6, resident - base[2]
            print(f"| {what} | {each:.1f} | {seconds:.1f} | {more:.0f} |", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
