"""Agents that answer runs from Python: the rules of the command's ``--agent``."""

from __future__ import annotations

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent

import batch_llm as bl
from batch_llm.testing.mocks import MockResult

pytestmark = pytest.mark.anyio
QUESTIONS = [{"id": f"q{n}", "question": f"Question {n}?"} for n in range(12)]
ASKED = {"prompt": "{{ question }}", "name": "n"}
MODULE = """
class Length:
    version = "2"
    async def run(self, prompt):
        class Result:
            output = {"length": len(prompt)}
            usage = {"input_tokens": 1, "output_tokens": 1}
        return Result()

length = Length()
"""


class Review(BaseModel):
    label: str


class Lengths:
    """An agent of nobody's library, with its calls."""

    version = "1"

    def __init__(self):
        self.asked = []

    async def run(self, prompt):
        self.asked.append(prompt)
        return MockResult({"length": len(prompt)})


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


async def stream_all(rows, **options):
    return [result async for result in bl.stream(rows, **options)]


@pytest.mark.parametrize("ask", [bl.run, stream_all])
async def test_an_agent_answers_rows_and_reused_outputs_are_of_its_type(ask):
    judge = Agent(instructions="Judge it.", output_type=Review, name="judge")

    first = await ask(QUESTIONS, agent=judge, model="sim:fast", **ASKED)
    again = await ask(QUESTIONS, agent=judge, model="sim:fast", **ASKED)

    assert judge.model is None, "the caller's agent was changed"
    assert all(isinstance(one.output, Review) for one in [*first, *again])
    assert {one.item_id: one.output for one in first} == {one.item_id: one.output for one in again}
    assert [sum(one.is_reused for one in found) for found in (first, again)] == [0, 12]


async def test_only_what_is_new_is_asked_and_another_version_is_another_run():
    agent, other = Lengths(), Lengths()
    other.version = "2"

    await bl.run(QUESTIONS[:10], agent=agent, **ASKED)
    again = await bl.run(QUESTIONS[::-1], agent=agent, **ASKED)
    with pytest.raises(bl.SettingsChangedError) as caught:
        await bl.run(QUESTIONS, agent=other, **ASKED)

    assert sorted(agent.asked) == sorted(row["question"] for row in QUESTIONS)
    assert other.asked == []
    assert again.reused == 10
    lengths = [len(row["question"]) for row in QUESTIONS[::-1]]
    assert [one.output["length"] for one in again] == lengths
    assert caught.value.differences == {"agent version": ("1", "2")}


async def test_a_run_of_the_command_goes_on_by_the_name_of_its_agent(cli, tmp_path):
    (tmp_path / "q.csv").write_text("question\nWhy?\nHow come?\n")
    (tmp_path / "my.py").write_text(MODULE)
    flags = ("--prompt", "{{ question }}", "--name", "n", "--agent", "my.py:length")
    assert cli("run", "q.csv", *flags).returncode == 0

    again = await bl.run("q.csv", agent="my.py:length", **ASKED)

    assert again.reused == 2
    assert again[1].output == {"length": 9}


async def test_a_factory_is_called_with_each_attempts_number():
    class Fails:
        async def run(self, prompt):
            raise ValueError("no answer")

    asked = []

    def factory(attempt):
        asked.append(attempt)
        return Fails() if attempt == 1 else Lengths()

    found = await bl.run(["x"], agent=factory)

    assert found[0].output == {"length": 1}
    assert asked == [1, 1, 2]  # the first time, to see that it makes agents


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "model must be given"),
        ({"agent": 3}, "agent must be an agent"),
        ({"agent": "nowhere:x"}, "agent must be importable"),
        ({"agent": lambda _: 7}, "returns agents, not int"),
        ({"agent": lambda _: Lengths(), "model": "sim:fast"}, "model must be left out"),
        ({"agent": Lengths(), "model": "sim:fast"}, "only pydantic-ai's agents take a model"),
        ({"agent": Agent(name="judge")}, "judge has none of its own"),
        ({"agent": Lengths(), "schema": ["a", "b"]}, "schema cannot be used with agent"),
        ({"agent": Lengths(), "settings": {"seed": 1}}, "settings cannot be used with agent"),
        ({"agent": Lengths(), "cache": "c"}, "cache cannot be used with agent"),
        ({"agent": Lengths(), "base_url": "http://h/v1"}, "model must be given with base_url"),
    ],
)
async def test_what_an_agent_cannot_have_is_refused_in_the_words_of_python(options, said):
    with pytest.raises(bl.BatchLLMError) as caught:
        await bl.run(["x"], **options)

    assert said in str(caught.value)
    assert "--" not in str(caught.value)


async def test_a_run_that_an_agent_answers_says_why_it_cannot_be_resumed(tmp_path):
    (tmp_path / "in.txt").write_text("x\ny")
    await bl.run("in.txt", agent=Lengths(), name="n")

    with pytest.raises(bl.InputError, match="an agent answers its rows, which is not kept"):
        await bl.attach("n").resume()


async def test_a_frame_is_answered_by_an_agent():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"question": ["Why?", "How come?"]})

    found = await bl.run_frame(frame, agent=Lengths(), prompt="{{ question }}")

    assert list(found["output"]) == [{"length": 4}, {"length": 9}]
