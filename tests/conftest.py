from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from batch_llm.testing.clock import VirtualTimeLoop

#: What holds everywhere: a busy machine is no failure, and a failure tells how to see it again.
UNTIMED = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "print_blob": True,
}
# Where CI is set, the same code gets the same examples each time: a red run is a fault of what was
# changed. Everywhere else they are drawn anew, and what fails is kept in `.hypothesis`.
settings.register_profile("ci", settings(derandomize=True, database=None), **UNTIMED)
settings.register_profile("drawn anew", settings.get_profile("default"), **UNTIMED)
settings.load_profile("ci" if os.environ.get("CI") else "drawn anew")


@pytest.fixture
def anyio_backend():
    """Run every async test on virtual time; integration tests override this."""
    return "asyncio", {"loop_factory": VirtualTimeLoop}
