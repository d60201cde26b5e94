"""Which call fails, and how: a function of the seed, the conversation and how often it came."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from batch_llm.simulator.profile import LASTING, PASSING

if TYPE_CHECKING:
    from batch_llm.simulator.profile import Profile

_SPAN = 2.0**64
#: The number under which a conversation's lasting fault is drawn; its calls count from 0.
_FOR_GOOD = -1


class Faults:
    """Chooses faults. The order in which conversations come changes nothing.

    Remembers one number per conversation, and that only where a fault may pass.
    """

    def __init__(self, profile: Profile) -> None:
        self._seed = profile.seed
        self._recover = profile.recover
        self._lasting = profile.chances(LASTING)
        self._passing = profile.chances(PASSING)
        #: Digest → calls so far and faults in a row, packed into one number: there may be
        #: millions of conversations. A row is never longer than ``recover``.
        self._seen: dict[bytes, int] = {}

    def next_for(self, conversation: str) -> str | None:
        """Return the option's name of this call's fault, or None for a good answer."""
        if not self._lasting and not self._passing:
            return None
        key = hashlib.blake2b(conversation.encode("utf-8", "replace"), digest_size=16).digest()
        return self._lasting_for(key) or self._passing_for(key)

    def _lasting_for(self, key: bytes) -> str | None:
        return _pick(self._lasting, self._dice(key, _FOR_GOOD)) if self._lasting else None

    def _passing_for(self, key: bytes) -> str | None:
        if not self._passing:
            return None
        calls, in_a_row = divmod(self._seen.get(key, 0), self._recover + 1)
        is_due = self._recover > 0 and in_a_row >= self._recover
        fault = None if is_due else _pick(self._passing, self._dice(key, calls))
        in_a_row = in_a_row + 1 if fault and self._recover else 0
        self._seen[key] = (calls + 1) * (self._recover + 1) + in_a_row
        return fault

    def _dice(self, key: bytes, call: int) -> float:
        text = key + f"{self._seed}/{call}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / _SPAN


def _pick(chances: list[tuple[str, float]], dice: float) -> str | None:
    for name, chance in chances:
        if dice < chance:
            return name
        dice -= chance
    return None
