"""Python's garbage collector, for as long as runs go on.

With thousands of calls in flight the collector takes a third of the CPU, and a full collection
stops the event loop: for 0.2 s where a provider's SDK is loaded, most of it spent on what was there
before the run and will be there after it. So while any run goes on, that is passed over
(``gc.freeze``), and the young objects are looked at less often. What a run leaves behind is
collected all the same.

The collector belongs to the process. Whoever has tuned it, switched it off or frozen anything is
left alone, and after the last run everything is as it was.
"""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: New objects, less those that have gone, between two looks at the young ones. Measured with 5,000
#: calls in flight: from 700 to 5,000 the collector's share of the CPU falls by half; beyond that
#: each look takes longer (20 ms here) and little is gained.
YOUNG_OBJECTS = 5_000
#: Interpreters come with 700 or 2,000; another number is somebody's choice.
_USUAL = {700, 2_000}

_lock = threading.Lock()
#: Runs that go on in this process, and what the first of them found; None: it changed nothing.
_runs = 0
_found: tuple[int, int, int] | None = None


@contextmanager
def collecting_less() -> Iterator[None]:
    """Have the collector look less often, and not at what is there now, within the block.

    Blocks may overlap, in several threads too: the last one to end puts everything back.
    """
    _begin()
    try:
        yield
    finally:
        _end()


def _begin() -> None:
    global _runs, _found  # noqa: PLW0603 - there is one collector in a process
    with _lock:
        _runs += 1
        if _runs > 1:
            return
        found = gc.get_threshold()
        if gc.isenabled() and found[0] in _USUAL and not gc.get_freeze_count():
            _found = found
            gc.freeze()
            gc.set_threshold(YOUNG_OBJECTS, *found[1:])


def _end() -> None:
    global _runs, _found  # noqa: PLW0603 - there is one collector in a process
    with _lock:
        _runs -= 1
        if _runs or _found is None:
            return
        gc.unfreeze()
        if gc.get_threshold()[0] == YOUNG_OBJECTS:  # else somebody has changed it meanwhile
            gc.set_threshold(*_found)
        _found = None
