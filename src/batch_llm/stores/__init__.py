"""Records of runs."""

from __future__ import annotations

from batch_llm.stores.answers import AnswerCache
from batch_llm.stores.base import Attempt, Cache, ItemState, Ledger, Record, Store
from batch_llm.stores.memory import MemoryLedger, MemoryStore
from batch_llm.stores.sqlite import SqliteLedger

__all__ = [
    "AnswerCache",
    "Attempt",
    "Cache",
    "ItemState",
    "Ledger",
    "MemoryLedger",
    "MemoryStore",
    "Record",
    "SqliteLedger",
    "Store",
]
