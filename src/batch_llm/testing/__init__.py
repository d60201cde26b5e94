"""For your tests: agents without a model, a clock that jumps."""

from __future__ import annotations

from batch_llm.testing.clock import DeadlockError, VirtualTimeLoop
from batch_llm.testing.mocks import MockAgent, MockResult, MockUsage

__all__ = ["DeadlockError", "MockAgent", "MockResult", "MockUsage", "VirtualTimeLoop"]
