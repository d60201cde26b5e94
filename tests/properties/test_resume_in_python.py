"""Going on from Python: passing over known rows gives what reading everything gives.

As ``test_resume`` for the command: two copies of a run go through the same random life, one passes
over what it can, the other one reads every row.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import random
import shutil

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batch_llm import runs
from batch_llm.core.request import Settings
from batch_llm.exceptions import BatchLLMError
from batch_llm.inputs import parquet, value_blocks
from batch_llm.providers.base import Outcome
from batch_llm.providers.requests import RequestCaller
from batch_llm.runs import plan, rows_once
from batch_llm.runs.ledgers import retry_failed
from batch_llm.stores import SqliteLedger
from batch_llm.stores.base import ItemState
from resumed_runs import PROMPT, USAGE, Life, World, make_small, unsettle

KINDS = ("rows.jsonl", "rows.csv", "rows.parquet", "dicts", "texts", "talks", "odd", "once")


class Answer(pydantic.BaseModel):
    text: str


class Kind(str):
    """A text that is more than its letters."""

    __slots__ = ()


def odd(row):
    """Return a row with a value that JSON does not know, in some rows."""
    number = len(row["text"]) + ord(row["label"])
    values = [dt.date(2020, 1, 1 + number % 3), (1, 2), Kind("a"), "a", [1, 2], 1, True, 1.0]
    return row | {"label": values[number % len(values)]}


def rows_of(life, folder):
    """Return what a user would give as the run's rows."""
    if "." in life.name:
        life.write(folder / life.name)
        return life.name
    make = {
        "dicts": dict,
        "texts": lambda row: row["text"],
        "talks": lambda row: [{"role": "user", "content": row["text"]}],
        "odd": odd,
        "once": dict,
    }[life.name]
    return [make(row) for row in life.rows]


def read_alone(item, ledger, variants):
    """Leave it to the engine to find a row's result."""
    if not variants:
        return plan.Found(item, None)
    return plan.Found(plan.look_up(ledger, [item], variants)[0].item, None)


def session(folder, life, options, *, reads_all):
    """Run; return what came of it."""
    world, schema = World(), options["schema"]

    async def call(_self, item, attempt):
        outcome = await world.call(item, attempt)
        if schema is None or outcome.error is not None:
            return outcome
        return Outcome(Answer(text=outcome.output), USAGE, model="nobody")

    async def ask():
        named = {
            "model": "openai-chat:m",
            "base_url": "http://127.0.0.1:9/v1",
            "schema": schema,
            "prompt": {"odd": PROMPT + " {{ label }}", "texts": None, "talks": None}.get(
                life.name, PROMPT
            ),
            "store": "ledger.sqlite",
            "ignore_slots": True,
            "retries": 0,
            "dedupe": False,
            "bad_rows": options["bad_rows"],
            "limit": options["limit"],
            "max_failed": options["max_failed"],
            "concurrency": options["concurrency"],
        }
        rows = rows_of(life, folder)
        if options["streams"]:
            if life.name == "once":
                rows = (row for row in rows)
            results = [one async for one in runs.stream(rows, **named)]
            return sorted(map(seen, results), key=repr), ()
        found = await runs.run(rows, **named)
        now = found.statistics
        numbers = (now.started, now.processed, now.succeeded, now.failed, now.reused)
        return [seen(one) for one in found], (numbers, found.stop_reason, found.not_done)

    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(parquet, "_ROWS_AT_ONCE", 3)
        patch.setattr(value_blocks, "_AT_ONCE", 3)
        patch.setattr(RequestCaller, "call", call)
        if reads_all:
            patch.setattr(plan, "open_index", lambda *_: None)
            patch.setattr(rows_once.RowsOnce, "_found", staticmethod(read_alone))
        try:
            told = asyncio.run(ask())
        except BatchLLMError as error:
            told = str(error)
    return told, world.asked


def seen(result):
    return (
        result.item_id,
        result.success,
        result.output,
        result.error,
        result.error_code,
        result.context,
        result.token_usage,
        result.attempts,
        result.model,
        result.is_reused,
    )


def held(folder):
    with SqliteLedger(folder / "ledger.sqlite", read_only=True) as ledger:
        records = [
            (one.item_id, one.content, one.state, one.output, one.error, one.attempts)
            for one in ledger.records(*ItemState)
        ]
    return sorted(records, key=repr)


@settings(
    max_examples=int(os.environ.get("RESUME_EXAMPLES", "30")),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
def test_passing_over_known_rows_gives_what_reading_all_gives(tmp_path_factory, seed, kind):
    dice = random.Random(seed)
    life = Life(kind, dice)
    root = tmp_path_factory.mktemp("resume")
    quick, slow = root / "quick", root / "slow"
    quick.mkdir()
    slow.mkdir()
    options = {"schema": dice.choice([None, Answer]) if kind != "talks" else None}
    for turn in range(dice.randint(2, 6)):
        options |= {
            "bad_rows": dice.choice(["stop", "skip", "fail"]),
            "limit": dice.choice([None, None, dice.randint(1, 20)]),
            # The engine alone counts failures of earlier sessions: of rows that reach it.
            "max_failed": None if kind == "once" else dice.choice([None, None, 2]),
            "streams": dice.choice([True, False]),
        }
        options["concurrency"] = 1 if options["max_failed"] else dice.choice([1, 3])
        for folder in (quick, slow):
            again = random.Random(seed + turn)
            what = again.choice(["retry", "other", "unsettle", "index", "no", "no"])
            if not (folder / "ledger.sqlite").exists():
                continue
            if what == "unsettle":
                unsettle(folder, {again.randint(1, 30) for _ in range(4)})
            elif what == "index":
                index = folder / "ledger.sqlite-rows"
                if index.exists():
                    os.truncate(index, int(again.random() * index.stat().st_size))
            elif what != "no":
                other = Settings(temperature=0.5) if what == "other" else None
                with SqliteLedger(folder / "ledger.sqlite") as ledger:
                    retry_failed(ledger, settings=other)

        found = session(quick, life, options, reads_all=False)
        expected = session(slow, life, options, reads_all=True)

        assert found == expected
        if (quick / "ledger.sqlite").exists():
            assert held(quick) == held(slow)
        for _ in range(dice.randint(0, 2)):
            life.edit()
    shutil.rmtree(root)
