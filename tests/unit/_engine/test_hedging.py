"""Two copies of a slow call, on virtual time."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import gc
import weakref

import pytest

from batch_llm import (
    ConfigError,
    DefaultErrorClassifier,
    ErrorInfo,
    Limits,
    LLMWorkItem,
    ProcessorConfig,
    Request,
    RetryConfig,
    StatusError,
)
from batch_llm._engine import hedging
from batch_llm._engine.admission_gate import AdmissionGate
from batch_llm._engine.calls import Ended
from batch_llm._engine.gate import Held
from batch_llm.providers.base import SPENT, LaneFacts, Outcome
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.hedging import LEAST_ANSWERS
from batch_llm.strategies.knee import Knee
from fakes import (
    USAGE,
    Classifier,
    Models,
    PermanentError,
    Ramp,
    RateLimited,
    Recorder,
    asked,
    item,
    processor,
)

HANG = 1e5


def now():
    return asyncio.get_running_loop().time()


class Calls:
    """A direct call that does, for its n-th call, what the n-th step says; then it hangs.

    A step is an exception to raise, or seconds to take; a pair is both, the seconds first.
    """

    def __init__(self, *steps, usage=USAGE):
        self.steps, self.usage = list(steps), usage
        self.times, self.ended, self.attempts = [], [], []
        self.in_flight = self.peak = 0

    async def __call__(self, attempt, timeout):
        self.times.append(now())
        self.attempts.append(attempt)
        step = self.steps.pop(0) if self.steps else HANG
        seconds, error = step if isinstance(step, tuple) else (step, None)
        if isinstance(step, Exception):
            seconds, error = 0.0, step
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.in_flight -= 1
            self.ended.append(now())
        if error is not None:
            raise error
        return f"call {len(self.times)}", self.usage


def build(*, hedge=True, retry=None, timeout=100.0, **arguments):
    settings = arguments.pop("settings", {})
    return processor(
        config=ProcessorConfig(
            hedge=hedge,
            timeout_per_item=timeout,
            retry=retry or RetryConfig(jitter=False),
            progress_interval=0,
            **({"concurrency": "auto"} | settings),
        ),
        rate_limit_strategy=arguments.pop("rate_limit_strategy", None),
        **arguments,
    )


async def second(attempt, timeout):
    await asyncio.sleep(1.0)
    return "quick", USAGE


def quick(count):
    """Items that teach what is usual: one second."""
    return [item(f"quick {n}", second, can_hedge=True) for n in range(count)]


async def run(calls, *, count=30, **arguments):
    """Process the item ``slow`` before many quick ones; return its result and the processor."""
    can_hedge = arguments.pop("can_hedge", True)
    built = build(**arguments)
    result = await built.process([item("slow", calls, can_hedge=can_hedge), *quick(count)])
    ids = [one.item_id for one in result.results]
    assert sorted(ids) == sorted({"slow", *(f"quick {n}" for n in range(count))})
    return next(one for one in result.results if one.item_id == "slow"), built


async def test_without_it_a_hung_call_is_waited_for():
    result, built = await run(Calls(HANG, 1.0), hedge=False)

    assert now() == 102.0
    assert (result.attempts, built.statistics().hedged) == (2, 0)


async def test_a_hung_call_gets_a_second_copy_whose_answer_is_taken():
    calls = Calls(HANG, 1.0)

    result, built = await run(calls)

    numbers = built.statistics()
    assert now() < 10
    assert result.success
    assert calls.attempts == [1, 1]  # one attempt, called twice
    assert (result.attempts, numbers.retries_by_code) == (2, {})
    assert (numbers.hedged, numbers.hedges_won) == (1, 1)


async def test_the_loser_is_cancelled_when_the_winner_is_there_and_its_place_given_back():
    calls = Calls(HANG, 1.0)

    _, built = await run(calls)

    assert calls.in_flight == 0
    assert calls.ended[1] == calls.ended[0] == calls.times[1] + 1.0
    admission = built._lanes.by_name[""].places[0].admission
    assert (admission.in_flight, built.statistics().in_flight) == (0, 0)
    assert built._lanes.in_flight == 0


async def test_the_loser_is_charged_as_sent():
    """A provider counts a call that was hung up on: its tokens do not come back."""
    _, built = await run(Calls(HANG, 1.0), settings={"limits": Limits(tokens_per_minute=1e9)})

    budget = built._lanes.by_name[""].places[0].admission.budgets["tokens"]
    answered = 31 * USAGE["total_tokens"]
    assert budget.spent > answered + 100  # what was expected of the lost one, by default 400 tokens


async def test_the_loser_teaches_the_search_for_the_knee_nothing(monkeypatch):
    """It brought nothing, but because nobody wanted it any more."""
    ended, note_end = [], Knee.note_end
    monkeypatch.setattr(Knee, "note_end", lambda *told: ended.append(told) or note_end(*told))

    _, built = await run(Calls(HANG, 1.0), settings={"concurrency": "knee"})

    assert built.statistics().hedges_won == 1
    assert len(ended) == 31
    place = built._lanes.by_name[""].places[0]
    assert place.admission.max_in_flight == place.knee.concurrency


async def test_a_first_copy_that_is_faster_after_all_wins():
    calls = Calls(4.0, HANG)

    result, built = await run(calls)

    numbers = built.statistics()
    assert (result.output, now()) == ("call 2", 4.0)
    assert (numbers.hedged, numbers.hedges_won) == (1, 0)
    assert calls.ended == [4.0, 4.0]


async def test_a_copy_that_fails_leaves_the_first_one_alone():
    result, built = await run(Calls(10.0, (0.5, PermanentError("no"))))

    assert (result.success, now()) == (True, 10.0)
    assert (result.attempts, built.statistics().hedges_won) == (2, 0)


async def test_when_the_first_copy_fails_the_outcome_of_the_other_counts():
    calls = Calls((4.0, PermanentError("no")), 5.0)

    result, built = await run(calls)

    assert result.success
    assert calls.ended[1] == calls.times[1] + 5.0
    assert built.statistics().hedges_won == 1


async def test_a_first_copy_that_runs_out_of_time_leaves_the_other_its_own():
    calls = Calls(HANG, 9.0)

    result, _ = await run(calls, timeout=10.0)

    assert result.success
    assert calls.ended[0] == 10.0


async def test_when_both_fail_one_attempt_is_used_up():
    calls = Calls((4.0, RuntimeError("first")), (4.0, RuntimeError("second")), 1.0)

    result, built = await run(calls, retry=RetryConfig(jitter=False, max_attempts=2))

    assert result.success
    assert calls.attempts == [1, 1, 2]
    assert sum(built.statistics().retries_by_code.values()) == 1


@pytest.mark.parametrize("order", [1, -1])
async def test_when_both_fail_the_failure_that_says_more_counts(order):
    errors = [PermanentError("because"), RuntimeError("whatever")][::order]

    result, _ = await run(Calls((4.0, errors[0]), (4.0, errors[1])))

    assert result.error == "PermanentError: because"
    assert (result.error_code, result.attempts) == ("bad_request", 2)


async def test_a_copy_that_is_refused_does_not_save_a_failed_attempt():
    calls = Calls((4.0, TimeoutError()), RateLimited(1.0), HANG)

    result, _ = await run(calls, retry=RetryConfig(max_attempts=1))

    assert result.error.startswith("TimeoutError")


def test_a_failure_for_which_another_place_takes_the_call_says_nothing_of_the_item():
    final = ErrorInfo(False, False, False, "auth")
    wrong_key = Ended(Outcome(), 1.0, None, ErrorCode.AUTH, final, Held.ELSEWHERE)
    timeout = Ended(
        Outcome(), 9.0, None, ErrorCode.TIMEOUT, ErrorInfo(True, False, True, "timeout")
    )

    assert hedging._says_more(timeout, wrong_key)
    assert not hedging._says_more(wrong_key, timeout)


async def test_a_retry_is_hedged_too():
    calls = Calls(RuntimeError(), HANG, 1.0)

    result, built = await run(calls)

    assert result.success
    assert calls.attempts == [1, 2, 2]
    assert (built.statistics().hedged, now() < 10) == (1, True)


async def test_callables_are_hedged_only_when_they_say_so():
    _, built = await run(Calls(HANG, 1.0), can_hedge=None)

    assert built.statistics().hedged == 0


class Provider:
    """Sends requests; the first one hangs once."""

    def __init__(self):
        self.calls = 0

    def lane(self, _):
        return ""

    def facts(self, _):
        return LaneFacts()

    async def call(self, item, attempt):
        self.calls += 1
        await asyncio.sleep(HANG if self.calls == 1 else 1.0)
        return Outcome("ok", USAGE)


@pytest.mark.parametrize(("can_hedge", "hedged"), [(None, 1), (True, 1), (False, 0)])
async def test_requests_are_hedged_unless_they_say_otherwise(can_hedge, hedged):
    provider = Provider()
    built = build(requests=provider)

    await built.process(
        LLMWorkItem(str(n), request=Request.of("m", "?"), can_hedge=can_hedge) for n in range(40)
    )

    assert built.statistics().hedged == hedged


@pytest.mark.parametrize(("room_elsewhere", "goes_elsewhere"), [(3, True), (1, True), (0, False)])
async def test_a_second_copy_goes_to_another_place_where_one_has_room(
    room_elsewhere, goes_elsewhere
):
    built = Models(places=2).processor(limits=Limits(requests_per_minute=60, burst_seconds=12.0))
    await built.process([asked("m", "a")])
    gate = AdmissionGate(built._lanes, lambda *_: None, lambda: None)
    first = gate.enter_now(asked("m", "slow"))
    (other,) = [place for place in first.lane.places if place is not first.place]
    other.admission.budgets["requests"].level = room_elsewhere + 0.5

    second = gate.enter_now(asked("m", "slow"), apart_from=first)

    assert (second.place is other) is goes_elsewhere


class Agent:
    """Hangs on its first call."""

    calls = 0

    async def run(self, prompt):
        Agent.calls += 1
        await asyncio.sleep(HANG if Agent.calls == 1 else 1.0)
        return self

    output = "ok"
    usage = USAGE


async def test_agents_are_hedged_when_they_say_so():
    Agent.calls, made = 0, []

    def factory(attempt):
        made.append(attempt)
        return Agent()

    built = build()
    slow = LLMWorkItem("slow", agent_factory=factory, can_hedge=True)
    result = await built.process([slow, *quick(30)])

    assert (result.succeeded, built.statistics().hedges_won) == (31, 1)
    assert made == [1]  # called once per attempt, however many copies there are


async def test_no_copy_is_sent_while_there_is_anything_else_to_send():
    calls, sent_at = Calls(HANG, 1.0), []

    async def source():
        yield item("slow", calls, can_hedge=True)
        for one in quick(30):
            yield one
        await asyncio.sleep(50)
        sent_at.append(now())
        yield item("last", second)

    await build().process(source())

    assert sent_at[0] >= 50.0
    assert sent_at[0] < calls.times[1] < sent_at[0] + 5


async def test_no_copy_is_sent_while_anything_waits_to_be_let_in():
    calls = Calls(HANG, 1.0)
    built = build(settings={"concurrency": 4})

    await built.process([item("slow", calls, can_hedge=True), *quick(60)])

    assert calls.times[1] >= 19.0  # sixty of a second each, three at a time


async def test_no_copy_is_sent_while_calls_wait_in_another_lane():
    class TwoLanes(Provider):
        again = None

        def lane(self, item):
            return item.request.model

        async def call(self, item, attempt):
            if item.item_id == "a 0" and self.calls:
                self.again = now()
            return await super().call(item, attempt)

    provider = TwoLanes()
    built = build(
        requests=provider,
        settings={
            "concurrency": 200,
            "limits": Limits(requests_per_minute=60, burst_seconds=40),
        },
    )
    names = [*(f"a {n}" for n in range(25)), *(f"b {n}" for n in range(60))]
    await built.process(LLMWorkItem(n, request=Request.of(n[0], "?")) for n in names)

    assert 20 < provider.again < 40  # sixty calls, of which 38 can go at once


async def test_a_queue_that_is_empty_for_now_drains():
    calls = Calls(HANG, 1.0)
    built = build()
    for one in [item("slow", calls, can_hedge=True), *quick(30)]:
        await built.add_work(one)

    result = await built.process_all()

    assert (result.succeeded, built.statistics().hedges_won) == (31, 1)


async def test_a_run_that_is_told_to_drain_hedges():
    calls = Calls(HANG, 1.0)
    built = build()

    async def endless():
        yield item("slow", calls, can_hedge=True)
        for one in quick(30):
            yield one
        await asyncio.sleep(HANG)

    running = asyncio.create_task(built.process(endless()))
    await asyncio.sleep(20)
    assert built.statistics().hedged == 0
    built.stop()
    await running

    assert built.statistics().hedges_won == 1


async def test_a_run_that_is_to_make_no_more_calls_sends_no_copies():
    calls = Calls(30.0)
    built = build()
    slow = [item("slow", calls, can_hedge=True), *quick(30)]
    running = asyncio.create_task(built.process(slow))
    await asyncio.sleep(1.5)
    built.stop(retry=False)
    await running

    assert (len(calls.times), now()) == (1, 30.0)


async def test_the_end_of_a_source_that_is_seen_late_is_seen():
    """The last worker is held up by a hook, and asks for more long after the last call ended."""
    calls = Calls(HANG, 1.0)

    async def linger(result):
        await asyncio.sleep(20 if result.item_id == "quick 29" else 0)

    built = build(post_processor=linger, settings={"concurrency": 2})
    await built.process([item("slow", calls, can_hedge=True), *quick(30)])

    assert 49.0 < calls.times[1] < 53.0


async def test_no_copy_is_sent_without_room():
    calls = Calls(HANG, 1.0)
    one_a_minute = Limits(requests_per_minute=60, burst_seconds=40)

    await run(calls, count=31, settings={"limits": one_a_minute})

    assert calls.times[1] <= 10
    assert calls.peak == 2


async def test_copies_never_exceed_the_number_in_flight():
    calls = Calls(*[HANG] * 3)  # one object for all three
    built = build(settings={"concurrency": 3}, retry=RetryConfig(max_attempts=1))
    slow = [item(f"slow {n}", calls, can_hedge=True) for n in range(3)]

    await built.process([*quick(31), *slow])  # else all three run out of time at one moment

    assert calls.peak == 3
    assert calls.times[2] < 100 <= calls.times[3]  # the first place that came free was used


class OwnWords(Classifier):
    """Calls a refusal by a name of its own."""

    def classify(self, exception, /):
        verdict = super().classify(exception)
        if verdict.is_rate_limit:
            return dataclasses.replace(verdict, error_category="slow_down")
        return verdict


@pytest.mark.parametrize("classifier", [Classifier(), OwnWords()])
async def test_after_a_refusal_no_copy_is_sent_for_half_a_minute(classifier):
    calls = Calls(HANG, 1.0)
    built = build(error_classifier=classifier)

    async def refused(attempt, timeout, seen=[]):  # noqa: B006
        await asyncio.sleep(1.0)
        if not seen:
            seen.append(now())
            raise RateLimited(1.0)
        return "ok", USAGE

    await built.process([item("slow", calls, can_hedge=True), item("r", refused), *quick(30)])

    assert 31.0 <= calls.times[1] < 34.0


async def test_the_budget_bounds_the_copies_and_the_oldest_go_first():
    calls = [Calls(HANG) for _ in range(9)]
    slow = [item(f"slow {n}", one, can_hedge=True) for n, one in enumerate(calls)]
    built = build(retry=RetryConfig(max_attempts=1))

    await built.process([*slow, *quick(191)])

    # 2,865 tokens were used, of which copies may use 57. Each is expected to use 10, and twice 5.
    assert built.statistics().hedged == 2
    assert [len(one.times) for one in calls] == [2, 2, 1, 1, 1, 1, 1, 1, 1]


async def test_what_copies_have_used_is_what_counts_of_the_budget():
    """A copy is taken for twice as long as usual; those that were not leave room for others."""
    slow = [item(f"slow {n}", Calls(HANG, 1.0), can_hedge=True) for n in range(9)]
    built = build()

    await built.process([*slow, *quick(191)])

    assert built.statistics().hedged == 3  # of 15 tokens each; three of 20 were too many


async def test_the_last_copies_are_kept_for_calls_that_hang():
    """Five answers of more than three times the usual length would use up all copies."""

    async def untold(attempt, timeout):
        await asyncio.sleep(1.0)
        return "ok", None

    calls = [Calls(3.4, HANG, usage=None) for _ in range(5)]
    long = [item(f"long {n}", one, can_hedge=True) for n, one in enumerate(calls)]
    hung = Calls(HANG, 1.0, usage=None)
    built = build(settings={"limits": Limits(requests_per_minute=60_000)})

    await built.process(
        [*long, *(item(str(n), untold) for n in range(95)), item("hung", hung, can_hedge=True)]
    )

    assert hung.times[1] < 10


async def test_where_nobody_tells_tokens_the_items_are_the_budget():
    calls = [Calls(HANG) for _ in range(9)]
    slow = [item(f"slow {n}", one, can_hedge=True) for n, one in enumerate(calls)]
    built = build(retry=RetryConfig(max_attempts=1))

    async def untold(attempt, timeout):
        await asyncio.sleep(1.0)
        return "ok", None

    await built.process([*slow, *(item(str(n), untold) for n in range(151))])

    assert built.statistics().hedged == 8


async def test_lost_tokens_are_counted_as_known_and_else_as_expected():
    _, built = await run(Calls(HANG, 1.0))

    assert built.statistics().hedge_tokens_lost == USAGE["total_tokens"]


async def test_what_the_loser_is_known_to_have_used_is_the_items():
    class Knows(Provider):
        async def call(self, item, attempt):
            attempt.memory[SPENT] = {"input_tokens": 7, "output_tokens": self.calls}
            return await super().call(item, attempt)

    built = build(requests=Knows())
    result = await built.process(
        LLMWorkItem(str(n), request=Request.of("m", "?")) for n in range(40)
    )

    (slow,) = [one for one in result.results if one.attempts == 2]
    assert slow.token_usage["input_tokens"] == 7 + USAGE["input_tokens"]
    assert built.statistics().input_tokens == 7 + 40 * USAGE["input_tokens"]
    assert built.statistics().hedge_tokens_lost == 7


async def test_what_the_first_copy_has_used_so_far_is_not_taken_for_the_seconds():
    class Knows(Provider):
        async def call(self, item, attempt):
            if not self.calls:
                attempt.memory[SPENT] = {"input_tokens": 7, "output_tokens": 0}
            self.calls += 1
            await asyncio.sleep(10.0 if self.calls == 1 else 1.0)
            return Outcome("ok", USAGE if self.calls <= 40 else None)

    built = build(requests=Knows())
    result = await built.process(
        LLMWorkItem(str(n), request=Request.of("m", "?")) for n in range(40)
    )

    (slow,) = [one for one in result.results if one.attempts == 2]
    assert slow.token_usage["input_tokens"] == 7  # the copy, which won, told nothing


async def test_a_call_that_turns_out_to_be_slow_is_not_looked_at_too_late():
    calls = Calls(HANG, 1.0)
    built = build()

    async def last(attempt, timeout):
        await asyncio.sleep(20)
        layer._slowness.slow_factor = lambda _: 2.0
        return "ok", USAGE

    one = [item("slow", calls, can_hedge=True), item("last", last), *quick(30)]
    running = asyncio.create_task(built.process(one))
    await asyncio.sleep(0)
    layer = built._run._hedging
    slowness = layer._slowness
    slowness.slow_factor = lambda _: 90.0 if slowness.answers >= LEAST_ANSWERS else None
    await running

    assert 20.0 < calls.times[1] < 20.2


class Context:
    """Something that a weak reference can point at."""


async def test_two_failed_copies_leave_nothing_for_the_garbage_collector():
    context = Context()
    alive = weakref.ref(context)

    async def call(attempt, timeout):
        await asyncio.sleep(4.0)
        raise RuntimeError("no")

    slow = item("slow", call, can_hedge=True, context=context)
    gc.collect()
    gc.disable()
    try:
        built = build(retry=RetryConfig(max_attempts=1))
        async for _ in built.stream(iter([slow, *quick(30)])):
            pass
        assert built.statistics().hedged == 1
        del _, slow, context

        assert alive() is None
    finally:
        gc.enable()


async def test_hedging_works_under_a_cooldown_too():
    calls = Calls(HANG, 1.0)

    result, built = await run(
        calls, rate_limit_strategy=Ramp(), settings={"concurrency": None, "max_workers": 10}
    )

    assert result.success
    assert built.statistics().hedges_won == 1
    assert built._run._gate.in_flight == 0


async def test_a_call_that_ignores_its_cancellation_and_answers_is_counted_but_not_taken():
    async def stubborn(attempt, timeout, calls=[]):  # noqa: B006
        calls.append(1)
        try:
            await asyncio.sleep(HANG if len(calls) == 1 else 1.0)
        except asyncio.CancelledError:
            return "late", USAGE
        return "second", USAGE

    result, built = await run(stubborn)

    assert result.output == "second"
    assert result.token_usage == {kind: 2 * count for kind, count in USAGE.items()}
    assert built.statistics().hedge_tokens_lost == USAGE["total_tokens"]
    assert built._lanes.in_flight == 0


async def test_a_copy_sent_in_the_step_in_which_the_answer_comes_costs_nothing():
    """Its task has not begun when it is cut: the place must come back all the same."""
    answer = asyncio.get_running_loop().create_future()
    called = []

    async def call(attempt, timeout):
        called.append(attempt)
        return await answer, USAGE

    built = build()
    running = asyncio.create_task(built.process([item("slow", call, can_hedge=True), *quick(30)]))
    await asyncio.sleep(0.1)
    layer = built._run._hedging
    layer._slowness.slow_factor = lambda _: None  # no copy is sent but ours
    await asyncio.sleep(20)
    (slow,) = layer._under_way
    lane = built._lanes.by_name[""]
    budget = lane.places[0].admission.budgets["requests"]
    lane.book()
    spent = budget.spent

    answer.set_result("ok")  # wakes the first copy …
    layer._send_copy(slow, now(), 2.0)  # … before the second begins
    lane.book()
    assert budget.spent == spent + 1
    result = await running

    assert (result.succeeded, len(called)) == (31, 1)
    assert (budget.spent, built._lanes.in_flight) == (spent, 0)
    assert (built.statistics().attempts, built.statistics().hedged) == (31, 0)
    assert (layer._hedges.sent, layer._hedges.tokens) == (0, 0.0)


@pytest.mark.parametrize("after", [2.6, 8.0])
async def test_a_run_that_is_abandoned_ends_both_copies(after):
    calls, tasks = Calls(HANG, HANG), asyncio.all_tasks()
    built = build()
    running = asyncio.create_task(built.process([item("slow", calls, can_hedge=True), *quick(30)]))
    await asyncio.sleep(after)
    assert calls.in_flight == 2
    before = now()
    built.stop(drain=False)
    result = await running

    assert now() == before
    assert calls.in_flight == built._lanes.in_flight == 0
    assert {one.error_code for one in result.results} == {None, "cancelled"}
    assert asyncio.all_tasks() == tasks


async def test_a_run_that_is_cancelled_while_a_copy_goes_on_alone_ends_it():
    calls, tasks = Calls((4.0, RuntimeError()), HANG), asyncio.all_tasks()
    built = build()
    running = asyncio.create_task(built.process([item("slow", calls, can_hedge=True), *quick(30)]))
    await asyncio.sleep(5.0)
    assert calls.in_flight == 1
    running.cancel()
    await asyncio.wait([running])
    assert now() == 5.0

    assert calls.in_flight == built._lanes.in_flight == 0
    assert asyncio.all_tasks() == tasks


async def test_a_copy_sees_the_context_of_its_item():
    name, seen = contextvars.ContextVar("name", default="nobody"), []

    async def slow(attempt, timeout):
        if not seen:
            name.set("slow")
        seen.append(name.get())
        await asyncio.sleep(HANG if len(seen) == 1 else 1.0)
        return "ok", None

    async def other(attempt, timeout):
        name.set("other")
        return await second(attempt, timeout)

    quicks = [item(str(n), other) for n in range(30)]
    await build().process([item("slow", slow, can_hedge=True), *quicks])

    assert len(seen) == 2
    assert seen[1] != "other"


async def test_observers_hear_of_one_item():
    recorder = Recorder()

    await run(Calls(HANG, 1.0), observers=[recorder])

    ids = [data["item_id"] for data in recorder.data("item_completed")]
    assert len(ids) == len(set(ids)) == 31


async def test_an_overloaded_provider_gets_no_copies():
    calls, failed = Calls(HANG, 1.0), []

    async def busy(attempt, timeout):
        await asyncio.sleep(0.9)
        if now() < 5:
            failed.append(now())
            raise StatusError(503, "busy")
        return "ok", USAGE

    built = build(error_classifier=DefaultErrorClassifier())
    others = [item(f"busy {n}", busy) for n in range(8)]
    await built.process([item("slow", calls, can_hedge=True), *others, *quick(30)])

    assert failed
    assert calls.times[1] > max(failed) + 5


@pytest.mark.parametrize("hedge", ["off", 1, [], None])
def test_an_impossible_value_is_refused(hedge):
    with pytest.raises(ConfigError, match="hedge must be True or False, got"):
        build(hedge=hedge)
