"""What is learned of an agent's limits is remembered under its model, server and key."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig
from batch_llm.exceptions import StatusError
from batch_llm.providers.agent_accounts import account_of
from batch_llm.providers.registry import account_name, resolve
from batch_llm.stores.limit_memory import LimitMemory
from batch_llm.testing import MockResult

KEYS = {"OPENAI_API_KEY": "sk-first"}


def agent_with(key):
    return SimpleNamespace(model=SimpleNamespace(client=SimpleNamespace(api_key=key)))


def test_an_agents_account_is_that_of_requests_to_the_same_model():
    request = resolve("openai:gpt-6-luna", environ=KEYS).account

    assert account_of("openai:gpt-6-luna", None, KEYS) == request
    assert account_of("openai:gpt-6-luna api.openai.com", None, KEYS) == request


def test_the_key_is_that_of_the_agents_client_before_that_of_the_environment():
    lane = "openai:gpt-6-luna api.openai.com"

    assert account_of(lane, agent_with("sk-own"), KEYS) == account_name(
        "openai:gpt-6-luna", "api.openai.com", "sk-own"
    )
    assert account_of(lane, agent_with(None), KEYS) == account_of(lane, None, KEYS)


def test_a_client_that_nobody_knows_is_remembered_when_it_shows_its_key():
    assert account_of("tea:pot tea.example.com:8443", agent_with("k"), {}) == account_name(
        "tea:pot", "tea.example.com", "k"
    )


@pytest.mark.parametrize(
    "lane",
    ["", "tea:pot", "tea:pot tea.example.com", "openai:x 127.0.0.1:8000", "openai:x [bad"],
)
def test_nothing_is_remembered_of_what_has_no_account_that_can_be_seen(lane):
    assert account_of(lane, None, KEYS) is None


class Raising:
    @property
    def model(self):
        raise RuntimeError("not now")


def test_an_agent_whose_properties_raise_has_the_key_of_the_environment():
    lane = "openai:gpt-6-luna"

    assert account_of(lane, Raising(), KEYS) == account_of(lane, None, KEYS)


class RefusedOnce:
    """An agent of whose calls one, after a hundred, is refused."""

    model = "openai:gpt-6-luna"
    calls = 0

    async def run(self, prompt):
        self.calls += 1
        if self.calls == 100:
            raise StatusError(429, "slow down")
        return MockResult(prompt)


async def test_what_was_learned_of_an_agents_limits_is_where_the_next_run_starts(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("BATCH_LLM_LIMITS_FILE", str(tmp_path / "limits.json"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-first")
    agent = RefusedOnce()

    async def run():
        processor = ParallelBatchProcessor(config=ProcessorConfig())
        await processor.process([LLMWorkItem(str(n), agent=agent, prompt="x") for n in range(150)])
        return processor.statistics().limits

    await run()

    name = account_of("openai:gpt-6-luna", None, KEYS)
    assert LimitMemory(tmp_path / "limits.json").recall(name) is not None
    assert "sk-first" not in (tmp_path / "limits.json").read_text()
    assert agent.calls == 151
    assert await run()  # nothing is refused there, so what it knows is from the first
