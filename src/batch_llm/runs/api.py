"""``run``, ``stream``, ``submit`` and their twins for code that cannot await.

All take the same: rows, a model and perhaps the answers' schema, or an agent; and ``RunOptions``.
Rows are a file's path, or an iterable of texts (prompts), mappings (columns) or lists of messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from batch_llm.exceptions import BatchLLMError, ConfigError, InputError, SettingsChangedError
from batch_llm.inputs import ValueSource, check_is_rows
from batch_llm.inputs.values import apart
from batch_llm.runs.blocking import BlockingHandle, LoopThread, end
from batch_llm.runs.handle import RunHandle, stream_of
from batch_llm.runs.options import RunOptions, brief_from, in_python
from batch_llm.runs.plan import Plan
from batch_llm.runs.prepared import Prepared
from batch_llm.runs.rows_once import RowsOnce

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator

    from batch_llm.base import WorkItemResult
    from batch_llm.core.schema import OutputSchema
    from batch_llm.runs.brief import Brief
    from batch_llm.runs.options import Answering, Rows
    from batch_llm.runs.results import RowData, RunResult

T = TypeVar("T")


@overload
async def run(
    rows: Rows, *, model: str, schema: type[T], **options: Unpack[RunOptions]
) -> RunResult[T]: ...
@overload
async def run(
    rows: Rows, *, model: str, schema: Sequence[str] | None = None, **options: Unpack[RunOptions]
) -> RunResult[str]: ...
@overload
async def run(
    rows: Rows, *, model: str, schema: dict[str, Any] | OutputSchema, **options: Unpack[RunOptions]
) -> RunResult[Any]: ...
@overload
async def run(
    rows: Rows,
    *,
    agent: Answering,
    model: str | None = None,
    **options: Unpack[RunOptions],
) -> RunResult[Any]: ...
async def run(
    rows: Rows,
    *,
    model: str | None = None,
    schema: Any = None,
    agent: Answering | None = None,
    **options: Unpack[RunOptions],
) -> RunResult[Any]:
    """Ask a model about every row, and return all results in the rows' order.

    Rows that fail never raise: they are results, and ``raise_for_failures`` raises for them.
    Everything that can be checked is checked before anything is sent. With a ``name`` or a
    ``store`` each result is saved before anyone sees it, and the same call again goes on.

    Args:
        rows: A file's path (JSON lines, CSV, TSV, Parquet, text; whatever ``batch-llm run`` reads),
            or an iterable of texts, mappings or lists of messages.
        model: ``"provider:model"``, such as ``"openai:gpt-6-luna"`` or ``"sim:fast"``. Of an agent:
            instead of its own.
        schema: The answers' shape: a pydantic model or another type, a list of choices, a JSON
            schema. None: text.
        agent: Answers the rows instead: anything with ``async run(prompt)``, such as an agent of
            pydantic-ai; a function from an attempt's number, from 1, to one; or what ``--agent``
            takes, such as ``"my_agents:judge"``. It has instructions, output type and settings of
            its own.
        options: See ``RunOptions``.

    Raises:
        ConfigError: An argument cannot be.
        InputError: Rows or prompt cannot be used. Nothing was sent.
        UnknownModelError: There is no such model.
        MissingKeyError: There is no key for it.
        SettingsChangedError: The ledger is that of a run with other settings.
        LedgerInUseError: Another process runs it.
        StoreError: A result could not be saved; the run stopped.
        asyncio.CancelledError: It was cancelled; what was in flight is abandoned, and what was
            finished is in the ledger.
    """
    handle: RunHandle[Any] = await _submit(rows, model, schema, agent, options)
    try:
        return await handle.result()
    except asyncio.CancelledError:
        await handle.abandon()
        raise


@overload
async def submit(
    rows: Rows, *, model: str, schema: type[T], **options: Unpack[RunOptions]
) -> RunHandle[T]: ...
@overload
async def submit(
    rows: Rows, *, model: str, schema: Sequence[str] | None = None, **options: Unpack[RunOptions]
) -> RunHandle[str]: ...
@overload
async def submit(
    rows: Rows, *, model: str, schema: dict[str, Any] | OutputSchema, **options: Unpack[RunOptions]
) -> RunHandle[Any]: ...
@overload
async def submit(
    rows: Rows,
    *,
    agent: Answering,
    model: str | None = None,
    **options: Unpack[RunOptions],
) -> RunHandle[Any]: ...
async def submit(
    rows: Rows,
    *,
    model: str | None = None,
    schema: Any = None,
    agent: Answering | None = None,
    **options: Unpack[RunOptions],
) -> RunHandle[Any]:
    """Begin a run in the background of this event loop; its handle looks at it and ends it.

    Args:
        rows: See ``run``.
        model: See ``run``.
        schema: See ``run``.
        agent: See ``run``.
        options: See ``RunOptions``.

    Raises:
        BatchLLMError: What ``run`` raises before it sends anything.
    """
    return await _submit(rows, model, schema, agent, options)


@overload
def stream(
    rows: Rows,
    *,
    model: str,
    schema: type[T],
    buffer: int | None = None,
    **options: Unpack[RunOptions],
) -> AsyncGenerator[WorkItemResult[T, RowData]]: ...
@overload
def stream(
    rows: Rows,
    *,
    model: str,
    schema: Sequence[str] | None = None,
    buffer: int | None = None,
    **options: Unpack[RunOptions],
) -> AsyncGenerator[WorkItemResult[str, RowData]]: ...
@overload
def stream(
    rows: Rows,
    *,
    model: str,
    schema: dict[str, Any] | OutputSchema,
    buffer: int | None = None,
    **options: Unpack[RunOptions],
) -> AsyncGenerator[WorkItemResult[Any, RowData]]: ...
@overload
def stream(
    rows: Rows,
    *,
    agent: Answering,
    model: str | None = None,
    buffer: int | None = None,
    **options: Unpack[RunOptions],
) -> AsyncGenerator[WorkItemResult[Any, RowData]]: ...
async def stream(
    rows: Rows,
    *,
    model: str | None = None,
    schema: Any = None,
    agent: Answering | None = None,
    buffer: int | None = None,
    **options: Unpack[RunOptions],
) -> AsyncGenerator[WorkItemResult[Any, RowData]]:
    """Yield each row's result as soon as it is there.

    Files and sequences are read through first, as by ``run``. Other iterables, async ones too, are
    read as there is room, so they may be endless: what is wrong with a row is found when it comes,
    and raised after the rows before it were finished. A consumer that is slower than the calls
    slows them down. Leaving the loop early abandons what is in work; close the generator, or use
    ``contextlib.aclosing``.

    Args:
        rows: See ``run``.
        model: See ``run``.
        schema: See ``run``.
        agent: See ``run``.
        buffer: Finished results that may wait for the consumer; default 2 per call in flight.
        options: See ``RunOptions``.

    Raises:
        BatchLLMError: What ``run`` raises.
        Exception: What ``rows`` raised, after the rows before were finished.
    """
    prepared = await _prepare(rows, model, schema, agent, options, may_be_once=True)
    async with contextlib.aclosing(stream_of(prepared, buffer)) as found:
        async for results in found:
            for result in results:
                yield result


@overload
def run_sync(
    rows: Rows, *, model: str, schema: type[T], **options: Unpack[RunOptions]
) -> RunResult[T]: ...
@overload
def run_sync(
    rows: Rows, *, model: str, schema: Sequence[str] | None = None, **options: Unpack[RunOptions]
) -> RunResult[str]: ...
@overload
def run_sync(
    rows: Rows, *, model: str, schema: dict[str, Any] | OutputSchema, **options: Unpack[RunOptions]
) -> RunResult[Any]: ...
@overload
def run_sync(
    rows: Rows,
    *,
    agent: Answering,
    model: str | None = None,
    **options: Unpack[RunOptions],
) -> RunResult[Any]: ...
def run_sync(
    rows: Rows,
    *,
    model: str | None = None,
    schema: Any = None,
    agent: Answering | None = None,
    **options: Unpack[RunOptions],
) -> RunResult[Any]:
    """Do what ``run`` does without await, in Jupyter too.

    Ctrl-C waits for the calls in flight, saves them where there is a ledger, and raises
    ``KeyboardInterrupt``; a second one abandons them.

    Args:
        rows: See ``run``.
        model: See ``run``.
        schema: See ``run``.
        agent: See ``run``.
        options: See ``RunOptions``.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
        BatchLLMError: What ``run`` raises.
    """
    with LoopThread() as thread:
        handle: RunHandle[Any] = thread.call(_submit(rows, model, schema, agent, options))
        return thread.call(handle.result(), lambda count: end(handle, count))


@overload
def submit_sync(
    rows: Rows, *, model: str, schema: type[T], **options: Unpack[RunOptions]
) -> BlockingHandle[T]: ...
@overload
def submit_sync(
    rows: Rows, *, model: str, schema: Sequence[str] | None = None, **options: Unpack[RunOptions]
) -> BlockingHandle[str]: ...
@overload
def submit_sync(
    rows: Rows, *, model: str, schema: dict[str, Any] | OutputSchema, **options: Unpack[RunOptions]
) -> BlockingHandle[Any]: ...
@overload
def submit_sync(
    rows: Rows,
    *,
    agent: Answering,
    model: str | None = None,
    **options: Unpack[RunOptions],
) -> BlockingHandle[Any]: ...
def submit_sync(
    rows: Rows,
    *,
    model: str | None = None,
    schema: Any = None,
    agent: Answering | None = None,
    **options: Unpack[RunOptions],
) -> BlockingHandle[Any]:
    """Begin a run in a background thread; its handle looks at it, ends it and waits for it.

    Args:
        rows: See ``run``.
        model: See ``run``.
        schema: See ``run``.
        agent: See ``run``.
        options: See ``RunOptions``.

    Raises:
        BatchLLMError: What ``run`` raises before it sends anything.
    """
    thread = LoopThread()
    try:
        handle: RunHandle[Any] = thread.call(_submit(rows, model, schema, agent, options))
    except BaseException:
        thread.close()
        raise
    return BlockingHandle(thread, handle)


@overload
def stream_sync(
    rows: Rows,
    *,
    model: str,
    schema: type[T],
    buffer: int | None = None,
    **options: Unpack[RunOptions],
) -> Generator[WorkItemResult[T, RowData]]: ...
@overload
def stream_sync(
    rows: Rows,
    *,
    model: str,
    schema: Sequence[str] | None = None,
    buffer: int | None = None,
    **options: Unpack[RunOptions],
) -> Generator[WorkItemResult[str, RowData]]: ...
@overload
def stream_sync(
    rows: Rows,
    *,
    model: str,
    schema: dict[str, Any] | OutputSchema,
    buffer: int | None = None,
    **options: Unpack[RunOptions],
) -> Generator[WorkItemResult[Any, RowData]]: ...
@overload
def stream_sync(
    rows: Rows,
    *,
    agent: Answering,
    model: str | None = None,
    buffer: int | None = None,
    **options: Unpack[RunOptions],
) -> Generator[WorkItemResult[Any, RowData]]: ...
def stream_sync(
    rows: Rows,
    *,
    model: str | None = None,
    schema: Any = None,
    agent: Answering | None = None,
    buffer: int | None = None,
    **options: Unpack[RunOptions],
) -> Generator[WorkItemResult[Any, RowData]]:
    """Yield what ``stream`` yields without await, in Jupyter too.

    ``rows`` is read in another thread. Leaving the loop early, by Ctrl-C too, abandons what is in
    work.

    Args:
        rows: See ``run``.
        model: See ``run``.
        schema: See ``run``.
        agent: See ``run``.
        buffer: See ``stream``.
        options: See ``RunOptions``.

    Raises:
        BatchLLMError: What ``run`` raises.
        Exception: What ``rows`` raised, after the rows before were finished.
    """
    with LoopThread() as thread:
        prepared = thread.call(_prepare(rows, model, schema, agent, options, may_be_once=True))
        found = stream_of(prepared, buffer)

        async def some() -> list[WorkItemResult[Any, RowData]]:
            return await anext(found, [])

        try:
            while results := thread.call(some()):
                yield from results
        finally:
            thread.call(found.aclose())


async def _submit(
    rows: Rows, model: str | None, schema: Any, agent: Answering | None, options: RunOptions
) -> RunHandle[Any]:
    return RunHandle(await _prepare(rows, model, schema, agent, options))


async def _prepare(
    rows: Rows,
    model: str | None,
    schema: Any,
    agent: Answering | None,
    options: RunOptions,
    *,
    may_be_once: bool = False,
) -> Prepared:
    """Check everything and open what a run needs; in another thread, because that takes a while.

    Args:
        rows: Of the run.
        model: Of the run.
        schema: Of the run.
        agent: Of the run.
        options: Of the run.
        may_be_once: Whether rows that can be read only once are left to be read as they come.
    """
    check_is_rows(rows)
    with _in_python():
        brief = brief_from(rows, model, schema, options, agent)
    overwrite = options.get("overwrite", False)
    if isinstance(rows, str | os.PathLike | Sequence):
        known: Sequence[Any] | None = None if isinstance(rows, str | os.PathLike) else rows
    elif may_be_once:
        once = RowsOnce(brief, rows)
        with _in_python():
            await once.open()
            return await _opened(lambda: Prepared(brief, once, overwrite=overwrite))
    elif isinstance(rows, AsyncIterable):
        known = [apart(row) async for row in rows]
    else:
        known = [apart(row) for row in rows]
    return await _opened(lambda: _prepared(brief, known, overwrite=overwrite))


async def _opened(make: Callable[[], Prepared]) -> Prepared:
    """Make it in another thread. Who is cancelled meanwhile leaves nothing open."""
    making = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        with contextlib.suppress(BatchLLMError, OSError):
            await asyncio.to_thread((await making).close)
        raise


def _prepared(brief: Brief, rows: Sequence[Any] | None, *, overwrite: bool) -> Prepared:
    with _in_python():
        source = None
        if rows is not None:
            if not rows:
                raise InputError("there are no rows; there is nothing to send")
            source = ValueSource(rows, id_column=brief.id_column, limit=brief.limit)
        plan = Plan(brief, source, uses_index=True)
        try:
            plan.check_unchanged()
        except InputError:
            plan.close()
            raise
        return Prepared(brief, plan, overwrite=overwrite)


@contextlib.contextmanager
def _in_python() -> Iterator[None]:
    """Let errors speak of arguments, where they would speak of flags."""
    try:
        yield
    except InputError as error:
        raise InputError(in_python(error.text)) from error.__cause__
    except ConfigError as error:
        setting, expected = in_python(error.setting), in_python(error.expected)
        raise ConfigError(setting, error.value, expected) from error.__cause__
    except SettingsChangedError as error:
        error.add_note("Another name or store begins a run beside it; overwrite=True begins anew.")
        raise
