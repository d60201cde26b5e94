"""A server that was never there is not waited for, however long it takes to see that."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, RetryConfig
from batch_llm.exceptions import TransportError


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
