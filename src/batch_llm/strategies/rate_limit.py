"""What to do after the provider refused a call: how long everyone waits, how to start again."""

from __future__ import annotations

from abc import ABC, abstractmethod


class RateLimitStrategy(ABC):
    """Decides the length of a cooldown and the ramp after it.

    Implementations only compute: the waiting is done by the engine, for everyone together.
    """

    @abstractmethod
    async def on_rate_limit(self, worker_id: int, consecutive_count: int) -> float:
        """Return the cooldown in seconds.

        Called once per episode. When the provider said how long to wait, that wait is obeyed
        and the returned one is not used.

        Args:
            worker_id: The worker whose call was refused first.
            consecutive_count: Episodes without a success in between, this one included: from 1.
        """

    @abstractmethod
    def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
        """Tell whether the ramp goes on, and the seconds until the next call may be released.

        Args:
            items_since_resume: Calls released since the cooldown ended, before this one: from 0.
        """


class ExponentialBackoffStrategy(RateLimitStrategy):
    """Cooldowns that grow while nothing succeeds, then a ramp from slow to fast.

    Args:
        initial_cooldown: Seconds of the first cooldown.
        max_cooldown: Longest cooldown, in seconds.
        backoff_multiplier: Growth per consecutive episode.
        slow_start_items: Length of the ramp in calls; 0 for none.
        slow_start_initial_delay: Seconds between the first calls of the ramp.
        slow_start_final_delay: Seconds between its last calls.
    """

    def __init__(
        self,
        initial_cooldown: float = 60.0,
        max_cooldown: float = 600.0,
        backoff_multiplier: float = 2.0,
        slow_start_items: int = 50,
        slow_start_initial_delay: float = 2.0,
        slow_start_final_delay: float = 0.1,
    ) -> None:
        self.initial_cooldown = initial_cooldown
        self.max_cooldown = max_cooldown
        self.backoff_multiplier = backoff_multiplier
        self.slow_start_items = slow_start_items
        self.slow_start_initial_delay = slow_start_initial_delay
        self.slow_start_final_delay = slow_start_final_delay

    async def on_rate_limit(self, worker_id: int, consecutive_count: int) -> float:  # noqa: ARG002
        """Return ``initial_cooldown * backoff_multiplier ** (consecutive_count - 1)``, capped."""
        try:
            growth = self.backoff_multiplier ** max(0, consecutive_count - 1)
        except OverflowError:
            return self.max_cooldown
        return min(self.initial_cooldown * growth, self.max_cooldown)

    def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
        """Go linearly from the initial delay to the final one over the ramp."""
        if items_since_resume >= self.slow_start_items:
            return False, 0.0
        share = items_since_resume / self.slow_start_items
        first, last = self.slow_start_initial_delay, self.slow_start_final_delay
        return True, first + (last - first) * share


class FixedDelayStrategy(RateLimitStrategy):
    """The same cooldown each time, then one call per ``delay_between_requests`` for good.

    Args:
        cooldown: Seconds of each cooldown.
        delay_between_requests: Seconds between calls after the first cooldown; 0 for none.
    """

    def __init__(self, cooldown: float = 300.0, delay_between_requests: float = 1.0) -> None:
        self.cooldown = cooldown
        self.delay_between_requests = delay_between_requests

    async def on_rate_limit(self, worker_id: int, consecutive_count: int) -> float:  # noqa: ARG002
        """Return the fixed cooldown."""
        return self.cooldown

    def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:  # noqa: ARG002
        """Keep the same distance between calls."""
        return self.delay_between_requests > 0, self.delay_between_requests
