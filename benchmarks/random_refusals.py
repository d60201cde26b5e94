"""Refusals at random, in virtual time: what they cost beside the pauses that they ask for.

    python benchmarks/random_refusals.py [--seeds 1 2 3] [--limit 600] [--trace]

The provider refuses a share of all calls, however few they are, and asks for a whole second's
pause each time; with ``--limit`` it is a bucket of so many calls a minute as well, that holds ten
seconds' worth. Each row is a share and a number of calls, each column a latency: seconds until all
were answered, median and worst; calls refused; and the seconds that a refusal cost on average, over
the time that the same number takes when none is refused. Nothing is timed: the same code prints the
same table.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
from collections import deque

from batch_llm.strategies.admission import Admission
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS

LATENCIES = (0.05, 0.5, 2.0)
CALLS = (100, 200, 2000, 5000)
CHANCES = (0.01, 0.03, 0.1, 0.3)
BURST_SECONDS = 10.0
GIVEN_UP_SECONDS = 3600.0


class Provider:
    """Refuses at random, and what is beyond a bucket."""

    def __init__(self, chance, per_second, burst, retry_after, seed):
        self._chance, self._rate, self._burst = chance, per_second, burst
        self._retry_after = retry_after
        self._level, self._at = burst, 0.0
        self._dice = random.Random(seed)

    def reply(self, now):
        """Return None for a call that is let in, else its Retry-After; infinity for none."""
        self._level = min(self._burst, self._level + self._rate * (now - self._at))
        self._at = now
        is_chance = self._dice.random() < self._chance
        if not is_chance and self._level >= 1 - 1e-9:
            self._level -= 1
            return None
        if self._retry_after == "none":
            return math.inf
        seconds = 0.0 if is_chance else (1 - self._level) / self._rate
        return max(1, math.ceil(seconds)) if self._retry_after == "whole" else max(0.1, seconds)


class Trial:
    """A number of calls, sent as soon as the controller lets them; refused ones come again."""

    def __init__(self, admission, provider, latency, dice, *, trace):
        self.admission, self._provider = admission, provider
        self._latency, self._dice, self._trace = latency, dice, trace
        self.refused = 0

    def run(self, calls):
        """Return the seconds until all were let in and answered."""
        now, number, events = 0.0, itertools.count(), []
        admission, dice, call = self.admission, self._dice, Cost()
        travel = min(0.04, self._latency / 5)
        fresh, back, left = calls, deque(), calls
        while left and now < GIVEN_UP_SECONDS:
            wait = math.inf
            while fresh or back:
                wait = admission.wait(now, call)
                if wait > 0:
                    break
                if back:
                    back.popleft()
                else:
                    fresh -= 1
                arrival = now + travel * dice.uniform(0.5, 1.5)
                grant = admission.start(now, call)
                heapq.heappush(events, (arrival, next(number), grant, "arrives"))
            ends_at = events[0][0] if events else math.inf
            now = min(now + max(wait, 1e-3) if fresh or back else math.inf, max(ends_at, now))
            while events and events[0][0] <= now:
                at, _, grant, what = heapq.heappop(events)
                if what == "arrives":
                    what = self._provider.reply(at)
                    seconds = travel + dice.uniform(0, travel)
                    if what is None:
                        seconds = self._latency * dice.lognormvariate(0, 0.3)
                    heapq.heappush(events, (at + seconds, next(number), grant, what))
                elif what == "again":
                    back.append(None)
                elif what is None:
                    admission.accepted(now, grant)
                    left -= 1
                else:
                    self._refuse(now, grant, what, events, number)
        return now

    def _refuse(self, now, grant, retry_after, events, number):
        self.refused += 1
        asked = None if retry_after == math.inf else retry_after
        refusal = self.admission.refused(now, grant, latency=now - grant.at, retry_after=asked)
        heapq.heappush(events, (now + refusal.wait_seconds, next(number), None, "again"))
        if self._trace:
            one = self.admission
            print(
                f"  {now:7.2f} s: refused call {grant.number}, news {refusal.is_news}, rate "
                f"{one.budgets[REQUESTS].rate:.2f}, chance {one._chance_belief.share:.3f}, "
                f"search {one._belief.is_searching}, doubt {one._doubt.limit:.0f} "
                f"{one._doubt.seconds:.2f}"
            )


def measure(options, chance, calls, latency, seed):
    rate, burst = (
        (options.limit / 60, options.limit / 60 * options.burst) if options.limit else (1e9, 1e9)
    )
    admission = Admission(0.0, dimensions=(REQUESTS,), dice=random.Random(seed))
    provider = Provider(chance, rate, max(1.0, burst), options.retry_after, seed + 500)
    trial = Trial(admission, provider, latency, random.Random(seed + 1000), trace=options.trace)
    return trial.run(calls), trial.refused


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--limit", type=float, help="calls per minute")
    parser.add_argument("--burst", type=float, default=BURST_SECONDS, help="seconds of the limit")
    parser.add_argument("--retry-after", choices=["whole", "exact", "none"], default="whole")
    parser.add_argument("--calls", type=int, nargs="+", default=CALLS)
    parser.add_argument("--chances", type=float, nargs="+", default=CHANCES)
    parser.add_argument("--latencies", type=float, nargs="+", default=LATENCIES)
    parser.add_argument("--trace", action="store_true", help="print each refusal")
    options = parser.parse_args()
    print("| refused | calls | " + " | ".join(f"{s:g} s" for s in options.latencies) + " |")
    print("|---|---|" + "---|" * len(options.latencies))
    for chance, calls in itertools.product(options.chances, options.calls):
        cells = []
        for latency in options.latencies:
            bare = measure(options, 0.0, calls, latency, 1)[0]
            runs = [measure(options, chance, calls, latency, seed) for seed in options.seeds]
            seconds = [run[0] for run in runs]
            refused = sum(run[1] for run in runs) / len(runs)
            each = (statistics.mean(seconds) - bare) / max(1.0, refused)
            cells.append(
                f"{statistics.median(seconds):.0f}, {max(seconds):.0f} (none {bare:.0f}); "
                f"{refused:.0f} refused, {each:.2f} s each"
            )
        print(f"| {100 * chance:g} % | {calls:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
