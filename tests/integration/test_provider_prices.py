"""Each provider's usage as it comes over the wire, kept in a ledger, and priced by hand.

The prices are the published ones, in USD per million tokens, written out beside each sum.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

import genai_prices
import pytest

from batch_llm import (
    LLMWorkItem,
    ParallelBatchProcessor,
    Prices,
    ProcessorConfig,
    Request,
    SqliteLedger,
)
from batch_llm.providers.registry import resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.table import PROVIDERS
from batch_llm.providers.transport import Response
from batch_llm.stores import ItemState

CHAT_USAGE = {
    "prompt_tokens": 10_000,
    "completion_tokens": 2_000,
    "total_tokens": 12_000,
    "prompt_tokens_details": {"cached_tokens": 4_000},
    "completion_tokens_details": {"reasoning_tokens": 1_500},
}


def chat(usage):
    message = {"role": "assistant", "content": "Lima"}
    return {"model": "m", "choices": [{"message": message, "finish_reason": "stop"}],
            "usage": usage}  # fmt: skip


def responses(usage):
    said = {"type": "message", "content": [{"type": "output_text", "text": "Lima"}]}
    return {"model": "m", "status": "completed", "output": [said], "usage": usage}


def messages(usage):
    content = [{"type": "text", "text": "Lima"}]
    return {"model": "m", "content": content, "stop_reason": "end_turn", "usage": usage}


def gemini(usage):
    parts = {"parts": [{"text": "Lima"}], "role": "model"}
    return {"candidates": [{"content": parts, "finishReason": "STOP"}], "usageMetadata": usage}


CASES = {
    # Input that was read from a cache and thoughts are inside of the totals: counted once.
    # GPT-4.1: 2 in, 0.50 from the cache, 8 out.
    "openai-chat:gpt-4.1": (
        chat(CHAT_USAGE),
        6_000 * Decimal(2) + 4_000 * Decimal("0.5") + 2_000 * 8,
    ),
    # GPT-6 Luna: 0.10 in, 0.01 from the cache, 0.125 to it, 0.50 out.
    "openai:gpt-6-luna": (
        responses(
            {
                "input_tokens": 10_000,
                "input_tokens_details": {"cached_tokens": 4_000, "cache_write_tokens": 1_000},
                "output_tokens": 2_000,
                "output_tokens_details": {"reasoning_tokens": 1_500},
                "total_tokens": 12_000,
            }
        ),
        5_000 * Decimal("0.1")
        + 4_000 * Decimal("0.01")
        + 1_000 * Decimal("0.125")
        + 2_000 * Decimal("0.5"),
    ),
    # Input is told without that from and to caches: added once. Haiku 4.5: 1 in, 1.25 to the
    # cache and 2 for an hour, 0.10 from it, 5 out, thoughts inside.
    "anthropic:claude-haiku-4-5": (
        messages(
            {
                "input_tokens": 1_000,
                "cache_creation_input_tokens": 5_000,
                "cache_read_input_tokens": 20_000,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 3_000,
                    "ephemeral_1h_input_tokens": 2_000,
                },
                "output_tokens": 700,
                "output_tokens_details": {"thinking_tokens": 300},
                "service_tier": "standard",
            }
        ),
        1_000 * Decimal(1)
        + 3_000 * Decimal("1.25")
        + 2_000 * Decimal(2)
        + 20_000 * Decimal("0.1")
        + 700 * Decimal(5),
    ),
    # Thoughts are told beside the answer: added once. 2.5 Flash: 0.30 in, tools' input too, 0.03
    # from the cache, 2.50 out.
    "google:gemini-2.5-flash": (
        gemini(
            {
                "promptTokenCount": 8_000,
                "cachedContentTokenCount": 2_000,
                "toolUsePromptTokenCount": 500,
                "candidatesTokenCount": 300,
                "thoughtsTokenCount": 900,
                "totalTokenCount": 9_700,
            }
        ),
        6_500 * Decimal("0.3") + 2_000 * Decimal("0.03") + 1_200 * Decimal("2.5"),
    ),
    # A long call is dearer as a whole. 2.5 Pro above 200,000: 2.50 in, 15 out.
    "google:gemini-2.5-pro": (
        gemini({"promptTokenCount": 200_001, "candidatesTokenCount": 1_000}),
        200_001 * Decimal("2.5") + 1_000 * Decimal(15),
    ),
    # Mistral tells no more than the totals. Large: 2 in, 6 out.
    "mistral:mistral-large-latest": (
        chat({"prompt_tokens": 10_000, "completion_tokens": 2_000, "total_tokens": 12_000}),
        10_000 * Decimal(2) + 2_000 * Decimal(6),
    ),
    # GPT-OSS 120B at Groq: 0.15 in, 0.075 from the cache, 0.60 out.
    "groq:openai/gpt-oss-120b": (
        chat(CHAT_USAGE | {"queue_time": 0.1, "prompt_time": 0.2, "total_time": 1.5}),
        6_000 * Decimal("0.15") + 4_000 * Decimal("0.075") + 2_000 * Decimal("0.6"),
    ),
    # Cache hits under DeepSeek's own names: 0.27 in, 0.07 from the cache, 1.10 out.
    "deepseek:deepseek-chat": (
        chat(
            {
                "prompt_tokens": 10_000,
                "prompt_cache_hit_tokens": 4_000,
                "prompt_cache_miss_tokens": 6_000,
                "completion_tokens": 2_000,
                "total_tokens": 12_000,
            }
        ),
        6_000 * Decimal("0.27") + 4_000 * Decimal("0.07") + 2_000 * Decimal("1.1"),
    ),
    # xAI counts thoughts beside the answer: 500 and 1,500 make 2,000. Grok 4: 3 in, 0.75 from the
    # cache, 15 out.
    "xai:grok-4": (
        chat(CHAT_USAGE | {"completion_tokens": 500}),
        6_000 * Decimal(3) + 4_000 * Decimal("0.75") + 2_000 * Decimal(15),
    ),
    # As at OpenAI.
    "openrouter:openai/gpt-4.1": (
        chat(CHAT_USAGE),
        6_000 * Decimal(2) + 4_000 * Decimal("0.5") + 2_000 * 8,
    ),
    "azure:gpt-4.1": (
        chat(CHAT_USAGE),
        6_000 * Decimal(2) + 4_000 * Decimal("0.5") + 2_000 * 8,
    ),
    # One price for all: 0.88.
    "together:meta-llama/Llama-3.3-70B-Instruct-Turbo": (
        chat(CHAT_USAGE),
        12_000 * Decimal("0.88"),
    ),
    # 0.35 in, 0.75 out.
    "cerebras:gpt-oss-120b": (
        chat(CHAT_USAGE),
        10_000 * Decimal("0.35") + 2_000 * Decimal("0.75"),
    ),
}


class Recorded:
    """A transport that answers what was recorded."""

    def __init__(self, body):
        self.body = json.dumps(body).encode()

    async def post(self, url, headers, body):
        return Response(200, {}, self.body)

    async def aclose(self):
        pass


def endpoint_of(model):
    provider = PROVIDERS[model.partition(":")[0]]
    environ = {provider.key_variable: "sk-0123456789"}
    if not provider.base_url:
        environ[provider.url_variable] = "https://me.openai.azure.com"
    return resolve(model, environ=environ)


@pytest.mark.parametrize("model", CASES)
def test_the_cost_from_the_ledger_is_the_one_by_hand(tmp_path, monkeypatch, model):
    # Some are cheaper at night: these are the prices of the day.
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    at_noon = partial(genai_prices.calc_price, genai_request_timestamp=noon)
    monkeypatch.setattr(genai_prices, "calc_price", at_noon)
    body, millionths = CASES[model]
    path = tmp_path / "run.sqlite"
    with SqliteLedger(path) as ledger:
        processor = ParallelBatchProcessor(
            config=ProcessorConfig(remember_limits=False),
            requests=RequestCaller(endpoint_of(model), Recorded(body)),
            store=ledger,
        )
        items = [LLMWorkItem(str(n), request=Request.of(model, "Capital of Peru?")) for n in (1, 2)]
        assert asyncio.run(processor.process(items)).succeeded == 2

    with SqliteLedger(path, read_only=True) as ledger:
        kept = [record.usage for record in ledger.records(ItemState.DONE)]

    prices = Prices()
    assert len(kept) == 2
    for usage in kept:
        rate = prices.rate_of_call(model, "", "standard", usage["input_tokens"])
        assert rate.cost(usage) == millionths / 10**6
    assert prices.bill(processor.statistics().usage).usd == 2 * millionths / 10**6
