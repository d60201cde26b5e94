"""Two runs with ledgers of their own and one file of results, at the same time."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from batch_llm.simulator.server import Simulator
from command import ENVIRON, rows

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")

ROWS = 40


def test_the_second_is_refused_before_it_sends_anything_and_the_first_loses_nothing(tmp_path, cli):
    (tmp_path / "q.txt").write_text("".join(f"Question {n}?\n" for n in range(ROWS)))
    with Simulator("fast?latency=1&tail=0") as simulator:
        asked = ["run", "q.txt", "-m", "openai-chat:m", "--base-url", simulator.base_url, "-c", "4"]
        first = subprocess.Popen(
            [sys.executable, "-m", "batch_llm", *asked, "--name", "one"], cwd=tmp_path,
            env=ENVIRON | {"OPENAI_API_KEY": "any"}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "q.results.jsonl").exists():
                assert time.monotonic() < deadline, "it never began"
                time.sleep(0.02)
            second = cli(*asked, "--name", "two", "--overwrite", env={"OPENAI_API_KEY": "any"})
            _, said = first.communicate(timeout=100)
        finally:
            first.kill()
        calls = simulator.stats().calls

    assert second.returncode == 2, second.stderr
    assert "another process is writing q.results.jsonl" in second.stderr
    assert first.returncode == 0, said
    assert calls == ROWS
    assert {row["id"] for row in rows(tmp_path / "q.results.jsonl")} == {
        f"row-{n}" for n in range(1, ROWS + 1)
    }
