"""The SQL of the stores: named statements and numbered migrations, from their files."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_VALUES = re.compile(r"VALUES (\((?:\?, )*\?\))")
_MIGRATION = re.compile(r"migration_(\d+)\.sql")


@cache
def statements(file: str = "statements.sql") -> dict[str, str]:
    """Return all statements of a file by name; by default, the ledger's."""
    _, *parts = _NAME.split((files("batch_llm.stores") / "sql" / file).read_text())
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: text.strip().removesuffix(";") for name, text in pairs}


@cache
def many(name: str, rows: int, file: str = "statements.sql") -> str:
    """Return a statement for so many rows at once.

    ``executemany`` hands the interpreter to other threads for every single row, and waits to get it
    back: beside a busy event loop that costs ten times what the row does.
    """
    return _VALUES.sub(lambda row: f"VALUES {', '.join([row[1]] * rows)}", statements(file)[name])


@cache
def migrations() -> dict[int, str]:
    """Return the scripts that make each version of the schema from the one before, in order."""
    found = {
        int(match[1]): entry.read_text()
        for entry in (files("batch_llm.stores") / "sql").iterdir()
        if (match := _MIGRATION.fullmatch(entry.name))
    }
    return dict(sorted(found.items()))
