"""Text of strangers, made fit to be shown."""

from __future__ import annotations

import re
import unicodedata

#: C0 and C1 controls, and the marks that reorder what is shown.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def width(text: str) -> int:
    """Return the cells that ``text`` takes in a terminal: wide characters two, marks none."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def safe(text: object, limit: int = 500) -> str:
    """Return ``text`` without control characters, on one line, ``limit`` characters at the most."""
    cleaned = _UNSAFE.sub(" ", str(text)[: limit + 1])
    cleaned = cleaned.encode("utf-8", "replace").decode()
    return cleaned if len(cleaned) <= limit else f"{cleaned[: limit - 1]}…"


def cut(text: str, cells: int) -> str:
    """Return as much of the beginning of ``text`` as fits into so many cells of a terminal."""
    text = text[:cells]
    while width(text) > cells:
        text = text[:-1]
    return text


def counted(number: int, noun: str) -> str:
    """Return ``1 row``, ``2,000 rows``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def described(error: BaseException) -> str:
    """Return ``ExceptionType: message``, whatever the exception does when it is printed."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a stranger's ``__str__``
        return f"{type(error).__name__}: (its message cannot be printed)"
