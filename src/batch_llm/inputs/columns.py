"""Names of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def distinct_names(found: Iterable[str]) -> list[str]:
    """Return names of which no two are alike: a second ``a`` becomes ``a_2``."""
    names: list[str] = []
    for one in found:
        name, number = one, 1
        while name in names:
            number += 1
            name = f"{one}_{number}"
        names.append(name)
    return names


def header_names(fields: Iterable[str]) -> list[str]:
    """Name the columns of a table after its header; one that is empty after its position."""
    stripped = (field.strip() for field in fields)
    return distinct_names(name or str(place) for place, name in enumerate(stripped, 1))
