"""Lanes that refuse everything: a few items in a row stop them, with one clear line.

A wrong key, an empty account or a missing model say nothing of the items: those that are left are
not sent, and are tried again when the run goes on. Other lanes are not touched.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from batch_llm._engine.statistics import StoppedLane
from batch_llm.core.text import described, safe
from batch_llm.exceptions import LaneStoppedError, MalformedResponseError
from batch_llm.stores.values import clean
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.policies import (
    POLICIES,
    STOPS_AFTER,
    STOPS_AFTER_NEVER_ANSWERED,
    remedy,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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
        has_answered: Tells whether anybody in an item's lane ever dealt with a call; None where
            that is not seen.
    """

    def __init__(
        self, caller: Caller, counts: Counts, has_answered: Callable[[Item], bool | None]
    ) -> None:
        self._caller = caller
        self._counts = counts
        self._has_lane_answered = has_answered
        #: By lane: its refusals in a row. Empty as long as there are none, so that a success need
        #: not look for its lane.
        self.in_a_row: dict[str, LaneStoppedError] = {}
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
        has_answered = self._has_answered
        if not self._says_nothing_of_the_item(item, code, error):
            self.in_a_row.pop(lane, None)
            return
        before = self.in_a_row.get(lane)
        count = before.in_a_row + 1 if before is not None and before.code == code else 1
        refusal = self.in_a_row[lane] = self._refusal(lane, item, code, count, error)
        if count >= (STOPS_AFTER if has_answered else STOPS_AFTER_NEVER_ANSWERED):
            self._stop(lane, refusal)

    def _says_nothing_of_the_item(self, item: Item, code: ErrorCode, error: Exception) -> bool:
        if code is ErrorCode.CONNECTION:
            return not self._has_answered or self._has_lane_answered(item) is False
        if isinstance(error, MalformedResponseError):  # a web page, say; later, a bad hour
            return not self._has_answered and self._caller.facts(item).addresses == 1
        return POLICIES[code].stops_lane

    def conclude(self) -> None:
        """Call the lanes stopped that did nothing but refuse, of a run to which nobody answered."""
        if not self._has_answered:
            for lane, refusal in self.in_a_row.items():
                self._stop(lane, refusal)

    @property
    def _has_answered(self) -> bool:
        return self._counts.succeeded > self._counts.reused

    def _refusal(
        self, lane: str, item: Item, code: ErrorCode, count: int, error: Exception
    ) -> LaneStoppedError:
        facts = self._caller.facts(item)
        model = facts.model or lane
        told = remedy(code, keys=facts.keys, model=model, where=facts.url or facts.server)
        return LaneStoppedError(
            model, code.value, count, safe(clean(described(error)), _LONGEST_ERROR), told
        )

    def _stop(self, lane: str, refusal: LaneStoppedError) -> None:
        if lane in self.stopped:
            return
        self.stopped[lane] = refusal
        stopped = StoppedLane(lane, refusal.model, refusal.code, str(refusal))
        self._counts.stopped_lanes.append(stopped)
        logger.warning("%s", safe(refusal, _LONGEST_LINE))
