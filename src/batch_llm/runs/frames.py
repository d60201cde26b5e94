"""Data frames in, the same kind of frame out: pandas and polars. Neither is imported here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from batch_llm.exceptions import InputError
from batch_llm.inputs import Row
from batch_llm.inputs.parquet import plain
from batch_llm.outputs import FIELDS, finished
from batch_llm.runs.api import run
from batch_llm.runs.blocking import LoopThread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batch_llm.base import WorkItemResult
    from batch_llm.runs.options import Answering, RunOptions
    from batch_llm.runs.results import RowData, RunResult

Frame = TypeVar("Frame")


async def run_frame(
    frame: Frame,
    *,
    model: str | None = None,
    schema: Any = None,
    agent: Answering | None = None,
    prefix: str = "",
    **options: Unpack[RunOptions],
) -> Frame:
    """Ask a model about every row of a frame; return it with the results as further columns.

    Rows stay where they are, and a pandas index stays what it is. The columns are ``output``,
    ``status`` (``ok`` or ``failed``), ``error``, ``model``, ``input_tokens``, ``output_tokens``,
    ``attempts`` and ``seconds``. Structured outputs are plain data.

    Args:
        frame: Of pandas or polars.
        model: See ``run``.
        schema: See ``run``.
        agent: See ``run``.
        prefix: Stands before the names of the new columns.
        options: See ``RunOptions``.

    Raises:
        InputError: It is no such frame, has no rows, or has one of the new columns already.
        BatchLLMError: What ``run`` raises.
    """
    kind = type(frame).__module__.partition(".")[0]
    if kind not in {"pandas", "polars"} or type(frame).__name__ != "DataFrame":
        raise InputError(f"run_frame takes a DataFrame of pandas or polars, got {type(frame)!r}")
    found: Any = frame
    taken = [name for name in FIELDS if f"{prefix}{name}" in map(str, found.columns)]
    if taken:
        raise InputError(
            f"the frame has a column {prefix}{taken[0]!s} already; prefix='llm_' gives the new "
            "ones other names"
        )
    if options.get("limit") is not None or options.get("bad_rows") == "skip":
        raise InputError("a frame keeps its rows: leave out limit and bad_rows='skip'")
    records = found.to_dict("records") if kind == "pandas" else found.to_dicts()
    rows = [{str(name): _value(one) for name, one in record.items()} for record in records]
    ask: Callable[..., Awaitable[RunResult[Any]]] = run  # whichever of its overloads
    results = await ask(rows, model=model, schema=schema, agent=agent, **options)
    columns = _columns(results.results, prefix)
    if kind == "pandas":
        new: Frame = found.assign(**columns)
        return new
    import polars as pl

    series = [pl.Series(name, values, strict=False) for name, values in columns.items()]
    widened: Frame = found.with_columns(series)
    return widened


def run_frame_sync(
    frame: Frame,
    *,
    model: str | None = None,
    schema: Any = None,
    agent: Answering | None = None,
    prefix: str = "",
    **options: Unpack[RunOptions],
) -> Frame:
    """Do what ``run_frame`` does without await, in Jupyter too.

    Args:
        frame: See ``run_frame``.
        model: See ``run``.
        schema: See ``run``.
        agent: See ``run``.
        prefix: See ``run_frame``.
        options: See ``RunOptions``.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; what was in flight is abandoned.
        BatchLLMError: What ``run_frame`` raises.
    """
    with LoopThread() as thread:
        return thread.call(
            run_frame(frame, model=model, schema=schema, agent=agent, prefix=prefix, **options)
        )


def _value(value: Any) -> Any:
    """Return a cell as JSON knows it; what pandas has for a missing one is None."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if type(value).__name__ in {"NAType", "NaTType"}:
        return None
    item = getattr(value, "item", None)  # a scalar of numpy
    return plain(item() if item is not None and not hasattr(value, "__len__") else value)


def _columns(results: list[WorkItemResult[Any, RowData]], prefix: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {f"{prefix}{name}": [] for name in FIELDS}
    for result in results:
        row = finished(result, Row(result.item_id, 0, {}))
        for name in FIELDS:
            value = getattr(row, name)
            dump = getattr(value, "model_dump", None)
            columns[f"{prefix}{name}"].append(value if dump is None else dump(mode="json"))
    return columns
