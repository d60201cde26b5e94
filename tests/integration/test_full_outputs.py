"""Files of results on a disk that takes no more: a limit on the size of files stands in."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from command import ENVIRON

#: The third row does not fit any more; the system takes a part of it.
PRELUDE = """
import resource, signal, sys
from batch_llm.exceptions import OutputLostError
from batch_llm.inputs import Row
from batch_llm.outputs import Finished, ResultWriter

def allow(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def write(number):
    writer.write(Finished(row=Row(f"r{number}", number, {"text": "a\\nb"}), output="x" * 900))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = ResultWriter(sys.argv[1])
allow(2_500)
write(1), write(2)
try:
    write(3)
except OutputLostError as error:
    print(error)
"""


def on_full_disk(code, path):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def ids(path):
    if path.suffix == ".jsonl":
        return [json.loads(line)["id"] for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path)["id"].to_pylist()
    with path.open(newline="") as file:
        return [row["id"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_row_that_did_not_fit_leaves_nothing_that_the_next_one_is_read_with(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"

    said = on_full_disk("allow(10_000_000)\nwrite(4)\nwriter.close()", path)

    assert "a result could not be written" in said
    assert "File too large" in said
    assert ids(path) == ["r1", "r2", "r4"]
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_parquet_file_that_does_not_fit_leaves_its_rows_and_no_half_of_itself(tmp_path):
    path = tmp_path / "o.parquet"

    said = on_full_disk(
        """
try:
    writer.close()
except OutputLostError as error:
    print(error)
""",
        path,
    )

    assert f"its rows are in {path}.rows.jsonl" in said
    assert [one.name for one in tmp_path.iterdir()] == ["o.parquet.rows.jsonl"]
    lines = (tmp_path / "o.parquet.rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["r1", "r2"]


@pytest.mark.parametrize("flags", [["-o", "o.jsonl"], ["-o", "-"]])
def test_a_place_where_files_cannot_be_made_is_named_before_anything_is_sent(tmp_path, flags):
    """With results on standard output, the file of failed rows is the one that is needed."""
    (tmp_path / "q.txt").write_text("<<p400>>\n")
    command = [sys.executable, "-m", "batch_llm", "run", "q.txt", "--no-store", *flags]
    mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    inner = f'{mount} && cd {tmp_path} && exec "$@"'

    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inner, "sh", *command],
        env=ENVIRON, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip

    if "mount:" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    name = "q.failed.jsonl" if flags[1] == "-" else "o."
    assert f"error: {name}" in done.stderr
    assert "cannot be used: " in done.stderr
    assert "Errno" not in done.stderr
    assert done.returncode == 2
