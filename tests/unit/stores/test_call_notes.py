from __future__ import annotations

import errno
import math
import os

import pytest

from batch_llm.stores import call_notes
from batch_llm.stores.call_notes import CallNotes, read_notes
from batch_llm.strategies.caps import Size

MOST = 2**63 - 1
NAMED = ("p:m", "", "standard")
USAGE = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12, "reasoning_tokens": 3}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "calls"


def noted(path, count, *, key=b"id", is_held=False):
    notes, size = CallNotes(path), Size(10, 20, None, False, 3, None)
    notes.begin(3)
    return notes, [
        notes.note(n + 1, key, b"d" * 16, 2, NAMED, 1.5, size, is_held=is_held)
        for n in range(count)
    ]


def test_what_was_noted_is_there_without_closing_anything(path):
    _, places = noted(path, 2)
    places[1].took(USAGE)

    found = CallNotes(path)  # a killed process closes nothing

    first, second = sorted(found.left())
    assert found.session == 3
    assert (first.number, first.key, first.content, first.attempt) == (1, b"id", b"d" * 16, 2)
    assert (first.billed_as, first.started_at, first.usage) == (NAMED, 1.5, None)
    assert first.size == (10, 20, None, False, 3, None)
    assert second.usage == USAGE


@pytest.mark.parametrize(
    ("number", "started_at"),
    [(-1, 1.5), (2**63 - 1, 1.5), (1, math.nan), (1, math.inf), (1, -math.inf)],
)
def test_a_note_that_nobody_can_have_written_is_none(path, number, started_at):
    notes = CallNotes(path)
    notes.begin(3)

    notes.note(number, b"id", b"d" * 16, 2, NAMED, started_at, Size(10))

    assert list(notes.left()) == []
    assert read_notes(path) == (3, [])


def test_sizes_that_no_call_has_are_no_sums_that_no_file_can_hold(path):
    notes = CallNotes(path)
    notes.begin(3)

    notes.note(1, b"id", b"d" * 16, 2, NAMED, 1.5, Size(MOST, -5, MOST, False, MOST, None))

    (found,) = notes.left()
    assert found.size == (2**40, 0, 2**40, False, 2**40, None)


def test_what_is_no_file_has_no_notes(path):
    os.mkfifo(path)

    assert read_notes(path) is None


def test_what_was_let_go_of_is_gone_and_its_place_is_used_again(path):
    notes, places = noted(path, 3)
    places[1].took(USAGE)
    notes.let_go([places[1].at])
    assert sorted(note.number for note in notes.left()) == [1, 3]

    assert notes.note(9, b"b", b"", 1, NAMED, 0.0, Size(0)).at == places[1].at

    assert {note.number: note.usage for note in notes.left()} == {1: None, 3: None, 9: None}


@pytest.mark.parametrize(
    ("told", "noted_as"),
    [
        ({"total_tokens": 12, "output_tokens": 5, "input_tokens": 7}, (7, 5, 12)),
        ({"input_tokens": 7, "output_tokens": 5, "reasoning_tokens": 3}, (7, 5, 0)),
        ({"input_tokens": -7, "output_tokens": 5, "total_tokens": 12}, (0, 5, 12)),
        ({"input_tokens": 2**64, "output_tokens": 5, "total_tokens": 2**63}, (MOST, 5, MOST)),
    ],
)
def test_tokens_are_noted_by_kind_as_far_as_a_ledger_can_hold_them(path, told, noted_as):
    notes, places = noted(path, 1)
    places[0].took(told)

    usage = next(notes.left()).usage

    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == noted_as


def test_tokens_that_were_not_told_to_the_end_are_not_known(path):
    notes, places = noted(path, 1)
    places[0].took(USAGE)
    last = max(at for at in range(places[0].at, places[0].at + 256) if notes.map[at])
    notes.map[last] = 0  # killed before the last byte was written

    assert next(notes.left()).usage is None


def test_it_grows_and_keeps_what_it_has(path):
    noted(path, 1000)

    assert sorted(note.number for note in CallNotes(path).left()) == list(range(1, 1001))


def test_a_note_that_is_not_whole_is_none(path):
    notes, places = noted(path, 1)
    notes.map[places[0].at : places[0].at + 8] = (5).to_bytes(
        8, "little"
    )  # killed after the first field

    assert list(notes.left()) == []


def test_an_id_that_is_too_long_is_left_out(path):
    notes, _ = noted(path, 1, key=b"x" * 65)
    assert [note.key for note in notes.left()] == [None]
    notes, _ = noted(path, 1, key=b"x" * 64)
    assert [note.key for note in notes.left()] == [b"x" * 64]


def test_names_beyond_the_room_are_not_known(path):
    notes = CallNotes(path)
    notes.begin(1)
    for n in range(100):
        notes.note(n + 1, b"", b"", 1, (f"{n}:" + "m" * 100, "", ""), 0.0, Size(0))

    named = [note.billed_as for note in notes.left()]

    assert named.count(None) > 0
    assert (f"{0}:" + "m" * 100, "", "") in named


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\xff" * 5000, b"\0" * (4096 + 256)])
def test_a_file_with_anything_else_has_no_notes(path, content):
    path.write_bytes(content)

    notes = CallNotes(path)

    assert notes.session is None
    notes.begin(1)
    assert list(notes.left()) == []


def test_a_call_that_has_not_left_the_process_is_not_noted_until_it_does(path):
    notes, places = noted(path, 2, is_held=True)
    assert list(notes.left()) == []

    places[1].goes()

    assert [note.number for note in CallNotes(path).left()] == [2]
    notes.let_go([places[0].at])
    notes.note(7, b"b", b"", 1, NAMED, 0.0, Size(0))
    assert sorted(note.number for note in notes.left()) == [2, 7], "a new note is not held"


def test_notes_are_read_without_a_change_while_they_are_written(path):
    assert read_notes(path) is None
    notes, places = noted(path, 3)
    notes.let_go([places[0].at])
    before = path.read_bytes()

    session, found = read_notes(path)

    assert (session, sorted(note.number for note in found)) == (3, [2, 3])
    assert path.read_bytes() == before
    path.write_bytes(b"rubbish")
    assert read_notes(path) is None


def test_what_is_told_when_the_file_is_closed_is_written_nowhere(path):
    notes, (place,) = noted(path, 1, is_held=True)
    before = path.read_bytes()

    notes.close()
    place.goes()
    place.took(USAGE)

    assert path.read_bytes() == before


def test_notes_go_on_when_the_file_has_grown(path):
    _, places = noted(path, 300, is_held=True)

    places[0].goes()
    places[0].took(USAGE)

    assert [(note.number, note.usage) for note in CallNotes(path).left()] == [(1, USAGE)]


def test_on_a_full_disk_calls_go_without_notes_and_those_there_are_kept(path, monkeypatch):
    def extend(file, count):
        file.seek(0, 2)
        file.write(bytes(count // 2 + 7))
        raise OSError(errno.ENOSPC, "No space left on device")

    notes, places = noted(path, 256)
    whole = path.stat().st_size
    monkeypatch.setattr(call_notes, "_extend", extend)
    arguments = (257, b"id", b"d" * 16, 2, NAMED, 1.5, Size(10))

    assert notes.note(*arguments) is None
    assert path.stat().st_size == whole
    notes.let_go([places[0].at])
    assert notes.note(*arguments) is not None
    monkeypatch.undo()
    assert notes.note(*arguments) is not None, "there is room again"
    assert len(list(CallNotes(path).left())) == 257


def test_what_was_noted_is_kept_though_a_kill_came_while_the_file_grew(path):
    noted(path, 256)
    with path.open("ab") as file:
        file.write(bytes(1000))

    assert len(list(CallNotes(path).left())) == 256
    assert path.stat().st_size % 256 == 0


def test_calls_go_without_notes_where_the_file_was_removed(path):
    notes, _ = noted(path, 256)
    path.unlink()

    assert notes.note(257, b"id", b"d" * 16, 2, NAMED, 1.5, Size(10)) is None
