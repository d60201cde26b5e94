"""What a run will take: tokens, money and time, before it is sent. Pure arithmetic.

Without a pilot the input is a quarter of its characters, and of the output nothing is known but its
upper bound. With one, both go by the rows that were sent: the input by tokens per character, the
output by a 90 % interval of Student's t for the mean of a sample without replacement.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batch_llm.core.prices import BATCH, CONTEXT_STARTS, STANDARD, ModelUsage
from batch_llm.core.request import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from batch_llm.core.prices import Prices

#: The normal distribution's 95 % quantile: 5 % on either side of the interval.
_Z = 1.6449
#: What providers promise for batch jobs; most are done sooner.
BATCH_HOURS = 24
_MINUTE, _DAY = 60.0, 86_400.0


class Sample(NamedTuple):
    """What one row of a pilot took, all attempts together."""

    characters: int
    input_tokens: int
    output_tokens: int


class Interval(NamedTuple):
    """From where to where a number is, and where it most likely is; None where nobody knows."""

    low: float
    likely: float | None
    high: float | None


class KnownLimit(NamedTuple):
    """A limit, per minute (``requests_per_day``: per day), and where it is known from."""

    dimension: str
    limit: float
    source: str


class Estimate(msgspec.Struct, kw_only=True):
    """What a run will take.

    Attributes:
        rows: Exactly.
        input_tokens: Of all rows.
        output_tokens: The same; without a pilot, up to ``max_tokens`` of each row.
        cost_usd: Sent live, as text with all digits; None where no price is known.
        batch_cost_usd: The same as batch jobs.
        seconds: What the known limits ask for at the least; None where none is known.
        limit: The tightest one.
        is_from_pilot: Whether rows were sent to find out.
    """

    rows: int
    input_tokens: int
    output_tokens: Interval
    cost_usd: tuple[Decimal, Decimal | None] | None
    batch_cost_usd: tuple[Decimal, Decimal | None] | None
    seconds: float | None
    limit: KnownLimit | None
    is_from_pilot: bool


def output_interval(samples: Sequence[Sample], rows: int, most: int | None) -> Interval:
    """Return what all rows together will write.

    Args:
        samples: The pilot's rows.
        rows: All rows, the pilot's among them.
        most: What one row may write at the most; None: nobody said.
    """
    ceiling = None if most is None else float(most * rows)
    seen = [sample.output_tokens for sample in samples]
    if not seen:
        return Interval(0, None, ceiling)
    mean = sum(seen) / len(seen)
    likely, least = mean * rows, float(sum(seen))
    if len(seen) >= rows:
        return Interval(least, least, least)
    if len(seen) < 2:
        return Interval(least, likely, ceiling)
    freedom = len(seen) - 1
    variance = sum((one - mean) ** 2 for one in seen) / freedom
    # Student's quantile, in its expansion around the normal one.
    quantile = _Z + (_Z**3 + _Z) / (4 * freedom)
    quantile += (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)
    unseen = 1 - len(seen) / rows
    off = quantile * math.sqrt(variance / len(seen) * unseen) * rows
    high = likely + off
    return Interval(
        max(least, likely - off), likely, high if ceiling is None else min(high, ceiling)
    )


def input_estimate(samples: Sequence[Sample], characters: int) -> int:
    """Return the input of all rows, from their characters."""
    of_pilot = sum(sample.characters for sample in samples)
    if not of_pilot:
        return characters // CHARACTERS_PER_TOKEN
    return round(characters * sum(sample.input_tokens for sample in samples) / of_pilot)


def make(
    *,
    rows: int,
    characters: int,
    most_output: int | None,
    model: str,
    server: str,
    prices: Prices,
    limits: Sequence[KnownLimit],
    samples: Sequence[Sample] = (),
    used: Sequence[ModelUsage] = (),
) -> Estimate:
    """Estimate a run.

    Args:
        rows: All of them.
        characters: Of all rows.
        most_output: What one row may write at the most.
        model: ``provider:model``.
        server: Where its calls go, when not to the provider's own address.
        prices: What tokens cost.
        limits: What is known of them.
        samples: What a pilot's rows took.
        used: The same by kind: what was read from caches, say, is taken to go on like that.
    """
    sent = input_estimate(samples, characters)
    got = output_interval(samples, rows, most_output)

    def cost(tier: str) -> tuple[Decimal, Decimal | None] | None:
        context = bisect_left(CONTEXT_STARTS, sent // rows)
        rate = prices.rate(model, server, tier, context)
        if rate is None:
            return None
        ends = [
            None if end is None else rate.cost(_scaled(used, rows, sent, round(end)))
            for end in (got.low, got.high)
        ]
        low = ends[0]
        assert low is not None  # noqa: S101 - an interval has a lower end
        return low, ends[1]

    typical = got.likely if got.likely is not None else got.high
    found = _slowest(limits, rows, sent, typical)
    return Estimate(
        rows=rows,
        input_tokens=sent,
        output_tokens=got,
        cost_usd=cost(STANDARD),
        batch_cost_usd=cost(BATCH),
        seconds=None if found is None else found[0],
        limit=None if found is None else found[1],
        is_from_pilot=bool(samples),
    )


def _scaled(used: Sequence[ModelUsage], rows: int, sent: int, got: int) -> ModelUsage:
    """Return so many tokens, of the kinds in which a pilot's came."""
    in_pilot = sum(one.input_tokens for one in used)
    out_pilot = sum(one.output_tokens for one in used)
    of_input, of_output = sent / max(1, in_pilot), got / max(1, out_pilot)
    return ModelUsage(
        model="",
        calls=rows,
        input_tokens=sent,
        output_tokens=got,
        cache_read_tokens=round(of_input * sum(one.cache_read_tokens for one in used)),
        cache_write_tokens=round(of_input * sum(one.cache_write_tokens for one in used)),
        cache_write_1h_tokens=round(of_input * sum(one.cache_write_1h_tokens for one in used)),
        reasoning_tokens=round(of_output * sum(one.reasoning_tokens for one in used)),
    )


def _slowest(
    limits: Sequence[KnownLimit], rows: int, sent: int, got: float | None
) -> tuple[float, KnownLimit] | None:
    """Return the seconds that the tightest limit asks for at the least, and which one that is.

    What a limit allows in its minute, or its day, may all be used at once, at the start.
    """
    amounts = {
        "requests": rows,
        "requests_per_day": rows,
        "input_tokens": sent,
        "output_tokens": got,
        "tokens": sent + (got or 0.0),
    }
    found = []
    for limit in limits:
        amount = amounts.get(limit.dimension)
        if amount is not None:
            period = _DAY if limit.dimension == "requests_per_day" else _MINUTE
            share = amount / limit.limit
            found.append((max(0.0, share - 1) * period, share, limit))
    if not found:
        return None
    seconds, _, tightest = max(found, key=lambda one: one[:2])
    return seconds, tightest
