"""What a ledger's run has spent, and the calls of which a crash has left nothing but a note."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_llm.core.prices import CONTEXT_STARTS, ModelUsage
from batch_llm.stores.base import INTERRUPTED, Spent
from batch_llm.stores.statements import statements
from batch_llm.stores.values import usage_columns
from batch_llm.strategies.caps import FEW_ANSWERS, Bounds, Size

if TYPE_CHECKING:
    import sqlite3

    from batch_llm.stores.call_notes import BilledAs, CallNote, CallNotes

_CUT_OFF = "the process ended while the call was under way; nobody knows what it took"
_UNSAVED = "the process ended before the answer was saved"
_KINDS = ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens")


def book_left(connection: sqlite3.Connection, notes: CallNotes) -> None:
    """Book the calls that an earlier process has left under way, once."""
    sql, session = statements(), notes.session
    if session is None:
        return
    is_booked = connection.execute(sql["calls_of_session"], (session,)).fetchone()
    if is_booked is None or is_booked[0]:
        return
    left = list(notes.left())
    if left:
        # The process may have ended between the saving of a group and the end of its notes.
        booked = set(connection.execute(sql["last_tries"]))
        longest, answers = connection.execute(sql["longest_output"]).fetchone()
        of_output = Bounds()
        for _ in range(min(answers, FEW_ANSWERS)):
            of_output.learn(Size(0), 0, longest)
        names = booked_under(connection)
        for note in left:
            if (note.number, note.attempt, note.started_at) not in booked:
                _book_note(connection, note, session, of_output, names)
    connection.execute(sql["has_booked_calls"], (session,))


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
    error = _CUT_OFF if note.usage is None else _UNSAVED
    connection.execute(
        sql["cut_off"],
        (number, session, note.attempt, note.started_at, sent, got, further, INTERRUPTED, error,
         names[name], most_sent, most_got),
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


def spent_so_far(connection: sqlite3.Connection) -> Spent:
    """Sum up all calls that are booked, by model and context class."""
    usage = [
        ModelUsage(
            model=model or "", server=server or "", tier=tier or "standard", context=context,
            calls=known, unmeasured_calls=count - known, input_tokens=sent or 0,
            output_tokens=got or 0, **dict(zip(_KINDS, kinds, strict=True)),
        )
        for model, server, tier, context, count, known, sent, got, *kinds in connection.execute(
            _sums("input_tokens", "output_tokens", "most_output_tokens IS NULL")
        )
    ]  # fmt: skip
    at_most = [
        ModelUsage(
            model=model, server=server, tier=tier, context=context, calls=count, input_tokens=sent,
            output_tokens=got,
        )
        for model, server, tier, context, count, _, sent, got, *_ in connection.execute(
            _sums("most_input_tokens", "most_output_tokens", "most_output_tokens IS NOT NULL")
        )
    ]  # fmt: skip
    return Spent(usage, at_most)


def _sums(sent: str, got: str, which: str) -> str:
    context = " + ".join(f"({sent} > {start})" for start in CONTEXT_STARTS)
    kinds = ", ".join(
        f"coalesce(sum(CASE WHEN usage IS NOT NULL THEN json_extract(usage, '$.{kind}') END), 0)"
        for kind in _KINDS
    )
    return f"""
        SELECT model, server, tier, coalesce({context}, 0) AS context, count(*), count({sent}),
               sum({sent}), sum({got}), {kinds}
        FROM tries LEFT JOIN billed_as ON id = billed_as
        WHERE {which} AND (billed_as IS NOT NULL OR input_tokens + output_tokens > 0)
        GROUP BY billed_as, context
    """  # noqa: S608 - of our own names alone
