"""Real agents of pydantic-ai on the command line and in Python, against the real simulator."""

from __future__ import annotations

import json

import pytest
from pydantic_ai import Agent

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, agents
from batch_llm.providers.observed import _clients
from batch_llm.simulator.server import Simulator
from batch_llm.testing.simulator import simulator
from command import rows

__all__ = ["simulator"]
pytestmark = pytest.mark.anyio
MODULE = """
import os
from typing import Literal
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

class Review(BaseModel):
    label: Literal["good", "bad"]
    reason: str

judge = Agent(instructions="Judge it.", output_type=Review, name="judge")
gpt = Agent("openai-chat:gpt-x", defer_model_check=True)

def factory(attempt):
    provider = OpenAIProvider(base_url=os.environ["SIMULATOR"], api_key="any")
    name = "cheap" if attempt == 1 else "strong"
    return Agent(OpenAIChatModel(name, provider=provider), output_type=Review, retries=0)

class Length:
    version = "2"
    async def run(self, prompt):
        class Result:
            output = {"length": len(prompt)}
            usage = {"input_tokens": 1, "output_tokens": 1}
        return Result()

length = Length()

def nothing(attempt):
    return 7
"""
SPEC = {
    "name": "spec",
    "instructions": "Be brief.",
    "output_schema": {
        "type": "object",
        "properties": {"label": {"type": "string"}},
        "required": ["label"],
    },
}


@pytest.fixture
def cli(cli, tmp_path):
    lines = [json.dumps({"id": f"q{n}", "question": f"Question {n}?"}) for n in range(20)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    (tmp_path / "my.py").write_text(MODULE)
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))

    return cli


def run(cli, agent, *flags, env=None):
    return cli("run", "q.jsonl", "--prompt", "{{ question }}", "--agent", agent, *flags, env=env)


async def close(*models):
    for model in models:
        for client in _clients(model):
            await client.aclose()


def told(done):
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("agent", "model"),
    [
        ("my:judge", "sim:fast"),
        ("my.py:judge", "sim-openai:fast"),
        ("my:judge", "sim-anthropic:fast"),
        ("my:judge", "sim-google:fast?seed=1"),
        ("my:judge", "sim-groq:fast"),
        ("my:judge", "sim-mistral:fast"),
        ("spec.json", "sim:fast"),
    ],
)
def test_an_agent_answers_rows_in_its_own_shape(cli, tmp_path, agent, model):
    done = run(cli, agent, "-m", model, "--json")

    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "q.results.jsonl")
    assert len(found) == 20
    assert all(row["output"]["label"] for row in found)
    (usage,) = told(done)["usage"]
    assert usage["calls"] == 20
    assert usage["input_tokens"] == sum(row["input_tokens"] for row in found) > 0


def test_the_same_command_again_sends_nothing_and_another_agent_is_another_run(cli, tmp_path):
    assert run(cli, "my:judge", "-m", "sim:fast").returncode == 0

    again = run(cli, "my:judge", "-m", "sim:fast")
    (tmp_path / "my.py").write_text(MODULE.replace("Judge it.", "Judge it well."))
    changed = run(cli, "my:judge", "-m", "sim:fast")

    assert "20 reused, 0 to do" in again.stderr
    assert changed.returncode == 2
    assert "agent version" in changed.stderr


def test_a_factory_escalates_and_its_models_are_counted_apart(cli):
    with Simulator("fast?pschema=0.4&seed=1") as simulator:
        done = run(cli, "my:factory", "--json", env={"SIMULATOR": simulator.base_url})

    assert done.returncode in {0, 1}, done.stderr
    calls = {usage["model"]: usage["calls"] for usage in told(done)["usage"]}
    assert calls["openai:cheap"] == 20
    assert calls["openai:strong"] > 0
    assert sum(calls.values()) == simulator.stats().calls


def test_an_agent_falls_back_on_another_provider(cli, tmp_path):
    done = run(
        cli, "my:judge", "-m", "sim:fast?pschema=1", "--fallback", "sim-anthropic:fast", "--json"
    )

    assert done.returncode == 0, done.stderr
    usage = {one["model"]: one["calls"] for one in told(done)["usage"]}
    assert usage["anthropic:fast"] == 20
    assert usage["openai:fast"] == 80  # each attempt of two asks twice itself
    assert "bad_output: anthropic:fast is asked" in cli("show", "--id", "q0").stdout


def test_an_agent_whose_key_is_refused_ends_the_run_and_goes_on_with_a_good_one(cli, tmp_path):
    with Simulator("fast") as simulator:
        at = {"OPENAI_BASE_URL": simulator.base_url}
        refused = run(cli, "my:gpt", env=at | {"OPENAI_API_KEY": "invalid"})
        done = cli("resume", env=at | {"OPENAI_API_KEY": "good"})

    assert refused.returncode == 4
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: openai:gpt-x refuses everything (auth, ")
    assert "Check OPENAI_API_KEY: it is not accepted at 127.0.0.1:" in line
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "q.results.jsonl")) == 20


def test_anything_that_runs_is_an_agent(cli, tmp_path):
    assert run(cli, "my:length").returncode == 0
    assert rows(tmp_path / "q.results.jsonl")[0]["output"]["length"] > 5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--agent", "my:judge"], "--model must be given: my:judge has none of its own"),
        (["--agent", "my:gpt"], "no key for openai-chat"),
        (["--agent", "my:missing"], "has no attribute 'missing'"),
        (["--agent", "my"], "--agent must be MODULE:VARIABLE"),
        (["--agent", "none.yaml"], "none.yaml is not a file"),
        (["--agent", "my:nothing"], "a function that returns agents, not int"),
        (["--agent", "my:factory", "-m", "sim:fast"], "a factory chooses"),
        (["--agent", "my:length", "--fallback", "sim:fast"], "only pydantic-ai's agents"),
        (["--agent", "my:judge", "-m", "sim:fast", "-s", "seed=1"], "--set cannot be used"),
        (["--agent", "my:judge", "-m", "opnai:fast"], 'unknown model "opnai:fast"'),
    ],
)
def test_an_agent_that_cannot_be_used_is_refused_before_anything_is_sent(cli, flags, words):
    env = {"SIMULATOR": "http://127.0.0.1:1/v1"}
    done = cli("run", "q.jsonl", "--prompt", "{{ question }}", *flags, env=env)

    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize("simulator", ["fast?rpm=600"], indirect=True)
@pytest.mark.parametrize("prefix", ["openai", "openai-chat", "anthropic"])
async def test_headers_of_good_answers_reach_admission(simulator, prefix):
    paths = {"anthropic": ""}
    base_url = simulator.base_url.removesuffix("/v1") + paths.get(prefix, "/v1")
    made = agents.model(f"{prefix}:fast", base_url=base_url, api_key="any")
    built = ParallelBatchProcessor(config=ProcessorConfig(progress_interval=0))

    result = await built.process(
        [LLMWorkItem(str(n), agent=Agent(made), prompt="hi") for n in range(3)]
    )

    await close(made)
    assert result.succeeded == 3
    (known,) = [one for one in built.statistics().limits if one.dimension == "requests"]
    assert (known.limit, known.source) == (600.0, "header")
    assert built.statistics().rate_limit_count == 0


async def test_a_pydantic_ai_agent_can_be_asked_of_another_model_by_name(simulator, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", simulator.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    small = agents.model("openai-chat:pfilter", base_url="http://127.0.0.1:1/v1", api_key="any")
    config = ProcessorConfig(progress_interval=0, fallbacks=("openai-chat:big",))
    config.retry.max_attempts = 1
    built = ParallelBatchProcessor(config=config)

    result = await built.process([LLMWorkItem("a", agent=Agent(small), prompt="hi")])

    await close(small, *built._caller._models.values())
    assert (result.results[0].success, result.results[0].model) == (True, "big")
    used = [one.model for one in built.statistics().usage if one.input_tokens]
    assert used == ["openai-chat:big"]
