"""Which call fails, and how: a function of the seed, the conversation and how often it came."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from batch_llm.simulator.profile import LASTING, PASSING

if TYPE_CHECKING:
    from batch_llm.simulator.profile import Profile

_SPAN = 2.0**64


class Faults:
    """Chooses faults. The order in which conversations come changes nothing."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        #: Per conversation: calls so far, and faults in a row.
        self._seen: dict[bytes, tuple[int, int]] = {}
        self._lasting = [(name, getattr(profile, name)) for name in LASTING]
        self._passing = [(name, getattr(profile, name)) for name in PASSING]

    def next_for(self, conversation: str) -> str | None:
        """Return the option's name of this call's fault, or None for a good answer."""
        profile = self._profile
        if not profile.has_faults:
            return None
        key = hashlib.blake2b(conversation.encode("utf-8", "replace"), digest_size=16).digest()
        lasting = _pick(self._lasting, self._dice(key, -1))
        if lasting is not None:
            return lasting
        calls, in_a_row = self._seen.get(key, (0, 0))
        fault = None
        if not profile.recover or in_a_row < profile.recover:
            fault = _pick(self._passing, self._dice(key, calls))
        self._seen[key] = (calls + 1, in_a_row + 1 if fault else 0)
        return fault

    def _dice(self, key: bytes, call: int) -> float:
        text = key + f"{self._profile.seed}/{call}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / _SPAN


def _pick(chances: list[tuple[str, float]], dice: float) -> str | None:
    for name, chance in chances:
        if dice < chance:
            return name
        dice -= chance
    return None
