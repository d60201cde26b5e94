"""Spent and reserved together never pass a cap, whatever becomes of the calls."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from batch_llm import LLMWorkItem, ParallelBatchProcessor, Price, Prices, ProcessorConfig, Request
from batch_llm.core.config import RetryConfig
from batch_llm.core.request import Settings
from batch_llm.exceptions import StatusError, TransportError
from batch_llm.providers.base import LaneFacts, Outcome
from batch_llm.strategies.caps import Purse, Worst
from batch_llm.testing.clock import VirtualTimeLoop

cents = st.integers(0, 500).map(lambda number: Decimal(number) / 100)


@given(
    cap=cents,
    most=st.integers(0, 1000),
    steps=st.lists(
        st.tuples(
            cents,
            st.integers(0, 300),
            st.sampled_from(["hold", "settle", "unknown", "free"]),
            st.integers(0, 9),
            st.integers(0, 100),
        ),
        max_size=60,
    ),
)
def test_spent_and_reserved_never_pass_the_caps(cap, most, steps):
    purse = Purse(cap, most)
    held = []
    for usd, tokens, what, which, percent in steps:
        if what == "hold":
            found = purse.reserve(Worst(tokens, usd))
            held += [found] if found else []
        elif held:
            one = held.pop(which % len(held))
            if what == "settle":
                purse.settle(one, one.worst.usd * percent / 100, one.worst.tokens * percent // 100)
            elif what == "unknown":
                purse.settle_unknown(one)
            else:
                purse.release(one)
        assert purse.spent_usd + purse.reserved_usd <= cap
        assert purse.spent_tokens + purse.reserved_tokens <= most
        assert purse.reserved_usd == sum((one.worst.usd for one in held), Decimal(0))
        assert purse.has_reservations == bool(held)


class Provider:
    """Bills what it answers, within what was asked; some calls fail, and some are billed unseen."""

    def __init__(self, kinds, prices):
        self.kinds, self.calls = kinds, 0
        self.rate = prices.rate("x:m")
        self.tokens, self.usd = 0, Decimal(0)

    def lane(self, item, /):
        return "x:m"

    def facts(self, item, /):
        return LaneFacts(model="x:m")

    async def call(self, item, attempt, /):
        kind, share, seconds = self.kinds[self.calls % len(self.kinds)]
        self.calls += 1
        await asyncio.sleep(seconds)
        asked = item.request.settings.max_tokens
        usage = {"input_tokens": 5 + len(item.request.messages[0].content) // 4}
        usage["output_tokens"] = asked * share // 100
        if kind == "refused":
            raise StatusError(429, "slow down")
        if kind == "broken":
            raise StatusError(500, "sorry")
        self.tokens += sum(usage.values())
        self.usd += self.rate.cost(usage)
        if kind == "cut":
            raise TransportError("cut off")
        error = ValueError("no") if kind == "bad" else None
        return Outcome(None if error else "ok", usage, error)


calls = st.tuples(
    st.sampled_from(["good", "good", "good", "bad", "cut", "broken", "refused"]),
    st.integers(0, 100),
    st.floats(0, 3),
)


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 500)), min_size=1, max_size=40),
    kinds=st.lists(calls, min_size=1, max_size=10),
    cap=st.integers(1, 8000),
    in_money=st.booleans(),
    workers=st.integers(1, 20),
)
def test_a_run_never_costs_more_than_its_cap(rows, kinds, cap, in_money, workers):
    prices = Prices({"x:m": Price(input=1, output=4)})
    provider = Provider(kinds, prices)
    limit = {"max_cost_usd": Decimal(cap) / 10**6} if in_money else {"max_tokens_total": cap}
    config = ProcessorConfig(
        max_workers=workers,
        retry=RetryConfig(max_attempts=3, initial_wait=0.1, max_rate_limits=3),
        prices=prices,
        remember_limits=False,
        **limit,
    )
    processor = ParallelBatchProcessor(config=config, requests=provider)
    asked = [Request.of("x:m", "a" * n, settings=Settings(max_tokens=most)) for n, most in rows]
    items = [LLMWorkItem(str(n), request=request) for n, request in enumerate(asked)]

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        done = runner.run(processor.process(items))

    assert provider.usd <= limit.get("max_cost_usd", provider.usd)
    assert provider.tokens <= limit.get("max_tokens_total", provider.tokens)
    now = processor.statistics()
    was_stopped = now.stopped_by is not None
    assert was_stopped or len(done.results) == len(rows)
    assert now.in_flight == 0
