from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend():
    """Sockets, processes and threads need the real clock."""
    return "asyncio"
