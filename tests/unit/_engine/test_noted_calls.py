"""What the engine tells a store of the calls that are under way."""

from __future__ import annotations

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig
from batch_llm.core.request import Request
from batch_llm.providers.base import DEPARTURE, LaneFacts, Outcome
from batch_llm.stores.base import Spent
from batch_llm.stores.memory import MemoryLedger

pytestmark = pytest.mark.anyio

USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


class Noted:
    def __init__(self, book, *, is_held):
        self.told = ["waits" if is_held else "may have left"]
        book.noted.append(self)

    def goes(self):
        self.told.append("goes")

    def took(self, usage):
        self.told.append(usage)


class Book(MemoryLedger):
    """A ledger that takes down what it is told of calls."""

    def __init__(self):
        super().__init__()
        self.noted, self.ended = [], []

    def call_begins(self, _item_id, _attempt, _started_at, billed_as, _size, is_held, /):
        self.billed_as = billed_as
        return Noted(self, is_held=is_held)

    def call_ended(self, item_id, call, attempt, /):
        self.ended.append((item_id, call, attempt))

    def spent(self):
        return Spent([], [])


class Provider:
    """Answers requests, and says when they leave where it ``tells_departures``."""

    def lane(self, _item, /):
        return "m"

    def facts(self, _item, /):
        return LaneFacts(model="p:m")

    def content(self, item, /):
        return item.item_id.encode()

    async def call(self, _item, attempt, /):
        departure = attempt.memory.pop(DEPARTURE, None)
        if departure is not None:
            departure.goes()
            departure.took(USAGE)
        return Outcome("out", dict(USAGE))


class TellingProvider(Provider):
    tells_departures = True


async def answer(_attempt, _timeout):
    return "out", USAGE


async def noted(provider, **item):
    book = Book()
    config = ProcessorConfig(progress_interval=0)
    processor = ParallelBatchProcessor(config=config, store=book, requests=provider)
    await processor.process([LLMWorkItem("a", **item)])
    return book


@pytest.mark.parametrize(
    ("provider", "item", "told"),
    [
        (TellingProvider(), {"request": Request.of("p:m", "?")}, ["waits", "goes", USAGE]),
        (Provider(), {"request": Request.of("p:m", "?")}, ["may have left"]),
        (TellingProvider(), {"direct_call": answer}, ["may have left"]),
    ],
)
async def test_a_call_is_held_from_its_note_on_where_its_caller_tells_when_it_leaves(
    provider, item, told
):
    book = await noted(provider, **item)

    (call,) = book.noted
    assert call.told == told


async def test_how_a_call_ended_is_told_with_what_it_is_counted_under():
    book = await noted(TellingProvider(), request=Request.of("p:m", "?"))

    [(item_id, call, attempt)] = book.ended
    assert (item_id, call) == ("a", book.noted[0])
    assert attempt.usage == USAGE
    assert attempt.billed_as == book.billed_as == ("p:m", "", "standard")
