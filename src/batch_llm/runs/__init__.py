"""Whole runs from Python: what the command does, with rows and results as values.

    from batch_llm import run_sync

    results = run_sync(["Capital of France?", "Capital of Peru?"], model="sim:fast")

``api`` has the functions, ``options`` their arguments, ``results`` what comes back, ``handle`` and
``attached`` runs that go on elsewhere. Below them, and below the command: ``brief`` (what to do),
``recipe`` (rows become requests), ``plan`` (the input, found good), ``ledgers`` (where a run is
kept), ``session`` (sends what is left).
"""

from __future__ import annotations

from batch_llm.runs.api import run, run_sync, stream, stream_sync, submit, submit_sync
from batch_llm.runs.attached import AttachedRun, attach
from batch_llm.runs.blocking import BlockingHandle
from batch_llm.runs.frames import run_frame, run_frame_sync
from batch_llm.runs.handle import RunHandle
from batch_llm.runs.plot import Plot
from batch_llm.runs.results import RunResult

__all__ = [
    "AttachedRun",
    "BlockingHandle",
    "Plot",
    "RunHandle",
    "RunResult",
    "attach",
    "run",
    "run_frame",
    "run_frame_sync",
    "run_sync",
    "stream",
    "stream_sync",
    "submit",
    "submit_sync",
]
