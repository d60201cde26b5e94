"""What happens during a run, and who may watch."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol, runtime_checkable


class ProcessingEvent(StrEnum):
    """The moments that an observer can see.

    ``data`` holds, where they apply, ``item_id``, ``worker_id``, ``duration`` (seconds),
    ``tokens``, ``error_type`` and ``consecutive``.
    """

    WORKER_STARTED = "worker_started"
    WORKER_STOPPED = "worker_stopped"
    ITEM_STARTED = "item_started"
    ITEM_COMPLETED = "item_completed"
    ITEM_FAILED = "item_failed"
    RATE_LIMIT_HIT = "rate_limit_hit"
    COOLDOWN_STARTED = "cooldown_started"
    COOLDOWN_ENDED = "cooldown_ended"
    BATCH_STARTED = "batch_started"
    BATCH_COMPLETED = "batch_completed"


@runtime_checkable
class ProcessorObserver(Protocol):
    """Receives every event of a run, in order, in a task of its own.

    A slow observer delays nothing and a raising one breaks nothing: events wait for it, and what
    it raises is logged.
    """

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any], /) -> None:
        """Handle one event."""
        ...


class BaseObserver:
    """An observer that does nothing. Override what you need."""

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any], /) -> None:
        """Handle one event."""
