from __future__ import annotations

import pytest
from hypothesis import settings

from batch_llm.testing.clock import VirtualTimeLoop

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend():
    """Run every async test on virtual time; integration tests override this."""
    return "asyncio", {"loop_factory": VirtualTimeLoop}
