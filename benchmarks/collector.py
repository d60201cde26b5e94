"""How long Python's garbage collector stops the event loop, with and without what a run does.

    uv run --group bench python benchmarks/collector.py [IN_FLIGHT] [ITEMS]

Items that take half a second each, with the providers' SDKs loaded: those are most of what a full
collection looks at. Each run is a process of its own.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time

RUNS = 3


async def half_a_second(attempt, timeout):
    await asyncio.sleep(0.5)
    return "an answer", {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}


async def process(in_flight, count):
    from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, RateLimitConfig

    config = ProcessorConfig(
        max_workers=in_flight, progress_interval=0, rate_limit=RateLimitConfig()
    )
    items = (LLMWorkItem(str(n), direct_call=half_a_second) for n in range(count))
    result = await ParallelBatchProcessor(config=config).process(items)
    assert result.succeeded == count


def measure(in_flight, count):
    import anthropic  # noqa: F401 - to be looked at
    import openai  # noqa: F401
    import pydantic_ai  # noqa: F401

    stops, began_at = [0.0], 0.0

    def note(phase, _):
        nonlocal began_at
        if phase == "start":
            began_at = time.thread_time()
        else:
            stops.append(time.thread_time() - began_at)

    gc.callbacks.append(note)
    started = time.process_time()
    asyncio.run(process(in_flight, count))
    print(max(stops) * 1e3, sum(stops) * 1e3, (time.process_time() - started) * 1e3)


def apart(how, in_flight, count):
    command = [sys.executable, __file__, how, str(in_flight), str(count)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(one) for one in out.split()]


def report(in_flight, count):
    found = {"left alone": [], "as a run has it": []}
    for _ in range(RUNS):
        for how, runs in found.items():
            runs.append(apart(how, in_flight, count))
    print(f"{count} items, {in_flight} in flight, best to worst of {RUNS}\n")
    print("| collector | longest stop | all stops | CPU |")
    print("|---|---|---|---|")
    for how, runs in found.items():
        columns = (sorted(column) for column in zip(*runs, strict=True))
        cells = (f"{least:.0f} to {most:.0f} ms" for least, *_, most in columns)
        print(f"| {how} | {' | '.join(cells)} |")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["left alone" | "as a run has it" as how, in_flight, count]:
            if how == "left alone":  # whoever has tuned it is
                gc.set_threshold(gc.get_threshold()[0] + 1)
            measure(int(in_flight), int(count))
        case numbers:
            report(*[int(number) for number in numbers] or (5_000, 60_000))
