"""Records of runs."""

from __future__ import annotations

from batch_llm.stores.base import Attempt, Store
from batch_llm.stores.memory import MemoryStore

__all__ = ["Attempt", "MemoryStore", "Store"]
