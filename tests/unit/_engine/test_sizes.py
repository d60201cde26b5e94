"""What calls are estimated to take of a token limit, by the rule that their provider charges by."""

from __future__ import annotations

import pytest

from batch_llm._engine.sizes import Sizes
from batch_llm.base import LLMWorkItem
from batch_llm.core.request import Request, Settings
from batch_llm.providers.base import LaneFacts
from batch_llm.providers.registry import resolve
from batch_llm.strategies.costs import Cost


def item(longest=None, **fields):
    request = Request.of("sim:fast", "x" * 400, settings=Settings(max_tokens=longest))
    return LLMWorkItem("1", request=request, **fields)


ANSWER = {"input_tokens": 100, "output_tokens": 50}


def test_a_provider_that_reserves_the_longest_answer_charges_all_of_it_from_the_start():
    sizes = Sizes(LaneFacts(reserves_asked=True))

    assert sizes.cost_of(item(2000)) == Cost(1.0, 2100.0, 100.0, 2000.0, 0.0)


def test_what_the_answer_did_not_need_is_given_back():
    sizes = Sizes(LaneFacts(reserves_asked=True))

    assert sizes.learn(item(2000), ANSWER) == Cost(1.0, 150.0, 100.0, 50.0)


def test_without_a_bound_nothing_is_reserved_but_the_usual_length_is_expected():
    sizes = Sizes(LaneFacts(reserves_asked=True))

    assert sizes.cost_of(item()) == Sizes(LaneFacts()).cost_of(item())


def test_a_provider_that_charges_the_longest_answer_never_gives_back():
    sizes = Sizes(LaneFacts(charges_asked=True))

    assert sizes.cost_of(item(2000)).tokens == 2000
    assert sizes.learn(item(2000), ANSWER) is None


def test_a_provider_that_charges_the_answer_does_so_at_its_end():
    cost = Sizes(LaneFacts()).cost_of(item(300))

    assert (cost.tokens, cost.pending) == (400.0, 300.0)


@pytest.mark.parametrize(
    ("model", "key", "reserves"),
    [
        ("groq:m", "GROQ_API_KEY", True),
        ("cerebras:m", "CEREBRAS_API_KEY", True),
        ("mistral:m", "MISTRAL_API_KEY", False),
        ("openai-chat:m", "OPENAI_API_KEY", False),
    ],
)
def test_who_reserves_is_data(model, key, reserves):
    assert resolve(model, environ={key: "k-0123456789"}).reserves_asked is reserves


def test_a_server_that_only_is_compatible_is_not_taken_to_reserve():
    environ = {"GROQ_API_KEY": "k-0123456789"}

    assert not resolve("groq:m", base_url="http://h/v1", environ=environ).reserves_asked
