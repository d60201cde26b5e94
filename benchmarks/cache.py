"""What a cache of answers costs and saves: CPU per item, hits a second, the event loop's lag.

    uv run --group bench python benchmarks/cache.py [--items N] [--rounds N] [--seconds S]

Each measurement is a process of its own; the kinds are interleaved, medians are shown, with the
range in brackets. The calls are made by a provider in memory that answers at once, so that nothing
but our own work is seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext

from batch_llm import (
    AnswerCache,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    Request,
    RetryConfig,
)
from batch_llm.providers.registry import resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import Response

TEXT = "word " * 400  # 2 kB
ANSWER = json.dumps(
    {
        "model": "m",
        "choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 400},
    }
).encode()
KEPT = 50_000
LAGS = ("idle", "kept", "missing", "in the loop")
KINDS = ("no dedupe", "dedupe", "misses", "hits")


class Instant:
    """A transport without a network."""

    async def post(self, url, headers, body, /):
        await asyncio.sleep(0)
        return Response(200, {}, ANSWER)

    async def aclose(self):
        pass


def items(count):
    for n in range(count):
        yield LLMWorkItem(f"row-{n}", request=Request.of("openai-chat:m", f"{n} {TEXT[:400]}"))


def built(kind, cache):
    endpoint = resolve("openai-chat:m", base_url="http://127.0.0.1:1/v1", environ={})
    return ParallelBatchProcessor(
        config=ProcessorConfig(
            max_workers=100,
            progress_interval=0,
            remember_limits=False,
            retry=RetryConfig(),
            dedupe=kind != "no dedupe",
        ),
        requests=RequestCaller(endpoint, Instant()),
        cache=cache,
    )


async def one_run(kind, count, cache):
    processor = built(kind, cache)
    began, cpu = time.perf_counter(), time.process_time()
    async for result in processor.stream(items(count)):
        assert result.success
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    assert processor.statistics().cached == (count if kind == "hits" else 0)
    return count / seconds, used / count * 1e6


class Timed(AnswerCache):
    """Notes how long each of its steps holds the event loop, in ms."""

    def __init__(self, folder):
        self.took = []
        super().__init__(folder)

    def timed(self, step, *arguments, **named):
        began = time.perf_counter()
        try:
            return step(*arguments, **named)
        finally:
            self.took.append((time.perf_counter() - began) * 1e3)

    def look_up(self, key, /):
        return self.timed(super().look_up, key)

    def put(self, key, answer, /, *, model):
        return self.timed(super().put, key, answer, model=model)

    def _tell(self, group, error):
        return self.timed(super()._tell, group, error)

    def _settle(self, group, error):
        return self.timed(super()._settle, group, error)


def key(number):
    return number.to_bytes(16)


async def lag(kind, folder, seconds):
    """2,000 look-ups a second, the missing ones then kept: all in ms.

    "late": how late a timer of 1 ms is; "held": how long a step of the cache holds the event loop;
    "answered": how long a look-up takes.
    """
    late, waited = [], []
    with Timed(folder) as cache:
        cache.begin_run()

        async def sample():
            while True:
                began = time.perf_counter()
                await asyncio.sleep(0.001)
                late.append((time.perf_counter() - began - 0.001) * 1e3)

        async def one(number):
            if kind == "idle":
                return
            began = time.perf_counter()
            if kind == "in the loop":
                cache.timed(cache._find, [key(number)])
            elif await cache.look_up(key(number)) is None:
                cache.put(key(number), ANSWER, model="m")
            waited.append((time.perf_counter() - began) * 1e3)

        first = 10**9 if kind == "missing" else 0
        sampling = asyncio.create_task(sample())
        began = time.perf_counter()
        number = 0
        while (elapsed := time.perf_counter() - began) < seconds:
            due = int(elapsed * 2000) - number
            async with asyncio.TaskGroup() as group:
                for one_more in range(number, number + due):
                    group.create_task(one(first + one_more * 7919 % KEPT))
            number += due
            await asyncio.sleep(0.002)
        sampling.cancel()
    held = [share(cache.took, 0.99), share(cache.took, 1.0)]
    return (share(late, 0.5), share(late, 0.99), *held, share(waited, 0.5), share(waited, 0.99))


def share(values, of):
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(of * len(ordered)))]


async def fill(folder):
    with AnswerCache(folder) as cache:
        cache.begin_run()
        for number in range(KEPT):
            while len(cache._fresh) > 5000:
                await asyncio.sleep(0.01)
            cache.put(key(number), ANSWER, model="m")


def lags(seconds, rounds):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(fill(folder))
        found = {kind: [] for kind in LAGS}
        for _ in range(rounds):
            for kind in LAGS:
                found[kind].append(asyncio.run(lag(kind, folder, seconds)))
        return found


def measure(kind, count):
    with tempfile.TemporaryDirectory() as folder:
        uses = kind in {"misses", "hits"}
        with AnswerCache(folder) if uses else nullcontext() as cache:
            if kind == "hits":
                asyncio.run(one_run("misses", count, cache))
        with AnswerCache(folder) if uses else nullcontext() as cache:
            return asyncio.run(one_run(kind, count, cache))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--kind")
    options = parser.parse_args()
    if options.kind:
        print(*measure(options.kind, options.items))
        return
    found = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            command = [sys.executable, __file__, "--kind", kind, "--items", str(options.items)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[kind].append([float(number) for number in said.split()])
    show(found, {"items/s": "{:,.0f}", "CPU µs/item": "{:.0f}"})
    print(f"\n2,000 look-ups a second among {KEPT:,} answers of 2 kB, in ms")
    names = ("late p50", "late p99", "held p99", "held max", "answered p50", "answered p99")
    show(lags(options.seconds, options.rounds), dict.fromkeys(names, "{:.2f}"))


def show(found, columns):
    print(f"{'':<12} " + " ".join(f"{name:>20}" for name in columns))
    for kind, rounds in found.items():
        cells = []
        for numbers, form in zip(zip(*rounds, strict=True), columns.values(), strict=True):
            middle, low, high = (
                form.format(one) for one in (statistics.median(numbers), min(numbers), max(numbers))
            )
            cells.append(f"{middle} [{low}-{high}]")
        print(f"{kind:<12} " + " ".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
