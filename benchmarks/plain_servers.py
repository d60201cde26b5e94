"""Servers without any limit, in virtual time: how long it takes until all places are filled.

    python benchmarks/plain_servers.py [--calls 2000] [--in-flight 8 50 200 1000] [--limit 600]

Each row is a number of calls in flight, given or (the last one) found, each column how long an
answer takes: seconds until all calls were answered, over those that it takes when as many as may be
are in flight from the first moment on. With ``--limit`` the server is a bucket of so many calls a
minute that tells nothing, and the calls refused are shown too; the ideal is then the later of both.
Nothing is timed: the same code prints the same table.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random

from batch_llm.strategies.admission import Admission
from batch_llm.strategies.costs import Cost

LATENCIES = (0.01, 0.1, 0.3, 1.0, 3.0)
IN_FLIGHT = (8, 50, 200, 1000)
FOUND = 1000
REFUSAL_SECONDS = 0.1


class Server:
    """Answers every call after the same time; beyond a bucket, where it has one, it refuses."""

    def __init__(self, latency, per_second, burst):
        self._latency, self._rate, self._burst = latency, per_second, burst
        self._level, self._at = burst, 0.0

    def reply(self, now):
        """Return the seconds until the reply, and the Retry-After of a refusal."""
        self._level = min(self._burst, self._level + self._rate * (now - self._at))
        self._at = now
        if self._level < 1 - 1e-9:
            seconds = min(REFUSAL_SECONDS, self._latency)
            return seconds, max(1, math.ceil((1 - self._level) / self._rate))
        self._level -= 1
        return self._latency, None


def run(admission, server, calls):
    """Return the seconds until all calls were answered, and how many were refused."""
    now, events, left, waiting, refused, number, call = 0.0, [], calls, calls, 0, 0, Cost()
    while left:
        wait = math.inf
        while waiting and (wait := admission.wait(now, call)) <= 0:
            waiting, number = waiting - 1, number + 1
            seconds, asked = server.reply(now)
            heapq.heappush(events, (now + seconds, number, admission.start(now, call), asked))
        ends_at = events[0][0] if events else math.inf
        now = min(now + max(wait, 1e-3) if waiting else math.inf, max(ends_at, now))
        while events and events[0][0] <= now:
            _, _, grant, asked = heapq.heappop(events)
            if asked is None:
                admission.accepted(now, grant)
                left -= 1
            else:
                admission.refused(now, grant, latency=now - grant.at, retry_after=asked)
                refused, waiting = refused + 1, waiting + 1
    return now, refused


def measure(options, most, latency, *, is_given):
    rate = options.limit / 60 if options.limit else 1e9
    burst = max(1.0, options.burst * rate)
    admission = Admission(0.0, max_in_flight=most, is_given=is_given, dice=random.Random(1))
    seconds, refused = run(admission, Server(latency, rate, burst), options.calls)
    ideal = max(math.ceil(options.calls / most) * latency, (options.calls - burst) / rate)
    found = f"{seconds:.2f} of {ideal:.2f}" if ideal >= 0.1 else f"{seconds:.2f} of {ideal:.3f}"
    return f"{found}, {100 * refused / options.calls:.1f} %" if options.limit else found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, nargs="+", default=IN_FLIGHT)
    parser.add_argument("--latencies", type=float, nargs="+", default=LATENCIES)
    parser.add_argument("--limit", type=float, help="calls per minute")
    parser.add_argument("--burst", type=float, default=60.0, help="seconds of the limit")
    options = parser.parse_args()
    print("| calls in flight | " + " | ".join(f"{s:g} s" for s in options.latencies) + " |")
    print("|---|" + "---|" * len(options.latencies))
    cases = [*((most, True) for most in options.in_flight), (FOUND, False)]
    for most, is_given in cases:
        cells = [measure(options, most, each, is_given=is_given) for each in options.latencies]
        print(f"| {f'`-c {most}`' if is_given else 'not given'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
