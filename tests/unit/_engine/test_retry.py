from __future__ import annotations

import asyncio

import pytest

from batch_llm import ParallelBatchProcessor, ProcessorConfig, RateLimitConfig, RetryConfig
from fakes import USAGE, PermanentError, Ramp, RateLimited, Script, item, processor, run_one


def config(**retry):
    return ProcessorConfig(retry=RetryConfig(jitter=False, **retry))


async def test_waits_double_after_each_failure():
    call = Script(RuntimeError(), RuntimeError(), RuntimeError())

    result = await run_one(call, config=config(max_attempts=4))

    assert result.success
    assert call.times == [0.0, 1.0, 3.0, 7.0]
    assert call.attempts == [1, 2, 3, 4]


async def test_an_item_fails_after_its_last_attempt():
    result = await run_one(Script(*[RuntimeError("no")] * 9), config=config(max_attempts=2))

    assert (result.success, result.attempts, result.output) == (False, 2, None)
    assert result.error == "RuntimeError: no"


async def test_a_validation_error_is_retried_at_once():
    call = Script(ValueError("bad"), ValueError("bad"))

    assert (await run_one(call)).success
    assert call.times == [0.0, 0.0, 0.0]


async def test_a_permanent_error_is_not_retried():
    result = await run_one(Script(PermanentError("never")))

    assert (result.attempts, result.error_code) == (1, "bad_request")


async def test_a_waiting_item_holds_no_place():
    failing, others = Script(RuntimeError()), [Script(0.1) for _ in range(5)]

    await processor(max_workers=1).process(
        [item(str(n), call) for n, call in enumerate([failing, *others])]
    )

    assert failing.times == [0.0, 1.0]
    assert [call.times[0] for call in others] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


async def test_workers_that_stood_in_for_waiting_items_leave_when_those_are_back():
    failing = [Script(RuntimeError("wait"), 5.0) for _ in range(6)]
    others = [Script(5.0) for _ in range(60)]
    built = processor(max_workers=2)
    calls = [*failing, *others]
    running = asyncio.create_task(
        built.process([item(str(n), call) for n, call in enumerate(calls)])
    )
    await asyncio.sleep(60)

    assert built.statistics().waiting <= 1
    assert (await running).succeeded == 66


async def test_a_hung_attempt_is_cut_exactly_on_time_and_retried():
    call = Script(1000.0)

    result = await run_one(
        call, config=ProcessorConfig(timeout_per_item=10.0, retry=RetryConfig(jitter=False))
    )

    assert result.success
    assert call.times == [0.0, 11.0]


async def test_timeouts_fire_exactly_whatever_the_order_of_starts():
    async def hang(attempt, timeout):
        await asyncio.sleep(1000)

    ends = []
    built = processor(
        max_workers=3,
        config=ProcessorConfig(
            timeout_per_item=10.0, retry=RetryConfig(max_attempts=1), max_workers=3
        ),
        post_processor=lambda r: ends.append(asyncio.get_running_loop().time()),
    )

    async def staggered():
        for n in range(3):
            yield item(str(n), hang)
            await asyncio.sleep(2)

    result = await built.process(staggered())

    assert ends == [10.0, 12.0, 14.0]
    assert {r.error for r in result.results} == {"AttemptTimeoutError: No answer within 10 s."}


async def test_a_call_that_cancels_itself_is_a_failure_and_not_the_end():
    call = Script(asyncio.CancelledError())

    assert (await run_one(call)).attempts == 2


async def test_tokens_of_failed_attempts_are_counted():
    error = RuntimeError("paid for")
    error.usage = USAGE
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = error

    result = await run_one(Script(error, wrapped))

    assert result.token_usage == {key: 3 * value for key, value in USAGE.items()}


async def test_an_error_object_raised_twice_is_counted_by_what_it_carries():
    error = RuntimeError("no usage of its own")

    async def call(attempt, timeout):
        if attempt == 1:
            bad = ValueError("bad")
            bad.usage = USAGE
            raise bad
        raise error

    results = [await run_one(call) for _ in range(2)]

    assert [r.token_usage for r in results] == [USAGE, USAGE]


async def test_an_error_that_cannot_be_printed_still_gives_a_result():
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    result = await run_one(Script(*[Silent()] * 3))

    assert result.error == "Silent: (its message cannot be printed)"


async def test_a_classifier_that_fails_does_not_lose_the_item():
    class Broken:
        def classify(self, exception, /):
            raise RuntimeError

    result = await run_one(Script(*[PermanentError()] * 3), error_classifier=Broken())

    assert result.attempts == 3


async def test_a_rate_limit_uses_up_no_attempt():
    call = Script(*[RateLimited()] * 5)

    result = await run_one(call, config=config(max_attempts=1))

    assert (result.success, result.attempts) == (True, 6)
    assert call.attempts == [1] * 6
    assert call.times == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]


async def test_retry_after_is_honoured_exactly():
    call = Script(RateLimited(wait=3.25))

    await run_one(call)

    assert call.times == [0.0, 3.25]


async def test_a_retry_after_that_proves_too_short_is_stretched():
    call = Script(*[RateLimited(wait=0.0)] * 7)

    assert (await run_one(call)).success
    assert call.times == pytest.approx([0.0, 0.0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.6])


async def test_a_retry_after_that_is_long_enough_is_never_stretched():
    call = Script(*[RateLimited(wait=60.0)] * 12)

    assert (await run_one(call)).success
    assert call.times == [60.0 * n for n in range(13)]


async def test_a_late_refusal_waits_as_long_as_its_own_provider_said():
    early = Script(RateLimited(wait=1.0), delay=0.5)
    late = Script(RateLimited(wait=7.0), delay=5.0)

    await processor(max_workers=2).process([item("a", early), item("b", late)])

    assert early.times == [0.0, 1.5]
    assert late.times == [0.0, 12.0]


async def test_a_success_from_before_a_refusal_says_nothing_about_the_time_after_it():
    strategy = Ramp(cooldown=1.0)
    limited = Script(RateLimited(), RateLimited(), delay=0.1)
    success = Script("ok", delay=0.5)  # let in before the refusal, done after it

    await processor(rate_limit_strategy=strategy, max_workers=2).process(
        [item("a", limited), item("b", success)]
    )

    assert strategy.consecutive == [1, 2]


async def test_each_episode_has_a_slow_start_of_its_own():
    strategy = Ramp(cooldown=1.0, ramp_items=2, ramp_delay=1.0)
    calls = [Script(RateLimited()), *[Script() for _ in range(4)], Script(RateLimited())]

    await processor(rate_limit_strategy=strategy, max_workers=1).process(
        [item(str(n), call) for n, call in enumerate(calls)]
    )

    assert strategy.ramp_counts == [0, 1, 2, 0]


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_timeout_and_the_end_of_the_run_in_one_step_are_the_end_of_the_run(is_first):
    call = Script(1000.0)
    loop = asyncio.get_running_loop()
    built = processor(config=ProcessorConfig(timeout_per_item=10.0))
    running = asyncio.create_task(built.process([item("a", call)]))
    if is_first:
        loop.call_at(10.0, lambda: built.stop(drain=False))
    await asyncio.sleep(1)
    if not is_first:
        loop.call_at(10.0, lambda: built.stop(drain=False))

    [result] = (await running).results

    assert result.error_code == "cancelled"
    assert (loop.time(), call.times) == (10.0, [0.0])


async def test_a_longer_retry_after_of_the_same_episode_extends_the_cooldown():
    calls = [Script(RateLimited(wait=w), delay=1.0) for w in (3.0, 5.0, 4.0)]

    await processor().process([item(str(n), call) for n, call in enumerate(calls)])

    assert [call.times[1] for call in calls] == [6.0, 6.0, 6.0]


async def test_consecutive_refusals_lengthen_the_cooldown_and_a_success_resets_it():
    strategy = Ramp()
    calls = [Script(RateLimited(), RateLimited()), Script(RateLimited())]

    for n, call in enumerate(calls):
        await processor(rate_limit_strategy=strategy, max_workers=1).process([item(str(n), call)])
    both = [Script(RateLimited(), RateLimited()), Script("ok"), Script(RateLimited())]
    await processor(rate_limit_strategy=strategy, max_workers=1).process(
        [item(str(n), call) for n, call in enumerate(both)]
    )

    assert strategy.consecutive == [1, 2, 1, 1, 2, 1]


async def test_all_workers_limited_at_once_make_one_episode():
    strategy = Ramp()
    calls = [Script(RateLimited(), delay=1.0) for _ in range(50)]

    result = await processor(max_workers=50, rate_limit_strategy=strategy).process(
        [item(str(n), call) for n, call in enumerate(calls)]
    )

    assert result.succeeded == 50
    assert strategy.consecutive == [1]
    assert {call.times[1] for call in calls} == {11.0}


async def test_a_refusal_from_before_the_cooldown_starts_no_second_one():
    strategy = Ramp(cooldown=1.0)

    async def late(attempt, timeout):
        if asyncio.get_running_loop().time() == 0:
            await asyncio.sleep(5)
            raise RateLimited
        return "ok", None

    result = await processor(rate_limit_strategy=strategy).process(
        [
            item("a", Script(RateLimited())),
            item("b", late),
        ]
    )

    assert result.succeeded == 2
    assert strategy.consecutive == [1]


async def test_nobody_starts_during_a_cooldown():
    refused, others = Script(RateLimited()), [Script(0.5) for _ in range(20)]

    await processor(max_workers=4).process(
        [item(str(n), call) for n, call in enumerate([refused, *others])]
    )

    starts = [time for call in others for time in call.times]
    assert not [time for time in starts if 0.0 < time < 10.0]


async def test_slow_start_releases_one_call_at_a_time_over_the_whole_pool():
    strategy = Ramp(cooldown=10.0, ramp_items=5, ramp_delay=2.0)
    calls = [Script(RateLimited(), delay=1.0) for _ in range(8)]

    await processor(max_workers=8, rate_limit_strategy=strategy).process(
        [item(str(n), call) for n, call in enumerate(calls)]
    )

    assert sorted(call.times[1] for call in calls) == [11, 13, 15, 17, 19, 21, 21, 21]
    assert strategy.ramp_counts == [0, 1, 2, 3, 4, 5]


async def test_a_lane_that_is_limited_for_ever_still_ends():
    result = await run_one(Script(*[RateLimited()] * 99), config=config(max_rate_limits=4))

    assert result.error.startswith("RateLimitedTooOftenError: Rate limited 5 times")
    assert result.error_code == "rate_limited"


class BrokenStrategy(Ramp):
    async def on_rate_limit(self, worker_id, consecutive_count):
        raise RuntimeError("broken")

    def should_apply_slow_start(self, items_since_resume):
        raise RuntimeError("broken too")


class HangingStrategy(Ramp):
    async def on_rate_limit(self, worker_id, consecutive_count):
        await asyncio.sleep(1e9)


@pytest.mark.parametrize(
    ("strategy", "resumes"), [(BrokenStrategy(), 60.0), (HangingStrategy(), 60.0)]
)
async def test_a_broken_strategy_does_not_stop_the_run(strategy, resumes):
    call = Script(RateLimited())

    result = await run_one(call, rate_limit_strategy=strategy)

    assert result.success
    assert call.times == [0.0, resumes]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [0.0, 100.0, 250.0]),
        ({"cooldown_seconds": 10.0}, [0.0, 10.0, 25.0]),
        ({"backoff_multiplier": 3.0}, [0.0, 100.0, 400.0]),
    ],
)
async def test_rate_limit_settings_reach_the_default_strategy(changed, expected):
    from fakes import Classifier

    limits = RateLimitConfig(**{"cooldown_seconds": 100.0, **changed})
    call = Script(RateLimited(), RateLimited())

    await ParallelBatchProcessor(
        config=ProcessorConfig(rate_limit=limits), error_classifier=Classifier()
    ).process([item("a", call)])

    assert call.times == expected


async def test_slow_start_settings_reach_the_default_strategy():
    from fakes import Classifier

    limits = RateLimitConfig(
        cooldown_seconds=10.0,
        slow_start_items=2,
        slow_start_initial_delay=4.0,
        slow_start_final_delay=2.0,
    )
    calls = [Script(RateLimited(), delay=1.0) for _ in range(4)]

    await ParallelBatchProcessor(
        config=ProcessorConfig(rate_limit=limits), error_classifier=Classifier()
    ).process([item(str(n), call) for n, call in enumerate(calls)])

    assert sorted(call.times[1] for call in calls) == [11.0, 15.0, 18.0, 18.0]
