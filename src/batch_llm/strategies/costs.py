"""What a call is expected to take of each dimension, and what it did take; how providers count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from batch_llm.strategies.dimensions import INPUT, OUTPUT, REQUESTS, REQUESTS_PER_DAY, TOKENS


class Cost(NamedTuple):
    """What a call is expected to take of each dimension.

    Attributes:
        requests: 1.
        tokens: Input and output as the provider will charge them together.
        input_tokens: Input alone.
        output_tokens: Output alone.
        pending: The part of the output that the provider charges only when the call ends.
    """

    requests: float = 1.0
    tokens: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    pending: float = 0.0


class Answers(Enum):
    """How a limit on tokens counts answers."""

    #: As they come, when they have come.
    AS_THEY_COME = "as they come"
    #: As long as they may become, in place of the input where that is shorter; whatever comes.
    AS_ASKED = "as asked"
    #: As long as they may become, from the start; what is not needed is given back at the end.
    RESERVED = "reserved"
    #: Not at all: the input alone is.
    NOT = "not"


@dataclass(frozen=True, slots=True)
class ChargeRule:
    """What a provider's limit on tokens counts of a call.

    Attributes:
        answers: How it counts answers.
        counts_cache_reads: Whether it counts input that was read from a cache.
    """

    answers: Answers = Answers.AS_THEY_COME
    counts_cache_reads: bool = True

    def elsewhere(self) -> ChargeRule:
        """Return the rule of a server that only is compatible: it is not taken to look ahead."""
        if self.answers in {Answers.AS_ASKED, Answers.RESERVED}:
            return replace(self, answers=Answers.AS_THEY_COME)
        return self


#: Of those of whom nothing else is known.
USUAL_CHARGE = ChargeRule()
#: Of a call that is charged later.
NOTHING = Cost(0.0)
#: Which part of a call's cost each dimension counts.
FIELDS = {name: Cost._fields.index(name) for name in (REQUESTS, TOKENS, INPUT, OUTPUT)}
PENDING = Cost._fields.index("pending")
FIELDS[REQUESTS_PER_DAY] = FIELDS[REQUESTS]
