"""What stands beside a ledger is looked at, never believed: whole frames that somebody has made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import msgspec
import pytest

from batch_llm.core.framed_files import frame_of, frames_of
from batch_llm.simulator.server import Simulator
from command import ENVIRON, rows, run_command

LEDGER = ".batch-llm/runs/q.results.jsonl.sqlite"
COUNT = 1005
HUGE = 2**62


@pytest.fixture(scope="module")
def give(tmp_path_factory):
    """Return what gives the command in a folder, and one in which the run is done."""
    done = tmp_path_factory.mktemp("done")
    lines = [json.dumps({"id": f"q{n}", "prompt": f"Question {n}?"}) for n in range(COUNT)]
    (done / "q.jsonl").write_text("\n".join(lines) + "\n")
    with Simulator("fast") as simulator:
        where = ["--base-url", simulator.base_url]

        def give(folder):
            return run_command(
                folder, "run", "q.jsonl", "-m", "openai-chat:x", *where,
                env={"OPENAI_API_KEY": "any"},
            )  # fmt: skip

        assert give(done).returncode == 0
        yield give, done


@pytest.fixture
def run(give, tmp_path):
    shutil.copytree(give[1], tmp_path, dirs_exist_ok=True)
    return partial(give[0], tmp_path)


def forge(path, change):
    """Change what is in a file's frames behind the first, and seal them again."""
    with path.open("rb") as file:
        head, *frames = frames_of(file)
    made = [frame_of(head)]
    for frame in frames:
        content = change(msgspec.msgpack.decode(frame))
        made.append(
            frame_of(content if isinstance(content, bytes) else msgspec.msgpack.encode(content))
        )
    path.write_bytes(b"".join(made))


def with_field(place, value):
    def change(fields):
        fields[place] = value(fields[place]) if callable(value) else value
        return fields

    return change


#: A block's fields: mark, digest, length, lines, records, number, line, facts, starts, contents.
#: All ways in which they do not go together: ``tests/unit/runs/test_row_index.py``.
BLOCKS = {
    "no MessagePack": lambda _: b"\xc1\xc1",
    "of more bytes than there are": with_field(2, 2**39),
    "of more lines than bytes": with_field(3, HUGE),
    "with facts of other rows": with_field(7, lambda facts: [HUGE, *facts[1:]]),
}
#: A part's fields: size, digest, rows.
PARTS = {
    "another shape": lambda _: {"a": 1},
    "of fewer bytes than none": with_field(0, -1),
    "of more bytes than there are": with_field(0, 2**64 - 1),
    "with half a row": with_field(2, b"abc"),
    "with rows that are not there": with_field(2, b"\xff" * 400),
    "with rows before the first": with_field(2, bytes(400)),
}


def assert_is_whole(tmp_path, again):
    assert again.returncode == 0, again.stderr
    assert f"{COUNT:,} reused, 0 to do" in again.stderr
    found = rows(tmp_path / "q.results.jsonl")
    assert sorted(row["id"] for row in found) == sorted(f"q{n}" for n in range(COUNT))


@pytest.mark.parametrize("what", BLOCKS)
def test_a_forged_block_is_read_again(tmp_path, run, what):
    forge(tmp_path / f"{LEDGER}-rows", BLOCKS[what])

    assert_is_whole(tmp_path, run())


@pytest.mark.parametrize("what", PARTS)
def test_a_forged_part_is_written_again(tmp_path, run, what):
    forge(tmp_path / f"{LEDGER}-output", PARTS[what])

    assert_is_whole(tmp_path, run())


@pytest.mark.skipif(sys.platform != "linux", reason="only there memory can be limited")
def test_a_length_that_no_file_has_takes_no_memory(tmp_path):
    path = tmp_path / "frames"
    path.write_bytes(frame_of(b"one") + b"\xff" * 12 + b"rest")
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from batch_llm.core.framed_files import frames_of\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "print(list(frames_of(Path(sys.argv[1]).open('rb'))))\n"
    )

    found = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env=ENVIRON, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert found.stdout == "[b'one']\n", found.stderr


@pytest.mark.parametrize("what", ["a folder", "a link to nothing", "a link to itself", "a pipe"])
@pytest.mark.parametrize("suffix", ["-rows", "-output", "-calls"])
def test_what_is_no_file_does_no_harm(tmp_path, run, suffix, what):
    path = Path(f"{tmp_path / LEDGER}{suffix}")
    path.unlink(missing_ok=True)
    if what == "a folder":
        path.mkdir()
    elif what == "a link to nothing":
        path.symlink_to(tmp_path / "nothing")
    elif what == "a link to itself":
        path.symlink_to(path)
    else:
        os.mkfifo(path)

    assert_is_whole(tmp_path, run())
