from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batch_llm.providers.registry import resolve
from batch_llm.stores import limit_memory
from batch_llm.stores.limit_memory import LimitMemory, limits_file
from batch_llm.strategies.admission.known_limits import Known

KNOWN = {"requests": Known(None, 12.5, 12.5), "tokens": Known(60_000.0, 1000.0, 60_000.0)}
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "limits.json"


def test_what_was_saved_is_recalled_and_rates_are_believed_less_as_they_age(path):
    LimitMemory(path, lambda: 1000.0).save({"a": KNOWN, "empty": {}})

    assert LimitMemory(path, lambda: 1000.0 + HOUR).recall("a") == (KNOWN, 0.9)
    assert LimitMemory(path, lambda: 1000.0 + DAY).recall("a") == (KNOWN, 0.5)
    assert LimitMemory(path, lambda: 1000.0 + 8 * DAY).recall("a") is None
    assert LimitMemory(path, lambda: 999.0).recall("a") is None  # the clock was set back
    assert LimitMemory(path, lambda: 1000.0).recall("empty") is None


def test_what_others_wrote_meanwhile_is_kept(path):
    one, other = LimitMemory(path, lambda: 1.0), LimitMemory(path, lambda: 2.0)
    one.recall("a")
    other.save({"b": KNOWN})
    one.save({"a": KNOWN})

    assert LimitMemory(path, lambda: 3.0).recall("b") == (KNOWN, 0.9)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"a": 1}',
        b"[" * 100_000,
        b'{"a": {"at": 1, "limits": {"requests": [null, -1, 1]}}}',
        b'{"a": {"at": 1, "limits": {"requests": [null, 1, 0]}}}',
        b'{"a": {"at": 1, "limits": {"requests": [0, 1, 1]}}}',
        b'{"a": {"at": 1, "limits": {"requests": [null, 1e999, 1]}}}',
        b" " * 1_000_001,
    ],
)
def test_a_damaged_file_costs_nothing_but_the_head_start(path, content):
    path.parent.mkdir()
    path.write_bytes(content)

    assert LimitMemory(path, lambda: 2.0).recall("a") is None
    LimitMemory(path, lambda: 2.0).save({"a": KNOWN})
    assert LimitMemory(path, lambda: 2.0).recall("a") == (KNOWN, 0.9)


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")

    LimitMemory(blocked / "limits.json").save({"a": KNOWN})


def test_infinite_values_are_not_written(path):
    LimitMemory(path, lambda: 1.0).save({"a": KNOWN, "b": {"requests": Known(None, 1.0, math.inf)}})

    assert LimitMemory(path, lambda: 1.0).recall("a") == (KNOWN, 0.9)
    assert LimitMemory(path, lambda: 1.0).recall("b") is None


def test_only_the_newest_entries_stay(path):
    for at in range(3):
        LimitMemory(path, lambda at=at: float(at)).save({f"{at} {n}": KNOWN for n in range(300)})

    assert len(json.loads(path.read_bytes())) == 500
    assert LimitMemory(path, lambda: 2.0).recall("2 299") is not None
    assert LimitMemory(path, lambda: 2.0).recall("0 0") is None


def test_the_file_is_where_it_is_told_to_be():
    assert limits_file({"BATCH_LLM_LIMITS_FILE": "/x/y.json"}).as_posix() == "/x/y.json"
    assert limits_file({"BATCH_LLM_LIMITS_FILE": ""}) is None
    assert limits_file({}).name == "limits.json"


def test_an_account_is_named_without_its_key():
    names = {
        resolve("openai-chat:m", environ={"OPENAI_API_KEY": key}).account
        for key in ("sk-secret-one", "sk-secret-two")
    }

    assert len(names) == 2
    assert all("secret" not in name and "api.openai.com" in name for name in names)
    local = resolve("openai-chat:m", base_url="http://127.0.0.1:8000/v1", environ={})
    assert local.account is None


def test_an_entry_of_another_version_costs_the_others_nothing(path):
    LimitMemory(path, lambda: 1.0).save({"a": KNOWN})
    entries = json.loads(path.read_bytes())
    foreign = {"at": 1.0, "limits": {"requests": {"rate": 5, "unit": "second"}}}
    path.write_text(json.dumps(entries | {"b": foreign, "c": [1], "d": {"at": 1.0}}))

    memory = LimitMemory(path, lambda: 2.0)

    assert memory.recall("a") == (KNOWN, 0.9)
    assert [memory.recall(name) for name in "bcd"] == [None, None, None]


def test_what_is_forgotten_is_gone_and_nothing_else(path):
    LimitMemory(path, lambda: 1.0).save({"a": KNOWN, "b": KNOWN, "c": KNOWN})
    memory = LimitMemory(path, lambda: 2.0)
    memory.recall("a")

    memory.forget(name for name in ("c", "a", "unknown"))

    assert [memory.recall(name) for name in "abc"] == [None, (KNOWN, 0.9), None]


def test_forgetting_makes_no_file(path):
    LimitMemory(path).forget(["a"])

    assert not path.parent.exists()


@pytest.mark.parametrize("name", ["a\udc80", "b\x00", ""])
def test_a_name_that_cannot_be_written_is_never_fatal(path, name):
    LimitMemory(path, lambda: 1.0).save({name: KNOWN})
    LimitMemory(path.with_name("a\x00b"), lambda: 1.0).save({"a": KNOWN})


def test_many_writers_at_once_leave_a_whole_file_and_nothing_else(path):
    def write(number):
        memory = LimitMemory(path, lambda: 1.0)
        for n in range(20):
            memory.save({f"{number} {n}": KNOWN})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))

    entries = json.loads(path.read_bytes())
    assert all(LimitMemory(path, lambda: 2.0).recall(name) == (KNOWN, 0.9) for name in entries)
    assert [one.name for one in path.parent.iterdir()] == ["limits.json"]


def test_no_two_writers_share_a_temporary_file(path, monkeypatch):
    names = []
    monkeypatch.setattr(Path, "replace", lambda self, _: names.append(self.name))

    LimitMemory(path, lambda: 1.0).save({"a": KNOWN})
    LimitMemory(path, lambda: 1.0).save({"a": KNOWN})

    assert len(set(names)) == 2


def test_a_write_that_fails_leaves_nothing_behind(path, monkeypatch):
    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", fail)

    LimitMemory(path, lambda: 1.0).save({"a": KNOWN})

    assert list(path.parent.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_never_fatal(path):
    path.parent.mkdir()
    path.write_text("{}")
    path.parent.chmod(0o500)

    LimitMemory(path, lambda: 1.0).save({"a": KNOWN})

    path.parent.chmod(0o700)


def test_without_a_home_nothing_is_remembered(monkeypatch):
    monkeypatch.setattr(limit_memory, "user_state_path", lambda *_, **__: Path("~/state"))

    assert limits_file({}) is None
