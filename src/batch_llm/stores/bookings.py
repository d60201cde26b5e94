"""What a ledger's run has spent, and the calls of which a crash has left nothing but a note."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.core.prices import CONTEXT_STARTS, ModelUsage
from batch_llm.stores.base import INTERRUPTED, Spent
from batch_llm.stores.call_notes import read_notes
from batch_llm.stores.statements import statements
from batch_llm.stores.values import usage_columns
from batch_llm.strategies.caps import FEW_ANSWERS, Bounds, Size

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable
    from pathlib import Path

    from batch_llm.stores.call_notes import BilledAs, CallNote, CallNotes
    from batch_llm.stores.cut_off import CutOff

_UNANSWERED = "the process ended while the call was under way; nobody knows what it took"
_UNSAVED = "the process ended before the answer was saved"
_KINDS = ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens")


def book_left(connection: sqlite3.Connection, notes: CallNotes) -> None:
    """Book the calls that an earlier process has left under way, once."""
    sql, session = statements(), notes.session
    if session is None or _has_booked(connection, session):
        return
    left = _unbooked(connection, notes.left())
    if left:
        longest, answers = connection.execute(sql["longest_output"]).fetchone()
        of_output = Bounds()
        for _ in range(min(answers, FEW_ANSWERS)):
            of_output.learn(Size(0), 0, longest)
        names = booked_under(connection)
        for note in left:
            _book_note(connection, note, session, of_output, names)
    connection.execute(sql["has_booked_calls"], (session,))


def not_booked_yet(connection: sqlite3.Connection, path: Path) -> list[CallNote]:
    """Return the notes in a file that the next session will book, or that are under way now."""
    found = read_notes(path)
    if found is None or _has_booked(connection, found[0]):
        return []
    return _unbooked(connection, found[1])


def _has_booked(connection: sqlite3.Connection, session: int) -> bool:
    """Tell whether a session's notes are booked, or it is none of this file's."""
    found = connection.execute(statements()["calls_of_session"], (session,)).fetchone()
    return found is None or bool(found[0])


def _unbooked(connection: sqlite3.Connection, notes: Iterable[CallNote]) -> list[CallNote]:
    left = list(notes)
    if not left:
        return left
    # The process may have ended between the saving of a group and the end of its notes.
    booked = set(connection.execute(statements()["last_tries"]))
    return [note for note in left if (note.number, note.attempt, note.started_at) not in booked]


def _book_note(
    connection: sqlite3.Connection,
    note: CallNote,
    session: int,
    of_output: Bounds,
    names: dict[BilledAs, int],
) -> None:
    sql = statements()
    number = 0  # of no item: its id was too long for a note
    if note.key is not None:
        number = note.number
        connection.execute(sql["add_pending"], (number, _key(note.key), note.content, session))
    name = note.billed_as or ("", "", "standard")
    if name not in names:
        names[name] = len(names) + 1
        connection.execute(sql["billed_as"], (names[name], *name))
    sent = got = further = most_sent = most_got = None
    if note.usage is not None:
        sent, got, further, _ = usage_columns(note.usage)
    else:
        size = Size._make(note.size)
        # Of input, what single answers have taught is gone: as many tokens as bytes.
        most_sent, most_got = Bounds().input_tokens(size), of_output.output_tokens(size)
    error = _UNANSWERED if note.usage is None else _UNSAVED
    connection.execute(
        sql["cut_off"],
        (number, session, note.attempt, note.started_at, sent, got, further, INTERRUPTED, error,
         names[name], most_sent, most_got, None if most_got is None else note.content),
    )  # fmt: skip


def _key(key: bytes) -> str | bytes:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def booked_under(connection: sqlite3.Connection) -> dict[BilledAs, int]:
    """Return the names under which tokens are counted, with their numbers."""
    rows = connection.execute(statements()["all_billed_as"])
    return {(model, server, tier): number for model, server, tier, number in rows}


def spent_so_far(connection: sqlite3.Connection) -> list[ModelUsage]:
    """Sum up all calls that are booked with their tokens, by model and context class."""
    return [
        ModelUsage(
            model=model or "", server=server or "", tier=tier or "standard", context=context,
            calls=known, unmeasured_calls=count - known, input_tokens=sent or 0,
            output_tokens=got or 0, **dict(zip(_KINDS, kinds, strict=True)),
        )
        for model, server, tier, context, count, known, sent, got, *kinds in connection.execute(
            _SUMS
        )
    ]  # fmt: skip


def spent_in_all(usage: list[ModelUsage], cut_off: CutOff | None) -> Spent:
    """Put together what is known, and what may be."""
    if cut_off is None:
        return Spent(usage, [])
    return Spent(usage, cut_off.at_most(), cut_off.likely())


def _sums() -> str:
    context = " + ".join(f"(input_tokens > {start})" for start in CONTEXT_STARTS)
    kinds = ", ".join(
        f"coalesce(sum(CASE WHEN usage IS NOT NULL THEN json_extract(usage, '$.{kind}') END), 0)"
        for kind in _KINDS
    )
    return f"""
        SELECT model, server, tier, coalesce({context}, 0) AS context, count(*),
               count(input_tokens), sum(input_tokens), sum(output_tokens), {kinds}
        FROM tries LEFT JOIN billed_as ON id = billed_as
        WHERE most_output_tokens IS NULL
          AND (billed_as IS NOT NULL OR input_tokens + output_tokens > 0)
        GROUP BY billed_as, context
    """  # noqa: S608 - of our own names alone


_SUMS = _sums()
