"""What a remembered limit does to a run, in virtual time: the truth, and what is far from it.

    python benchmarks/remembered.py [--seeds 1 2 3 4 5]

6,000 calls for a bucket of 100 a second that holds as many; answers take a second, refusals a tenth
of one, and these say how long to wait. Each row is what an earlier run has learned. Medians over
the seeds: seconds, and calls refused. Nothing is timed: the same code prints the same table.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics

from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.admission.known_limits import Known
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import MINUTE, REQUESTS

CALLS, RATE, HELD = 6000, 100.0, 100.0
ANSWER_SECONDS, REFUSAL_SECONDS = 1.0, 0.1
#: The share of a learned rate that is believed within the hour.
BELIEVED_SHARE = 0.9
REMEMBERED = {
    "nothing": None,
    "the truth": 1.0,
    "ten times too high": 10.0,
    "ten times too low": 0.1,
    "a hundred times too low": 0.01,
}


def admission_that_recalls(times, seed, *, is_told):
    admission = Admission(0.0, dice=random.Random(seed))
    if times is not None:
        limit = times * RATE * MINUTE if is_told else None
        known = {REQUESTS: Known(limit, times * RATE, times * HELD)}
        admission.recall(known, share=BELIEVED_SHARE)
    return admission


def run(admission, *, is_told):
    """Return the seconds until all calls were answered, and how many were refused."""
    now, level, at, call = 0.0, HELD, 0.0, Cost()
    events, left, waiting, refused, number = [], CALLS, CALLS, 0, 0
    while left:
        wait = math.inf
        while waiting and (wait := admission.wait(now, call)) <= 0:
            waiting, number = waiting - 1, number + 1
            level, at = min(HELD, level + (now - at) * RATE), now
            asked = None if level >= 1 else (1 - level) / RATE
            level -= asked is None
            seen = LimitHeader(RATE * MINUTE, math.floor(level), (HELD - level) / RATE)
            headers = {REQUESTS: seen} if is_told else None
            seconds = ANSWER_SECONDS if asked is None else REFUSAL_SECONDS
            heapq.heappush(
                events, (now + seconds, number, admission.start(now, call), asked, headers)
            )
        ends_at = events[0][0] if events else math.inf
        now = min(now + max(wait, 1e-3) if waiting else math.inf, max(ends_at, now))
        while events and events[0][0] <= now:
            _, _, grant, asked, headers = heapq.heappop(events)
            if asked is None:
                admission.accepted(now, grant, headers=headers)
                left -= 1
            else:
                admission.refused(
                    now, grant, latency=now - grant.at, retry_after=asked, headers=headers
                )
                refused, waiting = refused + 1, waiting + 1
    return now, refused


def measure(times, seeds, *, is_told):
    found = [
        run(admission_that_recalls(times, seed, is_told=is_told), is_told=is_told) for seed in seeds
    ]
    seconds, refused = map(statistics.median, zip(*found, strict=True))
    return f"{seconds:.0f} s, {refused:.0f} refused"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    options = parser.parse_args()
    print("| remembered | with limit headers | without |")
    print("|---|---|---|")
    for name, times in REMEMBERED.items():
        cells = [measure(times, options.seeds, is_told=is_told) for is_told in (True, False)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
