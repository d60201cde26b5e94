"""Stand-ins for agents: no key, no network."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class MockUsage:
    """Token counts under their old names, as older agents report them."""

    def __init__(self, request_tokens: int = 100, response_tokens: int = 50) -> None:
        self.request_tokens = request_tokens
        self.response_tokens = response_tokens
        self.total_tokens = request_tokens + response_tokens


class MockResult:
    """What ``MockAgent.run`` returns.

    Args:
        output: The answer.
        usage_info: The tokens spent; default 100 in, 50 out.
    """

    def __init__(self, output: Any, usage_info: MockUsage | None = None) -> None:
        self.output = output
        self._usage = usage_info or MockUsage()

    def usage(self) -> MockUsage:
        """Return the tokens spent."""
        return self._usage


class MockAgent:
    """Answers prompts without a model, and fails when it is told to.

    Args:
        response_factory: Makes the answer from the prompt. A ``MockResult`` is returned as it
            is. Default: ``"Mock response: …"`` with the prompt's beginning.
        latency: Seconds that each call takes.
        failure_rate: Share of calls that fail with ``ConnectionError``, 0 to 1.
        rate_limit_on_call: The call (from 1) that is refused with a 429, once.
        timeout_on_call: The call (from 1) that fails with ``TimeoutError``, once.
        seed: Makes ``failure_rate`` repeatable.
    """

    def __init__(
        self,
        response_factory: Callable[[str], Any] | None = None,
        latency: float = 0.1,
        failure_rate: float = 0.0,
        rate_limit_on_call: int | None = None,
        timeout_on_call: int | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        self.response_factory = response_factory
        self.latency = latency
        self.failure_rate = failure_rate
        self.rate_limit_on_call = rate_limit_on_call
        self.timeout_on_call = timeout_on_call
        self.call_count = 0
        self._random = random.Random(seed)  # noqa: S311 - not a secret

    async def run(self, prompt: str, /, **_settings: Any) -> MockResult:
        """Answer ``prompt`` after ``latency`` seconds.

        Raises:
            MockRateLimitError: This is the call to refuse.
            TimeoutError: This is the call to lose.
            ConnectionError: The dice say so.
        """
        self.call_count += 1
        call = self.call_count
        if self.latency > 0:
            await asyncio.sleep(self.latency)
        if call == self.rate_limit_on_call:
            raise MockRateLimitError("429 RESOURCE_EXHAUSTED: rate limit exceeded")
        if call == self.timeout_on_call:
            raise TimeoutError("504 deadline exceeded")
        if self.failure_rate and self._random.random() < self.failure_rate:
            raise ConnectionError("Mock connection failure")
        if self.response_factory is None:
            return MockResult(f"Mock response: {prompt[:100]}")
        answer = self.response_factory(prompt)
        return answer if isinstance(answer, MockResult) else MockResult(answer)


class MockRateLimitError(Exception):
    """The refusal of a provider, as text."""
