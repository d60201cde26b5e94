"""The time on an event loop's clock, read several times for each item."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return what tells a loop's time, in seconds.

    asyncio's own loops only ask ``time.monotonic``, so it is asked at once: half of what a reading
    costs is the method in between. A loop with a clock of its own is asked itself.
    """
    if getattr(loop.time, "__func__", None) is asyncio.BaseEventLoop.time:
        return time.monotonic  # noqa: TID251 - see above
    return loop.time
