"""What the ledger costs: results a second, CPU per item, the event loop's lag, going on with a run.

    uv run --group bench python benchmarks/ledger.py [--items N] [--resumed N] [--rounds N]

Each measurement is a process of its own, and a new run; another one warms up before. With and
without a ledger are interleaved, medians are shown, with the range in brackets. The peer is bare
``sqlite3``: the same rows into the same tables, by ``executemany`` in transactions of 1,000, on
disk with the same promises.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import http_clients

from batch_llm.base import LLMWorkItem
from batch_llm.core.config import ProcessorConfig
from batch_llm.core.request import Request
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.providers.base import content_digest
from batch_llm.providers.models import open_model
from batch_llm.stores import SqliteLedger
from batch_llm.stores.statements import many

ANSWER = "word " * 400  # 2 kB
USAGE = {"input_tokens": 100, "output_tokens": 400, "total_tokens": 500}
PAYLOAD_USAGE = '{"input_tokens":100,"output_tokens":400,"total_tokens":500}'
WARM_UP = 2000


def opened(folder, is_on, name="run"):
    return SqliteLedger(Path(folder, f"{name}.sqlite")) if is_on else nullcontext()


async def answer(attempt, timeout):
    return ANSWER, USAGE


async def answer_later(attempt, timeout):
    await asyncio.sleep(0.05)
    return ANSWER, USAGE


def items(count, call, start=0):
    return (LLMWorkItem(f"row-{n}", direct_call=call) for n in range(start, start + count))


def built(workers, ledger, **options):
    config = ProcessorConfig(max_workers=workers, progress_interval=0, concurrency=workers)
    return ParallelBatchProcessor(config=config, store=ledger, **options)


async def drain(stream):
    async for result in stream:
        assert result.success, result.error


def bare(folder, count):
    """Bare ``executemany``: results a second and CPU per result."""
    with SqliteLedger(Path(folder, "run.sqlite")) as ledger:
        connection, sql = ledger._file.writing, ledger._sql
        began, cpu = time.perf_counter(), time.process_time()
        for first in range(0, count, 1000):
            numbers = range(first, first + 1000)
            digests = [content_digest(b"row-%d" % n) for n in numbers]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                sql["insert"],
                [
                    (n + 1, f"row-{n}", digest, "done", 1, None, 1, 0.0)
                    for n, digest in zip(numbers, digests, strict=True)
                ],
            )
            connection.executemany(
                sql["payload"],
                [
                    (n + 1, f'"{ANSWER}"', None, None, PAYLOAD_USAGE, 0.1, None, None)
                    for n in numbers
                ],
            )
            connection.executemany(
                sql["try"],
                [(n + 1, 1, 1, 0.0, 0.1, 100, 400, None, None, None, 1, None) for n in numbers],
            )
            connection.execute("COMMIT")
        return count / (time.perf_counter() - began), (time.process_time() - cpu) / count * 1e6


def engine(folder, count, is_on):
    """No-op items through the whole engine: results a second and CPU per item."""
    with opened(folder, is_on, "before") as before, opened(folder, is_on) as ledger:

        async def run():
            await drain(built(500, before).stream(items(WARM_UP, answer)))
            processor = built(500, ledger)
            began, cpu = time.perf_counter(), time.process_time()
            await drain(processor.stream(items(count, answer)))
            return count / (time.perf_counter() - began), (time.process_time() - cpu) / count * 1e6

        return asyncio.run(run())


def requests(folder, count, is_on):
    """Requests over loopback HTTP: calls a second and CPU of this process per call."""
    near, far = multiprocessing.Pipe()
    server = multiprocessing.Process(target=http_clients.serve, args=(far,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{near.recv()}/v1/chat/completions"
    with opened(folder, is_on, "before") as before, opened(folder, is_on) as ledger:

        async def run():
            def asked(count, start=0):
                for n in range(start, start + count):
                    request = Request.of("openai-chat:m", f"{n} {http_clients.PROMPT}")
                    yield LLMWorkItem(f"row-{n}", request=request)

            base_url = url.removesuffix("/chat/completions")
            async with open_model("openai-chat:m", base_url=base_url, ignore_slots=True) as model:
                await drain(built(500, before, requests=model).stream(asked(WARM_UP)))
                processor = built(500, ledger, requests=model)
                began, cpu = time.perf_counter(), time.process_time()
                await drain(processor.stream(asked(count)))
                found = count / (time.perf_counter() - began), time.process_time() - cpu
            return found[0], found[1] / count * 1e6

        try:
            return asyncio.run(run())
        finally:
            server.terminate()


def lag(folder, count, is_on):
    """2,000 results a second: how late a timer of 1 ms is, p50, p99, p99.9 and at worst, in ms."""
    with opened(folder, is_on) as ledger:

        async def run():
            late = []

            async def sample():
                while True:
                    began = time.perf_counter()
                    await asyncio.sleep(0.001)
                    late.append(time.perf_counter() - began - 0.001)

            processor = built(200, ledger)

            async def paced():
                began = time.perf_counter()
                for n, item in enumerate(items(count, answer_later)):
                    if not n % 20:
                        await asyncio.sleep(max(0, began + n / 2000 - time.perf_counter()))
                    yield item

            sampling = asyncio.create_task(sample())
            await drain(processor.stream(paced()))
            sampling.cancel()
            late.sort()
            shares = (0.5, 0.99, 0.999)
            return [*(late[int(len(late) * share)] * 1e3 for share in shares), late[-1] * 1e3]

        return asyncio.run(run())


class Steps:
    """Watches the store's steps in the event loop: how much of this thread each takes at the most.

    Of the thread, and not of time: what else the machine does is not the store's. What the garbage
    collector does in a step is counted by itself: whose objects it looks at is chance.
    """

    def __init__(self):
        self.longest, self.longest_collection = 0.0, 0.0
        self._collecting = 0.0
        gc.callbacks.append(self._collected)

    def _collected(self, phase, _facts):
        now = time.thread_time()
        if phase == "start":
            self._began = now
            return
        self._collecting += now - self._began
        self.longest_collection = max(self.longest_collection, now - self._began)

    def watch(self, owner, *names):
        for name in names:
            setattr(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, step):
        def watched(*values):
            collecting, began = self._collecting, time.thread_time()
            try:
                return step(*values)
            finally:
                spent = time.thread_time() - began - (self._collecting - collecting)
                self.longest = max(self.longest, spent)

        return watched


def steps(folder, count, is_fast):
    """The store's longest step in the event loop, the longest collection of garbage, and how long
    the writing thread holds the interpreter to bind the rows of 256 and of 1,024 results, in ms.
    """
    with SqliteLedger(Path(folder, "run.sqlite")) as ledger:
        watched = Steps()
        names = (
            "start",
            "finish",
            "forget",
            "call_begins",
            "call_ended",
            "may_have",
            "_write_ripe",
        )
        watched.watch(ledger, *names)
        watched.watch(ledger._writer, "hand_over", "added", "_written", "_wake")

        async def run():
            processor = built(500 if is_fast else 200, ledger)
            if is_fast:
                await drain(processor.stream(items(count, answer)))
            else:
                await drain(processor.stream(items(count, answer_later)))

        asyncio.run(run())
        holds = [bind(ledger, rows) * 1e3 for rows in (256, 1024)]
    return watched.longest * 1e3, watched.longest_collection * 1e3, *holds


def bind(ledger, rows):
    """Seconds that binding takes: ``EXPLAIN`` binds all, and then does nothing."""
    row = (1, f'"{ANSWER}"', None, PAYLOAD_USAGE, 0.1)
    statement, values = f"EXPLAIN {many('payload_answer', rows)}", list(row) * rows
    found = []
    for _ in range(20):
        began = time.thread_time()
        ledger._file.reading.execute(statement, values)
        found.append(time.thread_time() - began)
    return statistics.median(found)


def resume(folder, count, is_through_engine):
    """A run that is 99 % done: µs per finished item, and MB that going on with it took."""
    path = Path(folder, "run.sqlite")
    text = "word " * 40
    with SqliteLedger(path) as ledger:
        connection, sql = ledger._file.writing, ledger._sql
        for first in range(0, count * 99 // 100, 10_000):
            numbers = range(first, min(first + 10_000, count * 99 // 100))
            connection.execute("BEGIN")
            connection.executemany(
                sql["insert"],
                ((n + 1, f"row-{n}", digest_of(n), "done", 0, None, 1, 0.0) for n in numbers),
            )
            connection.executemany(
                sql["payload"],
                ((n + 1, f'"{text}"', None, None, '{"input_tokens":1}', 0.1, None, None)
                 for n in numbers),
            )  # fmt: skip
            connection.execute("COMMIT")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with SqliteLedger(path) as ledger:
        done = count * 99 // 100
        began = time.process_time()
        if is_through_engine:
            asyncio.run(drain(built(100, ledger).stream(items(done, answer))))
        else:
            for first in range(0, done, 100):
                ids = [(f"row-{n}", digest_of(n)) for n in range(first, min(first + 100, done))]
                assert None not in ledger.look_up(ids)
        seconds = time.process_time() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    return seconds / done * 1e6, grown / 1024


def digest_of(number):
    return content_digest(b"row-%d" % number, b"", b"")


def peer(folder, count):
    """The same through async-batch-llm and its SQLite store: a second, CPU, CPU of going on."""
    import async_batch_llm as other

    class Answers(other.LLMCallStrategy):
        async def execute(self, prompt, attempt, timeout, state=None):
            return ANSWER, USAGE, None

    async def run():
        store = other.SqliteArtifactStore(
            Path(folder, "run.sqlite"),
            identity=other.ArtifactIdentity(model="m"),
            durability=other.SqliteDurability.FULL,
        )
        strategy = Answers()
        config = other.ProcessorConfig(max_workers=500, progress_interval=count)
        async with other.ParallelBatchProcessor(
            config=config, artifact_store=store, resume=other.ResumePolicy.REUSE_SUCCESSES
        ) as processor:
            for n in range(count):
                await processor.add_work(other.LLMWorkItem(f"row-{n}", strategy=strategy))
            began, cpu = time.perf_counter(), time.process_time()
            assert (await processor.process_all()).succeeded == count
        return count / (time.perf_counter() - began), (time.process_time() - cpu) / count * 1e6

    rate, microseconds = asyncio.run(run())
    return rate, microseconds, asyncio.run(run())[1]


MEASURED = {
    "peer": lambda folder, count, _: peer(folder, min(count, 5000)),
    "bare": lambda folder, count, _: bare(folder, count),
    "engine": engine,
    "requests": requests,
    "lag": lag,
    "steps": steps,
    "resume": resume,
}


def apart(what, count, flag):
    out = subprocess.run(
        [sys.executable, __file__, "--measure", what, str(count), str(int(flag))],
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(map(float, out.stdout.split()))


def shown(values, digits=0):
    median = statistics.median(values)
    return f"{median:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--resumed", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=3)
    arguments = parser.parse_args()
    if arguments.measure:
        what, count, flag = arguments.measure
        Path(".batch-llm").mkdir(exist_ok=True)  # on the same disk, and git ignores it
        with tempfile.TemporaryDirectory(prefix="bench-", dir=".batch-llm") as folder:
            print(*MEASURED[what](folder, int(count), bool(int(flag))))
        return
    cases = [
        ("bare", 1),
        ("peer", 1),
        *((what, on) for what in ("engine", "requests", "lag", "steps") for on in (0, 1)),
    ]
    found = {case: [] for case in cases}
    for _ in range(arguments.rounds):
        for case in cases:
            found[case].append(apart(case[0], arguments.items, case[1]))
    print("| what | a second | CPU µs each |\n|---|---|---|")
    for case in cases[:6]:
        rates, cpu, *again = zip(*found[case], strict=True)
        name = (
            case[0]
            if case[0] in {"bare", "peer"}
            else f"{case[0]}, ledger {'on' if case[1] else 'off'}"
        )
        print(f"| {name} | {shown(rates)} | {shown(cpu, 1)} |")
        if again:
            print(f"| {name}, going on with it | | {shown(again[0], 1)} |")
    print("\n| 2,000 results a second | lag p50, ms | p99 | p99.9 | worst |\n|---|---|---|---|---|")
    for case in cases[6:8]:
        name = f"ledger {'on' if case[1] else 'off'}"
        print(f"| {name} |", *(f"{shown(one, 2)} |" for one in zip(*found[case], strict=True)))
    print("\n| the store's longest step in the loop, ms | collection | binding 256 | 1,024 rows |")
    print("|---|---|---|---|")
    for case in cases[8:]:
        print("|", *(f"{shown(one, 2)} |" for one in zip(*found[case], strict=True)))
    print("\n| going on, per finished item | µs | MB more |\n|---|---|---|")
    for flag, name in ((0, "looked up, as the command does"), (1, "through the engine")):
        microseconds, grown = apart("resume", arguments.resumed, flag)
        print(f"| {name} | {microseconds:.1f} | {grown:.1f} |")


if __name__ == "__main__":
    main()
