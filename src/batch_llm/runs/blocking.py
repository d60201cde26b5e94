"""For code that cannot await: an event loop in a thread of its own.

It works where a loop runs already (Jupyter), and Ctrl-C reaches the run instead of killing it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Self

    from batch_llm._engine.statistics import Statistics
    from batch_llm.runs.handle import RunHandle
    from batch_llm.runs.results import RunResult

T = TypeVar("T")
logger = logging.getLogger("batch_llm.runs")
#: How long the main thread sleeps at the most: some systems do not wake it for Ctrl-C.
_LOOK_SECONDS = 0.5


class LoopThread:
    """An event loop in a thread of its own, for as long as the block lasts."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="batch-llm", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def call(
        self,
        coroutine: Coroutine[Any, Any, T],
        on_interrupt: Callable[[int], object] | None = None,
    ) -> T:
        """Run a coroutine there and wait for its end.

        Args:
            coroutine: It.
            on_interrupt: Called in the loop's thread on each Ctrl-C, with the number of them; what
                it ends is waited for. None cancels the coroutine.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the coroutine has ended by then.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        interrupts = 0
        while True:
            try:
                concurrent.futures.wait([future], timeout=_LOOK_SECONDS)
            except KeyboardInterrupt:
                interrupts += 1
                if on_interrupt is None:
                    future.cancel()
                else:
                    self._loop.call_soon_threadsafe(on_interrupt, interrupts)
                continue
            if future.done():
                break
        if interrupts:
            with contextlib.suppress(BaseException):
                future.result()
            raise KeyboardInterrupt
        return future.result()

    def soon(self, call: Callable[[], object]) -> None:
        """Have something done in the loop's thread."""
        self._loop.call_soon_threadsafe(call)

    def close(self) -> None:
        """End the loop, and what still runs in it. A second time it does nothing."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_end_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_all() -> None:
    mine = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not mine]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


class BlockingHandle(Generic[T]):
    """A run in a background thread: look at it, end it, wait for its result.

    Made by ``submit_sync``. A program that ends before the run abandons what is in flight.
    """

    def __init__(self, thread: LoopThread, handle: RunHandle[T]) -> None:
        self._thread, self._handle = thread, handle
        self._found: RunResult[T] | None = None

    @property
    def ledger(self) -> str | None:
        """The ledger's file; None without one."""
        return self._handle.ledger

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._handle.is_done

    def statistics(self) -> Statistics:
        """Return its numbers of this moment, as a frozen snapshot."""
        if self._handle.is_done:
            return self._handle.statistics()
        return self._thread.call(_statistics(self._handle))

    def cancel(self, *, drain: bool = True) -> None:
        """End it early, see ``RunHandle.cancel``."""
        if not self._handle.is_done:
            self._thread.soon(lambda: self._handle.cancel(drain=drain))

    def result(self) -> RunResult[T]:
        """Wait for its end and return all results. May be asked again.

        Raises:
            KeyboardInterrupt: On Ctrl-C, after the calls in flight were waited for; a second one
                abandons them.
            StoreError: A result could not be saved; what was saved before is in the ledger.
        """
        if self._found is None:
            waits = self._handle.result()
            self._found = self._thread.call(waits, lambda count: end(self._handle, count))
            self._thread.close()
        return self._found


async def _statistics(handle: RunHandle[Any]) -> Statistics:
    return handle.statistics()


def end(handle: RunHandle[Any], interrupts: int) -> None:
    """End a run on Ctrl-C: the first waits for the calls in flight, another abandons them."""
    if interrupts == 1:
        waiting = handle.statistics().in_flight
        logger.warning("stopping: waiting for %d calls in flight; Ctrl-C again abandons", waiting)
    handle.cancel(drain=interrupts == 1)
