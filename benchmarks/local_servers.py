"""Servers that queue, on the test bench: makespan against the best fixed concurrency.

    python benchmarks/local_servers.py BENCH [--seeds 11 12 13] [--first 8 16 64] [SCENARIO ...]
    python benchmarks/local_servers.py BENCH --random 40

BENCH is the folder with the test bench's modules (see ``admission.py``). Its servers have 256, 4
and 256 slots and refuse nothing; the last one thrashes above 300 calls. Virtual time: the machine
does not matter. The seed of the random servers is drawn anew each time and printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import statistics
import sys
from pathlib import Path

from admission import Ours

from batch_llm.strategies.admission.slots import with_margin
from batch_llm.strategies.knee import Knee, work_of

SCENARIOS = ("S16", "S17", "S18")
#: The best of these is 1.00: S16 and S18 have 256 slots, S17 has 4.
FIXED = (1, 2, 4, 6, 8, 16, 32, 64, 128, 192, 256, 288, 300, 384, 512, 1000)


class Local(Ours):
    """Drives an ``Admission`` as lanes do for a local server.

    Args:
        calls: Calls in flight at the start.
        searches: Whether the knee is searched from there on.
        is_near: Whether the search starts near the knee, because the server told its slots.
    """

    def __init__(self, calls, label, *, searches=False, is_near=False):
        super().__init__(told=False, label=label)
        self.calls, self.searches, self.is_near = calls, searches, is_near
        self.knee = None
        self.seconds = []

    def start(self, client):
        self.client = client
        client.spec = dataclasses.replace(client.spec, max_inflight=self.calls)
        if self.searches:
            self.knee = Knee(client.sim.now, self.calls, 1000, is_near=self.is_near)
        super().start(client)

    def answered(self, item, response, grant):
        if self.knee is not None and response.status == 200:
            now = self.client.sim.now
            self.knee.note_end(now, grant.at, grant.beside, work_of(response.tin, response.tout))
            self.admission.max_in_flight = self.knee.concurrency
        super().answered(item, response, grant)


def measure(bench, spec, make, seeds):
    runs = [bench.simulate(spec, make, seed, 60_000, keep=True) for seed in seeds]
    latencies = [sorted(item.lat_ok for item in run["items"]) for run in runs]
    p99 = statistics.mean(sorted(ones)[int(0.99 * len(ones))] for ones in latencies)
    return [run["makespan"] for run in runs], p99


def random_spec(dice, make, number):
    slots = round(2 ** dice.uniform(1, 9))
    server = {"slots": slots, "rmax": 25.0 * slots, "half": slots * dice.uniform(0.05, 0.5)}
    server["prefill_tps"] = server["rmax"] * dice.uniform(5, 20)
    if dice.random() < 0.5:
        server["thrash_at"] = with_margin(slots) + round(slots * dice.uniform(0.1, 1.0))
        server["thrash_loss"] = dice.uniform(0.2, 0.6)
    return make(
        name=f"random {number}",
        n=max(300, 12 * slots),
        rpm=None,
        tpm=None,
        server=server,
        sig_in=dice.uniform(0.2, 1.0),
        sig_out=dice.uniform(0.2, 1.2),
        max_inflight=1000,
    )


def sweep(bench, make, count):
    """Print what is reached on random servers, against as many calls as each has slots."""
    seed = random.SystemRandom().randrange(10**9)
    dice = random.Random(seed)
    print(f"random servers, seed {seed}\n")
    ratios = {}
    for number in range(count):
        spec = random_spec(dice, make, number)
        slots = spec.server["slots"]
        (best,), _ = measure(bench, spec, lambda s=slots: Local(s, "slots"), [81])
        rows = {
            "slots told": lambda s=slots: Local(with_margin(s), "told"),
            "knee from 16": lambda: Local(16, "knee", searches=True),
            "16 always": lambda: Local(16, "16"),
            "1000 always": lambda: Local(1000, "1000"),
        }
        for name, make_one in rows.items():
            (makespan,), _ = measure(bench, spec, make_one, [81])
            ratios.setdefault(name, []).append(makespan / best)
    print("| calls in flight | geometric mean | median | p90 | worst |")
    print("|---|---|---|---|---|")
    for name, found in ratios.items():
        ordered = sorted(found)
        mean = math.exp(statistics.mean(math.log(ratio) for ratio in ordered))
        p90 = ordered[math.ceil(0.9 * len(ordered)) - 1]
        cells = (mean, statistics.median(ordered), p90, ordered[-1])
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench")
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--first", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--random", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(options.bench)))
    import run as bench
    from provider import Spec
    from scenarios import S

    if options.random:
        sweep(bench, Spec, options.random)
        return

    for key in options.scenarios:
        spec, slots = S[key], S[key].server["slots"]
        fixed = {
            calls: measure(bench, spec, lambda c=calls: Local(c, f"fixed {c}"), options.seeds)
            for calls in FIXED
            if slots / 4 <= calls
        }
        best = min(fixed.values(), key=lambda found: sum(found[0]))[0]
        told = with_margin(slots)
        rows = {f"fixed {calls}": found for calls, found in fixed.items()}
        rows[f"**slots told: {told}**"] = measure(
            bench, spec, lambda t=told: Local(t, "told"), options.seeds
        )
        rows[f"**slots told, knee from {told}**"] = measure(
            bench,
            spec,
            lambda t=told: Local(t, "told knee", searches=True, is_near=True),
            options.seeds,
        )
        for first in options.first:
            rows[f"**knee from {first}**"] = measure(
                bench, spec, lambda f=first: Local(f, "knee", searches=True), options.seeds
            )
        print(f"\n{spec.name}, {spec.n} calls\n")
        print("| calls in flight | makespan / best fixed | p99 latency s |")
        print("|---|---|---|")
        for name, (makespans, p99) in rows.items():
            ratio = statistics.mean(m / b for m, b in zip(makespans, best, strict=True))
            print(f"| {name} | {ratio:.2f} | {p99:.0f} |", flush=True)


if __name__ == "__main__":
    main()
