"""What the engine costs per item, beside a bare pool, a semaphore and other libraries.

    uv run --group bench python benchmarks/engine.py

Each run is a process of its own that imports only what it measures: a larger heap makes Python's
garbage collector dearer for everyone in it. The runs of all contestants are interleaved; medians
are printed, with the range in brackets. Takes three quarters of a minute of CPU.
"""

from __future__ import annotations

import asyncio
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

ITEMS, WORKERS, RUNS = 20_000, 100, 3
#: Items in flight that take 20 ms each: at best all are done after 2 s.
SLEEPERS = 200
#: Of those that take hundreds of microseconds for each.
FEWER_ITEMS = 4_000


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


def build(workers, **settings):
    from batch_llm import ParallelBatchProcessor, ProcessorConfig

    config = ProcessorConfig(max_workers=workers, progress_interval=0, **settings)
    return ParallelBatchProcessor(config=config)


def items(count, call):
    from batch_llm import LLMWorkItem

    return (LLMWorkItem(item_id=str(n), direct_call=call) for n in range(count))


async def learning():
    result = await build(WORKERS).process(items(ITEMS, no_op))
    assert result.succeeded == ITEMS


async def told():
    from batch_llm import Limits

    built = build(WORKERS, limits=Limits(requests_per_minute=1e9))
    result = await built.process(items(ITEMS, no_op))
    assert result.succeeded == ITEMS


async def cooldown():
    from batch_llm import RateLimitConfig

    built = build(WORKERS, rate_limit=RateLimitConfig())
    result = await built.process(items(ITEMS, no_op))
    assert result.succeeded == ITEMS


async def with_aiometer():
    import aiometer

    async def one(_):
        return await no_op(1, 1.0)

    async with aiometer.amap(one, range(ITEMS), max_at_once=WORKERS) as results:
        assert len([result async for result in results]) == ITEMS


async def with_async_batch_llm():
    import async_batch_llm

    class NoOp(async_batch_llm.LLMCallStrategy):
        async def execute(self, prompt, attempt, timeout, state=None):
            return 1, {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}, None

    config = async_batch_llm.ProcessorConfig(max_workers=WORKERS, progress_interval=FEWER_ITEMS)
    strategy = NoOp()
    async with async_batch_llm.ParallelBatchProcessor(config=config) as processor:
        for n in range(FEWER_ITEMS):
            await processor.add_work(async_batch_llm.LLMWorkItem(str(n), strategy=strategy))
        assert (await processor.process_all()).succeeded == FEWER_ITEMS


async def sleepers_of_semaphore():
    gate = asyncio.Semaphore(SLEEPERS)

    async def one():
        async with gate:
            await twenty_ms(1, 1.0)

    await asyncio.gather(*[one() for _ in range(ITEMS)])


async def sleepers():
    result = await build(SLEEPERS).process(items(ITEMS, twenty_ms))
    assert result.succeeded == ITEMS


async def sleepers_with_cooldown():
    from batch_llm import RateLimitConfig

    built = build(SLEEPERS, rate_limit=RateLimitConfig())
    result = await built.process(items(ITEMS, twenty_ms))
    assert result.succeeded == ITEMS


async def stream(count):
    async for result in build(WORKERS).stream(items(count, no_op)):
        assert result.success


CONTESTANTS = {
    "bare pool over an iterator": bare_pool,
    "`Semaphore + gather`": semaphore,
    "batch-llm, limits learned (the default)": learning,
    "batch-llm, a limit told": told,
    "batch-llm, a cooldown": cooldown,
    "aiometer": with_aiometer,
    "async-batch-llm": with_async_batch_llm,
}


SLEEPING = {
    "`Semaphore + gather`": sleepers_of_semaphore,
    "batch-llm, limits learned (the default)": sleepers,
    "batch-llm, a cooldown": sleepers_with_cooldown,
}


def wall_seconds(name):
    import batch_llm.parallel  # noqa: F401 - loaded for all alike, before the clock starts

    started = time.perf_counter()
    asyncio.run(SLEEPING[name]())
    return time.perf_counter() - started


def virtual_seconds(name):
    """Return what it takes where nothing takes time but the items: what the engine waits for."""
    from batch_llm.testing import VirtualTimeLoop

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(SLEEPING[name]())
        return runner.get_loop().time()


def cpu_us(name):
    asyncio.run(CONTESTANTS[name]())  # imports and warm-up
    started = time.process_time()
    asyncio.run(CONTESTANTS[name]())
    count = FEWER_ITEMS if name == "async-batch-llm" else ITEMS
    return (time.process_time() - started) / count * 1e6


def peak_mb(count):
    asyncio.run(stream(count))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(what, argument):
    """Measure in a process of its own."""
    out = subprocess.run(
        [sys.executable, __file__, what, str(argument)], capture_output=True, text=True, check=True
    )
    return float(out.stdout)


def named(name):
    return f"{name} {version(name)}" if name in {"aiometer", "async-batch-llm"} else name


def report():
    taken = {name: [] for name in CONTESTANTS}
    for _ in range(RUNS):
        for name, runs in taken.items():
            runs.append(apart("cpu", name))
    base = statistics.median(taken["`Semaphore + gather`"])
    print(
        f"Python {platform.python_version()}, {ITEMS} items, {WORKERS} workers, {RUNS} runs\n",
        flush=True,
    )
    print("| what | CPU per no-op item | of the semaphore |")
    print("|---|---|---|")
    for name, runs in taken.items():
        median = statistics.median(runs)
        print(f"| {named(name)} | {median:.1f} µs ({min(runs):.1f} to {max(runs):.1f}) ", end="")
        print(f"| {median / base:.2f} x |", flush=True)
    walls = {name: [] for name in SLEEPING}
    for _ in range(RUNS):
        for name, found in walls.items():
            found.append(apart("wall", name))
    print(f"\n| {ITEMS} items of 20 ms, {SLEEPERS} in flight: 2.00 s at best ", end="")
    print("| wall | in virtual time |")
    print("|---|---|---|")
    for name, found in walls.items():
        print(f"| {name} | {statistics.median(found):.2f} s ({min(found):.2f} to ", end="")
        print(f"{max(found):.2f}) | {apart('virtual', name):.2f} s |", flush=True)
    small, large = apart("peak", 10_000), apart("peak", 1_000_000)
    print(f"\npeak memory, streamed: 10,000 items {small:.0f} MB, 1,000,000 items {large:.0f} MB")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["cpu", name]:
            print(cpu_us(name))
        case ["wall", name]:
            print(wall_seconds(name))
        case ["virtual", name]:
            print(virtual_seconds(name))
        case ["peak", count]:
            print(peak_mb(int(count)))
        case _:
            report()
