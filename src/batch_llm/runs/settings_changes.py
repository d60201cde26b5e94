"""Which settings change a run's answers, and how those of two sessions differ."""

from __future__ import annotations

import os
from hashlib import blake2b
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.core.text import safe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batch_llm.core.schema import OutputSchema
    from batch_llm.runs.brief import Brief

_SHOWN_CHARACTERS, _NAME_CHARACTERS = 40, 100
#: Of what two texts have in common, so much is shown before the first difference.
_BEFORE_DIFFERENCE = 12
#: Of two output schemas; whoever changed more wants to see no more.
_MOST_PARTS = 5
_ABSENT = "-"


def settings_of(brief: Brief, format: str) -> dict[str, str]:  # noqa: A002 - the shape of its input
    """Return everything that changes the answers, by name; with what is left out as "-".

    Not the server: a model may move from one machine to another. That is told, not refused.
    """
    source = _ABSENT if brief.input == "-" else os.path.relpath(brief.input)
    found = {
        "input": source,
        "format": format,
        "id column": brief.id_column or _ABSENT,
        "model": brief.model,
        "prompt": brief.prompt or _ABSENT,
        "system": brief.system or _ABSENT,
        "schema": _ABSENT if brief.shape is None else digest_of(_shape(brief.shape)),
    }
    if brief.image is not None:
        found["image column"] = brief.image
    if brief.agent is not None:
        found |= {"agent": brief.agent.name, "agent version": brief.agent.version or _ABSENT}
    settings = brief.settings
    for name in ("temperature", "max_tokens", "top_p", "seed", "stop"):
        value = getattr(settings, name)
        if value is not None:
            found[name] = repr(value)
    return found | {name: repr(value) for name, value in settings.extra.items()}


def digest_of(text: str) -> str:
    """Return a short digest: 16 digits."""
    return blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()


def shape_facts(shape: OutputSchema | None) -> dict[str, Any] | None:
    """Return an output schema as plain data."""
    if shape is None:
        return None
    return {"name": shape.name, "schema": shape.schema, "is_strict": shape.is_strict}


def differences(
    before: Mapping[str, str],
    now: Mapping[str, str],
    shape_before: Mapping[str, Any] | None,
    shape_now: OutputSchema | None,
) -> dict[str, tuple[str, str]]:
    """Return what is different, by name: what it was, and what it is; each fit to be shown.

    Args:
        before: What ``settings_of`` said then.
        now: What it says now.
        shape_before: The output schema of then, as ``shape_facts`` has it.
        shape_now: That of now.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in [*now, *(name for name in before if name not in now)]:
        pair = before.get(name, _ABSENT), now.get(name, _ABSENT)
        if pair[0] == pair[1]:
            continue
        parts = {}
        if name == "schema" and shape_before is not None and shape_now is not None:
            parts = dict(_parts(name, shape_before, shape_facts(shape_now)))
        for part, texts in list(parts.items())[:_MOST_PARTS] or [(name, pair)]:
            found[safe(part, _NAME_CHARACTERS)] = _shown(*texts)
    return found


def _parts(name: str, before: Any, now: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    """Give the parts in which two pieces of plain data differ, by where they are."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in before if key not in now)]:
            # What is in a schema is at its root; the name of the schema, beside it.
            place = name if key == "schema" else f"{name}.{key}"
            yield from _parts(place, before.get(key), now.get(key))
    elif before != now or type(before) is not type(now):
        yield name, (_written(before), _written(now))


def _written(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return _ABSENT if value is None else msgspec.json.encode(value).decode()


def _shape(shape: OutputSchema) -> str:
    return repr((shape.name, shape.is_strict, shape.schema))


def _shown(before: str, now: str) -> tuple[str, str]:
    """Shorten two texts, from their first difference on where that is far into them."""
    short = safe(before, _SHOWN_CHARACTERS), safe(now, _SHOWN_CHARACTERS)
    if short[0] != short[1]:
        return short
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, now)))  # noqa: B905 - the rest differs
    start = max(0, same - _BEFORE_DIFFERENCE)
    tails = [f"…{safe(text[start:], _SHOWN_CHARACTERS - 1)}" for text in (before, now)]
    if tails[0] != tails[1]:
        return tails[0], tails[1]
    # They differ in characters that are not shown.
    return digest_of(before), digest_of(now)
