"""Texts and numbers of other types than Python's own, as those: numpy's, and whatever inherits."""

from __future__ import annotations

from typing import Any


def as_plain(value: Any) -> Any:
    """Return what an encoder can write of a value that it does not know.

    Raises:
        TypeError: It is neither a text or a number of a type that inherits Python's own, nor one of
            numpy's numbers and arrays.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        return int.__int__(value)
    raise TypeError(f"a {type(value).__name__} is no plain data")
