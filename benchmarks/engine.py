"""What the engine costs per item, beside a bare pool and a semaphore. Run by hand.

python benchmarks/engine.py
"""

from __future__ import annotations

import asyncio
import platform
import resource
import statistics
import subprocess
import sys
import time

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig

ITEMS, WORKERS, RUNS = 20_000, 100, 5


async def no_op(attempt, timeout):
    return 1, {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}


async def twenty_ms(attempt, timeout):
    await asyncio.sleep(0.02)
    return 1, None


async def bare_pool():
    source = iter(range(ITEMS))

    async def work():
        for _ in source:
            await no_op(1, 1.0)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(WORKERS):
            tasks.create_task(work())


async def semaphore():
    gate = asyncio.Semaphore(WORKERS)

    async def one():
        async with gate:
            return await no_op(1, 1.0)

    await asyncio.gather(*[one() for _ in range(ITEMS)])


def build(workers):
    return ParallelBatchProcessor(config=ProcessorConfig(max_workers=workers, progress_interval=0))


async def engine():
    items = (LLMWorkItem(item_id=str(n), direct_call=no_op) for n in range(ITEMS))
    result = await build(WORKERS).process(items)
    assert result.succeeded == ITEMS


async def sleepers():
    items = (LLMWorkItem(item_id=str(n), direct_call=twenty_ms) for n in range(ITEMS))
    result = await build(200).process(items)
    assert result.succeeded == ITEMS


async def stream(count):
    items = (LLMWorkItem(item_id=str(n), direct_call=no_op) for n in range(count))
    async for result in build(WORKERS).stream(items):
        assert result.success


def cpu_us(main):
    taken = []
    for _ in range(RUNS):
        started = time.process_time()
        asyncio.run(main())
        taken.append((time.process_time() - started) / ITEMS * 1e6)
    return taken


def peak_mb(count):
    out = subprocess.run(
        [sys.executable, __file__, str(count)], capture_output=True, text=True, check=True
    )
    return float(out.stdout)


def report():
    print(f"Python {platform.python_version()}, {ITEMS} items, {WORKERS} workers, {RUNS} runs")
    mains = {"bare pool": bare_pool, "Semaphore + gather": semaphore, "batch-llm": engine}
    for name, main in mains.items():
        taken = cpu_us(main)
        spread = f"{min(taken):.1f} to {max(taken):.1f}"
        print(f"{name:<20} {statistics.median(taken):6.1f} us CPU per no-op item ({spread})")
    walls = []
    for _ in range(RUNS):
        started = time.perf_counter()
        asyncio.run(sleepers())
        walls.append(time.perf_counter() - started)
    median = statistics.median(walls)
    print(
        f"20,000 x 20 ms at 200: {median:.2f} s ({min(walls):.2f} to {max(walls):.2f}), ideal 2.00"
    )
    small, large = peak_mb(10_000), peak_mb(1_000_000)
    print(f"peak memory, streamed: 10,000 items {small:.0f} MB, 1,000,000 items {large:.0f} MB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(stream(int(sys.argv[1])))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        report()
