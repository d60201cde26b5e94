"""Several programs on one key, each with an admission of its own, in virtual time.

    python benchmarks/shared_key.py [--programs 2 4] [--seeds 4] [--calls 3000]

The provider lets 100 calls a second through, and holds so many seconds of them (or counts by fixed
minutes); an answer takes half a second, a call arrives 5 to 15 ms after it was sent, a refusal is
back 20 ms later. Nobody is told a limit. The time is that of the last program over what the same
calls take at best; the share of the slowest is what it had done when the first was ready, over
that: 1 is even.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics

from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS

RATE, ANSWER_SECONDS, REFUSAL_SECONDS = 100.0, 0.5, 0.02
LONGEST_SECONDS = 3600.0


class Provider:
    """A bucket of so many seconds, or fixed minutes."""

    def __init__(self, burst_seconds, *, is_fixed):
        self._holds = RATE * (60.0 if is_fixed else burst_seconds)
        self._left, self._at, self._is_fixed = self._holds, 0.0, is_fixed

    def ideal_seconds(self, calls):
        more = max(0.0, calls - self._holds)
        seconds = 60.0 * math.ceil(more / self._holds) if self._is_fixed else more / RATE
        return seconds + ANSWER_SECONDS

    def take(self, now):
        """Return whether a call is let in, the seconds until the next one is, and the header."""
        if self._is_fixed:
            if now // 60 > self._at // 60:
                self._left = self._holds
            reset = 60 - now % 60
        else:
            self._left = min(self._holds, self._left + (now - self._at) * RATE)
            reset = (self._holds - self._left) / RATE
        self._at = now
        is_in = self._left >= 1
        self._left -= is_in
        wait = reset if self._is_fixed else (1 - self._left) / RATE
        return is_in, wait, LimitHeader(60 * RATE, math.floor(self._left), reset)


class Program:
    """One of the programs on the key."""

    def __init__(self, number, calls, seed):
        self.left = calls
        self.done = 0
        self.ready_at = math.inf
        self.timer = None
        dice = random.Random(100 * seed + number)
        self.admission = Admission(0.0, None, dimensions=(REQUESTS,), dice=dice)


def race(programs, calls, provider, *, tells, is_whole, seed):
    """Run them; return time over ideal, refused in %, and the slowest one's share."""
    dice, count, refused = random.Random(seed), itertools.count(), 0
    racing = [Program(number, calls // programs, seed) for number in range(programs)]
    queue = [(0.13 * number, next(count), "go", one, None) for number, one in enumerate(racing)]
    at_first_end = None

    def later(seconds, kind, one, data):
        number = next(count)
        heapq.heappush(queue, (now + seconds, number, kind, one, data))
        return number

    while queue:
        now, number, kind, one, data = heapq.heappop(queue)
        if now > LONGEST_SECONDS or (kind == "go" and one.timer not in (None, number)):
            continue
        if kind == "arrival":
            is_in, wait, header = provider.take(now)
            headers = {REQUESTS: header} if tells else None
            if is_in:
                seconds = ANSWER_SECONDS * dice.lognormvariate(0, 0.2)
                later(seconds, "answer", one, (data, headers))
            else:
                refused += 1
                wait = math.ceil(wait) if is_whole else wait
                later(REFUSAL_SECONDS, "refusal", one, (data, headers, wait))
            continue
        if kind == "answer":
            grant, headers = data
            one.admission.accepted(now, grant, None, headers)
            one.done += 1
            if one.done == calls // programs:
                one.ready_at = now
                at_first_end = at_first_end or [other.done for other in racing]
        elif kind == "refusal":
            grant, headers, wait = data
            one.left += 1
            latency = now - grant.at
            one.admission.refused(now, grant, latency=latency, retry_after=wait, headers=headers)
        while one.left:
            wait = one.admission.wait(now, Cost())
            if wait > 0:
                if wait < math.inf:
                    one.timer = later(max(wait, 1e-3), "go", one, None)
                break
            one.left -= 1
            later(dice.uniform(0.005, 0.015), "arrival", one, one.admission.start(now, Cost()))

    last = max(one.ready_at for one in racing)
    share = min(at_first_end) / max(at_first_end) if at_first_end else 0.0
    return last / provider.ideal_seconds(calls), 100 * refused / calls, share


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--calls", type=int, default=3000)
    options = parser.parse_args()
    print("| programs | limits told in headers | the limit holds | Retry-After | time / ideal "
          "| refused, % | share of the slowest |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for programs, tells in itertools.product(options.programs, (True, False)):
        for burst, is_whole in itertools.product((0.1, 1.0, 10.0, None), (True, False)):
            runs = [
                race(
                    programs,
                    options.calls if burst else 5 * options.calls,
                    Provider(burst or 0.0, is_fixed=burst is None),
                    tells=tells,
                    is_whole=is_whole,
                    seed=seed,
                )
                for seed in range(1, options.seeds + 1)
            ]
            ratio, refused, share = map(statistics.mean, zip(*runs, strict=True))
            holds = f"{burst:g} s" if burst else "a fixed minute"
            told, wait = "yes" if tells else "no", "whole seconds" if is_whole else "exact"
            print(f"| {programs} | {told} | {holds} | {wait} | {ratio:.2f} | {refused:.1f} "
                  f"| {share:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
