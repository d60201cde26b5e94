"""Where pyarrow is found, for those who read and write Parquet."""

from __future__ import annotations

from typing import Any

from batch_llm.exceptions import MissingExtraError


def load_parquet() -> tuple[Any, Any]:
    """Return the modules ``pyarrow`` and ``pyarrow.parquet``. Loading them takes a while.

    Raises:
        MissingExtraError: They are not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("Parquet", "parquet") from None
    return pa, parquet
