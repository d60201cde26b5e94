"""What second copies do to the end of a run, in virtual time: makespan, copies, tokens.

    uv run python benchmarks/hedging.py [--seeds 5] [--sizes 300 2000 20000]
    uv run python benchmarks/hedging.py --cpu

The whole processor runs, with its admission, over a provider that only sleeps. A call takes half a
second and a hundredth of a second per token of its answer, 300 in the median and log-normal (0.6),
times a log-normal noise (0.15). Stragglers: 1 % of the calls take longer by a factor drawn from a
Pareto distribution (exponent 1.1, from 2 on). Hangs: 0.2 % of the calls are never answered. A copy
draws its own straggling and hanging, and gives the same answer.

A call is billed in full, whether anybody waited for its answer or not: extra tokens are those of
losers and of attempts that ran out of time. Medians over the seeds, and the worst makespan of them:
stragglers are rare, so seeds matter. p99 and the longest are of the time from an item's first call
to its result.

With ``--cpu``: what an item that takes no time costs with copies switched off and on, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import statistics
import time

from batch_llm import Limits, LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, RetryConfig
from batch_llm.testing import VirtualTimeLoop

INPUT_TOKENS = 200
POLICIES = {
    "none": (False, 600.0, False),
    "drain": (True, 600.0, False),
    "drain, sizes told": (True, 600.0, True),
    "none, timeout 60 s": (False, 60.0, False),
    "drain, timeout 60 s": (True, 60.0, False),
}
WORLDS = {
    "1 % Pareto stragglers, no hangs": (0.01, 0.0),
    "1 % Pareto stragglers, 0.2 % of the calls hang": (0.01, 0.002),
    "no stragglers (log-normal only)": (0.0, 0.0),
}
RATES = {300: 20, 2000: 20, 20_000: 100}


class Provider:
    def __init__(self, seed, straggling, hanging):
        self.seed, self.straggling, self.hanging = seed, straggling, hanging
        self.billed = 0
        self.began = {}

    def answer(self, number):
        dice = random.Random(f"{self.seed}/{number}")
        return max(1, round(dice.lognormvariate(0, 0.6) * 300))

    def call(self, number):
        tokens, made = self.answer(number), 0

        async def call(attempt, timeout):
            nonlocal made
            made += 1
            dice = random.Random(f"{self.seed}/{number}/{made}")
            self.began.setdefault(str(number), asyncio.get_running_loop().time())
            self.billed += INPUT_TOKENS + tokens
            seconds = (0.5 + tokens / 100) * dice.lognormvariate(0, 0.15)
            if dice.random() < self.straggling:
                seconds *= 2 * dice.paretovariate(1.1)
            if dice.random() < self.hanging:
                seconds = 1e9
            await asyncio.sleep(seconds)
            return number, {"input_tokens": INPUT_TOKENS, "output_tokens": tokens}

        return call


async def run(size, seed, world, policy):
    provider = Provider(seed, *WORLDS[world])
    hedge, timeout, tells = POLICIES[policy]
    processor = ParallelBatchProcessor(
        config=ProcessorConfig(
            concurrency="auto",
            limits=Limits(requests_per_minute=60 * RATES[size], burst_seconds=1),
            timeout_per_item=timeout,
            retry=RetryConfig(max_attempts=10),
            hedge=hedge,
            progress_interval=0,
            remember_limits=False,
        )
    )
    items = (
        LLMWorkItem(
            str(number),
            direct_call=provider.call(number),
            can_hedge=True,
            estimated_output_tokens=provider.answer(number) if tells else None,
        )
        for number in range(size)
    )
    loop, taken = asyncio.get_running_loop(), []
    async for result in processor.stream(items):
        assert result.success
        taken.append(loop.time() - provider.began[result.item_id])
    needed = sum(INPUT_TOKENS + provider.answer(number) for number in range(size))
    taken.sort()
    now = processor.statistics()
    return (
        loop.time(),
        now.hedged,
        now.hedges_won,
        100 * (provider.billed - needed) / needed,
        taken[int(0.99 * size)],
        taken[-1],
    )


def measure(size, seed, world, policy):
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(run(size, seed, world, policy))


async def no_op(attempt, timeout):
    return 1, {"input_tokens": 10, "output_tokens": 3}


async def run_no_ops(count, *, hedge):
    config = ProcessorConfig(max_workers=100, hedge=hedge, remember_limits=False)
    items = (LLMWorkItem(str(n), direct_call=no_op, can_hedge=True) for n in range(count))
    processor = ParallelBatchProcessor(config=config)
    assert sum([result.success async for result in processor.stream(items)]) == count


def measure_cpu(count=20_000, rounds=7):
    spent = {False: [], True: []}
    for _ in range(rounds):
        for hedge, found in spent.items():
            began = time.process_time()
            asyncio.run(run_no_ops(count, hedge=hedge))
            found.append((time.process_time() - began) / count * 1e6)
    off, on = (statistics.median(found) for found in spent.values())
    ratio = statistics.median(b / a for a, b in zip(*spent.values(), strict=True))
    print(f"CPU an item: {off:.1f} µs without copies, {on:.1f} µs with them, {ratio:.2f} times")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--cpu", action="store_true", help="measure only the CPU of an item")
    options = parser.parse_args()
    if options.cpu:
        measure_cpu()
        return
    print(f"Python {platform.python_version()}, seeds 1 to {options.seeds}")
    for world in WORLDS:
        print(f"\n{world}:\n")
        print(
            "| items | policy | makespan s | worst | copies | won | extra tokens | p99 s ", end=""
        )
        print("| longest s |\n|---|---|---|---|---|---|---|---|---|")
        for size in options.sizes:
            for policy in POLICIES:
                runs = [measure(size, seed + 1, world, policy) for seed in range(options.seeds)]
                middle = [statistics.median(column) for column in zip(*runs, strict=True)]
                makespan, copies, won, extra, p99, longest = middle
                print(
                    f"| {size:,} at {RATES[size]}/s | {policy} | {makespan:.0f} "
                    f"| {max(one[0] for one in runs):.0f} | {copies:.0f} "
                    f"| {won:.0f} | {extra:.2f} % | {p99:.1f} | {longest:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
