"""Records of runs."""

from __future__ import annotations

from batch_llm.stores.base import Attempt, ItemState, Ledger, Record, Store
from batch_llm.stores.memory import MemoryLedger, MemoryStore
from batch_llm.stores.sqlite import SqliteLedger

__all__ = [
    "Attempt",
    "ItemState",
    "Ledger",
    "MemoryLedger",
    "MemoryStore",
    "Record",
    "SqliteLedger",
    "Store",
]
