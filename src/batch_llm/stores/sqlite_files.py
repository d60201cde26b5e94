"""What all SQLite files of this package share: transactions, and why SQLite refused, in words."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Why it refuses, by what its message says.
REASONS = {
    "is full": "the disk is full",
    "readonly": "it cannot be written",
    "unable to open": "it cannot be opened; is its folder there, and writable?",
    "is locked": "another program holds it",
    "malformed": "it is damaged",
    "not a database": "it is damaged, or another program's",
    "disk I/O": "the disk reports an error",
}


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Do all that the block does, or nothing of it when it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise


def reason_of(error: BaseException, reasons: Mapping[str, str] = REASONS) -> str:
    """Say in people's words why SQLite, or the system, refused.

    Args:
        error: What was raised.
        reasons: Words for people, by what SQLite's message says.
    """
    if isinstance(error, FileExistsError):
        return "its folder is a file"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    for words, reason in reasons.items():
        if words in text:
            return f"{reason} ({text})"
    return text
