from __future__ import annotations

import sqlite3

import pytest

from batch_llm.stores.base import Attempt
from batch_llm.stores.cut_off import CutOff, CutOffCall, Means, cut_off_calls, note_known_inputs
from batch_llm.stores.statements import migrations

NAMED = ("p:m", "", "standard")


def call(number=1, content=b"a", attempt=1, named=NAMED, most=(100, 50), known=None):
    return CutOffCall(number, content, attempt, named, most, known)


def answered(sent, got, *, number=1, seconds=0.999, named=NAMED, change=None):
    usage = {"input_tokens": sent, "output_tokens": got, "total_tokens": sent + got}
    return Attempt(number, 0.0, seconds, usage, None, None, named, change)


def figures(usages):
    return [(one.model, one.calls, one.input_tokens, one.output_tokens) for one in usages]


def test_without_any_other_call_only_the_most_is_known():
    found = CutOff([call(), call(2)], {})

    assert figures(found.at_most()) == [("p:m", 2, 200, 100)]
    assert found.likely() == []


def test_the_input_is_what_the_next_call_that_asks_the_same_took():
    found = CutOff([call(), call(2)], {})
    attempt = answered(30, 7)
    found.learn(attempt)
    found.learn_input(1, b"a", [attempt])

    assert figures(found.at_most()) == [("p:m", 2, 130, 100)]
    assert figures(found.likely()) == [("p:m", 2, 60, 14)]  # 30 told, 30 the mean


@pytest.mark.parametrize(
    ("cut", "content", "attempt"),
    [
        (call(), b"another", answered(30, 7)),  # the row was changed meanwhile
        (call(attempt=2), b"a", answered(30, 7)),  # it may have been shown its last answer
        (call(content=None), b"a", answered(30, 7)),
        (call(), b"a", answered(30, 7, number=2)),
        (call(), b"a", answered(30, 7, named=("p:other", "", "standard"))),
        (call(), b"a", answered(30, 7, change="max_tokens raised")),
    ],
)
def test_the_input_of_a_call_that_asks_something_else_tells_nothing(cut, content, attempt):
    found = CutOff([cut], {})

    found.learn_input(1, content, [attempt])

    assert figures(found.at_most()) == [("p:m", 1, 100, 50)]


def test_what_is_likely_is_never_more_than_the_most():
    found = CutOff([call(most=(20, 5))], {NAMED: Means(1, 30, 7)})

    assert figures(found.likely()) == [("p:m", 1, 20, 5)]


def test_a_call_that_takes_long_is_likelier_to_be_cut_off():
    means = Means()
    means.add(0.999, 10, 10)
    means.add(2.999, 10, 30)

    (found,) = CutOff([call()], {NAMED: means}).likely()

    assert found.output_tokens == 25


def test_long_inputs_are_counted_apart_as_their_price_is():
    found = CutOff([call(most=(40_000, 1)), call(most=(10, 1))], {})

    assert [one.context for one in found.at_most()] == [1, 0]


@pytest.fixture
def connection():
    found = sqlite3.connect(":memory:", isolation_level=None)
    for script in migrations().values():
        found.executescript(script)
    found.execute("INSERT INTO billed_as VALUES (1, 'p:m', '', 'standard')")
    yield found
    found.close()


def add_item(connection, number, content, session=2, state="done"):
    connection.execute(
        "INSERT OR REPLACE INTO items (number, item_id, content, state, session) "
        "VALUES (?, ?, ?, ?, ?)",
        (number, f"q{number}", content, state, session),
    )


def add_try(connection, number, session, sent, got, *, attempt=1, seconds=0.999):
    connection.execute(
        "INSERT INTO tries (number, session, attempt, started_at, seconds, input_tokens, "
        "output_tokens, billed_as) VALUES (?, ?, ?, 0, ?, ?, ?, 1)",
        (number, session, attempt, seconds, sent, got),
    )


def add_cut(connection, number, content, *, attempt=1, session=1):
    connection.execute(
        "INSERT INTO tries (number, session, attempt, started_at, seconds, billed_as, "
        "most_input_tokens, most_output_tokens, content) VALUES (?, ?, ?, 0, 0, 1, 100, 50, ?)",
        (number, session, attempt, content),
    )


def test_a_file_tells_the_same_as_what_is_learned_as_it_is_written(connection):
    histories = {1: answered(30, 7, seconds=0.25), 2: answered(40, 9, seconds=1.7)}
    for number in (1, 2, 3):
        add_item(connection, number, b"a", session=1, state="pending")
        add_cut(connection, number, b"a")
    live = cut_off_calls(connection)
    for number, attempt in histories.items():
        live.learn(attempt)
        live.learn_input(number, b"a", [attempt])
        add_item(connection, number, b"a")
        usage = attempt.usage
        add_try(
            connection,
            number,
            2,
            usage["input_tokens"],
            usage["output_tokens"],
            seconds=attempt.seconds,
        )

    read = cut_off_calls(connection)

    assert figures(read.at_most()) == figures(live.at_most()) == [("p:m", 3, 170, 150)]
    assert figures(read.likely()) == figures(live.likely())


def test_what_was_told_is_kept_when_the_row_asks_something_else_later(connection):
    add_item(connection, 1, b"a")
    add_cut(connection, 1, b"a")
    add_try(connection, 1, 2, 30, 7)
    note_known_inputs(connection)
    add_item(connection, 1, b"b", session=3)
    add_try(connection, 1, 3, 99, 7)

    assert figures(cut_off_calls(connection).at_most()) == [("p:m", 1, 30, 50)]


@pytest.mark.parametrize(
    ("content", "session", "state"), [(b"b", 2, "done"), (b"a", 3, "done"), (b"a", 2, "running")]
)
def test_what_another_content_or_session_took_tells_nothing(connection, content, session, state):
    add_item(connection, 1, content, session, state)
    add_cut(connection, 1, b"a")
    add_try(connection, 1, 2, 30, 7)
    note_known_inputs(connection)

    assert figures(cut_off_calls(connection).at_most()) == [("p:m", 1, 100, 50)]


def test_a_run_that_nobody_killed_has_none(connection):
    add_item(connection, 1, b"a")
    add_try(connection, 1, 2, 30, 7)

    assert cut_off_calls(connection) is None
