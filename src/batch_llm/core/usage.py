"""Tokens: read from whatever shape they come in, and summed over attempts.

Inside, usage is a plain ``dict[str, int]`` with ``input_tokens``, ``output_tokens`` and
``total_tokens``, and further kinds where they are known. It never needs a class of its own: all
that is done with it is adding.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Where each of our kinds is found, in order of preference.
_NAMES = {
    "input_tokens": ("input_tokens", "request_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "response_tokens", "completion_tokens"),
    "total_tokens": ("total_tokens",),
    "cache_read_tokens": ("cache_read_tokens",),
    "cache_write_tokens": ("cache_write_tokens",),
    "reasoning_tokens": ("reasoning_tokens", "output_reasoning_tokens"),
}
_ALL_NAMES = tuple(name for names in _NAMES.values() for name in names)
_ALWAYS = ("input_tokens", "output_tokens", "total_tokens")

#: The key under which old readers expect the tokens of a failed item on its last exception.
FAILED_USAGE_KEY = "_failed_token_usage"


class _AttachedUsage(dict[str, int]):
    """Usage that we attached ourselves: an exception object that is raised twice is not read."""


def no_usage() -> dict[str, int]:
    """Return the usage of nothing."""
    return {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


def add_usage(total: dict[str, int], spent: Mapping[str, int]) -> None:
    """Add ``spent`` to ``total`` in place; kinds that ``total`` lacks are added to it."""
    for kind, tokens in spent.items():
        total[kind] = total.get(kind, 0) + tokens


def read_usage(source: object) -> dict[str, int] | None:
    """Read the tokens from a mapping, a usage object, or a method that returns either.

    Old names (``request_tokens``, ``response_tokens``) and new ones are understood. Whatever is
    not a whole number of tokens is taken as absent, and a missing total is the sum.

    Returns:
        The usage, or None when ``source`` holds no token counts, or fails when it is looked at.
    """
    if source is None:
        return None
    try:
        return _read(source)
    except Exception:  # noqa: BLE001 - a stranger's object; its failure must not become the item's
        return None


def _read(source: object) -> dict[str, int] | None:
    if not isinstance(source, Mapping):
        # A usage object may itself be callable (pydantic-ai keeps the old call syntax alive), so
        # its fields are looked for before it is called.
        if not any(hasattr(source, name) for name in _ALL_NAMES):
            if not callable(source):
                return None
            source = source()
        if not isinstance(source, Mapping):
            source = {name: getattr(source, name, None) for name in _ALL_NAMES}
    usage: dict[str, int] = {}
    for kind, names in _NAMES.items():
        for name in names:
            value = source.get(name)
            if value is None:
                continue
            if type(value) is int:
                is_count = value >= 0
            else:
                is_count = isinstance(value, int | float) and value == value // 1 and value >= 0
            if is_count:
                if value or kind in _ALWAYS:
                    usage[kind] = int(value)
                break
    if not usage:
        return None
    usage.setdefault("input_tokens", 0)
    usage.setdefault("output_tokens", 0)
    if not usage.get("total_tokens"):
        usage["total_tokens"] = usage["input_tokens"] + usage["output_tokens"]
    return usage


def usage_of_error(error: BaseException) -> dict[str, int] | None:
    """Find the tokens that a failed call spent, on its exception or along its causes."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        usage = _usage_on(current)
        if usage is not None:
            return usage
        current = current.__cause__
    return None


def attach_usage(error: BaseException, usage: dict[str, int]) -> None:
    """Write an item's summed usage onto its last exception, for readers of the old contract."""
    error.__dict__[FAILED_USAGE_KEY] = _AttachedUsage(usage)


def _usage_on(error: BaseException) -> dict[str, int] | None:
    attached = error.__dict__.get(FAILED_USAGE_KEY)
    if attached is not None and not isinstance(attached, _AttachedUsage):
        return read_usage(attached)
    return usage_of(_attribute(error, "result")) or usage_of(error)


def usage_of(result: object) -> dict[str, int] | None:
    """Read the ``usage`` of a library's result; what cannot be read was not told."""
    return read_usage(_attribute(result, "usage"))


def tokens(usage: Mapping[str, object] | None, kind: str) -> int:
    """Return one kind of a result's tokens; a hook may have left anything there."""
    found = usage.get(kind) if usage else 0
    return found if isinstance(found, int) else 0


def _attribute(source: object, name: str) -> object:
    try:
        return getattr(source, name, None)
    except Exception:  # noqa: BLE001 - a stranger's property; its failure must not hide the item's
        return None
