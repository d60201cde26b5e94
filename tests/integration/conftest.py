from __future__ import annotations

from functools import partial

import pytest

from command import run_command


@pytest.fixture
def anyio_backend():
    """Sockets, processes and threads need the real clock."""
    return "asyncio"


@pytest.fixture
def cli(tmp_path):
    """Return a function that runs the command in an empty folder."""
    return partial(run_command, tmp_path)
