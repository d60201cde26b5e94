"""Runs that end at a cap, a deadline or too many failures, in virtual time."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from batch_llm import (
    ConfigError,
    LLMWorkItem,
    ParallelBatchProcessor,
    Price,
    Prices,
    ProcessorConfig,
    Request,
    RetryConfig,
    StatusError,
    TransportError,
)
from batch_llm._engine.spending import IMAGE_TOKENS, size_of
from batch_llm.core.request import Image, Message, OtherPart, Settings, Text
from batch_llm.core.schema import OutputSchema
from batch_llm.providers.base import LaneFacts, Outcome

PRICES = Prices({"x:m": Price(input=0, output=1_000_000)})  # a dollar a token


class Provider:
    """Takes a second for each call, and bills so many tokens of output."""

    def __init__(self, got=1, *, error=None, seconds=1.0, model="x:m"):
        self.got, self.error, self.seconds, self.model = got, error, seconds, model
        self.calls = self.peak = self.now = 0

    def lane(self, item, /):
        return self.model

    def facts(self, item, /):
        return LaneFacts(model=self.model)

    async def call(self, item, attempt, /):
        self.calls += 1
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now -= 1
        if self.error is not None:
            raise self.error
        usage = {"input_tokens": 0, "output_tokens": self.got, "total_tokens": self.got}
        return Outcome("ok", usage)


def items(count, most=10):
    asked = Request.of("x:m", "", settings=Settings(max_tokens=most))
    return [LLMWorkItem(str(n), request=asked) for n in range(count)]


def built(provider, **settings):
    retry = RetryConfig(max_attempts=2, initial_wait=0.1, jitter=False)
    chosen = {"max_workers": 10, "prices": PRICES, "remember_limits": False, "retry": retry}
    config = ProcessorConfig(**chosen | settings)
    return ParallelBatchProcessor(config=config, requests=provider)


async def test_a_cap_on_cost_ends_the_run_before_it_is_passed():
    provider = Provider(got=3)
    processor = built(provider, max_cost_usd=100)

    await processor.process(items(1000))

    # 31 answers of $3 are $93; the next may take $10.
    assert provider.calls == 31
    now = processor.statistics()
    assert (now.stopped_by, now.output_tokens) == ("max_cost_usd", 93)
    assert now.stop_reason == "$93.00 of $100.00 are spent, and the next call may take $10.00"
    assert now.failures_by_code.keys() <= {"cancelled"}


async def test_near_the_cap_fewer_calls_are_in_flight():
    provider = Provider(got=10)

    await built(provider, max_cost_usd=40).process(items(100))

    assert (provider.calls, provider.peak) == (4, 4)


async def test_a_cap_on_tokens_counts_input_and_output():
    provider = Provider(got=10)
    processor = built(provider, max_tokens_total=200, prices=Prices())

    await processor.process(items(100))

    assert processor.statistics().stopped_by == "max_tokens_total"
    assert 10 * provider.calls <= 200
    assert provider.calls >= 14  # the last ones hold what their frame may take


async def test_a_call_that_nothing_bounds_says_what_would_bound_it():
    provider = Provider()
    processor = built(provider, max_cost_usd=100)

    await processor.process(items(3, most=None))

    assert provider.calls == 0
    assert processor.statistics().stop_reason == (
        "$0.00 of $100.00 are spent, and the next call may take $4,096.00 "
        "(max_tokens would bound it)"
    )


async def test_near_a_cap_an_item_that_was_paid_for_goes_before_those_that_were_not():
    class Flaky(Provider):
        async def call(self, item, attempt, /):
            self.asked.append((item.item_id, attempt.number))
            await asyncio.sleep(1)
            usage = {"input_tokens": 0, "output_tokens": 5, "total_tokens": 5}
            error = ValueError("bad") if attempt.number == 1 and item.item_id == "0" else None
            return Outcome("ok", usage, error)

    provider = Flaky()
    provider.asked = []

    await built(provider, max_cost_usd=24, max_workers=1).process(items(10))

    # The second was let in beside the first; the third had come to wait before the retry.
    assert provider.asked == [("0", 1), ("1", 1), ("0", 2)]


async def test_a_run_that_fits_is_not_stopped():
    processor = built(Provider(got=1), max_cost_usd=1000)

    done = await processor.process(items(50))

    assert done.succeeded == 50
    assert processor.statistics().stopped_by is None


async def test_failed_attempts_are_paid_for():
    provider = Provider(error=TransportError("cut off"))
    processor = built(provider, max_cost_usd=25)

    await processor.process(items(100))

    assert provider.calls == 2  # each may have cost $10
    reason = processor.statistics().stop_reason
    assert "2 calls of unknown cost booked at their most" in reason


async def test_refused_calls_cost_nothing():
    provider = Provider(error=StatusError(400, "no"))

    done = await built(provider, max_cost_usd=10).process(items(30))

    assert (provider.calls, done.failed) == (30, 30)


async def test_a_call_without_a_price_is_not_sent():
    provider = Provider(model="x:unknown")

    done = await built(provider, max_cost_usd=10).process(items(3))

    assert provider.calls == 0
    assert done.results[0].error.startswith("UnknownPriceError: No price is known for x:unknown")
    assert done.results[0].error_code == "bad_request"


async def test_without_a_cap_nobody_asks_for_prices():
    done = await built(Provider(model="x:unknown")).process(items(3))

    assert done.succeeded == 3


async def test_each_run_has_its_caps_anew():
    processor = built(Provider(got=10), max_cost_usd=20)

    await processor.process(items(10))
    await processor.process(items(10))

    assert processor.statistics().output_tokens == 20


async def test_a_deadline_sends_nothing_more_and_waits_for_what_is_in_flight():
    provider = Provider(seconds=3)
    processor = built(provider, deadline_seconds=10)

    done = await processor.process(items(1000))

    now = processor.statistics()
    assert now.stopped_by == "deadline_seconds"
    assert provider.calls == done.succeeded  # the last ones too
    assert now.failed == now.failures_by_code.get("cancelled", 0)
    assert 10 < now.elapsed_seconds <= 13


async def test_a_run_that_is_done_before_its_deadline_is_not_held_up():
    processor = built(Provider(), deadline_seconds=1000)

    await processor.process(items(10))

    assert processor.statistics().elapsed_seconds < 10
    assert processor.statistics().stopped_by is None


@pytest.mark.parametrize(("share", "finished"), [(0, 1), (0.5, 20), (0.01, 100)])
async def test_too_many_failures_end_a_run_once_they_are_a_share(share, finished):
    processor = built(Provider(error=StatusError(400, "no")), max_failed_share=share, max_workers=1)

    await processor.process(items(500))

    now = processor.statistics()
    assert now.stopped_by == "max_failed_share"
    assert now.failed - now.failures_by_code.get("cancelled", 0) == finished


@pytest.mark.parametrize("most", [0, 10])
@pytest.mark.parametrize("workers", [1, 5])
async def test_too_many_failures_end_a_run_at_once(most, workers):
    provider = Provider(error=StatusError(400, "no"))
    processor = built(provider, max_failed=most, max_workers=workers)

    await processor.process(items(500))

    now = processor.statistics()
    failed = now.failed - now.failures_by_code.get("cancelled", 0)
    assert now.stopped_by == "max_failed"
    assert most < failed <= most + workers  # those in flight may add to them


async def test_fewer_failures_than_that_do_not():
    provider = Provider(error=StatusError(400, "no"))
    processor = built(provider, max_failed_share=1.0)

    done = await processor.process(items(50))

    assert done.failed == 50


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_cost_usd", 0), ("max_cost_usd", "5"), ("max_tokens_total", 0), ("deadline_seconds", -1),
     ("max_failed", -1), ("max_failed", 0.5), ("max_failed_share", 1.1), ("prices", {})],
)  # fmt: skip
def test_caps_out_of_bounds_are_refused(setting, value):
    with pytest.raises(ConfigError, match=setting):
        ProcessorConfig(**{setting: value}).validate()


def test_the_size_of_a_request_is_that_of_all_its_parts():
    parts = (Text("abé"), Image("data:…"), OtherPart({"a": 1}))
    request = Request(
        "x:m",
        (Message("system", "abcd"), Message("user", parts)),
        Settings(max_tokens=5, extra={"n": 3}),
        OutputSchema.choices("a", "b"),
    )

    size = size_of(LLMWorkItem("a", request=request))

    assert size.further_tokens == 2 * IMAGE_TOKENS
    assert size.max_output_tokens == 15
    assert size.input_bytes > 8 + 2 * 16 + len("{'n': 3}")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_the_limit_counts_under_each_of_its_names(name):
    request = Request.of("x:m", "", settings=Settings(extra={name: 7}))

    assert size_of(LLMWorkItem("a", request=request)).max_output_tokens == 7


def test_caps_take_money_as_decimal_too():
    config = ProcessorConfig(max_cost_usd=Decimal("0.5"))

    config.validate()

    assert config.max_cost_usd == Decimal("0.5")
