"""What calls are estimated to take of a token limit, by the rule that their provider charges by."""

from __future__ import annotations

import pytest

from batch_llm import LLMWorkItem, Request, Settings
from batch_llm._engine.sizes import FIRST_OUTPUT_TOKENS, Sizes
from batch_llm.providers.base import LaneFacts
from batch_llm.providers.registry import resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.table import PROVIDERS
from batch_llm.strategies.costs import Cost

USAGE = {"input_tokens": 120, "output_tokens": 30, "cache_read_tokens": 20}


def item(max_tokens=None, characters=400):
    settings = Settings(max_tokens=max_tokens)
    return LLMWorkItem("1", request=Request.of("x:m", "a" * characters, settings=settings))


@pytest.mark.parametrize(
    ("facts", "max_tokens", "expected", "charged"),
    [
        (LaneFacts(), None, 100 + FIRST_OUTPUT_TOKENS, 150),
        (LaneFacts(), 50, 150, 150),
        (LaneFacts(charges_cache_reads=False), 50, 150, 130),
        (LaneFacts(charges_asked=True), 250, 250, None),
        (LaneFacts(charges_asked=True), None, 100, None),
        (LaneFacts(charges_answers=False), None, 100, 120),
        (LaneFacts(charges_answers=False), 5000, 100, 120),
    ],
)
def test_a_call_counts_what_its_provider_counts(facts, max_tokens, expected, charged):
    sizes = Sizes(facts)

    before = sizes.cost_of(item(max_tokens))
    after = sizes.learn(item(max_tokens), USAGE)

    assert before.tokens == expected
    assert before.input_tokens == 100
    assert (None if after is None else after.tokens) == charged


def test_an_answer_that_does_not_count_is_not_awaited_but_its_output_is_known():
    cost = Sizes(LaneFacts(charges_answers=False)).cost_of(item(50))

    assert (cost.pending, cost.output_tokens) == (0, 50)


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_providers_rules_reach_the_lane(name):
    provider = PROVIDERS[name]
    environ = {provider.key_variable: "any-key"}
    base_url = None if provider.base_url else "https://me.openai.azure.com"
    endpoint = resolve(f"{name}:m", base_url=base_url, environ=environ)

    facts = RequestCaller(endpoint, None).facts(item())

    assert facts.charges_answers == provider.charges_answers == (name != "google")
    assert facts.charges_asked == provider.charges_asked
    assert facts.charges_cache_reads == provider.charges_cache_reads


def bounded(longest=None, **fields):
    request = Request.of("sim:fast", "x" * 400, settings=Settings(max_tokens=longest))
    return LLMWorkItem("1", request=request, **fields)


ANSWER = {"input_tokens": 100, "output_tokens": 50}


def test_a_provider_that_reserves_the_longest_answer_charges_all_of_it_from_the_start():
    sizes = Sizes(LaneFacts(reserves_asked=True))

    assert sizes.cost_of(bounded(2000)) == Cost(1.0, 2100.0, 100.0, 2000.0, 0.0)


def test_what_the_answer_did_not_need_is_given_back():
    sizes = Sizes(LaneFacts(reserves_asked=True))

    assert sizes.learn(bounded(2000), ANSWER) == Cost(1.0, 150.0, 100.0, 50.0)


def test_without_a_bound_nothing_is_reserved_but_the_usual_length_is_expected():
    sizes = Sizes(LaneFacts(reserves_asked=True))

    assert sizes.cost_of(bounded()) == Sizes(LaneFacts()).cost_of(bounded())


def test_a_provider_that_charges_the_longest_answer_never_gives_back():
    sizes = Sizes(LaneFacts(charges_asked=True))

    assert sizes.cost_of(bounded(2000)).tokens == 2000
    assert sizes.learn(bounded(2000), ANSWER) is None


def test_a_provider_that_charges_the_answer_does_so_at_its_end():
    cost = Sizes(LaneFacts()).cost_of(bounded(300))

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
