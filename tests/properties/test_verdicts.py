"""Whatever the providers answer, in whatever order: one result, and no more attempts than said."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import (
    BadOutputError,
    ContentFilteredError,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RefusedError,
    Request,
    RetryConfig,
    Settings,
    StatusError,
    TransportError,
    TruncatedError,
)
from batch_llm.core.prices import Price, Prices
from batch_llm.providers.base import LaneFacts, Outcome
from batch_llm.stores import MemoryLedger
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.policies import MAY_FALL_BACK_ON
from batch_llm.testing.clock import VirtualTimeLoop

TABLE = Path(__file__).parents[2] / "docs" / "errors.md"
USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
VERDICTS = {
    "ok": None,
    "limited": StatusError(429, "slow down", None, {"retry-after": "2"}),
    "busy": StatusError(503, "busy"),
    "broken": StatusError(500, "oops"),
    "bad": BadOutputError("{}", "a field is missing"),
    "cut": TruncatedError("so far", 64),
    "refused": RefusedError("no"),
    "filtered": ContentFilteredError(),
    "long": StatusError(400, "too long", None, {}, {"code": "context_length_exceeded"}),
    "wrong": StatusError(400, "no"),
    "key": StatusError(401, "who are you"),
    "credit": StatusError(402, "pay"),
    "missing": StatusError(404, "no such model"),
    "gone": TransportError("Cannot connect", True),
    "slow": TimeoutError("late"),
}
#: Verdicts on calls that use up no attempt, where limits are learned. A connection that is refused
#: by a server which has answered before is an outage.
FREE = {"rate_limited", "overloaded", "connection"}


class Oracle:
    """Answers each item's calls by its own script, over and over."""

    def __init__(self, scripts):
        self.scripts = scripts
        self.calls = {name: [] for name in scripts}

    def lane(self, one, /):
        return one.request.model

    def facts(self, one, /):
        return LaneFacts(model=one.request.model)

    def content(self, one, /):
        return one.item_id.encode()

    async def call(self, one, attempt, /):
        calls, script = self.calls[one.item_id], self.scripts[one.item_id]
        error = VERDICTS[script[len(calls) % len(script)]]
        calls.append(one.request.model)
        await asyncio.sleep(0.05)
        if error is None:
            return Outcome("ok", USAGE)
        return Outcome(error=type(error)(*error.args), usage=USAGE)


def run(main):
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


@given(
    scripts=st.lists(
        st.lists(st.sampled_from(sorted(VERDICTS)), min_size=1, max_size=6), max_size=8
    ),
    max_attempts=st.integers(1, 4),
    fallbacks=st.lists(st.sampled_from(["x:b", "x:c", "x:a"]), max_size=3),
    fallback_on=st.none() | st.sets(st.sampled_from(MAY_FALL_BACK_ON)),
    cap=st.none() | st.integers(0, 200),
    has_money_cap=st.booleans(),
)
def test_each_item_ends_with_one_result_and_within_its_attempts(
    scripts, max_attempts, fallbacks, fallback_on, cap, has_money_cap
):
    named = {str(number): script for number, script in enumerate(scripts)}
    oracle, ledger = Oracle(named), MemoryLedger()
    config = ProcessorConfig(
        progress_interval=0,
        fallbacks=fallbacks,
        max_cost_usd=1000 if has_money_cap else None,
        prices=Prices({name: Price(input=1, output=1) for name in "abc"}),
        retry=RetryConfig(
            max_attempts=max_attempts,
            max_rate_limits=5,
            max_tokens_cap=cap,
            fallback_on=fallback_on,
        ),
    )
    items = [
        LLMWorkItem(name, request=Request.of("x:a", f"hi {name}", settings=Settings(max_tokens=64)))
        for name in named
    ]
    built = ParallelBatchProcessor(config=config, requests=oracle, store=ledger)

    results = run(built.process(items)).results

    assert sorted(one.item_id for one in results) == sorted(named)
    used = 0
    for one in results:
        attempts = ledger.attempts(one.item_id)
        counted = [attempt for attempt in attempts if attempt.error_code not in FREE]
        assert len(attempts) == one.attempts == len(oracle.calls[one.item_id])
        assert len(counted) <= max_attempts + len(fallbacks)
        assert len(attempts) - len(counted) <= 2 * (5 + 1) + max_attempts + len(fallbacks)
        assert one.token_usage["total_tokens"] == 5 * len(attempts)
        assert oracle.calls[one.item_id] == sorted_by_turn(oracle.calls[one.item_id], fallbacks)
        if one.success:
            assert attempts[-1].error_code is None
        else:
            assert one.error_code in set(ErrorCode)
        used += len(attempts)
    now = built.statistics()
    assert sum(usage.input_tokens for usage in now.usage) == 3 * used
    asked = [model for calls in oracle.calls.values() for model in calls]
    for usage in now.usage:
        assert usage.calls == asked.count(usage.model)


def sorted_by_turn(calls, fallbacks):
    """The calls, if they go from model to model in the order in which those were named."""
    turns = iter(["x:a", *fallbacks])
    current = next(turns)
    for model in calls:
        while model != current:
            current = next(turns, None)
            if current is None:
                return None
    return calls


@pytest.mark.parametrize("verdict", sorted(VERDICTS.keys() - {"ok"}))
def test_what_uses_up_an_attempt_is_what_the_table_in_the_docs_says(verdict):
    told = dict(
        re.findall(r"^\| `(\w+)` \| .*? \| (yes|no) \|", TABLE.read_text("utf-8"), re.MULTILINE)
    )
    oracle, ledger = Oracle({"one": [verdict, "ok"]}), MemoryLedger()
    request = Request.of("x:a", "hi")
    built = ParallelBatchProcessor(
        config=ProcessorConfig(progress_interval=0, retry=RetryConfig(max_attempts=1)),
        requests=oracle,
        store=ledger,
    )

    (result,) = run(built.process([LLMWorkItem("one", request=request)])).results

    code = ledger.attempts("one")[0].error_code
    assert told[code] == ("no" if result.success else "yes")
