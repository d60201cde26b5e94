"""What was learned of providers' limits, kept between runs as a starting point.

One small JSON file in the user's state directory. It holds lane names and numbers, and of a key
only a short digest, so that two accounts are two entries. Whatever is wrong with the file costs
nothing but the head start.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from platformdirs import user_state_path

from batch_llm.strategies.admission.known_limits import Known  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

logger = logging.getLogger("batch_llm.limits")

#: Moves the file elsewhere; empty keeps none.
VARIABLE = "BATCH_LLM_LIMITS_FILE"
#: What is older is no starting point any more.
LONGEST_AGE_SECONDS = 7 * 86_400.0
#: Up to this age rates are believed nearly whole, later by half.
FRESH_SECONDS, FRESH_SHARE, STALE_SHARE = 3600.0, 0.9, 0.5
_MOST_ENTRIES = 500
_LARGEST_FILE = 1_000_000


class _Entry(msgspec.Struct):
    at: float
    limits: dict[str, Known]


def limits_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return where limits are remembered; None where they shall not be."""
    told = environ.get(VARIABLE)
    if told is not None:
        return Path(told) if told else None
    folder = user_state_path("batch-llm", appauthor=False)
    # Relative where the user has no home: then it would be in whatever folder we are.
    return folder / "limits.json" if folder.is_absolute() else None


class LimitMemory:
    """Reads and writes the file.

    Args:
        path: The file.
        now: The time of day, in seconds since 1970.
    """

    def __init__(self, path: Path, now: Callable[[], float] | None = None) -> None:
        self._path = path
        self._now = now or (lambda: datetime.now(UTC).timestamp())
        self._entries: dict[str, _Entry] | None = None

    def recall(self, name: str) -> tuple[dict[str, Known], float] | None:
        """Return what is known, and the share of learned rates that is believed at its age."""
        if self._entries is None:
            self._entries = self._read()
        entry = self._entries.get(name)
        if entry is None:
            return None
        age = self._now() - entry.at
        if not 0 <= age <= LONGEST_AGE_SECONDS:
            return None
        return entry.limits, FRESH_SHARE if age <= FRESH_SECONDS else STALE_SHARE

    def save(self, learned: Mapping[str, Mapping[str, Known]]) -> None:
        """Add what was learned to what others wrote meanwhile; an empty entry changes nothing."""
        made = {name: _Entry(self._now(), dict(limits)) for name, limits in learned.items()}
        changes = {name: entry for name, entry in made.items() if entry.limits and _is_sound(entry)}
        if not changes:
            return
        self._entries = None
        self._write(self._read() | changes)

    def forget(self, names: Iterable[str]) -> None:
        """Remove what is known under ``names``; the others stay."""
        found, unwanted = self._read(), set(names)
        kept = {name: entry for name, entry in found.items() if name not in unwanted}
        self._entries = None
        if len(kept) < len(found):
            self._write(kept)

    def _write(self, entries: dict[str, _Entry]) -> None:
        """Replace the file as a whole: who reads meanwhile sees the old one or the new one.

        Of two that write at the same moment one may not see the other's news. That costs a head
        start, and a lock could hang where the folder is a network's.
        """
        newest = sorted(entries.items(), key=lambda one: one[1].at)[-_MOST_ENTRIES:]
        try:
            content = msgspec.json.format(msgspec.json.encode(dict(newest)), indent=1)
            folder = self._path.parent
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            number, written = tempfile.mkstemp(".tmp", f"{self._path.name}.", folder)
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(content)
                Path(written).replace(self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(written).unlink()
                raise
        except (OSError, ValueError) as error:  # names that are no UTF-8, a NUL in the path
            logger.debug("The limits were not remembered: %s", error)

    def _read(self) -> dict[str, _Entry]:
        """Read what can be understood; entries of other versions are passed over."""
        try:
            if self._path.stat().st_size > _LARGEST_FILE:
                return {}
            parts = msgspec.json.decode(self._path.read_bytes(), type=dict[str, msgspec.Raw])
        except (OSError, ValueError, RecursionError):
            return {}
        entries = {}
        for name, part in parts.items():
            with contextlib.suppress(ValueError, RecursionError):
                entry = msgspec.json.decode(part, type=_Entry)
                if _is_sound(entry):
                    entries[name] = entry
        return entries


def _is_sound(entry: _Entry) -> bool:
    return all(
        0 < known.rate < math.inf
        and 0 < known.capacity < math.inf
        and (known.limit is None or 0 < known.limit < math.inf)
        for known in entry.limits.values()
    )
