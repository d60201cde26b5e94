"""Make hostile text fit for a terminal. It does not escape for HTML; the report does that."""

from __future__ import annotations

import re
import unicodedata

_CONTROLS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
_BLANKS = "\t\n\r\u2028\u2029"


def _replacement(found: re.Match[str]) -> str:
    character = found[0]
    if character in _BLANKS:
        return " "
    return "\ufffd" if "\ud800" <= character <= "\udfff" else ""


def safe(text: str) -> str:
    """Return ``text`` as one line without control characters.

    Tabs and line ends become spaces, lone surrogates become U+FFFD, other C0, C1 and bidi
    controls are removed.
    """
    return _CONTROLS.sub(_replacement, text)


def columns_of(text: str) -> int:
    """Return how many terminal columns a safe text takes: 2 for wide characters, 0 for marks."""
    if text.isascii():
        return len(text)
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def clip(text: str, columns: int) -> str:
    """Return a safe text cut to at most ``columns`` terminal columns, with ``…`` where it was cut.

    Args:
        text: Safe text.
        columns: At least 1.
    """
    if columns_of(text) <= columns:
        return text
    kept, used = [], 0
    for character in text:
        used += _width(character)
        if used > columns - 1:
            break
        kept.append(character)
    return "".join(kept) + "…"
