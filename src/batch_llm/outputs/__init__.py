"""Writing files of results."""

from __future__ import annotations

from batch_llm.outputs.writers import FIELDS, FailedWriter, Finished, ResultWriter, cell, finished

__all__ = ["FIELDS", "FailedWriter", "Finished", "ResultWriter", "cell", "finished"]
