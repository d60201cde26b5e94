"""What two refusals tell of a limit's rate: it is enclosed by what was let in between them.

At a refusal the provider's bucket is empty. So what was let in until the next one came back in that
time, the gate's closure included: as long as the bucket did not run over while nothing was sent,
that is the limit's rate. If it did run over, the rate is higher, but no higher than what was let
in over the time in which the gate was open.
"""

from __future__ import annotations

from typing import NamedTuple

#: Fewer calls between two refusals tell nothing.
FEWEST_CALLS = 8
#: A closure of no more than this share of the time between two refusals is no source of error.
CLOSED_SHARE = 0.3


class Round(NamedTuple):
    """The time between two refusals that found the bucket empty.

    Attributes:
        let_in: What was let in, in requests or tokens.
        seconds: From the one to the other.
        open_seconds: From the first call that was let in to the second refusal.
    """

    let_in: float
    seconds: float
    open_seconds: float


def came_back(this: Round, sent_seconds: float, fills_in: float) -> float:
    """Return the rate by the second at which a bucket was filled that was empty at both refusals.

    Args:
        this: The round between them.
        sent_seconds: For how long calls were sent in it, the gate not closed yet or open again.
        fills_in: The seconds in which the bucket is full: what comes back later is lost.
    """
    seconds = sent_seconds + min(this.seconds - sent_seconds, fills_in)
    return this.let_in / max(seconds, 1e-3)  # all may have been sent in the same moment


def measured_rate(this: Round, per_call: float) -> float | None:
    """Return the limit's rate by the second, if a round tells it in which a call takes so much."""
    if this.let_in <= 0 or this.let_in < FEWEST_CALLS * per_call:
        return None
    least = this.let_in / this.seconds
    most = (this.let_in + per_call) / max(this.open_seconds, 1e-3)
    closed_seconds = this.seconds - this.open_seconds
    return least if most < least or closed_seconds <= CLOSED_SHARE * this.seconds else None
