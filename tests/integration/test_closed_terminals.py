"""A terminal that is closed in mid-run: what is in flight has been paid for, and is saved."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from batch_llm.simulator.server import Simulator
from command import ENVIRON, rows

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

IN_FLIGHT, LATER = 8, 40


@pytest.fixture(autouse=True)
def hanging_up_ends():
    """Take back what a test run that is to outlive its terminal hands on to its processes."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def command(simulator, folder):
    (folder / "q.txt").write_text("".join(f"Question {n}?\n" for n in range(IN_FLIGHT + LATER)))
    return [sys.executable, "-m", "batch_llm", "run", "q.txt", "-m", "openai-chat:m",
            "--base-url", simulator.base_url, "-c", str(IN_FLIGHT)]  # fmt: skip


def test_closing_the_terminal_sends_nothing_more_and_saves_what_is_in_flight(tmp_path):
    import pty

    with Simulator("fast?latency=2&tail=0") as simulator:
        ours, theirs = pty.openpty()
        # The first terminal that the leader of a session opens is its own.
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(theirs),
             *command(simulator, tmp_path)],
            cwd=tmp_path, env=ENVIRON | {"OPENAI_API_KEY": "any"}, start_new_session=True,
        )  # fmt: skip
        try:
            wait_for_calls(simulator, ours)
            os.close(theirs)
            os.close(ours)
            code = process.wait(timeout=60)
        finally:
            process.kill()
        calls = simulator.stats().calls

    assert code == 129
    assert IN_FLIGHT <= calls < IN_FLIGHT + LATER
    assert len(rows(tmp_path / "q.results.jsonl")) == calls


def wait_for_calls(simulator, terminal):
    """Wait until calls are in flight; read what is shown meanwhile, so that nothing waits."""
    deadline = time.monotonic() + 60
    while simulator.stats().calls < IN_FLIGHT:
        assert time.monotonic() < deadline, "no call came"
        if select.select([terminal], [], [], 0.02)[0]:
            os.read(terminal, 65_536)


def test_a_second_hang_up_abandons_nothing(tmp_path):
    """The shell sends one to what it has started, and so does the system."""
    with Simulator("fast?latency=2&tail=0") as simulator:
        process = start(simulator, tmp_path)
        try:
            wait_until(lambda: simulator.stats().calls >= IN_FLIGHT)
            process.send_signal(signal.SIGHUP)
            assert "Stopping: waiting for" in process.stderr.readline()
            process.send_signal(signal.SIGHUP)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
        calls = simulator.stats().calls

    assert process.returncode == 129, said
    assert len(rows(tmp_path / "q.results.jsonl")) == calls


def test_a_run_that_is_to_outlive_its_terminal_does(tmp_path):
    with Simulator("fast?latency=0.2&tail=0") as simulator:
        process = start(simulator, tmp_path, "sh", "-c", 'trap "" HUP; exec "$@"', "nohup")
        try:
            wait_until(lambda: simulator.stats().calls >= IN_FLIGHT)
            process.send_signal(signal.SIGHUP)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == 0, said
    assert len(rows(tmp_path / "q.results.jsonl")) == IN_FLIGHT + LATER


def start(simulator, folder, *before):
    return subprocess.Popen(
        [*before, *command(simulator, folder)], cwd=folder,
        env=ENVIRON | {"OPENAI_API_KEY": "any"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_until(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
