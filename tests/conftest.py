from __future__ import annotations

import pytest

from batch_llm.testing.clock import VirtualTimeLoop


@pytest.fixture
def anyio_backend():
    """Run every async test on virtual time; integration tests override this."""
    return "asyncio", {"loop_factory": VirtualTimeLoop}
