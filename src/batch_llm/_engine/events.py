"""Delivers events to observers without ever waiting for them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batch_llm.observers.base import ProcessingEvent, ProcessorObserver

logger = logging.getLogger("batch_llm.observers")

#: Events that wait for one observer at the most; what comes after is dropped and counted.
MAX_WAITING = 100_000
#: How long the end of a run waits for observers to catch up.
FLUSH_SECONDS = 1.0


class EventDispatcher:
    """Hands each event to each observer, in order, every observer in a task of its own."""

    def __init__(self, observers: Sequence[ProcessorObserver]) -> None:
        self._mailboxes = [_Mailbox(observer) for observer in observers]
        #: False lets the hot path skip building events.
        self.is_active = bool(self._mailboxes)

    def emit(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        """Queue an event. Never blocks, never raises."""
        for mailbox in self._mailboxes:
            mailbox.post(event, data)

    async def close(self) -> None:
        """Give observers a moment to catch up, then stop them."""
        tasks = [mailbox.close() for mailbox in self._mailboxes]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=FLUSH_SECONDS)
        for task in late:
            logger.warning("An observer was too slow and missed the last events of the run.")
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=FLUSH_SECONDS)


class _Mailbox:
    def __init__(self, observer: ProcessorObserver) -> None:
        self._observer = observer
        self._waiting: deque[tuple[ProcessingEvent, dict[str, Any]]] = deque()
        self._wake = asyncio.Event()
        self._is_closing = False
        self._dropped = 0
        self._task = asyncio.create_task(self._deliver())

    def post(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append((event, dict(data)))  # observers may keep or change what they get
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> asyncio.Task[None]:
        self._is_closing = True
        self._wake.set()
        return self._task

    async def _deliver(self) -> None:
        while True:
            while self._waiting:
                event, data = self._waiting.popleft()
                try:
                    await self._observer.on_event(event, data)
                except asyncio.CancelledError:
                    if self._task.cancelling():
                        raise
                    logger.exception("An observer was cancelled on %s.", event.value)
                except Exception:  # the user's code; the run and the other events go on
                    logger.exception("An observer failed on %s.", event.value)
            if self._is_closing:
                break
            self._wake.clear()
            await self._wake.wait()
        if self._dropped:
            logger.warning("An observer was too slow: %d events were dropped.", self._dropped)
