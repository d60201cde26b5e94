"""A limit that falls to half in mid-run, in virtual time: how soon the calls let in follow it.

    python benchmarks/halved.py [--seeds 1 2 3] [--told] [--factor 0.5] [--steady 30]

The provider is a bucket without limit headers: 100 calls a second, then half of that. Each row is a
size of the bucket and a kind of Retry-After, each column a latency; settled is judged as in
``limits.py``. Nothing is timed: the same code prints the same table.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
from bisect import bisect_left

from batch_llm.core.config import Limits
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS

RATE = 100.0
LATENCIES = (0.005, 0.05, 0.5, 2.0)
BURSTS = (0.1, 1.0, 10.0)
RETRY_AFTERS = ("exact", "whole", "none")
#: Settled: so long a time of which each second had at least and at most so much of the new limit
#: let in, and no more than so much of its calls refused.
SETTLED_SECONDS, LEAST, MOST, REFUSED = 3.0, 0.85, 1.15, 0.05
WATCHED_SECONDS = 60.0


class Provider:
    """A bucket that fills evenly, slower from a moment on."""

    def __init__(self, burst_seconds, retry_after, changes_at, factor):
        self._burst_seconds, self._retry_after = burst_seconds, retry_after
        self._changes_at, self._factor = changes_at, factor
        self._level, self._at = RATE * burst_seconds, 0.0

    def reply(self, now):
        """Return None for a call that is let in, else its Retry-After; infinity for none."""
        rate = RATE * (self._factor if now >= self._changes_at else 1.0)
        holds = max(1.0, rate * self._burst_seconds)
        self._level = min(holds, self._level + rate * (now - self._at))
        self._at = now
        if self._level >= 1 - 1e-9:
            self._level -= 1
            return None
        if self._retry_after == "none":
            return math.inf
        seconds = (1 - self._level) / rate
        return math.ceil(seconds) if self._retry_after == "whole" else seconds


class Trial:
    """Calls without end, sent as soon as the controller lets them."""

    def __init__(self, admission, provider, latency, dice):
        self.admission, self._provider = admission, provider
        self._latency, self._dice = latency, dice
        #: When calls arrived, by whether they were let in.
        self.let_in, self.refused = [], []

    def run(self, until):
        now, number, events = 0.0, itertools.count(), []
        admission, dice, call = self.admission, self._dice, Cost()
        travel = min(0.04, self._latency / 5)
        while now < until:
            while (wait := admission.wait(now, call)) <= 0:
                arrival = now + travel * dice.uniform(0.5, 1.5)
                grant = admission.start(now, call)
                heapq.heappush(events, (arrival, next(number), grant, "arrives"))
            ends_at = events[0][0] if events else math.inf
            now = min(now + max(wait, 1e-3), max(ends_at, now))
            while events and events[0][0] <= now:
                at, _, grant, what = heapq.heappop(events)
                if what == "arrives":
                    what = self._provider.reply(at)
                    (self.let_in if what is None else self.refused).append(at)
                    seconds = travel + dice.uniform(0, travel)
                    if what is None:
                        seconds = self._latency * dice.lognormvariate(0, 0.3)
                    heapq.heappush(events, (at + seconds, next(number), grant, what))
                elif what is None:
                    admission.accepted(now, grant)
                else:
                    admission.refused(
                        now,
                        grant,
                        latency=now - grant.at,
                        retry_after=None if what == math.inf else what,
                    )
        return self


def count(times, start, end):
    return bisect_left(times, end) - bisect_left(times, start)


def settled_seconds(trial, changes_at, rate):
    """Return the seconds from the change to the first time that counts as settled."""
    since, step = None, 0.05
    for number in range(round(WATCHED_SECONDS / step)):
        start = changes_at + number * step
        let_in = count(trial.let_in, start, start + 1)
        refused = count(trial.refused, start, start + 1)
        if LEAST <= let_in / rate <= MOST and refused <= REFUSED * (let_in + refused):
            since = start if since is None else since
            if start + 1 - since >= SETTLED_SECONDS:
                return since - changes_at
        else:
            since = None
    return math.inf


def measure(options, burst_seconds, retry_after, latency, seed):
    """Return seconds to settle, and share of the limit used and refused in the minute after."""
    limits = Limits(requests_per_minute=60 * RATE) if options.told else None
    admission = Admission(
        0.0,
        limits,
        dimensions=(REQUESTS,),
        burst_seconds=burst_seconds,
        dice=random.Random(seed),
    )
    at = options.steady + 0.1 * seed
    provider = Provider(burst_seconds, retry_after, at, options.factor)
    trial = Trial(admission, provider, latency, random.Random(seed + 1000))
    trial.run(at + WATCHED_SECONDS + 2)
    rate = RATE * options.factor
    let_in = count(trial.let_in, at, at + WATCHED_SECONDS)
    refused = count(trial.refused, at, at + WATCHED_SECONDS)
    used = let_in / (rate * WATCHED_SECONDS)
    return settled_seconds(trial, at, rate), used, refused / (let_in + refused)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--told", action="store_true", help="tell the limit from before the fall")
    parser.add_argument("--factor", type=float, default=0.5)
    parser.add_argument("--steady", type=float, default=30.0, help="seconds before the change")
    options = parser.parse_args()
    print("Seconds to settle, median and worst; limit used and refused in the minute after.\n")
    print("| bucket | Retry-After | " + " | ".join(f"{ms:g} s" for ms in LATENCIES) + " |")
    print("|---|---|" + "---|" * len(LATENCIES))
    all_settled = []
    for burst_seconds, retry_after in itertools.product(BURSTS, RETRY_AFTERS):
        cells = []
        for latency in LATENCIES:
            runs = [
                measure(options, burst_seconds, retry_after, latency, seed)
                for seed in options.seeds
            ]
            settled = [run[0] for run in runs]
            used, refused = (statistics.mean(run[n] for run in runs) for n in (1, 2))
            all_settled += settled
            cells.append(
                f"{statistics.median(settled):.1f}, {max(settled):.1f}; "
                f"{100 * used:.0f} %, {100 * refused:.1f} %"
            )
        print(f"| {burst_seconds:g} s | {retry_after} | {' | '.join(cells)} |", flush=True)
    all_settled.sort()
    within = sum(seconds <= 8 for seconds in all_settled)
    print(f"\n{within} of {len(all_settled)} runs settled within 8 s; ", end="")
    print(f"median {statistics.median(all_settled):.1f} s, worst {all_settled[-1]:.1f} s")


if __name__ == "__main__":
    main()
