"""What calls are estimated to take of a token limit, by the rule that their provider charges by."""

from __future__ import annotations

import pytest

from batch_llm import Limits, LLMWorkItem, Request, Settings
from batch_llm._engine.sizes import FIRST_OUTPUT_TOKENS, Sizes
from batch_llm.providers.base import LaneFacts
from batch_llm.providers.registry import resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.table import PROVIDERS
from batch_llm.strategies.costs import Answers, ChargeRule, Cost
from fakes import Models, asked

USAGE = {"input_tokens": 120, "output_tokens": 30, "cache_read_tokens": 20}


def item(max_tokens=None, characters=400):
    settings = Settings(max_tokens=max_tokens)
    return LLMWorkItem("1", request=Request.of("x:m", "a" * characters, settings=settings))


@pytest.mark.parametrize(
    ("charges", "max_tokens", "expected", "charged"),
    [
        (ChargeRule(), None, 100 + FIRST_OUTPUT_TOKENS, 150),
        (ChargeRule(), 50, 150, 150),
        (ChargeRule(counts_cache_reads=False), 50, 150, 130),
        (ChargeRule(Answers.AS_ASKED), 250, 250, 250),
        (ChargeRule(Answers.AS_ASKED), 110, 110, 120),
        (ChargeRule(Answers.AS_ASKED), None, 100, 120),
        (ChargeRule(Answers.NOT), None, 100, 120),
        (ChargeRule(Answers.NOT), 5000, 100, 120),
    ],
)
def test_a_call_counts_what_its_provider_counts(charges, max_tokens, expected, charged):
    sizes = Sizes(charges)

    before = sizes.cost_of(item(max_tokens))
    after = sizes.learn(item(max_tokens), USAGE)

    assert before.tokens == expected
    assert before.input_tokens == 100
    assert after.tokens == charged


def test_an_answer_that_does_not_count_is_not_awaited_but_its_output_is_known():
    cost = Sizes(ChargeRule(Answers.NOT)).cost_of(item(50))

    assert (cost.pending, cost.output_tokens) == (0, 50)


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_providers_rules_reach_the_lane(name):
    provider = PROVIDERS[name]
    environ = {provider.key_variable: "any-key"}
    base_url = None if provider.base_url else "https://me.openai.azure.com"
    endpoint = resolve(f"{name}:m", base_url=base_url, environ=environ)

    facts = RequestCaller(endpoint, None).facts(item())

    assert facts.charges == provider.charges
    assert (facts.charges.answers is Answers.NOT) is (name == "google")


def bounded(longest=None, **fields):
    request = Request.of("sim:fast", "x" * 400, settings=Settings(max_tokens=longest))
    return LLMWorkItem("1", request=request, **fields)


ANSWER = {"input_tokens": 100, "output_tokens": 50}


def test_a_provider_that_reserves_the_longest_answer_charges_all_of_it_from_the_start():
    sizes = Sizes(ChargeRule(Answers.RESERVED))

    assert sizes.cost_of(bounded(2000)) == Cost(1.0, 2100.0, 100.0, 2000.0, 0.0)


def test_what_the_answer_did_not_need_is_given_back():
    sizes = Sizes(ChargeRule(Answers.RESERVED))

    assert sizes.learn(bounded(2000), ANSWER) == Cost(1.0, 150.0, 100.0, 50.0)


def test_without_a_bound_nothing_is_reserved_but_the_usual_length_is_expected():
    sizes = Sizes(ChargeRule(Answers.RESERVED))

    assert sizes.cost_of(bounded()) == Sizes(ChargeRule()).cost_of(bounded())


def test_a_provider_that_charges_the_longest_answer_never_gives_back():
    sizes = Sizes(ChargeRule(Answers.AS_ASKED))

    assert sizes.cost_of(bounded(2000)).tokens == 2000
    assert sizes.learn(bounded(2000), ANSWER) == Cost(1.0, 2000.0, 100.0, 50.0)


async def test_a_told_ceiling_of_input_is_kept_where_prompts_take_more_than_their_characters():
    """Two characters that take ten tokens: what calls took counts, not what was expected."""
    facts = LaneFacts(charges=ChargeRule(Answers.AS_ASKED))
    provider = Models(seconds=0.1, facts=facts)
    limits = Limits(input_tokens_per_minute=60, burst_seconds=1.0)

    await provider.processor(limits=limits).process([asked("m", n) for n in range(30)])

    times = provider.of("m")
    # Those that were let in before the first answer came are paid for by a wait.
    assert times[-1] - times[0] > 0.9 * 30 * 10


def test_a_provider_that_charges_the_answer_does_so_at_its_end():
    cost = Sizes(ChargeRule()).cost_of(bounded(300))

    assert (cost.tokens, cost.pending) == (400.0, 300.0)


@pytest.mark.parametrize(
    ("model", "key", "answers"),
    [
        ("groq:m", "GROQ_API_KEY", Answers.RESERVED),
        ("cerebras:m", "CEREBRAS_API_KEY", Answers.RESERVED),
        ("mistral:m", "MISTRAL_API_KEY", Answers.AS_THEY_COME),
        ("openai-chat:m", "OPENAI_API_KEY", Answers.AS_ASKED),
    ],
)
def test_how_answers_are_counted_is_data(model, key, answers):
    assert resolve(model, environ={key: "k-0123456789"}).charges.answers is answers


@pytest.mark.parametrize("provider", ["groq", "openai-chat"])
def test_a_server_that_only_is_compatible_is_not_taken_to_look_ahead(provider):
    environ = {PROVIDERS[provider].key_variable: "k-0123456789"}

    charges = resolve(f"{provider}:m", base_url="http://h/v1", environ=environ).charges

    assert charges.answers is Answers.AS_THEY_COME
    assert charges.counts_cache_reads is PROVIDERS[provider].charges.counts_cache_reads
