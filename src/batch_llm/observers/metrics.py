"""Counts and times of a run, collected from its events."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from batch_llm.observers.base import BaseObserver, ProcessingEvent

#: Processing times are kept for the latest items only, so that memory stays flat.
KEPT_TIMES = 100_000


class MetricsObserver(BaseObserver):
    """Counts items, errors, rate limits and cooldowns.

    Reading it while a run is going on gives the state of the events handled so far; after the
    run, that of all.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again from zero."""
        self._succeeded = 0
        self._failed = 0
        self._rate_limits_hit = 0
        self._cooldown_seconds = 0.0
        self._busy_seconds = 0.0
        self._times: deque[float] = deque(maxlen=KEPT_TIMES)
        self._errors: Counter[str] = Counter()

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any], /) -> None:
        """Count one event."""
        if event is ProcessingEvent.ITEM_COMPLETED:
            self._succeeded += 1
            self._note_time(data)
        elif event is ProcessingEvent.ITEM_FAILED:
            self._failed += 1
            self._errors[data.get("error_type") or "unknown"] += 1
            self._note_time(data)
        elif event is ProcessingEvent.RATE_LIMIT_HIT:
            self._rate_limits_hit += 1
        elif event is ProcessingEvent.COOLDOWN_ENDED:
            self._cooldown_seconds += data.get("duration", 0.0)

    async def get_metrics(self) -> dict[str, Any]:
        """Return the metrics.

        Returns:
            ``items_processed``, ``items_succeeded``, ``items_failed``, ``rate_limits_hit``
            (refused calls), ``total_cooldown_time`` (seconds), ``processing_times`` (seconds of
            the latest 100,000 items), ``error_counts`` (failed items by exception type),
            ``avg_processing_time`` (seconds, over all items) and ``success_rate`` (0 to 1); the
            last two are 0 before the first item.
        """
        processed = self._succeeded + self._failed
        return {
            "items_processed": processed,
            "items_succeeded": self._succeeded,
            "items_failed": self._failed,
            "rate_limits_hit": self._rate_limits_hit,
            "total_cooldown_time": self._cooldown_seconds,
            "processing_times": list(self._times),
            "error_counts": dict(self._errors),
            "avg_processing_time": self._busy_seconds / processed if processed else 0.0,
            "success_rate": self._succeeded / processed if processed else 0.0,
        }

    def _note_time(self, data: dict[str, Any]) -> None:
        seconds = data.get("duration", 0.0)
        self._times.append(seconds)
        self._busy_seconds += seconds
