"""What providers limit: the names of the dimensions, and the windows that they are counted in."""

from __future__ import annotations

REQUESTS, REQUESTS_PER_DAY = "requests", "requests_per_day"
TOKENS, INPUT, OUTPUT = "tokens", "input_tokens", "output_tokens"
#: Not counted per minute: how many calls may be in flight.
CONCURRENCY = "concurrency"
#: Kinds of tokens that a call's output counts in.
WITH_OUTPUT = frozenset({TOKENS, OUTPUT})
#: Seconds: limits are per minute, but for those per day.
MINUTE, DAY = 60.0, 86_400.0
