"""Lanes that refuse everything: a few items in a row stop them, with one clear line.

A wrong key, an empty account or a missing model say nothing of the items: those that are left are
not sent, and are tried again when the run goes on. Other lanes are not touched.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from batch_llm._engine.exchange import describe
from batch_llm._engine.statistics import StoppedLane
from batch_llm.core.text import safe
from batch_llm.exceptions import LaneStoppedError
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.policies import (
    POLICIES,
    STOPS_AFTER,
    STOPS_AFTER_NEVER_ANSWERED,
    remedy,
)

if TYPE_CHECKING:
    from batch_llm._engine.statistics import Counts
    from batch_llm.base import LLMWorkItem
    from batch_llm.providers.base import Caller

    Item = LLMWorkItem[Any, Any, Any]

logger = logging.getLogger("batch_llm.stops")

_LONGEST_ERROR, _LONGEST_LINE = 300, 1000


class Stops:
    """Counts refusals in a row, by lane, and remembers what was stopped.

    Args:
        caller: Knows an item's lane and what is to be said of it.
        counts: Of the run.
    """

    def __init__(self, caller: Caller, counts: Counts) -> None:
        self._caller = caller
        self._counts = counts
        #: By lane: what failed last, and how often in a row. Empty as long as nothing does, so that
        #: a success need not look for its lane.
        self.in_a_row: dict[str, tuple[ErrorCode, int]] = {}
        self.stopped: dict[str, LaneStoppedError] = {}

    def of(self, item: Item) -> LaneStoppedError | None:
        """Return why nothing is sent to an item's lane; None where things are."""
        return self.stopped.get(self._caller.lane(item))

    def note_success(self, item: Item) -> None:
        """Note that an item's lane does answer."""
        self.in_a_row.pop(self._caller.lane(item), None)

    def note_failure(self, item: Item, code: ErrorCode, error: Exception) -> None:
        """Note what an item failed with in its lane for good."""
        lane = self._caller.lane(item)
        has_answered = self._counts.succeeded > self._counts.reused
        if not POLICIES[code].stops_lane or (code is ErrorCode.CONNECTION and has_answered):
            self.in_a_row.pop(lane, None)
            return
        before, count = self.in_a_row.get(lane, (code, 0))
        count = count + 1 if before is code else 1
        self.in_a_row[lane] = code, count
        enough = STOPS_AFTER if has_answered else STOPS_AFTER_NEVER_ANSWERED
        if count >= enough and lane not in self.stopped:
            self._stop(lane, item, code, count, error)

    def _stop(self, lane: str, item: Item, code: ErrorCode, count: int, error: Exception) -> None:
        facts = self._caller.facts(item)
        model = facts.model or lane
        told = remedy(code, keys=facts.keys, model=model, where=facts.url or facts.server)
        stopped = LaneStoppedError(
            model, code.value, count, safe(describe(error), _LONGEST_ERROR), told
        )
        self.stopped[lane] = stopped
        self._counts.stopped_lanes.append(StoppedLane(lane, model, code.value, str(stopped)))
        logger.warning("%s", safe(stopped, _LONGEST_LINE))
