"""Whatever the user's code does, each item keeps its one result."""

from __future__ import annotations

import asyncio
import gc
import weakref
from decimal import Decimal

import pytest

from batch_llm import (
    BaseMiddleware,
    BaseObserver,
    ErrorInfo,
    LLMWorkItem,
    ProcessorConfig,
    RetryConfig,
    SourceError,
    WorkItemResult,
)
from fakes import (
    USAGE,
    PermanentError,
    Ramp,
    RateLimited,
    Recorder,
    Script,
    item,
    processor,
    run_one,
)


def items(count):
    return [item(str(n), Script(0.1)) for n in range(count)]


async def await_a_cancelled_task():
    task = asyncio.create_task(asyncio.sleep(9))
    task.cancel()
    await task


class Cancelling(BaseMiddleware):
    """Awaits a cancelled task in one of its hooks, for the items named."""

    def __init__(self, hook, ids):
        self.hook, self.ids = hook, ids

    async def _cancel(self, hook, item_id):
        if hook == self.hook and item_id in self.ids:
            await await_a_cancelled_task()

    async def before_process(self, work_item, /):
        await self._cancel("before", work_item.item_id)
        return work_item

    async def after_process(self, result, /):
        await self._cancel("after", result.item_id)
        return result

    async def on_error(self, work_item, error, /):
        await self._cancel("error", work_item.item_id)


@pytest.mark.parametrize("hook", ["before", "after", "error"])
@pytest.mark.parametrize("ids", ["3", "0123456789"])
async def test_a_hook_that_cancels_itself_is_passed_over(hook, ids):
    work = items(9)
    if hook == "error":
        work = [item(str(n), Script(PermanentError())) for n in range(9)]

    result = await processor(max_workers=3, middlewares=[Cancelling(hook, ids)]).process(work)

    assert result.total_items == 9
    assert result.succeeded == (0 if hook == "error" else 9)


async def test_a_call_that_cancels_its_own_task_costs_only_its_own_item():
    async def call(attempt, timeout):
        asyncio.current_task().cancel()
        await asyncio.sleep(1)

    result = await processor(max_workers=2).process([item("x", call), *items(8)])

    assert (result.succeeded, result.failed) == (8, 1)


async def test_a_hook_that_cancels_its_own_task_is_passed_over():
    class Odd(BaseMiddleware):
        async def after_process(self, result, /):
            asyncio.current_task().cancel()
            await asyncio.sleep(1)

    assert (await processor(max_workers=2, middlewares=[Odd()]).process(items(8))).succeeded == 8


async def test_a_post_processor_that_cancels_itself_is_passed_over():
    async def post_process(result):
        if result.item_id == "3":
            await await_a_cancelled_task()

    built = processor(max_workers=3, post_processor=post_process)
    result = await built.process(items(9))

    assert result.total_items == built.statistics().processed == 9


async def test_an_observer_that_cancels_itself_hears_the_rest():
    class Odd(Recorder):
        async def on_event(self, event, data, /):
            await super().on_event(event, data)
            if event.value == "item_started":
                await await_a_cancelled_task()

    odd = Odd()
    await processor(max_workers=3, observers=[odd]).process(items(9))

    assert odd.names().count("item_completed") == 9
    assert odd.names()[-1] == "batch_completed"


async def test_a_before_hook_that_returns_no_item_is_passed_over():
    class Odd(BaseMiddleware):
        async def before_process(self, work_item, /):
            return "no"

    assert (await processor(middlewares=[Odd()]).process(items(3))).succeeded == 3


class Renaming(BaseMiddleware):
    """Changes the id of whatever it gets hold of, in place."""

    async def before_process(self, work_item, /):
        work_item.item_id = "x"
        return work_item

    async def after_process(self, result, /):
        result.item_id = "y"
        return result

    async def on_error(self, work_item, error, /):
        work_item.item_id = "z"


async def test_no_hook_can_change_whose_result_it_is():
    def post_process(result):
        result.item_id = "p"

    built = processor(middlewares=[Renaming()], post_processor=post_process)
    result = await built.process([*items(3), item("bad", Script(PermanentError()))])

    assert sorted(one.item_id for one in result.results) == ["0", "1", "2", "bad"]


@pytest.mark.parametrize("usage", [{"input_tokens": None}, {"input_tokens": "7"}, None])
async def test_odd_usage_left_by_a_hook_spoils_no_total(usage):
    class Odd(BaseMiddleware):
        async def after_process(self, result, /):
            result.token_usage = usage
            return result

    recorder = Recorder()
    result = await processor(middlewares=[Odd()], observers=[recorder]).process(items(3))

    assert (result.succeeded, result.total_input_tokens) == (3, 0)


@pytest.mark.parametrize(
    "verdict",
    [
        None,
        "rate_limit",
        ErrorInfo(True, False, False, "unknown", "3"),
        ErrorInfo(True, False, False, "unknown", float("inf")),
        ErrorInfo(True, True, False, "rate_limit", float("nan")),
        ErrorInfo(True, True, False, "rate_limit", -1),
        ErrorInfo(True, True, False, "rate_limit", Decimal("1.5")),
        ErrorInfo(True, False, False, ["x"]),
    ],
)
async def test_a_verdict_that_is_none_is_an_unknown_error(verdict):
    class Odd:
        def classify(self, exception, /):
            return verdict

    assert (await run_one(Script(RuntimeError("x")), error_classifier=Odd())).success


class Odd(Ramp):
    """A strategy whose answers are what it is told."""

    def __init__(self, cooldown, step=(False, 0.0)):
        super().__init__()
        self.answer, self.step = cooldown, step

    async def on_rate_limit(self, worker_id, consecutive_count):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def should_apply_slow_start(self, items_since_resume):
        return self.step


@pytest.mark.parametrize(
    "strategy",
    [
        Odd(asyncio.CancelledError()),
        Odd(GeneratorExit()),
        Odd(RuntimeError("no")),
        Odd(float("inf")),
        Odd(float("nan")),
        Odd(None),
        Odd("soon"),
        Odd(-5.0),
        Odd(1.0, (True, float("nan"))),
        Odd(1.0, (True, float("inf"))),
        Odd(1.0, (True, None)),
        Odd(1.0, None),
    ],
)
async def test_no_strategy_can_hang_or_kill_a_run(strategy):
    work = [item("r", Script(RateLimited())), *items(8)]

    async with asyncio.timeout(1000):
        result = await processor(max_workers=3, rate_limit_strategy=strategy).process(work)

    assert result.succeeded == 9


class HostileError(Exception):
    @property
    def usage(self):
        raise ValueError("no usage for you")

    @property
    def result(self):
        raise ValueError("no result either")


async def test_an_error_that_fails_when_it_is_looked_at_is_a_failed_item():
    result = await processor().process([item("x", Script(*[HostileError("x")] * 3)), *items(3)])

    assert (result.succeeded, result.failed) == (3, 1)


class Answer:
    def __init__(self, output, usage):
        self._output, self._usage = output, usage

    @property
    def output(self):
        return _raised(self._output)

    @property
    def usage(self):
        return _raised(self._usage)


def _raised(value):
    if isinstance(value, Exception):
        raise value
    return value


class Agent:
    def __init__(self, output, usage):
        self.answer = Answer(output, usage)
        self.calls = 0

    async def run(self, prompt, /):
        self.calls += 1
        return self.answer


async def test_an_answer_whose_usage_cannot_be_read_is_still_an_answer():
    agent = Agent("ok", ValueError("broken"))

    result = await processor().process([LLMWorkItem("a", agent=agent)])

    assert (result.succeeded, agent.calls) == (1, 1)


async def test_an_answer_whose_output_cannot_be_read_was_paid_for_all_the_same():
    agent = Agent(ValueError("broken"), USAGE)

    result = await processor().process([LLMWorkItem("a", agent=agent)])

    assert result.failed == 1
    assert result.total_input_tokens == agent.calls * USAGE["input_tokens"] > 0


@pytest.mark.parametrize("answer", ["ab", {"x": 1, "y": 2}, [1, None]])
async def test_a_direct_call_returns_a_pair_and_nothing_that_looks_like_one(answer):
    async def call(attempt, timeout):
        return answer

    assert (await run_one(call)).error.startswith("TypeError: direct_call must return the tuple")


@pytest.mark.parametrize("odd", [None, "text", object()])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_source_of_something_else_ends_the_run_with_the_results_so_far(odd, is_async):
    async def later():
        for one in [*items(5), odd, *items(3)]:
            yield one

    with pytest.raises(SourceError, match="which is no LLMWorkItem") as caught:
        await processor(max_workers=2).process(later() if is_async else [*items(5), odd])

    assert caught.value.partial.succeeded == 5


async def test_a_source_that_cancels_itself_is_an_error_of_the_source():
    async def source():
        for one in items(5):
            yield one
        raise asyncio.CancelledError

    with pytest.raises(SourceError, match="after 5 items: it was cancelled") as caught:
        await processor(max_workers=2).process(source())

    assert caught.value.partial.succeeded == 5


async def test_what_is_added_must_be_an_item():
    with pytest.raises(TypeError, match="add_work takes an LLMWorkItem, got str"):
        await processor().add_work("prompt")


class Adder(BaseMiddleware):
    """Adds items from inside of the run, more than the queue has room for."""

    def __init__(self):
        self.processor = None

    async def before_process(self, work_item, /):
        if work_item.item_id == "0":
            async with asyncio.TaskGroup() as tasks:
                for one in items(6)[1:]:
                    tasks.create_task(self.processor.add_work(one))
        return work_item


async def test_adding_from_inside_of_a_full_run_does_not_wait_for_itself():
    adder = Adder()
    config = ProcessorConfig(max_workers=1, max_queue_size=1)
    adder.processor = built = processor(middlewares=[adder], config=config)
    await built.add_work(items(1)[0])

    result = await built.process_all()

    assert result.succeeded == 6


class Context:
    """Something that a weak reference can point at."""


@pytest.mark.parametrize("failures", [0, 1, 3])
async def test_a_finished_item_leaves_nothing_for_the_garbage_collector(failures):
    async def call(attempt, timeout):
        if attempt <= failures:
            raise RuntimeError("no")
        return "ok", None

    context = Context()
    alive = weakref.ref(context)
    gc.collect()
    gc.disable()
    try:
        built = processor()
        built.config.retry = RetryConfig(jitter=False, initial_wait=0.0, max_wait=0.0)
        async for _ in built.stream([item("a", call, context=context)]):
            pass
        del _, context

        assert alive() is None
    finally:
        gc.enable()


async def test_a_skipped_item_keeps_its_id_and_context():
    class Skip(BaseMiddleware):
        async def before_process(self, work_item, /):
            return None

    result = await processor(middlewares=[Skip()]).process([item("a", Script(), context=7)])

    [found] = result.results
    assert isinstance(found, WorkItemResult)
    assert (found.item_id, found.context, found.error) == ("a", 7, "Skipped by middleware")


async def test_an_observer_may_raise_anything():
    class Odd(BaseObserver):
        async def on_event(self, event, data, /):
            raise RuntimeError("no")

    assert (await processor(observers=[Odd()]).process(items(3))).succeeded == 3
