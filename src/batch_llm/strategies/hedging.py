"""When a second copy of a slow call is worth sending: pure decisions, the caller brings the clock.

A copy is worth its price only at the end of a run, when nothing else would use the room; that is
seen by whoever asks here. What is decided here: from when on a call is unusually slow
(``Slowness``), and whether copies are affordable and welcome now (``Hedges``). After Dean and
Barroso, "The tail at scale" (2013).

What is noted per answer is O(1), with one logarithm. Quantiles are only read while a run drains.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from batch_llm.strategies.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterable

#: No call is called slow before so many answers.
LEAST_ANSWERS = 20
#: Slow is what takes longer than this share of the calls, and this many medians.
SLOW_SHARE, SLOW_MEDIANS = 0.95, 2.0
#: Answers so many ago count a third (1/e) of the latest.
MEMORY_ANSWERS = 1000
#: Weights grow with each answer instead of all others shrinking; from here on they are set back.
LARGEST_WEIGHT = 1e9
#: An answer counts at most as so many times what was expected, when the expectation is learned.
CLIP = 3.0
#: Latencies over their expectation are counted in buckets 5 % apart, from a thousandth up.
STEP, BUCKETS, FIRST_BUCKET = math.log(1.05), 284, -142
#: Sizes that differ by less than this share (squared) say nothing of how size counts.
LEAST_VARIANCE = 1e-4

#: Copies in % of the run's items, and their tokens of the run's tokens, at the most; one is free.
ITEMS_SHARE, TOKENS_SHARE = 0.05, 0.02
#: The last copy of the budget is for a call that is so many times slower than slow.
LAST_COPY_MULTIPLE = 4.0
#: A refused call stops copies for so long.
REFUSED_SECONDS = 30.0
#: Copies are sent while so large a share of the calls is dealt with; how long calls count, and how
#: many good ones are taken for granted.
ACCEPTED_SHARE, ACCEPTED_MEMORY_SECONDS, GRANTED_CALLS = 0.9, 20.0, 10.0
#: When too few calls are dealt with, that is looked at again after so long.
LOOK_AGAIN_SECONDS = 1.0
#: How fast the mean size of an input follows: the share of one answer.
LEARNING_SHARE = 0.03

#: Failures that say little of the call itself, the least telling first. All others say more.
_LEAST_TELLING = (
    ErrorCode.CANCELLED,
    ErrorCode.RATE_LIMITED,
    ErrorCode.OVERLOADED,
    ErrorCode.CONNECTION,
    ErrorCode.TIMEOUT,
    ErrorCode.SERVER_ERROR,
)


class Size(NamedTuple):
    """How large a call is expected to be, as far as anybody said.

    Attributes:
        sent: Tokens of its input; None when nobody said.
        got: Tokens of its answer; None when nobody said.
        most: Tokens of its answer at the most; None when nobody said.
    """

    sent: float | None = None
    got: float | None = None
    most: float | None = None


class Slowness:
    """Learns how long answers take, and from when on a call is unusually slow.

    A long answer takes longer, and is no straggler for it. So an expectation is fitted, a constant
    and a time per token of the answer, and latencies are judged as multiples of it.
    """

    def __init__(self) -> None:
        self.answers = 0
        self._first: list[tuple[float, Size]] = []
        self._weight = 1.0
        #: Weighted sums over answers: of 1, tokens, seconds, and their products.
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self._counts = [0.0] * BUCKETS
        self._base = self._per_token = 0.0

    @property
    def tokens(self) -> float:
        """The mean tokens of an answer; 0 while unknown."""
        return self._x / self._n if self._n else 0.0

    def expected_tokens(self, size: Size) -> float:
        """Return the tokens that an answer will probably have."""
        got = self.tokens if size.got is None else size.got
        return got if size.most is None else min(got, size.most)

    def expected_seconds(self, size: Size) -> float:
        """Return how long a call of this size usually takes; 0 before the first answer."""
        return self._base + self._per_token * self.expected_tokens(size)

    def note(self, seconds: float, size: Size, tokens: float | None) -> None:
        """Take an answer into account.

        Args:
            seconds: How long it took.
            size: What was expected.
            tokens: What it had; None when that is not known.
        """
        self.answers += 1
        self._fit(seconds, self.expected_tokens(size) if tokens is None else tokens)
        if self.answers < LEAST_ANSWERS:
            self._first.append((seconds, size))  # judged when there is something to judge by
            return
        for early, early_size in self._first:
            self._count(early, early_size)
        self._first.clear()
        self._count(seconds, size)
        self._weight *= 1 + 1 / MEMORY_ANSWERS
        if self._weight > LARGEST_WEIGHT:
            self._set_weights_back()

    def slow_factor(self, under_way: Iterable[float]) -> float | None:
        """Return from what multiple of its expectation on a call is slow; None while unknown.

        Args:
            under_way: The calls without an answer yet: so far, in multiples of their expectations.
                They are counted as taking longer than that (Kaplan and Meier's estimate):
                otherwise the quick answers alone would say what is slow.
        """
        if self.answers < LEAST_ANSWERS:
            return None
        later = [0.0] * BUCKETS
        for multiple in under_way:
            later[_bucket(multiple)] += self._weight
        at_risk = sum(self._counts) + sum(later)
        share, median, slowest = 1.0, 0.0, 0.0
        for bucket, answered in enumerate(self._counts):
            if answered:
                share *= 1 - answered / at_risk
                slowest = _upper_bound(bucket)
            if not median and share <= 0.5:
                median = slowest
            if share <= 1 - SLOW_SHARE + 1e-9:
                break
            at_risk -= answered + later[bucket]
        # When more than a twentieth takes longer than any answer so far, the slowest one must do.
        return max(slowest, SLOW_MEDIANS * (median or slowest))

    def _fit(self, seconds: float, tokens: float) -> None:
        if self.answers > LEAST_ANSWERS:
            usual = self._base + self._per_token * tokens
            seconds = min(seconds, CLIP * usual)
        weight = self._weight
        self._n += weight
        self._x += weight * tokens
        self._y += weight * seconds
        self._xx += weight * tokens * tokens
        self._xy += weight * tokens * seconds
        mean_x, mean_y = self._x / self._n, self._y / self._n
        variance = self._xx / self._n - mean_x * mean_x
        slope = 0.0
        if variance > LEAST_VARIANCE * mean_x * mean_x:
            slope = (self._xy / self._n - mean_x * mean_y) / variance
            slope = min(max(slope, 0.0), mean_y / mean_x)  # neither part takes less than no time
        self._per_token = slope
        self._base = mean_y - slope * mean_x

    def _count(self, seconds: float, size: Size) -> None:
        self._counts[_bucket(multiple_of(seconds, self.expected_seconds(size)))] += self._weight

    def _set_weights_back(self) -> None:
        share = 1 / self._weight
        self._weight = 1.0
        self._n *= share
        self._x *= share
        self._y *= share
        self._xx *= share
        self._xy *= share
        self._counts = [count * share for count in self._counts]


class Hedges:
    """Decides whether a copy may be sent now.

    Copies are stopped by what they must not add to: refusals, and a provider that deals with fewer
    calls than it gets. They are bounded by a budget of the run's items and tokens; the first copy
    is free of it, so that a small run has one.
    """

    def __init__(self) -> None:
        self.sent = 0
        #: Tokens that the copies took, or are expected to.
        self.tokens = 0.0
        self._mean_sent = 0.0
        self._has_sent = False
        self._refused_at = -math.inf
        self._calls = self._accepted = 0.0
        self._noted_at = 0.0

    def note_input(self, tokens: float) -> None:
        """Take the size of an answered call's input into account."""
        if not self._has_sent:
            self._mean_sent, self._has_sent = tokens, True
        self._mean_sent += LEARNING_SHARE * (tokens - self._mean_sent)

    def note_end(self, now: float, code: ErrorCode | None) -> None:
        """Note how a call ended: by an answer (None) or a failure."""
        elapsed = now - self._noted_at
        if elapsed > 0:
            keep = math.exp(-elapsed / ACCEPTED_MEMORY_SECONDS)
            self._calls *= keep
            self._accepted *= keep
            self._noted_at = now
        self._calls += 1
        if code is ErrorCode.RATE_LIMITED:
            self._refused_at = now
        elif code is not ErrorCode.OVERLOADED and code is not ErrorCode.CONNECTION:
            self._accepted += 1

    def cost(self, size: Size, got: float, multiple: float) -> float:
        """Estimate the tokens of a copy.

        Args:
            size: What is known of it.
            got: What its answer would usually have.
            multiple: From what multiple of its expectation on it is slow. Where nobody said how
                long the answer is, the call may be slow because it is so many times as long.
        """
        if size.got is None:
            got *= max(1.0, multiple)
            got = got if size.most is None else min(got, size.most)
        return got + (self._mean_sent if size.sent is None else size.sent)

    def patience(self, *, items: int, tokens: int) -> float:
        """Return how many times slower than slow a call must be for a copy: 1 at first.

        The more of the budget is used up, the more is asked for. Otherwise a small run's few copies
        would all go to long answers, and none be left for a call that hangs.
        """
        used = self.sent / (ITEMS_SHARE * items) if items else 0.0
        if tokens:
            used = max(used, self.tokens / (TOKENS_SHARE * tokens))
        return float(LAST_COPY_MULTIPLE ** min(1.0, max(0.0, used)))

    def wait(self, now: float, cost: float, *, items: int, tokens: int) -> float:
        """Return the seconds until a copy may be sent: 0 now, infinity while the budget is used up.

        Args:
            now: The time.
            cost: The tokens that it will probably take.
            items: Items of the run so far.
            tokens: Tokens that the run took so far; 0 when nobody tells them, and then only items
                are counted.
        """
        if self.sent and (
            self.sent + 1 > ITEMS_SHARE * items
            or (tokens and self.tokens + cost > TOKENS_SHARE * tokens)
        ):
            return math.inf
        if now < self._refused_at + REFUSED_SECONDS:
            return self._refused_at + REFUSED_SECONDS - now
        keep = math.exp(-max(0.0, now - self._noted_at) / ACCEPTED_MEMORY_SECONDS)
        accepted = self._accepted * keep + GRANTED_CALLS
        if accepted < ACCEPTED_SHARE * (self._calls * keep + GRANTED_CALLS):
            return LOOK_AGAIN_SECONDS
        return 0.0

    def note_sent(self, cost: float) -> None:
        """Count a copy that was sent."""
        self.sent += 1
        self.tokens += cost

    def take_back(self, cost: float) -> None:
        """Uncount a copy that was given up before it began."""
        self.sent -= 1
        self.tokens -= cost

    def note_cost(self, expected: float, used: float) -> None:
        """Put what a copy has used in the place of what was expected."""
        self.tokens += used - expected


def multiple_of(seconds: float, expected: float) -> float:
    """Return how many times as long as expected something took; 1 where nothing takes time."""
    return seconds / expected if expected > 0 else 1.0


def telling(code: ErrorCode, *, is_final: bool) -> int:
    """Return how much a failure says of its item: of two copies that failed, the higher one counts.

    Args:
        code: What failed.
        is_final: Whether no further attempt can help.
    """
    if code in _LEAST_TELLING:
        return _LEAST_TELLING.index(code)
    return len(_LEAST_TELLING) + is_final


def _bucket(multiple: float) -> int:
    if multiple <= 0:
        return 0
    if multiple >= _upper_bound(BUCKETS - 1):
        return BUCKETS - 1
    return max(0, math.ceil(math.log(multiple) / STEP) - FIRST_BUCKET)


def _upper_bound(bucket: int) -> float:
    return math.exp((bucket + FIRST_BUCKET) * STEP)
