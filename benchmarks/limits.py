"""What clients make of a provider's limits, over sockets: time, refusals, losses, CPU.

    uv run --group bench python benchmarks/limits.py [--profiles bucket halved] [--rounds 3]
    uv run --group bench python benchmarks/limits.py --plot halved.svg

Each run has a simulator and a client of its own, each in a process of its own. The client imports
what it needs, resets the simulator (fixed windows start there), and is timed from then until it
has a result for each item, its own set-up included. What was let in and refused is the simulator's
account, never the client's word; an item is lost when the client has no good answer for it. CPU is
user + system of the client's process. A run is given up after three times its ideal, half a minute
at least; its unanswered items are lost then.

Clients that can be told a limit are told the one at the start (under ``slots``, the number of calls
in work). The plain one is a semaphore of 50 with tenacity around aiohttp, not around the openai
SDK, whose CPU would be the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import importlib
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from batch_llm.simulator import parse_profile
from batch_llm.simulator.server import SimulatorProcess

WORKERS = 50
BUCKET = "fast?rpm=6000&burst=0.1"
PROFILES = {
    "bucket": BUCKET,
    "no-headers": f"{BUCKET}&headers=off",
    "fixed-window": "fast?rpm=6000&window=fixed&burst=2",
    "rejects-count": f"{BUCKET}&rejects=count",
    "halved": f"{BUCKET}&change=5:0.5",
    "halved-no-headers": f"{BUCKET}&change=5:0.5&headers=off",
    "slots": "fast?slots=20&latency=0.2",
    "outage": f"{BUCKET}&down=3-33",
}
#: The cooldown of the two that have one: a second, then 50 calls from 10 to 100 a second.
COOLDOWN = {
    "cooldown_seconds": 1.0,
    "slow_start_items": 50,
    "slow_start_initial_delay": 0.1,
    "slow_start_final_delay": 0.01,
}
SAMPLE_SECONDS = 0.05
#: Settled: so long a time of which each second had at least and at most so much of the new limit
#: let in, and no more than so much of its calls refused.
SETTLED_SECONDS, LEAST, MOST, REFUSED = 3.0, 0.85, 1.15, 0.05


def ideal_seconds(profile, calls):
    """Return what a client needs that knows all and whose calls take no time to travel."""
    if profile.slots:
        return math.ceil(calls / profile.slots) * profile.latency
    rate = profile.rpm / 60
    if profile.window == "fixed":
        windows = math.ceil(calls / (rate * profile.burst))
        return (windows - 1) * profile.burst + profile.latency
    at, factor = profile.change
    left = calls - max(1.0, rate * profile.burst)
    early = left / rate
    down_from, down_to = profile.down
    if early > down_from:
        early += down_to - down_from
    if factor == 1 or early <= at:
        return early + profile.latency
    return at + (left - rate * at) / (rate * factor) + profile.latency


def prompts(calls):
    return [f"Question {number}" for number in range(calls)]


def ours(config):
    async def run(url, profile, calls, note):
        from batch_llm import LLMWorkItem, ParallelBatchProcessor, Request, open_model

        items = (LLMWorkItem(text, request=Request.of("sim:m", text)) for text in prompts(calls))
        async with open_model("sim:m", base_url=url) as model:
            processor = ParallelBatchProcessor(config=config(profile), requests=model)
            watching = asyncio.create_task(watch(processor, note))
            try:
                async for result in processor.stream(items):
                    note.good += result.success
            finally:
                watching.cancel()

    return run


async def watch(processor, note):
    while True:
        now = processor.statistics()
        believed = [one.limit / 60 for one in now.limits if one.dimension == "requests"]
        note.trace.append((time.monotonic(), believed[0] if believed else None, now.in_flight))
        await asyncio.sleep(2 * SAMPLE_SECONDS)


def unknown(profile):
    from batch_llm import ProcessorConfig

    return ProcessorConfig(concurrency="auto", progress_interval=0)


def told(profile):
    from batch_llm import Limits, ProcessorConfig

    if profile.slots:
        return ProcessorConfig(concurrency=profile.slots, progress_interval=0)
    return ProcessorConfig(limits=Limits(requests_per_minute=profile.rpm), progress_interval=0)


def cooldown(profile):
    from batch_llm import ProcessorConfig, RateLimitConfig

    return ProcessorConfig(
        max_workers=WORKERS, rate_limit=RateLimitConfig(**COOLDOWN), progress_interval=0
    )


def with_async_batch_llm(*, is_told):
    async def run(url, profile, calls, note):
        import async_batch_llm as abl

        known = {}
        if is_told and profile.rpm:
            known = {"max_requests_per_minute": profile.rpm, "quota_burst_seconds": profile.burst}
        config = abl.ProcessorConfig(
            concurrency=profile.slots if is_told and profile.slots else WORKERS,
            rate_limit=abl.RateLimitConfig(**COOLDOWN),
            progress_interval=calls,
            **known,
        )
        model = abl.OpenAICompatibleModel.from_api_key("m", "none", base_url=url)
        strategy = abl.OpenAIStrategy(model)
        async for result in abl.process_stream(strategy, prompts(calls), config=config):
            note.good += result.success

    return run


async def with_lm_deluge(url, profile, calls, note):
    import lm_deluge
    from lm_deluge.models import register_model

    os.environ["NO_KEY"] = "none"
    register_model("bench", "m", url, "NO_KEY", "openai")
    client = lm_deluge.LLMClient(
        "bench",
        max_requests_per_minute=int(profile.rpm) or 10**9,
        max_tokens_per_minute=10**12,
        max_concurrent_requests=profile.slots or WORKERS,
    )
    answers = await client.process_prompts_async(prompts(calls), show_progress=False)
    note.good = sum(not answer.is_error for answer in answers)


async def with_tenacity(url, profile, calls, note):
    import aiohttp
    import tenacity

    gate = asyncio.Semaphore(WORKERS)
    headers = {"authorization": "Bearer none"}
    connector = aiohttp.TCPConnector(limit=WORKERS)

    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        # As OpenAI's cookbook has it.
        @tenacity.retry(
            wait=tenacity.wait_random_exponential(min=1, max=60),
            stop=tenacity.stop_after_attempt(6),
        )
        async def ask(text):
            body = {"model": "m", "messages": [{"role": "user", "content": text}]}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                response.raise_for_status()
                return await response.json()

        async def one(text):
            async with gate:
                with contextlib.suppress(tenacity.RetryError):
                    await ask(text)
                    note.good += 1

        await asyncio.gather(*(one(text) for text in prompts(calls)))


OURS = (
    "aiohttp",
    "batch_llm.parallel",  # the package alone loads next to nothing
    "batch_llm.providers.transport",
    "batch_llm.providers.requests",
)
PEER = ("async_batch_llm", "openai")
#: name: (how it is called in the table, what it imports, what runs it)
CLIENTS = {
    "ours-unknown": ("batch-llm, limits unknown", OURS, ours(unknown)),
    "ours-told": ("batch-llm, limits told", OURS, ours(told)),
    "ours-cooldown": ("batch-llm, cooldown", OURS, ours(cooldown)),
    "async-batch-llm": ("async-batch-llm", PEER, with_async_batch_llm(is_told=False)),
    "async-batch-llm-told": ("async-batch-llm, told", PEER, with_async_batch_llm(is_told=True)),
    "lm-deluge": ("lm-deluge, told", ("lm_deluge",), with_lm_deluge),
    "tenacity": ("semaphore + tenacity", ("aiohttp", "tenacity"), with_tenacity),
}
PACKAGES = ("async-batch-llm", "lm-deluge", "openai", "tenacity", "aiohttp", "uvicorn")


class Note:
    """What a client has so far; still there when it is given up."""

    def __init__(self):
        self.good, self.trace = 0, []


def longest_seconds(ideal):
    return max(30.0, 3 * ideal)


async def client_run(name, text, url, calls):
    """Run one client; in its own process."""
    profile, note = parse_profile(text), Note()
    _, modules, run = CLIENTS[name]
    for module in modules:
        importlib.import_module(module)
    reset = f"{url.removesuffix('/v1')}/sim/reset"
    await asyncio.to_thread(lambda: urllib.request.urlopen(reset, data=b"").read())
    cpu, started = time.process_time(), time.monotonic()
    is_done = True
    try:
        async with asyncio.timeout(longest_seconds(ideal_seconds(profile, calls))):
            await run(url, profile, calls, note)
    except TimeoutError:
        is_done = False
    seconds = time.monotonic() - started
    return {
        "seconds": seconds,
        "is_done": is_done,
        "cpu": time.process_time() - cpu,
        "lost": calls - note.good,
        "started": started,
        "trace": note.trace,
    }


class Sampler(threading.Thread):
    """Reads the simulator's account all the time."""

    def __init__(self, url):
        super().__init__(daemon=True)
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port)
        self._ends = threading.Event()
        #: (time, calls, refused), both in all so far
        self.samples = []

    def read(self):
        self._connection.request("GET", "/sim/stats")
        return json.loads(self._connection.getresponse().read())

    def run(self):
        while not self._ends.wait(SAMPLE_SECONDS):
            now, found = time.monotonic(), self.read()
            self.samples.append((now, found["calls"], found["refused"]))

    def end(self):
        """Return the account as it is in the end."""
        self._ends.set()
        self.join()
        return self.read()


def measure(name, text, calls):
    profile = parse_profile(text)
    ideal = ideal_seconds(profile, calls)
    with SimulatorProcess(text) as simulator:
        sampler = Sampler(simulator.base_url)
        sampler.start()
        command = [sys.executable, __file__, "--calls", str(calls)]
        command += ["--one", name, text, simulator.base_url]
        limit = longest_seconds(ideal) + 120  # its imports take long on a busy machine
        out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit)
        account = sampler.end()
    found = json.loads(out.stdout.splitlines()[-1])
    found["ratio"] = found["seconds"] / ideal
    found["refused"] = 100 * account["refused"] / calls
    found["samples"] = [sample for sample in sampler.samples if sample[0] >= found["started"]]
    found["settled"] = settled_seconds(profile, found["samples"])
    return found


def windows(samples, seconds=1.0):
    """Yield start, end, let in and refused of each stretch of about a second."""
    for first in samples:
        for last in samples:
            if last[0] - first[0] >= seconds - SAMPLE_SECONDS / 2:
                refused = last[2] - first[2]
                yield first[0], last[0], last[1] - first[1] - refused, refused
                break


def settled_seconds(profile, samples):
    """Return the seconds from the change to the first time that counts as settled.

    None without a change, infinity when there is no such time.
    """
    at, factor = profile.change
    # The end says nothing of the rate: there is no work left.
    busy = [sample for sample in samples if 0 < sample[1] < samples[-1][1]]
    if factor == 1 or not busy:
        return None
    changed = busy[0][0] + at
    rate = profile.rpm / 60 * factor
    since = None
    for start, end, let_in, refused in windows(busy):
        if start < changed:
            continue
        share = let_in / (end - start) / rate
        if not (LEAST <= share <= MOST and refused <= REFUSED * (let_in + refused)):
            since = None
            continue
        since = start if since is None else since
        if end - since >= SETTLED_SECONDS:
            return since - changed
    return math.inf


def spread(values, digits):
    values = sorted(values)
    median = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def any_lost(runs):
    return any(run["lost"] for run in runs)


def row(name, profile, runs):
    given_up = sum(not run["is_done"] for run in runs)
    # A time that was saved by losing items is no time.
    mark = f", {given_up} given up" if given_up else ", not all" if any_lost(runs) else ""
    cells = [
        profile,
        CLIENTS[name][0],
        spread([run["ratio"] for run in runs], 2) + mark,
        f"{spread([run['refused'] for run in runs], 1)} %",
        spread([run["lost"] for run in runs], 0),
        spread([run["cpu"] for run in runs], 1),
    ]
    settled = [run["settled"] for run in runs]
    if None in settled:
        cells.append("")
    else:
        cells.append("never" if math.inf in settled else spread(settled, 1))
    return f"| {' | '.join(cells)} |"


def text_of(profile):
    return PROFILES.get(profile, profile)


def report(options):
    found = {}
    for number in range(options.rounds):
        for profile, name in itertools.product(options.profiles, options.clients):
            run = measure(name, text_of(profile), options.calls)
            found.setdefault((profile, name), []).append(run)
            print(f"round {number + 1}", row(name, profile, [run]), file=sys.stderr, flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, ", end="")
    print(f"{os.cpu_count()} cores; {packages}; {options.calls} calls, {options.rounds} rounds\n")
    for profile in options.profiles:
        ideal = ideal_seconds(parse_profile(text_of(profile)), options.calls)
        print(f"- {profile}: `sim:{text_of(profile)}`, ideal {ideal:.2f} s")
    print("\n| profile | client | time / ideal | refused | lost | CPU s | settled after s |")
    print("|---|---|---|---|---|---|---|")
    for (profile, name), runs in found.items():
        print(row(name, profile, runs))


def plot(paths, calls):
    """Draw what happens when a limit is halved, with headers and without."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "batch-llm"  # the same picture is the same file
    import matplotlib.pyplot as plt

    halved = f"{BUCKET}&change=10:0.5&latency=0.5"
    titles = {
        "The provider tells its limit with each answer": halved,
        "The provider tells nothing, it only refuses": f"{halved}&headers=off",
    }
    figure, panels = plt.subplots(
        2, 2, figsize=(11, 6.2), sharex=True, sharey="row", layout="constrained"
    )
    figure.suptitle(
        "A provider halves its limit after 10 s, and batch-llm has to find out "
        f"({calls:,} calls of half a second)"
    )
    ideal, longest = ideal_seconds(parse_profile(halved), calls), 0.0
    for (title, text), (upper, lower) in zip(titles.items(), panels.T, strict=True):
        run = measure("ours-unknown", text, calls)
        upper.set_title(f"{title}\n{summary(run)}", fontsize=10)
        draw_calls(upper, parse_profile(text), run)
        draw_belief(lower, parse_profile(text), run)
        lower.set_xlabel("seconds since the first call")
        longest = max(longest, run["seconds"])
    lower.set_xlim(0, min(longest, 1.5 * ideal))
    panels[0, 0].set_ylabel("what the provider sees\n(calls per second)")
    panels[1, 0].set_ylabel("what batch-llm believes\n(calls per second)")
    for upper_and_lower in panels:
        upper_and_lower[1].legend(loc="upper right", fontsize=8)
    for path in paths:
        metadata = {"Date": None} if Path(path).suffix == ".svg" else {}
        figure.savefig(path, dpi=120, metadata=metadata)


def summary(run):
    settled = run["settled"]
    after = "never settled" if settled == math.inf else f"settled after {settled:.1f} s"
    time_taken = f"{run['ratio']:.2f} x the ideal time" if run["is_done"] else "not finished"
    return f"{time_taken}, {run['refused']:.1f} % refused, {after}"


def limit_line(axis, profile, until):
    at, factor = profile.change
    rate = profile.rpm / 60
    axis.step(
        [0, at, until], [rate, rate * factor, rate * factor],
        where="post", color="black", linewidth=1.2, label="the provider's limit",
    )  # fmt: skip


def first_call(samples):
    return next(sample[0] for sample in samples if sample[1])


def draw_calls(axis, profile, run):
    start = first_call(run["samples"])
    until = run["samples"][-1][0] - start
    limit_line(axis, profile, until)
    parts = list(windows(run["samples"]))
    times = [(first + last) / 2 - start for first, last, _, _ in parts]
    axis.plot(
        times, [let_in / (last - first) for first, last, let_in, _ in parts],
        color="tab:green", label="calls let in, over one second",
    )  # fmt: skip
    axis.fill_between(
        times, [refused / (last - first) for first, last, _, refused in parts],
        color="tab:red", alpha=0.7, linewidth=0.8, label="calls refused (429), over one second",
    )  # fmt: skip
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)


def draw_belief(axis, profile, run):
    start = first_call(run["samples"])
    trace = [(at - start, believed, flying) for at, believed, flying in run["trace"]]
    limit_line(axis, profile, trace[-1][0])
    known = [(at, believed) for at, believed, _ in trace if believed is not None]
    axis.plot(
        *zip(*known, strict=True), color="tab:blue", label="the limit that batch-llm believes in"
    )
    axis.plot(
        [at for at, _, _ in trace], [flying for _, _, flying in trace],
        color="tab:orange", linewidth=0.9, label="calls in flight (a number, not a rate)",
    )  # fmt: skip
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--profiles", nargs="+", default=list(PROFILES), metavar="PROFILE",
        help=f"{', '.join(PROFILES)}, or text such as 'fast?rpm=600'",
    )  # fmt: skip
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int)
    parser.add_argument("--plot", nargs="+", metavar="OUT", help="files such as halved.svg")
    parser.add_argument("--one", nargs=3, metavar=("CLIENT", "PROFILE", "URL"))
    options = parser.parse_args()
    if options.plot:
        plot(options.plot, options.calls or 1500)
        return
    options.calls = options.calls or 1000
    if options.one:
        print(json.dumps(asyncio.run(client_run(*options.one, options.calls))), flush=True)
        os._exit(0)  # whatever a client that was given up has left behind
    report(options)


if __name__ == "__main__":
    main()
