"""Ctrl-C while the command starts, works and ends: one line, and never a traceback."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
#: As the installed command does, but that it says when our part begins.
COMMAND = """
import batch_llm._entry, os, sys
os.write(1, b"!")
sys.exit(batch_llm._entry.main())
"""


def interrupted(folder, after_seconds):
    """Start the command and press Ctrl-C; return what came of it, and how long it took."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "check", "a.txt", "-m", "sim:fast"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        process.stdout.read(1)
        began = time.monotonic()
        try:
            process.wait(after_seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    return process.returncode, said, time.monotonic() - began


def test_an_interruption_at_any_moment_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("hi")
    code, said, seconds = interrupted(tmp_path, 60)
    assert (code, "Interrupted" in said) == (0, False)
    moments = [0.0, *(random.uniform(0, seconds) for _ in range(20))]

    ends = {moment: interrupted(tmp_path, moment)[:2] for moment in moments}

    for code, said in ends.values():
        # At its very end Python gives SIGINT back to the system, which ends it without a word: 130
        # for a shell too.
        expected = {130} if said.endswith("Interrupted.\n") else {0, -signal.SIGINT}
        assert code in expected, ends
        assert "Traceback" not in said, ends
        assert "ignored" not in said, ends


def test_an_interruption_before_anything_is_loaded_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.replace('os.write(1, b"!")', "os.kill(os.getpid(), 2)")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize("module", ["cyclopts", "batch_llm.cli.app", "batch_llm.cli.execution"])
def test_an_early_interruption_is_one_line(tmp_path, module):
    (tmp_path / "a.txt").write_text("hi")
    code = f"""
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from batch_llm._entry import main
sys.exit(main())
"""

    done = subprocess.run(
        [sys.executable, "-c", code, "run", "a.txt", "-m", "sim:fast"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")
