"""What a call is expected to take of each dimension, and what it did take."""

from __future__ import annotations

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


#: Of a call that is charged later.
NOTHING = Cost(0.0)
#: Which part of a call's cost each dimension counts.
FIELDS = {name: Cost._fields.index(name) for name in (REQUESTS, TOKENS, INPUT, OUTPUT)}
PENDING = Cost._fields.index("pending")
FIELDS[REQUESTS_PER_DAY] = FIELDS[REQUESTS]
