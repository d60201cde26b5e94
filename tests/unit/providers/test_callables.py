from __future__ import annotations

import functools

import pytest

from batch_llm import LLMWorkItem, MockAgent, MockResult, MockUsage
from batch_llm.providers.callables import CallByMode
from fakes import RateLimited, processor, run_one


async def run(**fields):
    built = processor(max_workers=1)
    result = await built.process([LLMWorkItem(item_id="a", **fields)])
    return result.results[0]


async def test_an_agent_gets_the_prompt():
    result = await run(agent=MockAgent(lambda prompt: prompt.upper()), prompt="hi")

    assert result.output == "HI"
    assert result.token_usage == {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}


async def test_a_factory_is_called_once_per_attempt_with_its_number():
    numbers = []

    class Failing:
        async def run(self, prompt):
            raise ValueError("bad")

    def factory(attempt):
        numbers.append(attempt)
        return Failing() if attempt < 3 else MockAgent()

    result = await run(agent_factory=factory, prompt="hi")

    assert result.success
    assert numbers == [1, 2, 3]


async def test_a_refused_call_is_repeated_with_the_same_agent():
    numbers = []

    class RefusedOnce:
        calls = 0

        async def run(self, prompt):
            self.calls += 1
            if self.calls == 1:
                raise RateLimited(wait=1.0)
            return MockResult("ok")

    def factory(attempt):
        numbers.append(attempt)
        return RefusedOnce()

    assert (await run(agent_factory=factory)).success
    assert numbers == [1]


async def test_a_factory_that_raises_is_a_failed_attempt():
    def factory(attempt):
        raise RuntimeError(f"no agent {attempt}")

    result = await run(agent_factory=factory)

    assert result.error == "RuntimeError: no agent 3"


async def with_data(attempt, timeout, data):
    return data, {}


async def any_arguments(attempt, *rest):
    return rest[-1], {}


async def own_default(attempt, timeout, row="own"):
    return row, {}


class Caller:
    async def method(self, attempt, timeout, data):
        return data, {}

    async def __call__(self, attempt, timeout, data):
        return data, {}


@pytest.mark.parametrize(
    "call",
    [
        with_data,
        any_arguments,
        own_default,
        Caller().method,
        Caller(),
        functools.partial(with_data),
    ],
)
async def test_a_third_parameter_gets_the_input_data(call):
    assert (await run(direct_call=call, input_data="row")).output == "row"


async def test_a_bound_default_is_not_overwritten_by_no_data():
    assert (await run(direct_call=own_default)).output == "own"


async def test_two_parameters_get_no_data():
    async def call(attempt, timeout):
        return (attempt, timeout), None

    assert (await run(direct_call=call, input_data="row")).output == (1, 120.0)


@pytest.mark.parametrize("answer", ["text", None, ("a", "b", "c")])
async def test_an_answer_of_another_shape_is_a_failure_that_says_so(answer):
    async def call(attempt, timeout):
        return answer

    result = await run_one(call)

    assert "direct_call must return the tuple (output, usage_dict), got" in result.error


async def test_gemini_safety_ratings_are_kept():
    class Rated:
        async def run(self, prompt):
            result = MockResult("ok", MockUsage(1, 1))
            result.gemini_safety_ratings = {"HARM": "LOW"}
            return result

    assert (await run(agent=Rated())).gemini_safety_ratings == {"HARM": "LOW"}


async def test_the_mock_agent_fails_when_told_to():
    agent = MockAgent(latency=0.5, rate_limit_on_call=1, timeout_on_call=2)
    with pytest.raises(Exception, match="429"):
        await agent.run("a")
    with pytest.raises(TimeoutError):
        await agent.run("a")

    assert (await agent.run("a")).output == "Mock response: a"
    assert agent.call_count == 3


async def test_the_mock_agent_fails_at_its_rate():
    agent = MockAgent(latency=0, failure_rate=0.5, seed=1)
    failures = 0
    for _ in range(400):
        try:
            await agent.run("a")
        except ConnectionError:
            failures += 1

    assert 150 < failures < 250


class Model:
    """What an agent shows of its model."""

    def __init__(self, name, system=None, base_url=None):
        self.model_name, self.system, self.base_url = name, system, base_url


class Raising:
    @property
    def model_name(self):
        raise RuntimeError("not to be looked at")


@pytest.mark.parametrize(
    ("model", "lane"),
    [
        (Model("gpt"), "gpt"),
        (Model("gpt", "openai"), "openai:gpt"),
        (Model("gpt", "openai", "https://user:secret@h.example:8/v1"), "openai:gpt h.example:8"),
        ("openai:gpt", "openai:gpt"),
        (Model(5), ""),
        (Raising(), ""),
        (None, ""),
    ],
)
def test_an_agents_lane_is_its_model_and_where_it_is(model, lane):
    agent = MockAgent()
    agent.model = model

    assert CallByMode().lane(LLMWorkItem("a", agent=agent)) == lane


def test_what_shows_no_model_has_the_processors_own_lane():
    by_mode = CallByMode()

    assert by_mode.lane(LLMWorkItem("a", agent_factory=lambda _: MockAgent())) == ""
    assert by_mode.lane(LLMWorkItem("a", direct_call=run_one)) == ""
