"""A factory that raises the temperature with each attempt. Runs without a key."""

from __future__ import annotations

import asyncio
from typing import Any

from batch_llm import LLMWorkItem, MockAgent, ParallelBatchProcessor


def agent_for(attempt: int) -> MockAgent:
    """Make the attempt's agent; with pydantic-ai: ``Agent(…, model_settings={…})``."""
    temperature = (0.0, 0.25, 0.5)[attempt - 1]

    def answer(prompt: str) -> str:
        if temperature < 0.5:
            raise ValueError("not valid yet")
        return f"{prompt} answered at temperature {temperature}"

    return MockAgent(answer, latency=0.01)


async def main() -> None:
    """Print one result per item."""
    processor: ParallelBatchProcessor[Any, Any, Any] = ParallelBatchProcessor(max_workers=3)
    for number in range(3):
        await processor.add_work(
            LLMWorkItem(item_id=str(number), agent_factory=agent_for, prompt=f"Prompt {number}")
        )
    for result in (await processor.process_all()).results:
        print(result.item_id, result.attempts, result.output)


if __name__ == "__main__":
    asyncio.run(main())
