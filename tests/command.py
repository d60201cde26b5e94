"""The ``batch-llm`` command as a process, for tests, and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

#: This process's environment without keys, addresses and settings of whoever runs the tests.
ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "BATCH_LLM_"))}


def run_command(folder, *arguments, env=None, stdin=None):
    """Run the command in a folder; return the process that has ended, with what it said."""
    return subprocess.run(
        [sys.executable, "-m", "batch_llm", *arguments],
        cwd=folder,
        env=ENVIRON | (env or {}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def rows(path):
    """Return the records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
