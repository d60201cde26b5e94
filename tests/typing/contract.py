"""What a type checker must infer for the users' code. Checked by mypy, never run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

from pydantic_ai import Agent

from batch_llm import (
    BaseMiddleware,
    BatchResult,
    LLMWorkItem,
    MockAgent,
    ParallelBatchProcessor,
    Request,
    RunHandle,
    RunResult,
    WorkItemResult,
    run,
    run_sync,
    stream,
    stream_sync,
    submit,
)

if TYPE_CHECKING:
    from batch_llm.core import AgentLike


class Review:
    """An output."""


class Row:
    """A context."""


Item = LLMWorkItem[str, Review, Row]
Result = WorkItemResult[Review, Row]


async def call(attempt: int, timeout: float) -> tuple[Review, dict[str, int]]:
    """Answer at once."""
    return Review(), {"input_tokens": attempt, "output_tokens": int(timeout)}


def items() -> list[Item]:
    """Give each mode an item of its own."""
    agent = Agent("test", output_type=str)
    return [
        LLMWorkItem(item_id="1", direct_call=call, input_data="x", context=Row()),
        LLMWorkItem(item_id="2", agent=MockAgent(), prompt="x"),
        LLMWorkItem(item_id="3", agent=agent, prompt="x"),
        LLMWorkItem(item_id="4", agent_factory=lambda attempt: agent, prompt="x"),
        LLMWorkItem(item_id="5", request=Request.of("sim:fast", "x")),
    ]


def is_an_agent(agent: Agent[None, str], mock: MockAgent) -> tuple[AgentLike, AgentLike]:
    """Both fit the protocol."""
    return agent, mock


class Middleware(BaseMiddleware[str, Review, Row]):
    """Sees the users' own types."""

    async def before_process(self, work_item: Item, /) -> Item | None:
        """Look at the data."""
        assert_type(work_item.input_data, str | None)
        return work_item

    async def after_process(self, result: Result, /) -> Result:
        """Look at the answer."""
        assert_type(result.output, Review | None)
        return result


def post_process(result: WorkItemResult[Review, Row]) -> None:
    """See a result."""
    assert_type(result.context, Row | None)


async def results() -> None:
    """Get results in each way."""
    processor = ParallelBatchProcessor[str, Review, Row](
        max_workers=5, middlewares=[Middleware()], post_processor=post_process
    )
    await processor.add_work(items()[0])
    assert_type(await processor.process_all(), BatchResult[Review, Row])
    assert_type(await processor.process(items()), BatchResult[Review, Row])
    async for result in processor.stream(iter(items())):
        assert_type(result, WorkItemResult[Review, Row])


async def runs() -> None:
    """Runs know the type of their answers by the schema."""
    rows = [{"text": "x"}]
    assert_type(await run(rows, model="sim:fast", prompt="{{ text }}"), RunResult[str])
    typed = await run(rows, model="sim:fast", schema=Review, name="n", max_cost_usd=2)
    assert_type(typed, RunResult[Review])
    assert_type(typed[0], WorkItemResult[Review, dict[str, Any]])
    assert_type(typed[0].output, Review | None)
    assert_type(run_sync("in.csv", model="sim:fast", schema=["good", "bad"]), RunResult[str])
    assert_type(run_sync("in.csv", model="sim:fast", schema={"type": "object"}), RunResult[Any])
    assert_type(await submit(iter(["x"]), model="sim:fast", schema=Review), RunHandle[Review])
    assert_type(await run(rows, agent=MockAgent(), prompt="{{ text }}"), RunResult[Any])
    assert_type(run_sync(["x"], agent=lambda attempt: MockAgent()), RunResult[Any])
    assert_type(await submit(["x"], agent="my:judge", model="sim:fast"), RunHandle[Any])
    async for answer in stream(iter(["x"]), agent=MockAgent(), buffer=9):
        assert_type(answer, WorkItemResult[Any, dict[str, Any]])
    async for result in stream(iter(["x"]), model="sim:fast", schema=Review, buffer=9):
        assert_type(result, WorkItemResult[Review, dict[str, Any]])
    for result in stream_sync(["x"], model="sim:fast", schema=Review):
        assert_type(result.context, dict[str, Any] | None)
