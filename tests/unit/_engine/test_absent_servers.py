"""A server that was never there is not waited for, however long it takes to see that."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, RetryConfig
from batch_llm.exceptions import TransportError
from batch_llm.strategies.policies import STOPS_AFTER
from fakes import Models, asked

BROKEN_OFF = TransportError("the connection broke before the answer was complete, from h")


@pytest.mark.parametrize("seconds", [0.0, 0.3, 30.0])
async def test_rows_for_a_server_that_was_never_there_fail_and_the_run_ends(seconds):
    async def call(attempt, timeout):
        await asyncio.sleep(seconds)
        raise TransportError("could not connect to h", was_never_sent=True)

    retry = RetryConfig(max_attempts=2, jitter=False)
    built = ParallelBatchProcessor(config=ProcessorConfig(progress_interval=0, retry=retry))

    result = await built.process([LLMWorkItem(str(n), direct_call=call) for n in range(20)])

    assert result.failed == 20
    assert asyncio.get_running_loop().time() < 10 + 20 * seconds


@pytest.mark.parametrize("answers_first", [False, True])
async def test_a_model_whose_server_was_never_there_is_stopped_beside_others_that_answer(
    answers_first,
):
    """One that has answered before is not: its calls broke off, and the next ones may not."""
    seen = []

    def behaviour(model, _place):
        if model == "there":
            return None
        seen.append(model)
        return None if answers_first and len(seen) == 1 else BROKEN_OFF

    provider = Models(behaviour, seconds=0.01)
    retry = RetryConfig(max_attempts=2, jitter=False, initial_wait=0.1)
    items = [asked(model, n) for n in range(200) for model in ("there", "gone")]

    result = await provider.processor(retry=retry).process(items)

    lost = [one for one in result.results if not one.success]
    sent = [one for one in lost if one.error_code == "connection"]
    assert result.succeeded == 200 + answers_first
    assert len(lost) == 200 - answers_first
    if answers_first:
        assert sent == lost
    else:
        assert STOPS_AFTER <= len(sent) < 100
        assert {one.error_code for one in lost} == {"connection", "cancelled"}
