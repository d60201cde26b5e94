"""The cache's file: shared by many, killed, damaged, full of somebody else's tables."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from batch_llm import AnswerCache, CacheError, ConfigError
from batch_llm.stores import answers
from batch_llm.stores.statements import statements


@pytest.fixture
def anyio_backend():
    return "asyncio"


def key(number):
    return f"{number:016}".encode()


def answer(number):
    return f"answer {number} ".encode() * 20


async def look_up(cache, *numbers):
    cache.begin_run()
    return await asyncio.gather(*[cache.look_up(key(number)) for number in numbers])


async def keep(folder, *numbers, model="x:m", **arguments):
    with AnswerCache(folder, **arguments) as cache:
        cache.begin_run()
        for number in numbers:
            cache.put(key(number), answer(number), model=model)


async def test_what_was_kept_is_found_and_nothing_else(tmp_path):
    await keep(tmp_path, *range(300))

    with AnswerCache(tmp_path) as cache:
        found = await look_up(cache, *range(301))

    assert found == [*[answer(n) for n in range(300)], None]


async def test_what_is_kept_now_is_found_now_before_it_is_in_the_file(tmp_path):
    with AnswerCache(tmp_path) as cache:
        cache.begin_run()
        cache.put(key(1), b"one", model="x:m")

        assert await cache.look_up(key(1)) == b"one"


async def test_memory_holds_nothing_that_is_in_the_file(tmp_path):
    with AnswerCache(tmp_path) as cache:
        cache.begin_run()
        for number in range(5000):
            cache.put(key(number), answer(number), model="x:m")
        while cache._fresh:
            await asyncio.sleep(0.01)

        assert await cache.look_up(key(4999)) == answer(4999)


async def test_the_last_answer_counts(tmp_path):
    await keep(tmp_path, 1)
    with AnswerCache(tmp_path) as cache:
        cache.begin_run()
        cache.put(key(1), b"newer", model="x:m")
        cache.put(key(1), b"newest", model="x:m")

    with AnswerCache(tmp_path) as cache:
        assert await look_up(cache, 1) == [b"newest"]


async def test_what_has_expired_is_not_found_and_still_there_for_others(tmp_path):
    await keep(tmp_path, 1, now=lambda: 1000.0)

    with AnswerCache(tmp_path, expires_seconds=60, now=lambda: 1060.0) as cache:
        assert await look_up(cache, 1) == [answer(1)]
    with AnswerCache(tmp_path, expires_seconds=60, now=lambda: 1060.1) as cache:
        assert await look_up(cache, 1) == [None]
    with AnswerCache(tmp_path, now=lambda: 10e9) as cache:
        assert await look_up(cache, 1) == [answer(1)]


def count(folder):
    with contextlib.closing(sqlite3.connect(folder / "answers.sqlite")) as raw:
        return raw.execute("SELECT count(*) FROM answers").fetchone()[0]


async def test_what_was_kept_for_a_while_is_nobodys_after_it(tmp_path):
    await keep(tmp_path, 1, expires_seconds=60, now=lambda: 1000.0)

    with AnswerCache(tmp_path, now=lambda: 1060.0) as cache:
        assert await look_up(cache, 1) == [answer(1)]
    with AnswerCache(tmp_path, now=lambda: 1060.1) as cache:
        assert cache.find([key(1)]) == {}


async def test_what_has_expired_is_removed_when_a_run_begins(tmp_path):
    await keep(tmp_path, *range(5), expires_seconds=60, now=lambda: 1000.0)
    await keep(tmp_path, *range(5, 7), now=lambda: 1000.0)
    await keep(tmp_path, *range(7, 10), expires_seconds=90, now=lambda: 1000.0)

    with AnswerCache(tmp_path, now=lambda: 1070.0) as cache:
        cache.begin_run()

    assert count(tmp_path) == 5


async def test_what_has_expired_is_removed_by_and_by(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "MOST_REMOVED_AT_FIRST", 2)
    monkeypatch.setattr(answers, "MOST_REMOVED", 3)
    await keep(tmp_path, *range(20), expires_seconds=60, now=lambda: 1000.0)

    with AnswerCache(tmp_path, now=lambda: 2000.0) as cache:
        cache.begin_run()
        await settled(cache)
        assert count(tmp_path) == 18
        cache.put(key(90), b"new", model="x:m")
        await settled(cache)
        assert count(tmp_path) == 18 - 3 + 1


async def settled(cache):
    """Wait until the writer has done all that was put in."""
    with cache._writer.pause():
        pass
    await asyncio.sleep(0)


async def test_an_answer_stays_as_long_as_anybody_has_kept_it_for(tmp_path):
    await keep(tmp_path, 1, 2, 3, expires_seconds=60, now=lambda: 1000.0)
    await keep(tmp_path, 1, now=lambda: 1050.0)
    await keep(tmp_path, 2, expires_seconds=60, now=lambda: 1050.0)
    await keep(tmp_path, 1, 2, 3, expires_seconds=1, now=lambda: 1055.0)

    with AnswerCache(tmp_path, now=lambda: 1100.0) as cache:
        assert await look_up(cache, 1, 2, 3) == [answer(1), answer(2), None]
    with AnswerCache(tmp_path, now=lambda: 1200.0) as cache:
        assert await look_up(cache, 1, 2, 3) == [answer(1), None, None]


async def test_a_cache_of_the_first_version_is_brought_up_to_date(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "answers.sqlite")) as raw:
        raw.executescript(statements("answers.sql")["create"])
        raw.execute("PRAGMA application_id = 0x626C6C6D")
        raw.execute("PRAGMA user_version = 1")
        row = (key(1), "x:m", 5.0, b"old")
        raw.execute("INSERT INTO answers (exchange, model, kept_at, answer) VALUES (?,?,?,?)", row)
        raw.commit()

    with AnswerCache(tmp_path) as cache:
        assert await look_up(cache, 1) == [b"old"]
    await keep(tmp_path, 2, expires_seconds=60)
    assert count(tmp_path) == 2


@pytest.mark.parametrize("seconds", [0, -1, float("inf")])
def test_an_expiry_out_of_bounds_is_refused(tmp_path, seconds):
    with pytest.raises(ConfigError, match="expires_seconds"):
        AnswerCache(tmp_path, expires_seconds=seconds)


def test_a_folder_that_it_makes_is_kept_out_of_git_and_others_are_left_alone(tmp_path):
    AnswerCache(tmp_path / "deep" / "cache").close()
    AnswerCache(tmp_path).close()

    assert (tmp_path / "deep" / "cache" / ".gitignore").read_text() == "*\n"
    assert not (tmp_path / ".gitignore").exists()


async def test_it_tells_what_it_holds_and_clears_it(tmp_path):
    await keep(tmp_path, 1, 2, model="x:a", now=lambda: 1000.0)
    await keep(tmp_path, *range(3, 500), model="x:b", now=lambda: 2000.0)
    with AnswerCache(tmp_path, now=lambda: 2100.0) as cache:
        before = cache.path.stat().st_size
        assert cache.models() == [("x:a", 2, 1000.0, 1000.0), ("x:b", 497, 2000.0, 2000.0)]

        assert cache.clear(model="x:b", older_than_seconds=200) == 0
        assert cache.clear(older_than_seconds=200) == 2
        assert [one.model for one in cache.models()] == ["x:b"]
        assert cache.clear(model="x:b") == 497
        assert cache.models() == []
    assert cache.path.stat().st_size < before


async def test_it_can_be_cleared_while_others_use_it(tmp_path):
    await keep(tmp_path, 1, 2)
    with AnswerCache(tmp_path) as used, AnswerCache(tmp_path) as other:
        assert await look_up(used, 1) == [answer(1)]

        assert other.clear() == 2

        assert await look_up(used, 1) == [None]
        used.put(key(3), answer(3), model="x:m")
    with AnswerCache(tmp_path) as cache:
        assert await look_up(cache, 1, 3) == [None, answer(3)]
        assert cache.trouble is None


def test_a_cache_that_must_exist_is_not_made(tmp_path):
    with pytest.raises(CacheError, match="there is none"):
        AnswerCache(tmp_path / "no", must_exist=True)
    assert not (tmp_path / "no").exists()


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")

    with pytest.raises(CacheError, match="its folder is a file"):
        AnswerCache(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_another_programs_database_is_left_alone(tmp_path):
    path = tmp_path / "answers.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE answers (mine TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()

    with pytest.raises(CacheError, match="another program made that file"):
        AnswerCache(tmp_path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"precious " * 1000)

    with pytest.raises(CacheError, match="it is damaged, or no cache"):
        AnswerCache(tmp_path)
    assert path.read_bytes() == b"precious " * 1000


def test_one_that_is_being_made_by_another_is_not_taken_for_a_strangers(tmp_path, monkeypatch):
    """The other one comes in between any two looks at the file."""
    looks = []

    class Watched(sqlite3.Connection):
        def execute(self, statement, *arguments):
            if statement.startswith(("PRAGMA user_version", "SELECT count")) and not looks:
                looks.append(statement)
                with contextlib.suppress(CacheError):  # it has to wait, and does not
                    AnswerCache(tmp_path, patience_seconds=0.05).close()
            return super().execute(statement, *arguments)

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *words, **named: connect(*words, factory=Watched, **named)
    )

    AnswerCache(tmp_path).close()

    assert looks == ["PRAGMA user_version"]


async def test_a_cache_of_a_later_version_is_left_alone(tmp_path):
    await keep(tmp_path, 1)
    later = sqlite3.connect(tmp_path / "answers.sqlite")
    later.execute("PRAGMA user_version = 9")
    later.close()

    with pytest.raises(CacheError, match="a later version of batch-llm made it"):
        AnswerCache(tmp_path)


async def test_damage_found_in_mid_run_costs_the_cache_and_not_the_run(tmp_path, caplog):
    await keep(tmp_path, *range(1000))
    path = tmp_path / "answers.sqlite"
    content = bytearray(path.read_bytes())
    for place in range(16_384, len(content)):
        content[place] = 7
    path.write_bytes(content)

    with AnswerCache(tmp_path) as cache:
        assert await look_up(cache, 1, 2) == [None, None]
        assert "it is damaged" in cache.trouble
        cache.put(key(1), b"x", model="x:m")
        assert await cache.look_up(key(1)) is None
    assert caplog.text.count("it is damaged") == 1
    with pytest.raises(CacheError), AnswerCache(tmp_path) as cache:
        cache.models()


async def test_a_file_that_cannot_be_written_any_more_costs_the_cache_and_not_the_run(tmp_path):
    await keep(tmp_path, 1)
    other = sqlite3.connect(tmp_path / "answers.sqlite", isolation_level=None)
    with AnswerCache(tmp_path, patience_seconds=0.05) as cache:
        cache.begin_run()
        other.execute("BEGIN IMMEDIATE")  # it holds on to the file
        cache.put(key(2), answer(2), model="x:m")
        while cache.trouble is None:
            await asyncio.sleep(0.01)
        assert "another program holds it" in cache.trouble
    other.execute("ROLLBACK")
    other.close()

    with AnswerCache(tmp_path) as cache:
        assert await look_up(cache, 1, 2) == [answer(1), None]


async def test_another_one_that_writes_holds_up_no_look_up(tmp_path):
    await keep(tmp_path, 1)
    other = sqlite3.connect(tmp_path / "answers.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM answers")

    with AnswerCache(tmp_path) as cache:
        assert await look_up(cache, 1) == [answer(1)]
    other.execute("ROLLBACK")
    other.close()


async def test_look_ups_that_come_together_are_one_query(tmp_path, monkeypatch):
    groups = []
    await keep(tmp_path, *range(100))
    with AnswerCache(tmp_path) as cache:
        read = cache._reader._act
        monkeypatch.setattr(
            cache._reader, "_act", lambda group: (groups.append(len(group)), read(group))
        )
        await look_up(cache, *range(100))

    assert sum(groups) == 100
    assert len(groups) < 20


def test_a_closed_cache_says_so_and_closing_again_does_nothing(tmp_path):
    cache = AnswerCache(tmp_path)
    cache.close()
    cache.close()

    async def begin():
        cache.begin_run()

    with pytest.raises(CacheError, match="it was closed"):
        asyncio.run(begin())


def test_a_run_in_another_loop_can_use_it_too(tmp_path):
    with AnswerCache(tmp_path) as cache:

        async def one(number):
            cache.begin_run()
            cache.put(key(number), answer(number), model="x:m")
            return await asyncio.gather(*[cache.look_up(key(n)) for n in range(3)])

        assert asyncio.run(one(0)) == [answer(0), None, None]
        assert asyncio.run(one(1)) == [answer(0), answer(1), None]
        assert asyncio.run(one(2)) == [answer(0), answer(1), answer(2)]
        assert len(cache._fresh) <= 1  # what the last loop has not heard of


WRITER = """
import asyncio, sys
from batch_llm import AnswerCache
folder, first, count, pause = sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4])

async def main():
    found = 0
    with AnswerCache(folder) as cache:
        cache.begin_run()
        print("open", flush=True)
        for number in range(first, first + count):
            key = f"{number:016}".encode()
            kept = await cache.look_up(key)
            if kept is None:
                cache.put(key, f"answer {number} ".encode() * 20, model="x:m")
            else:
                assert kept == f"answer {number} ".encode() * 20
                found += 1
            await asyncio.sleep(pause)
    print(found, cache.trouble)

asyncio.run(main())
"""


def writer(folder, first, count, pause=0.0):
    arguments = [sys.executable, "-c", WRITER, str(folder), str(first), str(count), str(pause)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def await_first(folder, number):
    """Wait until an answer is in the file."""
    deadline = time.monotonic() + 60
    with contextlib.closing(sqlite3.connect(folder / "answers.sqlite")) as raw:
        while not raw.execute(
            "SELECT 1 FROM answers WHERE exchange = ?", (key(number),)
        ).fetchone():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.01)


async def test_many_processes_make_one_cache_and_use_it_at_once(tmp_path):
    folder = tmp_path / "cache"

    processes = [writer(folder, 500 * n, 1000) for n in range(5)]
    said = [one.communicate(timeout=120)[0].split() for one in processes]

    assert [one.returncode for one in processes] == [0] * 5
    assert {line[2] for line in said} == {"None"}  # no trouble
    with AnswerCache(folder) as cache:
        found = await look_up(cache, *range(3001))
        assert [one.answers for one in cache.models()] == [3000]
    assert found == [*[answer(n) for n in range(3000)], None]


async def test_a_kill_in_mid_write_leaves_a_whole_cache(tmp_path):
    dice = random.Random()
    for trial in range(8):
        process = writer(tmp_path, 100_000 * trial, 100_000)
        assert process.stdout.readline() == "open\n"
        await_first(tmp_path, 100_000 * trial)
        time.sleep(0.4 * dice.random())
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()

        with AnswerCache(tmp_path) as cache:
            numbers = range(100_000 * trial, 100_000 * trial + 3000)
            found = await look_up(cache, *numbers)
        assert all(kept in {None, answer(n)} for n, kept in zip(numbers, found, strict=True))
        assert found[0] == answer(numbers[0])  # what was written before stays
    raw = sqlite3.connect(tmp_path / "answers.sqlite")
    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


def test_the_file_holds_digests_and_answers_and_nothing_of_the_questions(tmp_path):
    asyncio.run(keep(tmp_path, 1))
    raw = sqlite3.connect(tmp_path / "answers.sqlite")
    columns = [row[1] for row in raw.execute("PRAGMA table_info(answers)")]
    raw.close()

    assert (
        json.dumps(columns) == '["number", "exchange", "model", "kept_at", "answer", "expires_at"]'
    )
