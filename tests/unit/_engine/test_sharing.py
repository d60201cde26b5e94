"""Items that ask the same: one is sent, the others get its answer, or lead when it has none."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pydantic
import pytest

from batch_llm import (
    BaseMiddleware,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RetryConfig,
)
from batch_llm._engine.progress import Progress
from batch_llm._engine.sharing import WOKEN_AT_ONCE, Sharing
from batch_llm._engine.statistics import Counts
from batch_llm.core.request import Request, Settings
from batch_llm.core.schema import OutputSchema
from batch_llm.exceptions import (
    BadOutputError,
    ContentFilteredError,
    StatusError,
    TransportError,
    TruncatedError,
)
from batch_llm.providers.base import LaneFacts, Outcome
from batch_llm.stores.memory import MemoryLedger

USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


class Provider:
    """Answers requests after a second; ``behaviour(item, n)`` may return the error of call n."""

    def __init__(self, behaviour=lambda _item, _number: None, *, seconds=1.0, text="ok"):
        self.behaviour, self.seconds, self.text = behaviour, seconds, text
        self.sent = []

    def lane(self, item, /):
        return ""

    def facts(self, item, /):
        return LaneFacts(model="x:m")

    def content(self, item, /):
        return f"{item.item_id} {item.request.messages}".encode()

    def exchange(self, item, /):
        return repr(item.request.messages).encode()

    def read_again(self, item, answer, /):
        text = answer.decode()
        if item.request.output is None:
            return Outcome(text, USAGE, answer=answer)
        try:
            return Outcome(item.request.output.parse(text), USAGE, answer=answer)
        except BadOutputError as error:
            return Outcome(error=error)

    async def call(self, item, attempt, /):
        self.sent.append(item.item_id)
        number = len(self.sent)
        await asyncio.sleep(self.seconds)
        error = self.behaviour(item, number)
        if isinstance(error, Outcome):
            return error
        if error is not None:
            raise error
        return self.read_again(item, self.text.encode())

    def processor(self, *, workers=10, attempts=1, dedupe=True, **arguments):
        return ParallelBatchProcessor(
            config=ProcessorConfig(
                max_workers=workers,
                retry=RetryConfig(max_attempts=attempts, initial_wait=1, jitter=False),
                remember_limits=False,
                progress_interval=0,
                dedupe=dedupe,
            ),
            requests=self,
            **arguments,
        )


def asks(item_id, prompt="same", *, output=None, **fields):
    settings = fields.pop("settings", None)
    request = Request.of("x:m", prompt, output=output, settings=settings)
    return LLMWorkItem(item_id, request=request, context=item_id, **fields)


def by_id(done):
    return {result.item_id: result for result in done.results}


async def test_what_asks_the_same_is_sent_once_and_booked_once():
    provider = Provider()
    processor = provider.processor()

    done = await processor.process([asks(f"q{n}") for n in range(20)])

    assert provider.sent == ["q0"]
    found = by_id(done)
    assert len(found) == 20
    assert {result.output for result in found.values()} == {"ok"}
    assert all(result.context == result.item_id for result in found.values())
    assert found["q0"].shared_with is None
    assert (found["q0"].attempts, found["q0"].token_usage) == (1, USAGE)
    assert found["q7"].shared_with == "q0"
    assert (found["q7"].attempts, sum(found["q7"].token_usage.values())) == (0, 0)
    now = processor.statistics()
    assert (now.shared, now.attempts, now.input_tokens, now.following) == (19, 1, 10, 0)
    assert done.total_input_tokens == 10


async def test_what_asks_something_else_is_sent():
    provider = Provider()

    await provider.processor().process([asks("a", "one"), asks("b", "two")])

    assert sorted(provider.sent) == ["a", "b"]


async def test_after_the_answer_the_same_is_asked_again():
    provider = Provider()

    async def slow_source():
        yield asks("a")
        await asyncio.sleep(5)
        yield asks("b")

    await provider.processor().process(slow_source())

    assert provider.sent == ["a", "b"]


async def test_followers_hold_no_place():
    provider = Provider()
    processor = provider.processor(workers=2)

    done = await processor.process([*[asks(f"same {n}") for n in range(5)], asks("other", "other")])

    # One place is the leader's, and the other one free for what comes after four followers.
    assert provider.sent == ["same 0", "other"]
    assert done.succeeded == 6
    assert processor.statistics().elapsed_seconds < 1.5


async def test_while_they_wait_they_are_counted_as_following_and_not_as_retrying():
    processor = Provider().processor()
    running = asyncio.create_task(processor.process([asks(f"q{n}") for n in range(9)]))
    await asyncio.sleep(0.5)

    now = processor.statistics()

    assert (now.following, now.retrying, now.in_flight) == (8, 0, 1)
    await running


@pytest.mark.parametrize(
    "fields",
    [
        {"settings": Settings(temperature=0.7)},
        {"settings": Settings(temperature=(0.7, 0.0))},
        {"can_share": False},
    ],
)
async def test_separate_answers_are_made_where_they_are_asked_for(fields):
    provider = Provider()

    await provider.processor().process([asks(f"q{n}", **fields) for n in range(3)])

    assert len(provider.sent) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"settings": Settings(temperature=0)},
        {"settings": Settings(temperature=(0.0, 0.5))},
        {"settings": Settings(temperature=0.7, seed=1)},
        {"settings": Settings(temperature=0.7), "can_share": True},
    ],
)
async def test_sampling_that_asks_for_the_same_answer_shares_it(fields):
    provider = Provider()

    await provider.processor().process([asks(f"q{n}", **fields) for n in range(3)])

    assert len(provider.sent) == 1


async def test_without_dedupe_each_is_sent():
    provider = Provider()

    await provider.processor(dedupe=False).process(
        [asks(f"q{n}", can_share=True) for n in range(3)]
    )

    assert len(provider.sent) == 3


@pytest.mark.parametrize("error", [ContentFilteredError(), TruncatedError("x", 5)])
async def test_a_failure_that_the_content_brought_is_shared(error):
    provider = Provider(lambda _item, _number: error)

    done = await provider.processor().process([asks(f"q{n}") for n in range(10)])

    assert provider.sent == ["q0"]
    assert done.failed == 10
    assert {result.error for result in done.results} == {f"{type(error).__name__}: {error}"}
    assert len({result.error_code for result in done.results}) == 1


async def test_a_shared_failure_has_the_tokens_of_each_item_on_an_error_of_its_own():
    seen = {}

    class Catcher(BaseMiddleware):
        async def on_error(self, work_item, error, /):
            seen[work_item.item_id] = error

    failed = Outcome(usage=USAGE, error=ContentFilteredError())
    provider = Provider(lambda _item, _number: failed)

    await provider.processor(middlewares=[Catcher()]).process([asks("a"), asks("b")])

    attached = {name: sum(e.__dict__["_failed_token_usage"].values()) for name, e in seen.items()}
    assert attached == {"a": 30, "b": 0}


@pytest.mark.parametrize("error", [TransportError("cut off"), StatusError(400, "no")])
async def test_other_failures_are_the_leaders_own(error):
    provider = Provider(lambda _item, number: error if number == 1 else None)

    done = await provider.processor().process([asks(f"q{n}") for n in range(5)])

    found = by_id(done)
    assert not found["q0"].success
    assert all(found[f"q{n}"].success for n in range(1, 5))
    # One more may lead after each failure.
    assert provider.sent == ["q0", "q1", "q2"]
    assert found["q3"].shared_with in {"q1", "q2"}


async def test_a_bad_hour_is_not_lived_through_one_by_one():
    provider = Provider(lambda _item, _number: StatusError(400, "no"))
    processor = provider.processor(workers=100)

    done = await processor.process([asks(f"q{n}") for n in range(100)])

    assert done.failed == 100
    assert len(provider.sent) == 100
    assert processor.statistics().elapsed_seconds < 10  # rounds of 1, 2, 4 …


async def test_followers_wait_through_the_retries_of_their_leader():
    provider = Provider(lambda _item, number: TransportError("no") if number < 3 else None)

    done = await provider.processor(attempts=3).process([asks("a"), asks("b")])

    assert provider.sent == ["a", "a", "a"]
    assert by_id(done)["b"].shared_with == "a"


async def test_a_stop_waits_for_the_answer_that_others_share():
    provider = Provider()
    processor = provider.processor()
    running = asyncio.create_task(processor.process([asks(f"q{n}") for n in range(5)]))
    await asyncio.sleep(0.5)

    processor.stop(retry=False)

    done = await running
    assert (done.succeeded, provider.sent) == (5, ["q0"])


async def test_a_stop_that_abandons_ends_leader_and_followers():
    provider = Provider()
    processor = provider.processor()
    running = asyncio.create_task(processor.process([asks(f"q{n}") for n in range(5)]))
    await asyncio.sleep(0.5)

    processor.stop(drain=False)

    done = await running
    assert {result.error_code for result in done.results} == {"cancelled"}
    assert len(done.results) == 5
    assert provider.sent == ["q0"]


async def test_a_cancelled_run_ends_them_too():
    provider = Provider()
    running = asyncio.create_task(provider.processor().process([asks(f"q{n}") for n in range(5)]))
    await asyncio.sleep(0.5)

    running.cancel()

    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()
    assert provider.sent == ["q0"]


class Answer(pydantic.BaseModel):
    words: list[str]


async def test_outputs_that_can_be_changed_are_each_items_own():
    shape = OutputSchema.from_type(Answer)
    provider = Provider(text='{"words": ["a"]}')

    done = await provider.processor().process([asks(f"q{n}", output=shape) for n in range(2)])

    first, second = (result.output for result in done.results)
    assert first == second == Answer(words=["a"])
    first.words.append("b")
    assert second.words == ["a"]


async def test_each_item_gets_the_answer_in_its_own_shape():
    typed = OutputSchema.from_type(Answer)
    plain = OutputSchema.json_schema(typed.schema, typed.name)
    provider = Provider(text='{"words": ["a"]}')

    done = await provider.processor().process(
        [asks("typed", output=typed), asks("plain", output=plain)]
    )

    found = by_id(done)
    assert provider.sent == ["typed"]
    assert found["typed"].output == Answer(words=["a"])
    assert found["plain"].output == {"words": ["a"]}


async def test_an_answer_that_does_not_fit_the_followers_shape_is_asked_for_again():
    texts = iter(["ok", '{"words": []}'])

    class Twice(Provider):
        async def call(self, item, attempt, /):
            self.sent.append(item.item_id)
            await asyncio.sleep(1)
            return self.read_again(item, next(texts).encode())

    provider = Twice()
    shaped = asks("shaped", output=OutputSchema.from_type(Answer))

    done = await provider.processor().process([asks("text"), shaped])

    assert by_id(done)["shaped"].output == Answer(words=[])
    assert provider.sent == ["text", "shaped"]


class Fussy(pydantic.BaseModel):
    words: list[str]

    @pydantic.field_validator("words")
    @classmethod
    def check(cls, words):
        return 1 / 0


async def test_a_shape_that_breaks_costs_its_own_item_and_no_other():
    typed, fussy = OutputSchema.from_type(Answer), OutputSchema.from_type(Fussy)
    provider = Provider(text='{"words": ["a"]}')

    done = await provider.processor().process(
        [asks("typed", output=typed), asks("fussy", output=fussy)]
    )

    found = by_id(done)
    assert found["typed"].success
    assert found["fussy"].error.startswith("ZeroDivisionError")


class Full(pydantic.BaseModel):
    words: list[str]

    @pydantic.field_validator("words")
    @classmethod
    def check(cls, words):
        if not words:
            raise ValueError("no words")
        return words


async def test_an_answer_that_only_the_leaders_own_shape_refuses_is_not_the_followers_failure():
    full = OutputSchema.from_type(Full)
    plain = OutputSchema.json_schema(full.schema, full.name)
    provider = Provider(text='{"words": []}')

    done = await provider.processor().process(
        [asks("full", output=full), asks("plain", output=plain)]
    )

    found = by_id(done)
    assert found["full"].error_code == "bad_output"
    assert found["plain"].output == {"words": []}


async def test_an_answer_that_fits_nobody_is_everybodys_failure():
    shape = OutputSchema.from_type(Full)
    provider = Provider(text='{"words": []}')

    done = await provider.processor().process([asks(f"q{n}", output=shape) for n in range(4)])

    assert (done.failed, provider.sent) == (4, ["q0"])


async def test_an_item_that_cannot_be_told_from_others_fails_by_itself():
    class Odd(Provider):
        def exchange(self, item, /):
            raise AttributeError("no content")

        async def call(self, item, attempt, /):
            raise AttributeError("no content")

    done = await Odd().processor().process([asks("a"), asks("b")])

    assert {result.error for result in done.results} == {"AttributeError: no content"}


async def test_what_middleware_changed_is_what_is_compared():
    class Same(BaseMiddleware):
        async def before_process(self, work_item, /):
            return asks(work_item.item_id)

    provider = Provider()

    await provider.processor(middlewares=[Same()]).process([asks("a", "one"), asks("b", "two")])

    assert provider.sent == ["a"]


async def test_many_followers_are_woken_a_few_at_a_time():
    """Else one turn of the loop would last as long as all of them need."""
    count = 40 * WOKEN_AT_ONCE
    woken = Counter()
    turn = 0

    class Watch(BaseMiddleware):
        async def after_process(self, result, /):
            woken[turn] += 1
            return result

    async def turns():
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    clock = asyncio.create_task(turns())
    provider = Provider(seconds=0.0)
    provider.call = _slow_call(provider)
    done = await provider.processor(workers=count, middlewares=[Watch()]).process(
        [asks(f"q{n}") for n in range(count)]
    )
    clock.cancel()

    assert (done.succeeded, len(provider.sent)) == (count, 1)
    assert max(woken.values()) <= 2 * WOKEN_AT_ONCE


def _slow_call(provider):
    async def call(item, attempt, /):
        provider.sent.append(item.item_id)
        for _ in range(20_000):  # virtual time does not go by while the turns are counted
            await asyncio.sleep(0)
        return provider.read_again(item, b"ok")

    return call


async def test_the_ledger_tells_whose_answer_it_was():
    ledger = MemoryLedger()

    await Provider().processor(store=ledger).process([asks("a"), asks("b")])

    assert [(one.number, one.error_code) for one in ledger.attempts("a")] == [(1, None)]
    (note,) = ledger.attempts("b")
    assert (note.number, note.error_code, note.error) == (0, "shared", "a")
    assert sum(note.usage.values()) == 0
    record = ledger.find("b")
    assert (record.state, record.output, record.attempts) == ("done", "ok", 0)


async def test_a_shared_failure_is_kept_until_it_is_to_be_tried_again():
    ledger = MemoryLedger()
    provider = Provider(lambda _item, _number: TruncatedError("x", 5))
    items = [asks("a"), asks("b")]
    await provider.processor(store=ledger).process(items)

    again = await provider.processor(store=ledger).process(items)

    assert provider.sent == ["a"]
    assert all(result.is_reused and not result.success for result in again.results)


async def test_a_caller_that_cannot_tell_exchanges_apart_shares_nothing():
    class Plain(Provider):
        exchange = None

    class Odd(Provider):
        def exchange(self, item, /):
            return None

    for provider in (Plain(), Odd()):
        await provider.processor().process([asks("a"), asks("b")])
        assert len(provider.sent) == 2


async def test_code_is_never_shared():
    calls = []

    async def call(attempt, timeout):
        calls.append(attempt)
        await asyncio.sleep(1)
        return "ok", {}

    items = [LLMWorkItem(f"q{n}", direct_call=call, prompt="same") for n in range(3)]

    await Provider().processor().process(items)

    assert len(calls) == 3


class Alone:
    """A worker without a pool."""

    def parking(self):
        return contextlib.nullcontext()


async def test_one_that_is_cancelled_in_the_moment_in_which_it_is_to_lead_lets_the_next_one():
    provider = Provider()
    asked = []

    class Attempts:
        async def answer(self, item, worker, progress, /):
            asked.append(item.item_id)
            await asyncio.sleep(1)
            error = StatusError(400, "no") if item.item_id == "q0" else None
            return Outcome(item.item_id, error=error, answer=item.item_id.encode())

    sharing = Sharing(Attempts(), provider, Counts(), dedupes=True)

    async def answered(name):
        return await sharing.answer(asks(name), Alone(), Progress())

    async def leads_and_cancels():
        await answered("q0")
        for number in (1, 2):
            tasks[number].cancel()

    tasks = [
        asyncio.create_task(leads_and_cancels()),
        *[asyncio.create_task(answered(f"q{n}")) for n in range(1, 5)],
    ]

    ended = await asyncio.gather(*tasks, return_exceptions=True)

    # Two were to lead after the failure, and both were cancelled before they could.
    assert [isinstance(one, asyncio.CancelledError) for one in ended[1:3]] == [True, True]
    assert asked == ["q0", "q3", "q4"]
    assert (sharing.following, sharing._flights) == (0, {})
