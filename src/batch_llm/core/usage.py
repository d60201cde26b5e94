"""Tokens: read from whatever shape they come in, and summed over attempts.

Inside, usage is a plain ``dict[str, int]`` with ``input_tokens``, ``output_tokens`` and
``total_tokens``, and further kinds where they are known. It never needs a class of its own: all
that is done with it is adding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

#: Of one call. More is nonsense of a server, and taken as this many: sums of millions of them are
#: numbers that a file can hold, and whose squares are numbers at all.
MOST_TOKENS = 2**40
_MOST_OF_A_KIND = MOST_TOKENS // 2
#: Where each of our kinds is found, in order of preference.
_NAMES = {
    "input_tokens": ("input_tokens", "request_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "response_tokens", "completion_tokens"),
    "total_tokens": ("total_tokens",),
    "cache_read_tokens": ("cache_read_tokens",),
    "cache_write_tokens": ("cache_write_tokens",),
    "cache_write_1h_tokens": ("cache_write_1h_tokens",),
    "reasoning_tokens": ("reasoning_tokens", "output_reasoning_tokens"),
}
#: Names of the providers' own usage objects that count otherwise than ours.
_OWN_NAMES = (
    "cache_creation_input_tokens",
    "prompt_token_count",
    "prompt_tokens_details",
    "input_tokens_details",
)
_ALL_NAMES = (
    *(name for names in _NAMES.values() for name in names),
    "prompt_token_count",
)
_ALWAYS = ("input_tokens", "output_tokens", "total_tokens")
_ALWAYS_KEYS = set(_ALWAYS)
_take_always = itemgetter(*_ALWAYS)

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

    Old names (``request_tokens``, ``response_tokens``) and new ones are understood, and the usage
    objects of OpenAI, Anthropic (whose input is told without that from and to caches) and Gemini
    (whose output is told without what was thought). Whatever is not a whole number of tokens is
    taken as absent, and a missing total is the sum.

    Returns:
        The usage, or None when ``source`` holds no token counts, or fails when it is looked at.
    """
    if source is None:
        return None
    if type(source) is dict and source.keys() == _ALWAYS_KEYS:  # as it is meant to be
        sent, got, total = _take_always(source)
        if (
            type(sent) is type(got) is type(total) is int
            and 0 <= sent <= _MOST_OF_A_KIND
            and 0 <= got <= _MOST_OF_A_KIND
            and 0 <= total <= MOST_TOKENS
        ):
            usage = source.copy()
            if not total:
                usage["total_tokens"] = sent + got
            return usage
    try:
        return _read(source)
    except Exception:  # noqa: BLE001 - a stranger's object; its failure must not become the item's
        return None


def _read(source: object) -> dict[str, int] | None:
    own = _read_own(source)
    if own is not None:
        return own
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
                    most = MOST_TOKENS if kind == "total_tokens" else _MOST_OF_A_KIND
                    usage[kind] = min(int(value), most)
                break
    if not usage:
        return None
    usage.setdefault("input_tokens", 0)
    usage.setdefault("output_tokens", 0)
    if not usage.get("total_tokens"):
        usage["total_tokens"] = usage["input_tokens"] + usage["output_tokens"]
    return usage


def _read_own(source: object) -> dict[str, int] | None:
    """Read a provider's own usage object, as it is on the wire or in its SDK."""
    if isinstance(source, Mapping):
        if source.keys().isdisjoint(_OWN_NAMES):
            return None
    elif not any(hasattr(source, name) for name in _OWN_NAMES):
        return None
    get = _getter(source)
    if get("prompt_token_count") is not None:
        return _read_gemini(get)
    sent = _first(get, _NAMES["input_tokens"])
    got = _first(get, _NAMES["output_tokens"])
    of_input = _getter(get("prompt_tokens_details") or get("input_tokens_details"))
    of_output = _getter(get("completion_tokens_details") or get("output_tokens_details"))
    read, written, hour = of_input("cached_tokens"), of_input("cache_write_tokens"), None
    if get("cache_creation_input_tokens") is not None:
        read, written = get("cache_read_input_tokens"), get("cache_creation_input_tokens")
        hour = _getter(get("cache_creation"))("ephemeral_1h_input_tokens")
        sent += _count(read) + _count(written)
    thought = of_output("reasoning_tokens") or of_output("thinking_tokens")
    return _usage_of_kinds(sent, got, read, written, hour, thought)


def _read_gemini(get: Callable[[str], Any]) -> dict[str, int]:
    sent = _count(get("prompt_token_count")) + _count(get("tool_use_prompt_token_count"))
    thought = _count(get("thoughts_token_count"))
    got = _count(get("candidates_token_count")) + thought
    return _usage_of_kinds(sent, got, get("cached_content_token_count"), None, None, thought)


def _usage_of_kinds(
    sent: int, got: int, read: Any, written: Any, hour: Any, thought: Any
) -> dict[str, int]:
    sent, got = min(sent, _MOST_OF_A_KIND), min(got, _MOST_OF_A_KIND)
    usage = {"input_tokens": sent, "output_tokens": got, "total_tokens": sent + got}
    kinds = {
        "cache_read_tokens": read,
        "cache_write_tokens": written,
        "cache_write_1h_tokens": hour,
        "reasoning_tokens": thought,
    }
    usage.update({kind: _count(tokens) for kind, tokens in kinds.items() if _count(tokens)})
    return usage


def usage_by_kind(
    sent: int,
    got: int,
    *,
    read: int | None = None,
    written: int | None = None,
    written_1h: int | None = None,
    thought: int | None = None,
) -> dict[str, int]:
    """Return the usage of one call. Counts below 0 are nonsense of a server, and count as 0.

    So are more than half of ``MOST_TOKENS``, and count as so many.

    Kinds are contained in their totals, whatever a server says: where its parts are more than their
    total, the total is raised. Kinds of which nothing was told (None) are left out.

    Args:
        sent: All input, that from and to caches included.
        got: All output, reasoning included.
        read: Input that was read from a cache.
        written: Input that was written to one.
        written_1h: Of that, written for an hour.
        thought: Output that was thought and not said.
    """
    if written_1h is not None:
        written_1h = max(0, written_1h)
        written = max(written or 0, written_1h)
    read = None if read is None else max(0, read)
    written = None if written is None else max(0, written)
    thought = None if thought is None else max(0, thought)
    sent = max(0, sent, (read or 0) + (written or 0))
    got = max(0, got, thought or 0)
    if sent > _MOST_OF_A_KIND or got > _MOST_OF_A_KIND:
        sent, got = min(sent, _MOST_OF_A_KIND), min(got, _MOST_OF_A_KIND)
        read = None if read is None else min(read, sent)
        written = None if written is None else min(written, sent - (read or 0))
        written_1h = None if written_1h is None else min(written_1h, written or 0)
        thought = None if thought is None else min(thought, got)
    usage = {"input_tokens": sent, "output_tokens": got, "total_tokens": sent + got}
    if read is not None:
        usage["cache_read_tokens"] = read
    if written is not None:
        usage["cache_write_tokens"] = written
    if written_1h is not None:
        usage["cache_write_1h_tokens"] = written_1h
    if thought is not None:
        usage["reasoning_tokens"] = thought
    return usage


def count_of(value: object) -> int | None:
    """Return a told number of tokens; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None


def _getter(source: Any) -> Callable[[str], Any]:
    if isinstance(source, Mapping):
        return source.get
    return lambda name: getattr(source, name, None)


def _first(get: Callable[[str], Any], names: tuple[str, ...]) -> int:
    return next((_count(get(name)) for name in names if get(name) is not None), 0)


def _count(value: Any) -> int:
    is_whole = isinstance(value, int | float) and value == value // 1 and value >= 0
    return min(int(value), _MOST_OF_A_KIND) if is_whole else 0


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


def equal_parts(spent: object) -> tuple[tuple[str, dict[str, int]], ...] | None:
    """Part a run's usage among its ``requests``, as equally as whole tokens allow.

    Returns:
        For each, an empty name and its usage; their sum is the run's. None for a single request,
        and where nobody knows how many there were.
    """
    count, usage = _attribute(spent, "requests"), read_usage(spent)
    if not isinstance(count, int) or count <= 1 or not usage:
        return None
    # What is contained in another kind is so in each part, too: both have their rest first.
    return tuple(
        ("", {kind: many // count + (number < many % count) for kind, many in usage.items()})
        for number in range(count)
    )


def tokens(usage: Mapping[str, object] | None, kind: str) -> int:
    """Return one kind of a result's tokens; a hook may have left anything there."""
    found = usage.get(kind) if usage else 0
    return found if isinstance(found, int) else 0


def _attribute(source: object, name: str) -> object:
    try:
        return getattr(source, name, None)
    except Exception:  # noqa: BLE001 - a stranger's property; its failure must not hide the item's
        return None
