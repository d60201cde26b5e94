"""How long to wait before trying an item again. Only arithmetic: no clock, no I/O."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batch_llm.core.config import RetryConfig

Uniform = Callable[[float, float], float]


def wait_before_retry(
    failures: int,
    config: RetryConfig,
    *,
    uniform: Uniform,
    suggested: float | None = None,
) -> float:
    """Return the seconds to wait after ``failures`` failed attempts.

    A wait suggested by the provider wins over the computed one, and is not capped: coming back
    earlier than the provider asked only earns another refusal.

    Args:
        failures: Failed attempts so far, at least 1.
        config: Bounds and growth of the wait.
        uniform: Source of jitter, called as ``uniform(low, high)``.
        suggested: The provider's ``Retry-After``, in seconds.

    Returns:
        Seconds, never negative.
    """
    if suggested is not None:
        return max(0.0, suggested)
    try:
        growth = config.exponential_base ** (failures - 1)
    except OverflowError:
        growth = sys.float_info.max
    wait = min(config.initial_wait * growth, config.max_wait)
    return uniform(0.0, wait) if config.jitter else wait
