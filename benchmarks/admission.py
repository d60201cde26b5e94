"""Admission on the test bench: makespan against the omniscient optimum, and refused calls.

    python benchmarks/admission.py BENCH [SCENARIO ...] [--seeds 11 12 13] [--random 50] [--bound]

BENCH is the folder with the test bench's modules (``core``, ``provider``, ``client``, ``run``,
``scenarios``, ``governor_lite``). The seed of the random sweep is drawn anew each time and printed.

Some scenarios are not the bench's, and not in the summary: R1 to R5 refuse a share of all calls at
random, and ask for a second's pause each time; their ideal is the optimum and those pauses, one
after the other, so less than 1 is well possible. T1 is a bucket of a tenth of a second.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from batch_llm.core.config import Limits
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import INPUT, OUTPUT, REQUESTS, TOKENS

NAMES = {"requests": REQUESTS, "tokens": TOKENS, "input": INPUT, "output": OUTPUT}


class Ours:
    """Drives an ``Admission`` inside of the bench's clock."""

    def __init__(self, *, told, label=None):
        self.told = told
        self.name = label or ("ours, limits told" if told else "ours, limits unknown")

    def start(self, client):
        self.client, spec = client, client.spec
        base = {NAMES[name]: limit / spec.procs for name, limit in client.prov.base.items()}
        limits = None
        if self.told:
            limits = Limits(**{f"{name}_per_minute": limit for name, limit in base.items()})
        self.admission = Admission(
            client.sim.now,
            limits,
            dimensions=tuple(base) or (REQUESTS,),
            max_in_flight=spec.max_inflight,
            dice=client.rng,
        )
        self.retries, self.timer = deque(), None
        self.output, self.ratio = spec.max_tokens * 0.4, 1.0
        # What a provider counts is known of it, like its wire format.
        self.charges_actual, self.reserves = spec.charge != "maxtok", spec.charge == "reserve"
        self.pump()

    def cost(self, item):
        sent = item.est_in * self.ratio
        if self.reserves:
            return Cost(1.0, sent + item.max_tokens, sent, item.max_tokens)
        got = self.output if self.charges_actual else item.max_tokens
        return Cost(1.0, sent + got, sent, got, self.output if self.charges_actual else 0.0)

    def pump(self):
        client, sim = self.client, self.client.sim
        if self.timer is not None:
            sim.cancel(self.timer)
            self.timer = None
        while self.retries or client.queue:
            queue = self.retries or client.queue
            cost = self.cost(queue[0])
            wait = self.admission.wait(sim.now, cost)
            if wait > 0:
                if wait < math.inf:
                    self.timer = sim.call_later(max(wait, 1e-3), self.pump)
                return
            item, grant = queue.popleft(), self.admission.start(sim.now, cost)
            client.prov.request(
                item, lambda i, r, grant=grant: self.answered(i, r, grant), client.proc
            )

    def answered(self, item, response, grant):
        client, now = self.client, self.client.sim.now
        headers = {
            NAMES[name]: LimitHeader(*found) for name, found in (response.headers or {}).items()
        }
        if response.status == 200:
            sent, got = response.tin, response.tout
            self.output += 0.03 * (got - self.output)
            self.ratio += 0.03 * (sent / max(1, item.est_in) - self.ratio)
            used = Cost(1.0, sent + got, sent, got) if self.charges_actual else None
            self.admission.accepted(now, grant, used, headers)
            client.complete(item)
        elif response.status == 429:
            self.admission.refused(
                now,
                grant,
                latency=response.latency,
                retry_after=response.retry_after,
                headers=headers,
            )
            self.retries.append(item)
        else:
            self.admission.failed(now, grant)
            delay = client.rng.uniform(0.2, 1.0) * 0.5 * 2 ** min(6, item.attempts - 1)
            client.sim.call_later(delay, self.back, item)
        self.pump()

    def back(self, item):
        self.retries.append(item)
        self.pump()


def random_spec(dice, make, number):
    rpm = 10 ** dice.uniform(1.5, 4)
    kind = dice.choice(["bucket", "bucket", "fixed", "sliding"])
    return make(
        name=f"random {number}",
        n=int(min(4000, max(200, rpm * dice.uniform(1, 4)))),
        rpm=rpm if dice.random() < 0.9 else None,
        tpm=rpm * 10 ** dice.uniform(2.7, 3.6),
        kind=kind,
        burst_s=dice.choice([1.0, 5.0, 10.0, 60.0]),
        charge=dice.choice(["post", "post", "maxtok", "reserve"]),
        headers=dice.random() < 0.3,
        retry_after=dice.choice(["accurate", "ceil", "none"]),
        count_rejects=dice.random() < 0.2,
        sig_in=dice.uniform(0.2, 1.0),
        est_bias=dice.uniform(0.6, 1.4),
        rej_lat=dice.uniform(0.05, 0.3),
        offset=dice.uniform(0, 60),
        max_inflight=1000,
    )


#: What a refusal at random asks for, in seconds.
PAUSE_SECONDS = 1.0


def own_scenarios(provider):
    """Return a provider that may refuse at random too, and scenarios of our own."""

    @dataclass
    class Spec(provider.Spec):
        chance: float = 0.0

    class Provider(provider.Provider):
        def __init__(self, sim, spec, seed):
            super().__init__(sim, spec, seed)
            self.chance, self.dice = getattr(spec, "chance", 0.0), random.Random(seed + 77)

        def _arrive(self, item, done, number, sent_at, redraw):
            if not self.chance or self.dice.random() >= self.chance:
                super()._arrive(item, done, number, sent_at, redraw)
                return
            self.n429 += 1
            self.log.append((self.sim.now, 429, number))
            seconds = self.spec.rej_lat * self.dice.uniform(0.6, 2.0)
            reply = provider.Resp(429, self.sim.now, 0, PAUSE_SECONDS, self.headers())
            self.sim.call_later(seconds, self._reply, item, done, reply, sent_at)

    fast = {"ttft": 0.05, "mean_out": 1, "max_tokens": 8, "tps": 1e4, "rej_lat": 0.02, "net": 0.005}
    free = {"rpm": None, "tpm": None, "max_inflight": 1000}
    return Provider, {
        "R1": Spec(name="R1", n=200, chance=0.03, **free, **fast),
        "R2": Spec(name="R2", n=2000, chance=0.03, **free, **fast),
        "R3": Spec(name="R3", n=2000, chance=0.03, **free),
        "R4": Spec(name="R4", n=200, chance=0.1, **free, **fast),
        "R5": Spec(name="R5", n=2000, chance=0.03, burst_s=10, retry_after="ceil"),
        "T1": Spec(name="T1", n=1000, rpm=6000, tpm=None, burst_s=0.1, retry_after="ceil", **fast),
    }


def told_oracle(bench):
    """Return an omniscient client that keeps told limits, too: each as a bucket of a minute."""

    class Oracle(bench.Oracle):
        name = "omniscient, limits kept"

        def start(self, client):
            self.told = {name: limit / 60 for name, limit in client.prov.base.items()}
            self.left = dict(client.prov.base)
            self.filled_at = client.sim.now
            super().start(client)

        def cost(self, item):
            got = item.max_tokens if self.c.spec.charge == "maxtok" else item.tout
            sent = item.tin
            return {"requests": 1.0, "tokens": sent + got, "input": sent, "output": got}

        def ceiling_wait(self, cost):
            passed, self.filled_at = self.c.sim.now - self.filled_at, self.c.sim.now
            longest = 0.0
            for name, rate in self.told.items():
                self.left[name] = min(60 * rate, self.left[name] + passed * rate)
                missing = min(cost[name], 60 * rate) - self.left[name]
                longest = max(longest, missing / rate)
            return longest if longest > 1e-9 else 0.0

        def pump(self):
            client, provider, self.h = self.c, self.c.prov, None
            while client.queue and self.infl < client.spec.max_inflight:
                item = client.queue[0]
                cost = self.cost(item)
                wait = self.ceiling_wait(cost)
                if not provider.can(item):
                    wait = max(wait, provider.wait(item), 1e-3)
                if wait:
                    self.h = client.sim.call_later(max(wait, 1e-3), self.pump)
                    return
                client.queue.popleft()
                self.infl += 1
                for name in self.told:
                    self.left[name] -= cost[name]
                item.attempts += 1
                provider.nsent += 1
                item.t_first = client.sim.now if item.t_first < 0 else item.t_first
                provider._arrive(item, self.resp, client.proc, client.sim.now, False)

    return Oracle


def measure(bench, spec, makers, seeds):
    optimum = {}
    for seed in seeds:
        best = bench.simulate(spec, bench.Oracle, seed, 60_000)
        pauses = PAUSE_SECONDS * best["n429"] if getattr(spec, "chance", 0.0) else 0.0
        optimum[seed] = best["makespan"] + pauses
    rows = {}
    for make in makers:
        runs = [bench.simulate(spec, make, seed, 60_000) for seed in seeds]
        ratios = [run["makespan"] / optimum[s] for run, s in zip(runs, seeds, strict=True)]
        refused = [100 * run["n429"] / spec.n for run in runs]
        rows[runs[0]["name"]] = (statistics.mean(ratios), statistics.mean(refused))
    return rows


def summary(found):
    print("\n| strategy | geometric mean | median | p90 | worst | refused, median | worst |")
    print("|---|---|---|---|---|---|---|")
    for name in next(iter(found.values())):
        ratios = sorted(rows[name][0] for rows in found.values())
        refused = sorted(rows[name][1] for rows in found.values())
        mean = math.exp(statistics.mean(math.log(ratio) for ratio in ratios))
        p90 = ratios[min(len(ratios) - 1, math.ceil(0.9 * len(ratios)) - 1)]
        print(
            f"| {name} | {mean:.3f} | {statistics.median(ratios):.2f} | {p90:.2f} "
            f"| {ratios[-1]:.2f} | {statistics.median(refused):.1f} % | {refused[-1]:.0f} % |"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench")
    parser.add_argument("scenarios", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--sweep", type=int, help="the sweep's seed, to see one again")
    parser.add_argument("--items", type=int, help="of each scenario, in place of its own number")
    parser.add_argument("--reference", action="store_true", help="run the bench's controller too")
    parser.add_argument("--bound", action="store_true", help="what told limits cost at the least")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(options.bench)))
    import provider
    import run as bench
    from scenarios import S

    bench.Provider, own = own_scenarios(provider)

    makers = [lambda: Ours(told=False), lambda: Ours(told=True)]
    if options.reference:
        makers += [lambda: bench.Governed("auto"), lambda: bench.Governed("known")]
    if options.bound:
        makers.append(told_oracle(bench))
    if options.random:
        seed = options.sweep or random.SystemRandom().randrange(10**9)
        print(f"random sweep, seed {seed}")
        dice = random.Random(seed)
        specs = {n: random_spec(dice, provider.Spec, n) for n in range(options.random)}
        seeds = options.seeds[:1]
    else:
        known = {**S, **own}
        specs = {key: known[key] for key in options.scenarios or known}
        if options.items:
            specs = {key: replace(spec, n=options.items) for key, spec in specs.items()}
        seeds = options.seeds
    found = {}
    print("| scenario | " + " | ".join(make().name for make in makers) + " |")
    print("|---|" + "---|" * len(makers))
    for key, spec in specs.items():
        found[key] = measure(bench, spec, makers, seeds)
        cells = (f"{ratio:.2f} / {refused:.1f}" for ratio, refused in found[key].values())
        print(f"| {key} | " + " | ".join(cells) + " |", flush=True)
    summary({key: rows for key, rows in found.items() if key not in own} or found)


if __name__ == "__main__":
    main()
