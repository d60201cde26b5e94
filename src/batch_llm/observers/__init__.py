"""Watching a run."""

from __future__ import annotations

from batch_llm.observers.base import BaseObserver, ProcessingEvent, ProcessorObserver
from batch_llm.observers.metrics import MetricsObserver

__all__ = ["BaseObserver", "MetricsObserver", "ProcessingEvent", "ProcessorObserver"]
