"""What calls have spent: counted for the item and, under the name that prices it, for the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batch_llm._engine.admission_gate import is_absent
from batch_llm.core.prices import STANDARD
from batch_llm.core.usage import add_usage, equal_parts, read_usage
from batch_llm.exceptions import MalformedResponseError
from batch_llm.providers.base import SPENT
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from batch_llm._engine.progress import Progress
    from batch_llm.base import LLMWorkItem
    from batch_llm.core.prices import UsageByModel
    from batch_llm.providers.base import Caller, Outcome, Try

    Item = LLMWorkItem[Any, Any, Any]

#: Service tiers at the usual price.
_USUAL_TIERS = {"auto", "default", "standard"}
#: Failures that no provider charges for, unless it says what they took.
_FREE = {
    ErrorCode.RATE_LIMITED,
    ErrorCode.OVERLOADED,
    ErrorCode.SERVER_ERROR,
    ErrorCode.AUTH,
    ErrorCode.QUOTA,
    ErrorCode.NOT_FOUND,
    ErrorCode.BAD_REQUEST,
    ErrorCode.CONTEXT_LENGTH,
}


class Meter:
    """Counts what the calls of a run spend.

    Args:
        caller: Knows what an item's tokens are counted under.
        totals: Of the run.
    """

    def __init__(self, caller: Caller, totals: UsageByModel) -> None:
        self._caller = caller
        self._totals = totals
        #: By lane and tier: under which model and server tokens are counted.
        self._billed_as: dict[tuple[str, str], tuple[str, str, str]] = {}

    def note(
        self,
        item: Item,
        outcome: Outcome,
        attempt: Try,
        progress: Progress,
        billed_as: tuple[str, str, str] | None = None,
        *,
        may_have_cost: bool,
    ) -> dict[str, int] | None:
        """Count what a call spent; of one that may have cost, at least that nobody knows it.

        Its attempt is to be added to the history by whoever asks, before the next call is counted.
        ``billed_as`` is what the method of that name tells, where it was asked before.
        """
        usage, parts = outcome.usage, outcome.parts
        if attempt.memory:
            spent = attempt.memory.pop(SPENT, None)
            if usage is None:
                usage, parts = read_usage(spent), equal_parts(spent)
        if usage:
            if progress.history:
                add_usage(progress.usage, usage)
            else:
                progress.usage.update(usage)
        elif not may_have_cost:
            progress.billed_as = None
            return usage
        if billed_as is None:
            billed_as = self.billed_as(item)
        progress.billed_as = billed_as
        if parts is None:
            self._totals.note(*billed_as, usage or None)
        for model, part in parts or ():
            own = (model, "", billed_as[2]) if model else billed_as
            self._totals.note(*own, part)
        return usage

    def billed_as(self, item: Item) -> tuple[str, str, str]:
        """Return the model, server and tier under which an item's tokens are counted."""
        tier = STANDARD if item.request is None else tier_of(item)
        key = self._caller.lane(item), tier
        billed_as = self._billed_as.get(key)
        if billed_as is None:
            facts = self._caller.facts(item)
            billed_as = self._billed_as[key] = facts.model, facts.server, tier
        return billed_as


def tier_of(item: Item) -> str:
    """Return the service tier that a request asks for, where that changes the price."""
    if item.request is None or not (extra := item.request.settings.extra):
        return STANDARD
    tier = extra.get("service_tier")
    return tier if isinstance(tier, str) and tier not in _USUAL_TIERS else STANDARD


def may_have_cost(error: Exception, code: ErrorCode) -> bool:
    """Tell whether a failed call whose tokens nobody told may be on the provider's bill.

    Providers do not charge for calls that they refuse, nor for their own errors. One that was cut
    off, took too long or came back unreadable may have been answered in full.
    """
    if isinstance(error, MalformedResponseError):
        return True
    return code not in _FREE and not is_absent(error)
