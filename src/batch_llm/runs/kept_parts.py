"""Which parts of an output file stay as they are when its run goes on."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from batch_llm.runs.passing import DONE, IN_PLACE, TO_DO, WRITTEN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batch_llm.outputs.notes import Part
    from batch_llm.runs.passing import Passing


def keep_parts(
    passing: Passing,
    parts: Iterable[tuple[int, Part]],
    *,
    keeps_order: bool,
    has_header: bool = False,
) -> list[tuple[int, Part]]:
    """Return the parts of an output that can be left as they are, each with its place in it.

    Their rows are done, and are the same: they need not be written. Where the output has its rows
    in the order of the input, these are the first of its parts, and no row before theirs is
    missing. Otherwise they may be any: their rows may have moved, and be noted anew.

    Args:
        passing: What is done, after its survey.
        parts: What the output has, each with its place.
        keeps_order: Whether it has its rows in the order of the input.
        has_header: Whether its first part begins with what all others need.
    """
    if keeps_order:
        return _first_parts(passing.lines, parts)
    lines, moved = passing.lines, passing.moved_lines()
    # A row of a block that was read is another one, perhaps; no line is moved to it.
    the_same = {IN_PLACE} if moved is None else {IN_PLACE, DONE}
    kept: list[tuple[int, Part]] = []
    for place, part in parts:
        if has_header and place and not kept:
            break
        if moved is not None:
            now = [moved[row] if row < len(moved) else 0 for row in part.lines()]
            part.rows = array("I", now).tobytes()
        rows = part.lines()
        if max(rows, default=0) < len(lines) and all(lines[row] in the_same for row in rows):
            for row in rows:
                lines[row] = WRITTEN
            kept.append((place, part))
    return kept


def _first_parts(lines: bytearray, parts: Iterable[tuple[int, Part]]) -> list[tuple[int, Part]]:
    kept: list[tuple[int, Part]] = []
    end = 0
    for place, part in parts:
        rows = part.lines()
        if place > end or max(rows, default=0) >= len(lines):
            break
        if any(lines[row] != IN_PLACE for row in rows):
            break
        for row in rows:
            lines[row] = WRITTEN
        kept.append((place, part))
        end += part.size
    missing = [place for state in (TO_DO, DONE, IN_PLACE) if (place := lines.find(state)) >= 0]
    first = min(missing, default=len(lines))
    while kept and max(kept[-1][1].lines(), default=0) > first:
        for row in kept.pop()[1].lines():
            lines[row] = IN_PLACE
    return kept
