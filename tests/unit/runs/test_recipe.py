from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.core.request import Request, Settings
from batch_llm.core.schema import OutputSchema
from batch_llm.exceptions import ConfigError
from batch_llm.runs.brief import Brief
from batch_llm.runs.ledgers import brief_facts, brief_of, named_ledger, settings_of
from batch_llm.runs.options import brief_from, in_python, settings_from
from batch_llm.runs.recipe import Variant, plain_settings, read_settings
from batch_llm.stores.memory import MemoryLedger

BASE = Request.of("a:b", "hi", settings=Settings(temperature=0, max_tokens=5, extra={"user": "u"}))


def test_a_variant_replaces_what_it_has_and_leaves_the_rest():
    variant = Variant(1, Settings(max_tokens=9, extra={"tools": []}), "c:d")

    found = variant.of(BASE)

    assert found.model == "c:d"
    assert found.settings == Settings(temperature=0, max_tokens=9, extra={"user": "u", "tools": []})
    assert found.messages == BASE.messages


numbers = st.floats(0, 2, allow_nan=False)
settings = st.builds(
    Settings,
    temperature=st.none() | numbers | st.lists(numbers, min_size=1, max_size=3).map(tuple),
    max_tokens=st.none() | st.integers(1, 10**6),
    seed=st.none() | st.integers(0, 10**6),
    stop=st.none() | st.lists(st.text(), min_size=1, max_size=3).map(tuple),
    extra=st.dictionaries(st.text(min_size=1), st.integers() | st.text(), max_size=3),
)


@given(settings)
def test_settings_come_back_from_a_manifest_as_they_were(given_settings):
    text = msgspec.json.encode(plain_settings(given_settings))

    assert read_settings(msgspec.json.decode(text)) == given_settings


@pytest.mark.parametrize("shape", [None, ["yes", "no"], {"type": "object"}, dict[str, int]])
def test_a_brief_comes_back_from_its_ledger_as_the_same_run(tmp_path, shape):
    (tmp_path / "in.jsonl").touch()
    brief = Brief(
        input=str(tmp_path / "in.jsonl"),
        model="sim:fast",
        prompt="{{ a }}",
        settings=Settings(temperature=(0, 0.5)),
        shape=None if shape is None else OutputSchema.of(shape),
        columns=("a", "b"),
    )
    with MemoryLedger() as ledger:
        ledger.note({"brief": brief_facts(brief)})

        found = brief_of(ledger, "x.sqlite")

    assert settings_of(found, "csv") == settings_of(brief, "csv")
    assert found.columns == brief.columns


@pytest.mark.parametrize("url", ["http://u:p@h/v1", "http://h/v1?key=x"])
def test_an_address_that_may_hold_a_key_is_not_kept(url):
    facts = brief_facts(Brief(input="in.jsonl", model="sim:fast", base_url=url))

    assert facts["base_url"] is None
    assert facts["has_hidden_url"]


@pytest.mark.parametrize("name", ["", ".x", "-x", "a/b", "a\\b", "a\nb", "x" * 101])
def test_a_name_that_is_no_files_is_refused(name):
    with pytest.raises(ConfigError, match="a word without slashes"):
        named_ledger(name)


def test_messages_speak_of_arguments():
    told = in_python("use --bad-rows fail, or --max-tokens-total 10M caps; stopped by --max-cost")

    assert told == (
        'use bad_rows="fail", or max_tokens_total=10_000_000 caps; stopped by max_cost_usd'
    )


def test_settings_by_name_are_known_ones_and_others():
    found = settings_from({"temperature": [0, 0.5], "stop": "x", "reasoning_effort": "low"})

    assert found == Settings(temperature=(0, 0.5), stop=("x",), extra={"reasoning_effort": "low"})


def test_settings_of_numpy_are_numbers_like_others():
    found = settings_from({"temperature": np.float64(0.5), "max_tokens": np.int64(9), "top_k": 3})

    assert repr(found) == repr(Settings(temperature=0.5, max_tokens=9, extra={"top_k": 3}))
    with pytest.raises(ConfigError, match="settings must be plain data"):
        settings_from({"tools": object()})


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ({"concurrency": 7}, {"concurrency": 7}),
        ({"concurrency": "auto"}, {"concurrency": None}),
        ({"timeout_seconds": 3}, {"timeout_seconds": 3}),
        ({"retries": 0}, {"retries": 0}),
        ({"hedge": True}, {"hedge": True}),
        ({"max_tokens_total": 5}, {"max_tokens_total": 5}),
        ({"deadline_seconds": 5}, {"deadline_seconds": 5}),
        ({"longest_pause_seconds": 5}, {"longest_pause_seconds": 5}),
        ({"max_failed": 5}, {"max_failed": 5, "max_failed_share": None}),
        ({"max_failed_share": 0.5}, {"max_failed": None, "max_failed_share": 0.5}),
        ({"keys": ["A", "B"]}, {"keys": ("A", "B")}),
        ({"limit": 5}, {"limit": 5}),
        ({"id_column": "x"}, {"id_column": "x"}),
        ({"cache": ".answers"}, {"cache": ".answers"}),
        ({"cache": "c", "cache_expires_seconds": 9}, {"cache_expires_seconds": 9}),
        ({"dedupe": False}, {"dedupe": False}),
        ({"ignore_slots": True}, {"ignore_slots": True}),
        ({"forget_limits": True}, {"forget_limits": True}),
        ({"store": "x.sqlite"}, {"ledger": "x.sqlite"}),
        ({"name": "n"}, {"ledger": ".batch-llm/runs/n.sqlite"}),
        ({"name": "n", "store": ".batch-llm"}, {"ledger": ".batch-llm/runs/n.sqlite"}),
        ({"name": "n", "store": "folder"}, {"ledger": "folder/n.sqlite"}),
    ],
)
def test_each_argument_reaches_the_brief(argument, field):
    brief = brief_from(["x"], "sim:fast", None, argument)

    assert {name: getattr(brief, name) for name in field} == field


def test_arguments_of_numpy_are_numbers_like_others():
    given = {"concurrency": np.int64(7), "timeout_seconds": np.int64(3), "retries": np.int16(2)}
    brief = brief_from(["x"], "sim:fast", None, given)

    found = (brief.concurrency, brief.timeout_seconds, brief.retries)
    assert [(type(one), one) for one in found] == [(int, 7), (int, 3), (int, 2)]
