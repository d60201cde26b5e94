"""Writing files of results."""

from __future__ import annotations

from batch_llm.outputs.writers import (
    FIELDS,
    FailedWriter,
    Finished,
    OutputExistsError,
    OutputLostError,
    ResultWriter,
)

__all__ = [
    "FIELDS",
    "FailedWriter",
    "Finished",
    "OutputExistsError",
    "OutputLostError",
    "ResultWriter",
]
