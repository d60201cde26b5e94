"""What follows from each kind of failure: one closed table, and the rules that read it. No I/O.

Whether everyone waits (limits, overload) is for the gates; this table begins where the failure is
the item's own affair. ``docs/errors.md`` shows it to people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from batch_llm.exceptions import ConfigError
from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Collection

#: So many items in a row must fail in one way before their lane is stopped: the first number as
#: long as no item of the run has succeeded, the second after that.
STOPS_AFTER_NEVER_ANSWERED, STOPS_AFTER = 5, 20
#: A cap on an answer's length that proves too low is raised so many times, unless told how far.
CAP_FACTOR = 2


class Falls(Enum):
    """Whether an item goes on to its next fallback after a failure."""

    USUALLY = "usually"
    ON_REQUEST = "on request"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What follows from one kind of failure.

    Attributes:
        before_fallback: How often a model with a fallback behind it is asked again after this
            failure; None: as long as there are attempts.
        raises_cap: Whether a request's ``max_tokens`` is raised, once.
        falls_back: Whether the item's next fallback is asked: usually, only where
            ``RetryConfig.fallback_on`` names the failure, or never.
        stops_lane: Whether a few items in a row that failed so stop their lane.
        says: What happens, for people.
    """

    before_fallback: int | None = None
    raises_cap: bool = False
    falls_back: Falls = Falls.NEVER
    stops_lane: bool = False
    says: str


POLICIES: dict[ErrorCode, Policy] = {
    ErrorCode.RATE_LIMITED: Policy(says="the lane slows down; the call is made again"),
    ErrorCode.OVERLOADED: Policy(
        falls_back=Falls.ON_REQUEST,
        says="the lane sends fewer calls, then single probes; the call is made again",
    ),
    ErrorCode.TIMEOUT: Policy(falls_back=Falls.USUALLY, says="tried again, later and later"),
    ErrorCode.CONNECTION: Policy(
        falls_back=Falls.USUALLY, stops_lane=True, says="tried again, later and later"
    ),
    ErrorCode.SERVER_ERROR: Policy(falls_back=Falls.USUALLY, says="tried again, later and later"),
    ErrorCode.BAD_OUTPUT: Policy(
        before_fallback=1,
        falls_back=Falls.USUALLY,
        says="tried again at once; the model is told what is wrong with its answer",
    ),
    ErrorCode.TRUNCATED: Policy(
        before_fallback=0,
        raises_cap=True,
        falls_back=Falls.USUALLY,
        says="tried again once, with a higher max_tokens where the request has one",
    ),
    ErrorCode.CONTENT_FILTER: Policy(falls_back=Falls.ON_REQUEST, says="final"),
    ErrorCode.CONTEXT_LENGTH: Policy(falls_back=Falls.USUALLY, says="final for this model"),
    ErrorCode.BAD_REQUEST: Policy(falls_back=Falls.ON_REQUEST, says="final"),
    ErrorCode.AUTH: Policy(falls_back=Falls.ON_REQUEST, stops_lane=True, says="final"),
    ErrorCode.QUOTA: Policy(falls_back=Falls.ON_REQUEST, stops_lane=True, says="final"),
    ErrorCode.NOT_FOUND: Policy(falls_back=Falls.ON_REQUEST, stops_lane=True, says="final"),
    ErrorCode.CANCELLED: Policy(says="the run was stopped; tried again when it goes on"),
    ErrorCode.INTERNAL: Policy(
        falls_back=Falls.USUALLY, says="tried again, later and later, unless it shows a bug"
    ),
}

#: Failures after which a fallback is asked where nobody says, and those that can be named.
FALLBACK_ON = tuple(
    code.value for code, policy in POLICIES.items() if policy.falls_back is Falls.USUALLY
)
MAY_FALL_BACK_ON = tuple(
    code.value for code, policy in POLICIES.items() if policy.falls_back is not Falls.NEVER
)


def fallback_codes(named: Collection[str] | None) -> frozenset[ErrorCode]:
    """Return the failures after which a fallback is asked; None stands for the usual ones.

    Raises:
        ConfigError: One of them is no failure that a fallback can heal.
    """
    codes = FALLBACK_ON if named is None else tuple(named)
    for code in codes:
        if code not in MAY_FALL_BACK_ON:
            raise ConfigError("fallback_on", code, f"some of {', '.join(MAY_FALL_BACK_ON)}")
    return frozenset(map(ErrorCode, codes))


class Next(Enum):
    """What comes after a failed attempt."""

    SAME = "the same again"
    HIGHER_CAP = "the same with a higher max_tokens"
    FALLBACK = "the next fallback"
    NOTHING = "nothing: the failure is the item's result"


class Situation(NamedTuple):
    """What the next step depends on.

    Attributes:
        code: What failed.
        is_retryable: Whether the classifier thinks that another attempt may succeed.
        attempts_left: Of ``RetryConfig.max_attempts``.
        failures_here: Attempts that failed so at the model that was asked last, this one included.
        cap: The limit on the answer's length that was asked for; None where nobody knows one.
        higher_cap: What it may be raised to; None where it may not, or was raised before.
        has_fallback: Whether there is a model left to fall back on.
        falls_back: Whether this kind of failure leads there (``RetryConfig.fallback_on``).
    """

    code: ErrorCode
    is_retryable: bool
    attempts_left: int
    failures_here: int
    cap: int | None = None
    higher_cap: int | None = None
    has_fallback: bool = False
    falls_back: bool = False


def next_step(now: Situation) -> Next:
    """Return what an item does after an attempt that failed and counts."""
    policy = POLICIES[now.code]
    can_fall_back = now.has_fallback and now.falls_back
    if now.is_retryable and now.attempts_left > 0:
        if policy.raises_cap and now.cap is not None:
            # The same again would be cut off at the same place, and paid for once more.
            if now.higher_cap is not None:
                return Next.HIGHER_CAP
        elif not can_fall_back or now.failures_here <= _repeats(policy):
            return Next.SAME
    return Next.FALLBACK if can_fall_back else Next.NOTHING


def _repeats(policy: Policy) -> float:
    return math.inf if policy.before_fallback is None else policy.before_fallback


def higher_cap(cap: int | None, most: int | None) -> int | None:
    """Return what a ``max_tokens`` that proved too low is raised to; None: it is not.

    Args:
        cap: What was asked for; None where nothing was.
        most: What it may be raised to: 0 forbids it, None allows ``CAP_FACTOR`` times as much.
    """
    if cap is None:
        return None
    raised = cap * CAP_FACTOR if most is None else most
    return raised if raised > cap else None


def remedy(code: ErrorCode, *, keys: tuple[str, ...], model: str, where: str) -> str:
    """Return what to do about a lane that refuses everything.

    Args:
        code: How it refuses.
        keys: The names of the variables with its keys, as far as they are known.
        model: Its model.
        where: The address of its calls, without login and query.
    """
    at = f" at {where}" if where else ""
    key = " or ".join(keys) if keys else "the key that is sent"
    if code is ErrorCode.AUTH:
        return f"Check {key}: it is not accepted{at}, or may not use {model or 'this model'}."
    if code is ErrorCode.QUOTA:
        return (
            f"The account of {key} has used up its credit or its quota{at}: "
            "raise it there, or use another key."
        )
    if code is ErrorCode.NOT_FOUND:
        return f"There is no {model or 'such model'}{at} for {key}: check the name and the address."
    if code is ErrorCode.SERVER_ERROR:
        return f"What answers{at} does not speak this API: check the address."
    return (
        f"Nothing answers as it should{at}: check the address, and whether the server is running."
    )
