"""A run's pace, looked at from its start to its end and kept in bounded memory.

How it is drawn: ``plot_drawing.py``. Nothing here costs a call anything: the numbers are those of
``statistics()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from batch_llm.exceptions import ConfigError
from batch_llm.runs.plot_drawing import Look, draw
from batch_llm.strategies.dimensions import REQUESTS
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from os import PathLike

    from batch_llm._engine.statistics import LearnedLimit, Statistics

#: Seconds between two looks at first; twice as many whenever there are too many looks.
FIRST_STEP_SECONDS = 0.1
MOST_LOOKS = 1200


class Plot:
    """What a run sent, what was refused, and which limits it believed in, over time.

    It is for any run whose numbers can be read, one of a processor too:

        plot = Plot()
        async with plot.watching(processor.statistics):
            await processor.process_all()
        plot.save("run.svg")

    Args:
        title: Stands at the picture's head, before the numbers.
    """

    def __init__(self, title: str = "") -> None:
        self._title = title
        self._looks: list[Look] = []
        self._step_seconds = FIRST_STEP_SECONDS

    @property
    def looks(self) -> Sequence[Look]:
        """What was seen, in order; some 1,200 at the most, however long it took."""
        return tuple(self._looks)

    def look(self, now: Statistics) -> None:
        """Take one more look; the first one is where the picture begins."""
        looks = self._looks
        failed = sum(now.retries_by_code.values()) - now.retries_by_code.get(
            ErrorCode.RATE_LIMITED.value, 0
        )
        looks.append(
            Look(
                now.elapsed_seconds,
                now.attempts,
                now.rate_limit_count,
                failed,
                now.input_tokens + now.output_tokens,
                now.in_flight,
                now.concurrency,
                _limit_of(now.limits, REQUESTS),
            )
        )
        if len(looks) > MOST_LOOKS:
            del looks[1::2]
            self._step_seconds *= 2

    @contextlib.asynccontextmanager
    async def watching(self, read: Callable[[], Statistics]) -> AsyncIterator[None]:
        """Look at a run for as long as the block lasts, and once more at its end.

        Args:
            read: Returns the run's numbers: ``processor.statistics``.
        """
        watcher = asyncio.create_task(self._watch(read))
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
            self.look(read())

    async def _watch(self, read: Callable[[], Statistics]) -> None:
        while True:
            await asyncio.sleep(self._step_seconds)
            self.look(read())

    def svg(self) -> str:
        """Return the picture."""
        return draw(self._looks, self._title)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the picture as an SVG file, in place of one that is there.

        Raises:
            OSError: It cannot be written; what was there before is still there.
        """
        target = Path(path)
        number, written = tempfile.mkstemp(".tmp", f"{target.name}.", target.parent)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(self.svg())
            Path(written).chmod(0o666 & ~_umask())
            Path(written).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(written).unlink()
            raise


def checked_plot(setting: str, path: str) -> str:
    """Return a plot's path; refuse one that cannot be, before anything is sent.

    Raises:
        ConfigError: It is no SVG file, or its folder is not there.
    """
    if Path(path).suffix.lower() != ".svg":
        raise ConfigError(setting, path, "a file that ends in .svg")
    if not Path(path).parent.is_dir():
        raise ConfigError(setting, path, "a file in a folder that is there")
    return path


def _limit_of(limits: Sequence[LearnedLimit], dimension: str) -> tuple[float, str] | None:
    """Return a limit per minute of all lanes together, and its source; None if one has none."""
    found = [one for one in limits if one.dimension == dimension]
    if not found or len(found) < len({one.lane for one in limits}):
        return None
    sources = {one.source for one in found}
    return sum(one.limit for one in found), sources.pop() if len(sources) == 1 else "mixed"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
