"""The counts of a run: written by the pipeline, read as one frozen snapshot."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from batch_llm.core.prices import ModelUsage, UsageByModel

if TYPE_CHECKING:
    from batch_llm.stores.base import Spent

#: Upper bounds of the latency buckets in seconds: 5 % apart, from 1 ms to 10 minutes.
_BOUNDS = [0.001 * 1.05**step for step in range(274)]


class LearnedLimit(msgspec.Struct, frozen=True):
    """What is known of one limit.

    Attributes:
        lane: What shares it: the model, where it is known.
        dimension: ``requests``, ``tokens``, ``input_tokens`` or ``output_tokens``, all per minute;
            ``requests_per_day``; or ``concurrency``, calls in flight.
        limit: The limit, or what is believed of it.
        source: ``told``, ``header``, ``remembered`` or ``learned``; of calls in flight also
            ``server``, what a local server says that it works on at once, or ``assumed``, what is
            usual for its kind.
    """

    lane: str
    dimension: str
    limit: float
    source: str


class LanePause(msgspec.Struct, frozen=True):
    """A lane that lets nobody in for a while.

    Attributes:
        lane: Its name; empty where there is one only.
        seconds: Until the next call.
        reason: ``refused``, ``overloaded``, ``set aside``, or the dimension that is used up.
        waiting: This run's calls that wait for it.
        overloaded_seconds: Since when its provider deals with no calls; 0 while it does.
        overloaded_since: The same as a time of day; None while it does.
    """

    lane: str
    seconds: float
    reason: str
    waiting: int
    overloaded_seconds: float = 0.0
    overloaded_since: datetime | None = None


class StoppedLane(msgspec.Struct, frozen=True):
    """A lane to which nothing is sent any more, because it refuses everything.

    Attributes:
        lane: Its name; empty where there is one only.
        model: Its model, or whatever else it is called.
        code: How it refuses: an ``ErrorCode`` value.
        reason: What happened and what to do, as a sentence; it quotes the provider (hostile).
    """

    lane: str
    model: str
    code: str
    reason: str


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a run at one moment. All counts belong together.

    Attributes:
        total: Items known so far; None while the source's length is unknown.
        started: Items taken from the source.
        processed: Items with a result: always ``succeeded + failed``.
        succeeded: Items with a usable output.
        failed: Items without one.
        in_flight: Calls under way.
        waiting: Attempts that wait to be let in.
        retrying: Items between two attempts.
        reused: Items whose result came from an earlier run; they are in the counts above.
        cached: Items that a cache has answered; likewise.
        shared: Items whose result is that of another one that asked the same; likewise.
        following: Items that wait for the answer of another one.
        attempts: Calls made, refused and failed ones included.
        rate_limit_count: Refused calls.
        retries_by_code: Failed attempts that were followed by another, by ``ErrorCode`` value.
        failures_by_code: Failed items by the code of their last error.
        error_counts: Failed items by exception type.
        input_tokens: Of all finished attempts, failed ones included.
        output_tokens: The same.
        usage: The same by model and by kind, to be priced: ``Prices().bill(statistics.usage)``.
        usage_before: The same of earlier sessions of the run, from its ledger.
        usage_at_most: Of calls that were under way when a process of the run was killed: nobody
            knows what they took, and this is the most, with ``calls`` as their number.
        usage_likely: What the same calls are likely to have taken, as the run's other calls tell;
            without those of models that have had no other call yet.
        stopped_by: The setting that ended the run early (``max_cost_usd`` and the like), or None.
        stop_reason: How that came, as a sentence; None when it did not.
        state: ``running``, ``cooling``, ``draining`` or ``finished``.
        cooldown_seconds: Spent in cooldowns so far.
        cooldown_remaining_seconds: Until everyone goes on; 0 outside of a cooldown.
        cooldown_reason: Why, as text of the provider (hostile); None outside of a cooldown.
        pauses: The lanes for which calls wait a second and longer, ``cooling`` or not.
        stopped_lanes: The lanes to which nothing is sent any more.
        concurrency: Calls in flight at the most.
        limits: What is known of the provider's limits.
        elapsed_seconds: Since the run's start.
        hedged: Second copies of slow calls that were sent.
        hedges_won: Second copies whose answer was taken.
        hedge_tokens_lost: Tokens of calls whose other copy's answer was taken, estimated where
            nobody knows them. Those that are known are in the counts above, too.
        latency_p50: Median seconds of successful calls, to 5 %; None before the first.
        latency_p90: The same for nine of ten.
        latency_p99: The same for 99 of 100.
        start_time: When the run started.
    """

    total: int | None
    started: int
    processed: int
    succeeded: int
    failed: int
    in_flight: int
    waiting: int
    retrying: int
    reused: int
    cached: int
    shared: int
    following: int
    attempts: int
    rate_limit_count: int
    retries_by_code: dict[str, int]
    failures_by_code: dict[str, int]
    error_counts: dict[str, int]
    input_tokens: int
    output_tokens: int
    usage: list[ModelUsage]
    usage_before: list[ModelUsage]
    usage_at_most: list[ModelUsage]
    usage_likely: list[ModelUsage]
    stopped_by: str | None
    stop_reason: str | None
    state: str
    cooldown_seconds: float
    cooldown_remaining_seconds: float
    cooldown_reason: str | None
    pauses: list[LanePause]
    stopped_lanes: list[StoppedLane]
    concurrency: int
    limits: list[LearnedLimit]
    elapsed_seconds: float
    hedged: int
    hedges_won: int
    hedge_tokens_lost: int
    latency_p50: float | None
    latency_p90: float | None
    latency_p99: float | None
    start_time: datetime | None


class Counts:
    """What the pipeline counts. Plain additions only: the reading does the work."""

    __slots__ = (
        "attempts",
        "cached",
        "cooldown_reason",
        "error_counts",
        "failed",
        "failures_by_code",
        "hedge_tokens_lost",
        "hedged",
        "hedges_won",
        "latencies",
        "rate_limit_count",
        "retries_by_code",
        "reused",
        "shared",
        "start_time",
        "started",
        "started_at",
        "stop_reason",
        "stopped_by",
        "stopped_lanes",
        "succeeded",
        "usage",
    )

    def __init__(self, started_at: float | None = None) -> None:
        self.started_at = started_at or 0.0
        self.start_time = datetime.now(UTC) if started_at is not None else None
        self.started = 0
        self.succeeded = 0
        self.failed = 0
        self.reused = 0
        self.cached = 0
        self.shared = 0
        self.attempts = 0
        self.rate_limit_count = 0
        self.hedged = 0
        self.hedges_won = 0
        self.hedge_tokens_lost = 0.0
        self.usage = UsageByModel()
        self.stopped_by: str | None = None
        self.stop_reason: str | None = None
        self.stopped_lanes: list[StoppedLane] = []
        self.cooldown_reason: str | None = None
        self.error_counts: Counter[str] = Counter()
        self.failures_by_code: Counter[str] = Counter()
        self.retries_by_code: Counter[str] = Counter()
        self.latencies = [0] * (len(_BOUNDS) + 1)

    @property
    def tokens(self) -> int:
        """Tokens of all finished attempts."""
        return sum(one.input_tokens + one.output_tokens for one in self.usage.snapshot())

    def note_latency(self, seconds: float) -> None:
        """Count a successful call's duration."""
        self.latencies[bisect_left(_BOUNDS, seconds)] += 1

    def latency(self, share: float) -> float | None:
        """Return the seconds within which ``share`` of the successful calls were done."""
        rank = share * sum(self.latencies)
        if not rank:
            return None
        so_far = 0
        for bound, count in zip(_BOUNDS, self.latencies, strict=False):
            so_far += count
            if so_far >= rank:
                return bound
        return _BOUNDS[-1]

    def snapshot(
        self,
        *,
        total: int | None,
        state: str,
        concurrency: int,
        elapsed_seconds: float = 0.0,
        in_flight: int = 0,
        waiting: int = 0,
        retrying: int = 0,
        following: int = 0,
        cooldown_seconds: float = 0.0,
        cooldown_remaining_seconds: float = 0.0,
        cooldown_reason: str | None = None,
        pauses: list[LanePause] | None = None,
        limits: list[LearnedLimit] | None = None,
        before: Spent | None = None,
    ) -> Statistics:
        """Return the counts of this moment, with what the other layers know."""
        usage = self.usage.snapshot()
        return Statistics(
            total=total,
            started=self.started,
            processed=self.succeeded + self.failed,
            succeeded=self.succeeded,
            failed=self.failed,
            in_flight=in_flight,
            waiting=waiting,
            retrying=retrying,
            reused=self.reused,
            cached=self.cached,
            shared=self.shared,
            following=following,
            attempts=self.attempts,
            rate_limit_count=self.rate_limit_count,
            retries_by_code=dict(self.retries_by_code),
            failures_by_code=dict(self.failures_by_code),
            error_counts=dict(self.error_counts),
            input_tokens=sum(one.input_tokens for one in usage),
            output_tokens=sum(one.output_tokens for one in usage),
            usage=usage,
            usage_before=[] if before is None else before.usage,
            usage_at_most=[] if before is None else before.at_most,
            usage_likely=[] if before is None else list(before.likely),
            stopped_by=self.stopped_by,
            stop_reason=self.stop_reason,
            state=state,
            cooldown_seconds=cooldown_seconds,
            cooldown_remaining_seconds=cooldown_remaining_seconds,
            cooldown_reason=cooldown_reason,
            pauses=pauses or [],
            stopped_lanes=list(self.stopped_lanes),
            concurrency=concurrency,
            limits=limits or [],
            elapsed_seconds=elapsed_seconds,
            hedged=self.hedged,
            hedges_won=self.hedges_won,
            hedge_tokens_lost=round(self.hedge_tokens_lost),
            latency_p50=self.latency(0.5),
            latency_p90=self.latency(0.9),
            latency_p99=self.latency(0.99),
            start_time=self.start_time,
        )
