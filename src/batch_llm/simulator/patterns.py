"""Texts that match a regular expression, for the ``pattern`` of a JSON schema."""

from __future__ import annotations

import importlib
import re
import string
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

# The standard library has no public parse tree of expressions. Its own has had these node names
# since long before 3.11; a node that is unknown here ends in ValueError, never in a wrong text.
_parse = importlib.import_module("re._parser").parse

#: What an unbounded repeat adds to its minimum at the most.
_MORE = 4
_ANY = string.ascii_letters + string.digits + " -_.,"
_CATEGORIES = {
    "CATEGORY_DIGIT": string.digits,
    "CATEGORY_WORD": string.ascii_letters + string.digits + "_",
    "CATEGORY_SPACE": " ",
    "CATEGORY_NOT_DIGIT": string.ascii_letters,
    "CATEGORY_NOT_WORD": " -.,",
    "CATEGORY_NOT_SPACE": string.ascii_letters + string.digits,
}


def matching(pattern: str, dice: random.Random) -> str:
    """Return a text that most likely matches; look-arounds and anchors are not minded.

    Raises:
        ValueError: The pattern is broken or has parts that cannot be drawn, such as
            back-references.
    """
    try:
        return _text(_parse(pattern), dice)
    except (re.error, OverflowError) as error:
        raise ValueError(str(error)) from None


def _text(nodes: Any, dice: random.Random) -> str:
    return "".join(_one(str(kind), value, dice) for kind, value in nodes)


def _one(kind: str, value: Any, dice: random.Random) -> str:
    if kind == "LITERAL":
        return chr(value)
    if kind == "ANY":
        return dice.choice(_ANY)
    if kind == "NOT_LITERAL":
        return dice.choice([char for char in _ANY if ord(char) != value])
    if kind == "IN":
        return _of_class(value, dice)
    if kind in {"AT", "ASSERT", "ASSERT_NOT"}:
        return ""  # a condition on the rest: whoever asked checks it
    if kind == "SUBPATTERN":
        return _text(value[-1], dice)
    if kind == "BRANCH":
        return _text(dice.choice(value[1]), dice)
    if kind in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
        low, high, nodes = value
        times = dice.randint(low, min(int(high), low + _MORE))
        return "".join(_text(nodes, dice) for _ in range(times))
    raise ValueError(f"cannot draw {kind}")


def _of_class(members: Any, dice: random.Random) -> str:
    kinds = [str(kind) for kind, _ in members]
    if kinds[0] != "NEGATE":
        kind, value = dice.choice(members)
        return _member(str(kind), value, dice)
    rest = [char for char in _ANY if not _is_in(char, members[1:])]
    if not rest:
        raise ValueError("a class that leaves nothing to draw")
    return dice.choice(rest)


def _member(kind: str, value: Any, dice: random.Random) -> str:
    if kind == "LITERAL":
        return chr(value)
    if kind == "RANGE":
        return chr(dice.randint(*value))
    return dice.choice(_CATEGORIES[str(value)])


def _is_in(char: str, members: Any) -> bool:
    for kind, value in members:
        if str(kind) == "LITERAL" and ord(char) == value:
            return True
        if str(kind) == "RANGE" and value[0] <= ord(char) <= value[1]:
            return True
        if str(kind) == "CATEGORY" and char in _CATEGORIES[str(value)]:
            return True
    return False
