from __future__ import annotations

import pytest

from batch_llm import BatchResult, LLMWorkItem, MockAgent, Request, WorkItemResult


async def answer(attempt, timeout):
    return "ok", {}


def test_an_item_without_a_mode_is_refused():
    with pytest.raises(ValueError, match=r"^Must provide one of agent, agent_factory"):
        LLMWorkItem(item_id="a")


@pytest.mark.parametrize(
    "modes",
    [
        {"agent": MockAgent(), "direct_call": answer},
        {"agent_factory": lambda attempt: MockAgent(), "direct_call": answer},
        {"agent": MockAgent(), "request": Request.of("sim:fast", "hi")},
    ],
)
def test_an_item_with_several_modes_is_refused(modes):
    with pytest.raises(ValueError, match=r"^Only one of"):
        LLMWorkItem(item_id="a", **modes)


def test_counts_of_a_result_are_taken_from_its_results():
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}

    result = BatchResult(
        [
            WorkItemResult("a", success=True, token_usage=usage),
            WorkItemResult("b", success=False, token_usage=usage),
            WorkItemResult("c", success=False),
        ]
    )

    assert (result.total_items, result.succeeded, result.failed) == (3, 1, 2)
    assert (result.total_input_tokens, result.total_output_tokens) == (6, 4)
