"""One item's way through its attempts: how many there were, and what follows when one has failed.

Nothing is waited for here and nobody is called: that is ``retry.py``. Whom the next attempt asks,
and for what, is in ``escalation.py``.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm._engine.escalation import Ceilings, Escalation, with_agent
from batch_llm._engine.gate import Held
from batch_llm.core.text import described
from batch_llm.exceptions import RateLimitedTooOftenError, SettingRefusedError
from batch_llm.providers.base import Outcome, Try
from batch_llm.strategies.backoff import Uniform, wait_before_retry
from batch_llm.strategies.errors import ErrorCode, ErrorInfo
from batch_llm.strategies.policies import fallback_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batch_llm._engine.calls import Ended
    from batch_llm._engine.stops import Stops
    from batch_llm.base import LLMWorkItem
    from batch_llm.core.config import RetryConfig
    from batch_llm.core.protocols import AgentLike

    Item = LLMWorkItem[Any, Any, Any]

#: How long an item stays away from an overloaded provider at the most, where that does not say: it
#: may be back any moment.
LONGEST_BUSY_SECONDS = 8.0


class Rules:
    """What the attempts of all items of a run go by.

    Args:
        config: How often, and how far apart.
        timeout_seconds: For one call.
        stops: Is told of items that failed for good.
        fallbacks: Who is asked in turn, for items that name none themselves.
        uniform: Source of jitter.
    """

    def __init__(
        self,
        *,
        config: RetryConfig,
        timeout_seconds: float,
        stops: Stops,
        fallbacks: Sequence[str] = (),
        uniform: Uniform = random.uniform,
    ) -> None:
        self.config = config
        self.timeout_seconds = timeout_seconds
        self.stops = stops
        self.falls_back_on = fallback_codes(config.fallback_on)
        self._fallbacks = fallbacks
        self._ceilings = Ceilings()
        self._uniform = uniform

    def escalation(self, item: Item) -> Escalation:
        """Return whom and what an item's further attempts may ask."""
        fallbacks: Sequence[AgentLike | str] = item.fallbacks or ()
        if item.fallbacks is None and (item.request is not None or item.agent is not None):
            fallbacks = self._fallbacks
        return Escalation(item, self.config, self.falls_back_on, fallbacks, self._ceilings)

    def are_too_many(self, held_calls: int) -> bool:
        """Whether an item's calls were refused, or held by an overloaded lane, too often."""
        return 0 < self.config.max_rate_limits < held_calls

    def wait_after(self, failures: int, code: ErrorCode, verdict: ErrorInfo) -> float:
        """Return the seconds that an item stays away after so many failures."""
        # A bad answer is no sign of trouble at the provider: the next attempt changes what is
        # asked, and waiting would change nothing.
        if code is ErrorCode.BAD_OUTPUT and verdict.suggested_wait is None:
            return 0.0
        return wait_before_retry(
            failures, self.config, uniform=self._uniform, suggested=verdict.suggested_wait
        )


class Course:
    """One item's attempts so far, and what the next one asks.

    Args:
        item: As it was given.
        rules: Of its run.
    """

    __slots__ = (
        "_escalation",
        "_item",
        "_memory",
        "_number",
        "_overloads",
        "_refusals",
        "_rules",
        "asked",
        "code",
        "is_retry",
    )

    def __init__(self, item: Item, rules: Rules) -> None:
        self._item = self.asked = item
        self._rules = rules
        self._number = 1
        self._refusals = self._overloads = 0
        self._memory: dict[str, Any] = {}
        #: Of an item whose attempts have not failed yet: none.
        self._escalation: Escalation | None = None
        #: What the last call failed with; None before the first that has.
        self.code: ErrorCode | None = None
        self.is_retry = False

    @property
    def is_plain(self) -> bool:
        """Whether nobody else and nothing else than the item's own was ever asked."""
        return self._escalation is None

    @property
    def changes(self) -> Sequence[str]:
        """What attempts asked otherwise than the one before."""
        return () if self._escalation is None else self._escalation.changes

    def make_agent(self) -> None:
        """Have the factory of an item make the agent of the next attempt."""
        if self._escalation is None or self._escalation.model is None:
            self.asked = with_agent(self._item, self._number, self._memory)

    def next_try(self, place: int | None) -> Try:
        """Return what the next call may know of its attempt."""
        seconds, course = self._rules.timeout_seconds, self._escalation
        if course is None:
            return Try(self._number, seconds, None, self._memory, place)
        return Try(self._number, seconds, course.feedback, self._memory, place, course.change)

    def leaves_lane(self, code: ErrorCode) -> bool:
        """Ask the next fallback, if there is one, because of the lane; no attempt was made."""
        escalation = self._escalated()
        if not escalation.leaves_lane(self._number, code):
            return False
        self.asked = escalation.asked
        return True

    def concluded(self, outcome: Outcome) -> Outcome:
        """Return an answer as that of the item."""
        if self._escalation is None or self._escalation.model is None:
            return outcome
        # What somebody else has answered is not to be kept as its own model's answer.
        return msgspec.structs.replace(outcome, answer=None)

    def after(self, ended: Ended) -> float | Outcome:
        """Take in that a call has failed.

        Returns:
            The seconds until the next one, or what the item has failed with for good.
        """
        error, verdict = ended.outcome.error, ended.verdict
        assert verdict is not None and error is not None  # noqa: S101, PT018 - it failed
        self.is_retry, self.code = True, ended.code
        if verdict.is_rate_limit:
            self._refusals += 1
            if self._rules.are_too_many(self._refusals):
                return Outcome(error=_too_often(self._refusals, error))
            return ended.wait_seconds
        if isinstance(error, SettingRefusedError):
            return 0.0  # once for each place: it is never sent the setting again
        if ended.held is not Held.NO:
            return self._after_overload(ended, verdict)
        return self._after_failure(ended, error, verdict)

    def _after_overload(self, ended: Ended, verdict: ErrorInfo) -> float | Outcome:
        """Go on without using up an attempt."""
        assert ended.code is not None  # noqa: S101 - it failed
        self._overloads += 1
        if self._rules.are_too_many(self._overloads):
            return ended.outcome
        if ended.held is not Held.BY_LANE:
            return ended.wait_seconds
        wait = self._rules.wait_after(self._overloads, ended.code, verdict)
        return wait if verdict.suggested_wait is not None else min(wait, LONGEST_BUSY_SECONDS)

    def _after_failure(self, ended: Ended, error: Exception, verdict: ErrorInfo) -> float | Outcome:
        """Go on with the next attempt, if there is one."""
        escalation, code, wait = self._escalated(), ended.code, ended.wait_seconds
        assert code is not None  # noqa: S101 - it failed
        before, model = escalation.asked, escalation.model
        if not escalation.goes_on(self._number, code, verdict, error):
            self._rules.stops.note_failure(self.asked, code, error)
            original = escalation.original(error)
            if original is error:
                return ended.outcome
            self.code = ErrorCode.TRUNCATED
            return msgspec.structs.replace(ended.outcome, error=original)
        if escalation.asked is before:
            wait = self._rules.wait_after(self._number, code, verdict)
        elif escalation.model is not model:
            self._rules.stops.note_failure(self.asked, code, error)
        self.asked = escalation.asked
        self._number += 1
        return wait

    def _escalated(self) -> Escalation:
        if self._escalation is None:
            self._escalation = self._rules.escalation(self._item)
        return self._escalation


def _too_often(refusals: int, last: Exception) -> RateLimitedTooOftenError:
    error = RateLimitedTooOftenError(refusals, described(last))
    error.__cause__ = last
    return error
