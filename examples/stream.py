"""Stream items through a processor with bounded memory. Runs without a key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from batch_llm import LLMWorkItem, MockAgent, ParallelBatchProcessor

if TYPE_CHECKING:
    from collections.abc import Iterator


def items(agent: MockAgent) -> Iterator[LLMWorkItem[Any, Any, Any]]:
    """Make items one by one; they are pulled only as fast as they are processed."""
    for number in range(200):
        yield LLMWorkItem(item_id=f"item-{number}", agent=agent, prompt=f"Fact {number}?")


async def main() -> None:
    """Print every tenth answer, and the numbers at the end."""
    agent = MockAgent(latency=0.01, failure_rate=0.1, seed=1)
    processor: ParallelBatchProcessor[Any, Any, Any] = ParallelBatchProcessor(max_workers=20)
    async for result in processor.stream(items(agent)):
        if result.item_id.endswith("0"):
            print(result.item_id, result.output)
    now = processor.statistics()
    print(f"{now.succeeded} ok, {now.failed} failed, {now.attempts} calls")


if __name__ == "__main__":
    asyncio.run(main())
