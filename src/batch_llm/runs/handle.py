"""A run that goes on in the background, in this process."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from batch_llm._engine.channel import Channel
from batch_llm.exceptions import SourceError
from batch_llm.runs.prepared import show

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from batch_llm._engine.statistics import Statistics
    from batch_llm.base import WorkItemResult
    from batch_llm.runs.prepared import Prepared, Result
    from batch_llm.runs.results import RowData, RunResult

T = TypeVar("T")


class RunHandle(Generic[T]):
    """A run in the background: look at it, end it, wait for its result.

    Made by ``submit``. It goes on whether or not anybody waits, for as long as its event loop runs.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._results: dict[int, Result] = {}
        self._task = asyncio.create_task(self._send())

    async def _send(self) -> RunResult[T]:
        await self._prepared.send(self._take)
        return cast("RunResult[T]", self._prepared.conclude(self._results))

    def _take(self, result: Result) -> None:
        row = result.context
        assert row is not None  # noqa: S101 - each item comes with its row
        self._results[row.line] = result

    @property
    def ledger(self) -> str | None:
        """The ledger's file; None without one."""
        return self._prepared.brief.ledger

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._task.done()

    def statistics(self) -> Statistics:
        """Return its numbers of this moment, as a frozen snapshot."""
        return self._prepared.statistics()

    def cancel(self, *, drain: bool = True) -> None:
        """End it early; ``result`` then gives what there is.

        Args:
            drain: Wait for the calls in flight, and keep their answers; otherwise abandon them.
        """
        self._prepared.session.end(drain=drain)

    async def result(self) -> RunResult[T]:
        """Wait for its end and return all results.

        Who is cancelled while waiting here does not end the run.

        Raises:
            StoreError: A result could not be saved; what was saved before is in the ledger.
        """
        return await asyncio.shield(self._task)

    async def abandon(self) -> None:
        """Cancel what is in work and wait until all has ended."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._task


async def stream_of(
    prepared: Prepared, buffer: int | None
) -> AsyncGenerator[list[WorkItemResult[Any, RowData]]]:
    """Give a run's results as they come, as many at a time as there are.

    Leaving early abandons what is in work.

    Raises:
        BatchLLMError: See ``Prepared.send``. The results before were given.
    """
    channel = Channel(buffer or prepared.buffer)

    async def send() -> None:
        try:
            await prepared.send(channel.put)
        finally:
            channel.close()

    sending = asyncio.create_task(send())
    try:
        while True:
            results = await channel.take()
            if results:
                yield [show(result) for result in results]
            if channel.has_ended:
                break
        try:
            await sending
        except SourceError as error:
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise
    finally:
        if not sending.done():
            sending.cancel()
            await asyncio.wait([sending])
        elif not sending.cancelled():
            sending.exception()  # marked as seen, when the consumer left early
