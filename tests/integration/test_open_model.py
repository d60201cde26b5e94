"""Requests through a processor, with public names alone."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import (
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    Request,
    RetryConfig,
    UnknownModelError,
    open_model,
)
from batch_llm.simulator.server import Simulator, SimulatorProcess

pytestmark = pytest.mark.anyio
QUICK = ProcessorConfig(progress_interval=0, remember_limits=False)


def asking(model, count=3, **fields):
    return [
        LLMWorkItem(f"{model} {n}", request=Request.of(model, f"hi {n}"), **fields)
        for n in range(count)
    ]


@pytest.fixture
def processes(monkeypatch):
    """The simulators that are started, with what came of them."""
    started = []

    class Noted(SimulatorProcess):
        def start(self):
            started.append(self)
            return super().start()

    monkeypatch.setattr("batch_llm.simulator.server.SimulatorProcess", Noted)
    return started


@pytest.fixture
def server(monkeypatch):
    with Simulator("fast") as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "any-key")
        yield running


async def test_requests_go_to_the_models_that_they_name(server):
    processor = ParallelBatchProcessor(config=QUICK)

    result = await processor.process([*asking("openai-chat:a"), *asking("openai-chat:b")])

    assert result.succeeded == 6
    assert {usage.model for usage in processor.statistics().usage} == {
        "openai-chat:a",
        "openai-chat:b",
    }


async def test_a_request_whose_model_does_not_exist_fails_alone(server):
    processor = ParallelBatchProcessor(config=QUICK)

    result = await processor.process([*asking("openai-chat:a", 1), *asking("nobody:b", 1)])

    good, bad = sorted(result.results, key=lambda one: one.success, reverse=True)
    assert good.success
    assert bad.error.startswith("UnknownModelError: ")


async def test_a_simulator_that_items_name_runs_as_long_as_the_run(processes):
    processor = ParallelBatchProcessor(config=QUICK)

    first = await processor.process(asking("sim:fast"))
    second = await processor.process(asking("sim:fast", 2))

    assert (first.succeeded, second.succeeded) == (3, 2)
    assert len(processes) == 2
    assert [one._process for one in processes] == [None, None]


async def test_a_simulator_is_shared_by_runs_that_overlap(processes):
    processor = ParallelBatchProcessor(config=QUICK)

    runs = [processor.process(asking("sim:slow", 2)), processor.process(asking("sim:slow", 3))]
    results = await asyncio.gather(*runs)

    assert [result.succeeded for result in results] == [2, 3]
    assert len(processes) == 1
    assert processes[0]._process is None


async def test_a_cancelled_run_closes_what_it_opened(processes):
    processor = ParallelBatchProcessor(config=QUICK)
    running = asyncio.create_task(processor.process(asking("sim:fast?p503=1")))
    while not processes or not processor.statistics().attempts:
        await asyncio.sleep(0.01)

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert processes[0]._process is None
    assert processor._models._transport._session is None


async def test_an_open_model_takes_all_requests_whatever_they_name(processes):
    async with open_model("sim:fast") as fast:
        processor = ParallelBatchProcessor(config=QUICK, requests=fast)
        result = await processor.process(asking("anything:at-all"))
        again = await processor.process(asking("anything:else"))

    assert (result.succeeded, again.succeeded) == (3, 3)
    assert len(processes) == 1
    assert processes[0]._process is None


async def test_an_open_model_has_keys_and_servers_of_its_own(server, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setenv("SECOND_KEY", "another-key")
    keys = ["OPENAI_API_KEY", "SECOND_KEY"]

    async with open_model("openai-chat:m", base_url=server.base_url, keys=keys) as model:
        result = await ParallelBatchProcessor(config=QUICK, requests=model).process(
            asking("openai-chat:m", 20)
        )
        assert model.facts(asking("x:y", 1)[0]).places == 2

    assert result.succeeded == 20


async def test_a_fallback_goes_to_its_own_model(server):
    item = asking("sim:fast", 1, fallbacks=["openai-chat:b"])

    config = ProcessorConfig(
        progress_interval=0, remember_limits=False, retry=RetryConfig(max_attempts=1)
    )
    async with open_model("sim:fast?p500=1") as broken:
        result = await ParallelBatchProcessor(config=config, requests=broken).process(item)

    assert result.succeeded == 1
    assert result.results[0].changes


async def test_a_local_server_is_not_asked_where_that_is_not_wanted():
    with Simulator("fast?server=llama&slots=2") as local:
        async with (
            open_model("openai-chat:m", base_url=local.base_url) as asked,
            open_model("openai-chat:m", base_url=local.base_url, ignore_slots=True) as unasked,
        ):
            facts = [one.facts(asking("x:y", 1)[0]).ask for one in (asked, unasked)]

    assert [len(ask) for ask in facts] == [1, 0]


async def test_a_model_that_cannot_be_opened_is_refused_at_once():
    with pytest.raises(UnknownModelError):
        async with open_model("nobody:m"):
            pass
