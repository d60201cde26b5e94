from __future__ import annotations

import pytest

from batch_llm.stores import MemoryLedger, SqliteLedger
from batch_llm.testing.ledgers import LedgerSuite


class _Kept(MemoryLedger):
    """Memory that is still there when it is opened again."""

    def close(self):
        self.end_run()


class TestMemoryLedger(LedgerSuite):
    @pytest.fixture
    def reopen(self):
        ledger = _Kept()
        return lambda: ledger


class TestSqliteLedger(LedgerSuite):
    @pytest.fixture
    def reopen(self, tmp_path):
        return lambda: SqliteLedger(tmp_path / "run.sqlite")
