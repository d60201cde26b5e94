"""Prices by hand, beside genai-prices' own sums, for the usage shapes of three providers."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from importlib import metadata

import pytest
from genai_prices import Usage, calc_price, data, extract_usage
from genai_prices.types import TieredPrices

from batch_llm.core.prices import CONTEXT_STARTS, ModelUsage, Price, Prices, UsageByModel, usd
from batch_llm.core.usage import read_usage
from batch_llm.exceptions import ConfigError

OPENAI = {
    "prompt_tokens": 10_000,
    "completion_tokens": 2_000,
    "total_tokens": 12_000,
    "prompt_tokens_details": {"cached_tokens": 4_000},
    "completion_tokens_details": {"reasoning_tokens": 1_500},
}
ANTHROPIC = {
    "input_tokens": 1_000,
    "cache_creation_input_tokens": 5_000,
    "cache_read_input_tokens": 20_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 3_000, "ephemeral_1h_input_tokens": 2_000},
    "output_tokens": 700,
}
GEMINI = {
    "prompt_token_count": 8_000,
    "cached_content_token_count": 2_000,
    "candidates_token_count": 300,
    "thoughts_token_count": 900,
    "total_token_count": 9_200,
}


def _cost(model, usage, tier="standard"):
    found = Prices().rate_of_call(model, "", tier, usage["input_tokens"])
    return found.cost(usage)


def _library(provider, name, usage, **context):
    kinds = {
        "input_tokens": usage["input_tokens"],
        "output_tokens": usage["output_tokens"],
        "cache_read_tokens": usage.get("cache_read_tokens", 0),
        "cache_write_tokens": usage.get("cache_write_tokens", 0),
        "cache_write_1h_tokens": usage.get("cache_write_1h_tokens", 0),
        "output_reasoning_tokens": usage.get("reasoning_tokens", 0),
    }
    return calc_price(Usage(**kinds), name, provider_id=provider, price_context=context).total_price


def test_openai_by_hand():
    usage = read_usage(OPENAI)

    # gpt-4o-mini: 0.15 in, 0.075 from the cache, 0.60 out, what was thought among it.
    by_hand = (6_000 * Decimal("0.15") + 4_000 * Decimal("0.075") + 2_000 * Decimal("0.6")) / 10**6
    assert _cost("openai-chat:gpt-4o-mini", usage) == by_hand
    assert _library("openai", "gpt-4o-mini", usage) == by_hand


def test_anthropic_by_hand_with_two_kinds_of_cache_writes():
    usage = read_usage(ANTHROPIC)

    # Sonnet 4.5: 3 in, 3.75 to the cache and 6 for an hour, 0.30 from it, 15 out.
    assert usage["input_tokens"] == 26_000
    by_hand = (
        1_000 * 3 + 3_000 * Decimal("3.75") + 2_000 * 6 + 20_000 * Decimal("0.3") + 700 * 15
    ) / Decimal(10**6)
    assert _cost("anthropic:claude-sonnet-4-5", usage) == by_hand
    assert _library("anthropic", "claude-sonnet-4-5", usage) == by_hand


def test_gemini_by_hand_with_what_was_thought():
    usage = read_usage(GEMINI)

    # 2.5 Flash: 0.30 in, 0.03 from the cache, 2.50 out; thoughts are output.
    assert usage["output_tokens"] == 1_200
    by_hand = (6_000 * Decimal("0.3") + 2_000 * Decimal("0.03") + 1_200 * Decimal("2.5")) / 10**6
    assert _cost("google:gemini-2.5-flash", usage) == by_hand
    assert _library("google", "gemini-2.5-flash", usage) == by_hand


@pytest.mark.parametrize(
    ("provider", "wire"),
    [
        ("openai", {"model": "gpt-4o-mini", "usage": OPENAI}),
        ("anthropic", {"model": "claude-sonnet-4-5", "usage": ANTHROPIC}),
    ],
)
def test_the_librarys_reading_of_the_wire_agrees(provider, wire):
    flavor = {"api_flavor": "chat"} if provider == "openai" else {}
    theirs = extract_usage(wire, provider_id=provider, **flavor).usage

    ours = read_usage(wire["usage"])

    for kind in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"):
        assert ours.get(kind, 0) == (getattr(theirs, kind, 0) or 0), kind


def test_batch_jobs_by_hand():
    usage = read_usage(GEMINI)

    # Half of all but what comes from the cache, which keeps its price.
    by_hand = (6_000 * Decimal("0.15") + 2_000 * Decimal("0.03") + 1_200 * Decimal("1.25")) / 10**6
    assert _cost("google:gemini-2.5-flash", usage, "batch") == by_hand
    assert _library("google", "gemini-2.5-flash", usage, processing="batch") == by_hand
    whole = _cost("openai-chat:gpt-4o-mini", {"input_tokens": 1_000_000})
    assert _cost("openai-chat:gpt-4o-mini", {"input_tokens": 1_000_000}, "batch") == whole / 2


@pytest.mark.parametrize("sent", [200_000, 200_001])
def test_long_inputs_have_their_own_price(sent):
    usage = {"input_tokens": sent, "output_tokens": 1_000}

    cost = _cost("google:gemini-2.5-pro", usage)

    assert cost == _library("google", "gemini-2.5-pro", usage)


def test_totals_of_many_short_calls_are_not_priced_as_one_long_call():
    counts = UsageByModel()
    usage = {"input_tokens": 150_000, "output_tokens": 1_000, "total_tokens": 151_000}
    for _ in range(10):
        counts.note("google:gemini-2.5-pro", "", "standard", usage)

    bill = Prices().bill(counts.snapshot())

    assert bill.usd == 10 * _library("google", "gemini-2.5-pro", usage)


def test_every_step_of_the_librarys_prices_is_one_of_ours():
    starts = set()
    for provider in data.providers:
        for model in provider.models:
            prices = model.prices if isinstance(model.prices, list) else [model.prices]
            for one in prices:
                for value in vars(getattr(one, "prices", one)).values():
                    if isinstance(value, TieredPrices):
                        starts |= {tier.start for tier in value.tiers}

    assert starts <= set(CONTEXT_STARTS)


def test_calls_of_unknown_cost_at_an_unknown_price_are_not_nothing():
    bill = Prices().bill([ModelUsage(model="vllm:mine", unmeasured_calls=2)])

    assert bill.known_usd is None
    assert (bill.unpriced, bill.unmeasured_calls) == (("vllm:mine",), 2)


def test_unknown_is_unknown_and_not_nothing():
    used = ModelUsage(model="vllm:mine", calls=1, input_tokens=10, output_tokens=10)

    bill = Prices().bill([used, ModelUsage(model="", unmeasured_calls=2)])

    assert bill.known_usd is None
    assert bill.unpriced == ("vllm:mine",)
    assert bill.unmeasured_calls == 2


@pytest.mark.parametrize(
    ("model", "server", "is_known"),
    [
        ("openai-chat:gpt-4o", "", True),
        ("openai-chat:gpt-4o", "127.0.0.1:8000/v1", False),
        ("openai-chat:llama-3.3-70b-versatile", "api.groq.com/openai/v1", True),
        ("sim:gpt-4o", "", False),
        ("openai:gpt-4o", "api.openai.com", True),
        ("gpt-4o", "", False),
    ],
)
def test_the_server_says_whose_price_it_is(model, server, is_known):
    assert (Prices().rate(model, server) is not None) == is_known


def test_the_users_own_prices_go_first():
    prices = Prices({"openai-chat:gpt-4o": Price(input="0.1", output=2, batch="0.5")})

    rate = prices.rate("openai-chat:gpt-4o", "anywhere")

    assert rate.cost({"input_tokens": 3, "output_tokens": 1}) == Decimal("0.0000023")
    assert prices.rate("openai-chat:gpt-4o", tier="batch").output == Decimal("0.000001")
    assert prices.rate("openai-chat:gpt-4o", tier="flex") is None


@pytest.mark.parametrize("name", ["sim:fast", "fast", "sim:fast?rpm=5"])
def test_a_simulators_price_goes_by_its_name_without_options(name):
    prices = Prices({name: Price(input=1, output=1)})

    assert prices.rate("sim:fast?rpm=5") is not None


def test_a_price_table_is_read_exactly(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text('["a:b"]\ninput = 0.1\noutput = 0.3\ncache_read = 0.01\n')

    rate = Prices.from_file(path).rate("a:b")

    assert rate.input == Decimal("0.0000001")
    assert rate.cache_read == Decimal("0.00000001")


@pytest.mark.parametrize(
    "text",
    ["not toml", '["a:b"]\ninput = 1\n', '["a:b"]\ninput = 1\noutput = -1\n', "a = 1\n",
     '["a:b"]\ninput = 1\noutput = 1\nouput = 2\n'],
)  # fmt: skip
def test_a_price_table_with_a_slip_is_refused(tmp_path, text):
    path = tmp_path / "prices.toml"
    path.write_text(text)

    with pytest.raises(ConfigError):
        Prices.from_file(path)


def test_the_library_is_loaded_when_it_is_needed_only():
    code = (
        "import sys, batch_llm; from batch_llm.core.prices import Price, Prices;"
        "Prices({'a:b': Price(input=1, output=1)}).rate('a:b');"
        "assert 'genai_prices' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("amount", "text"),
    [("3.4149", "$3.41"), ("0", "$0.00"), ("0.0123456", "$0.012346"), ("1234.5", "$1,234.50"),
     ("0.0000001", "<$0.000001")],
)  # fmt: skip
def test_amounts_as_people_read_them(amount, text):
    assert usd(Decimal(amount)) == text


def test_the_library_is_loaded_beside_the_loop_where_nothing_else_has_the_price():
    code = (
        "import asyncio, sys\n"
        "from batch_llm import LLMWorkItem, MockAgent, ParallelBatchProcessor, ProcessorConfig\n"
        "async def main():\n"
        "    processor = ParallelBatchProcessor(config=ProcessorConfig(max_cost_usd=1))\n"
        "    assert processor.config.prices.needs_library\n"
        "    await processor.process([LLMWorkItem('a', agent=MockAgent(), prompt='Hi')])\n"
        "    assert not processor.config.prices.needs_library\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_prices_are_from_tells_tables_apart():
    library = f"genai-prices {metadata.version('genai-prices')}"
    table = {"a:b": Price(input=1, output=2), "c": Price(input=1, output=1)}
    own = Prices(table).origin

    assert Prices().origin == library
    assert own.startswith(f"{library}, before it 2 of the user's own (")
    assert Prices(dict(reversed(table.items()))).origin == own
    assert Prices(table | {"c": Price(input=1, output=3)}).origin != own
