"""CPU and memory per request of HTTP clients, and of ours with its codec, on loopback.

    python benchmarks/http_clients.py [--requests 20000] [--rounds 5]

Each measurement is a process of its own, so that clients do not share memory; the server is
another one and answers a fixed chat completion of 1 kB. CPU is user + system of the client's
process, all its threads, per request, after a warm-up that opens the connections. Memory is the
growth of the resident set from before the client was made to the end, per request in flight. The
rounds of all clients are interleaved; the median is shown, and the spread in brackets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import resource
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from batch_llm.base import LLMWorkItem
from batch_llm.core.request import Request
from batch_llm.providers import openai
from batch_llm.providers.base import Try
from batch_llm.providers.registry import resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import ReqwestTransport, raise_file_limit

PROMPT = "Summarise the following complaint in one sentence. " * 10
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m-1",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "word " * 120, "refusal": None},
            }
        ],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 120,
            "total_tokens": 220,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(ANSWER),
    ANSWER,
)
HEADERS = {"content-type": "application/json", "authorization": "Bearer nothing"}
BODY = openai.encode(Request.of("openai-chat:m", PROMPT))


class Server(asyncio.Protocol):
    """Answers each request as soon as its body is there; knows no more HTTP than that."""

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            self.transport.write(REPLY)


def serve(pipe):
    async def main():
        server = await asyncio.get_running_loop().create_server(
            Server, "127.0.0.1", 0, backlog=4096
        )
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    raise_file_limit(5000)
    asyncio.run(main())


async def with_pyreqwest(url, in_flight):
    from pyreqwest.client import ClientBuilder

    client = ClientBuilder().http1_only().no_proxy().pool_max_idle_per_host(in_flight).build()

    async def one():
        response = await client.post(url).headers(HEADERS).body_bytes(BODY).build().send()
        assert len(await response.bytes()) == len(ANSWER)

    return one, client.close


async def with_batch_llm(url, in_flight):
    transport = ReqwestTransport(in_flight)
    base_url = url.removesuffix("/chat/completions")
    caller = RequestCaller(resolve("openai-chat:m", base_url=base_url, environ={}), transport)
    item = LLMWorkItem("1", request=Request.of("openai-chat:m", PROMPT))
    attempt = Try(1, 60.0, None, {})

    async def one():
        outcome = await caller.call(item, attempt)
        assert outcome.usage["total_tokens"] == 220

    return one, transport.aclose


async def with_aiohttp(url, in_flight):
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight))

    async def one():
        async with session.post(url, headers=HEADERS, data=BODY) as response:
            assert len(await response.read()) == len(ANSWER)

    return one, session.close


async def with_httpx2(url, in_flight):
    import httpx2

    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    client = httpx2.AsyncClient(limits=limits, timeout=60, trust_env=False)

    async def one():
        response = await client.post(url, headers=HEADERS, content=BODY)
        assert len(response.content) == len(ANSWER)

    return one, client.aclose


CLIENTS = {
    "pyreqwest": with_pyreqwest,
    "batch-llm": with_batch_llm,
    "aiohttp": with_aiohttp,
    "httpx2": with_httpx2,
}


def resident_kib():
    with Path("/proc/self/status").open(encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(name, port, in_flight, requests):
    async def run(count):
        left = iter(range(count))

        async def worker():
            for _ in left:
                await one()

        await asyncio.gather(*(worker() for _ in range(in_flight)))

    before = resident_kib()
    one, close = await CLIENTS[name](f"http://127.0.0.1:{port}/v1/chat/completions", in_flight)
    await run(2 * in_flight)
    start, loop = cpu_seconds(), asyncio.get_running_loop()
    started = loop.time()
    await run(requests)
    cpu, wall = cpu_seconds() - start, loop.time() - started
    kib = (resident_kib() - before) / in_flight
    await close()
    return {"cpu_us": cpu / requests * 1e6, "per_second": requests / wall, "kib": kib}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=3, metavar=("CLIENT", "PORT", "IN_FLIGHT"))
    options = parser.parse_args()
    if options.one:
        raise_file_limit(5000)
        name, port, in_flight = options.one
        print(json.dumps(asyncio.run(measure(name, port, int(in_flight), options.requests))))
        return
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    found = {}
    for in_flight in (50, 500):
        for _ in range(options.rounds):
            for name in CLIENTS:
                # httpx2 walks its whole pool for each request: fewer will do.
                count = options.requests // 10 if name == "httpx2" else options.requests
                command = [sys.executable, __file__, "--requests", str(count)]
                command += ["--one", name, str(port), str(in_flight)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.setdefault((name, in_flight), []).append(json.loads(out))
    server.terminate()

    print(f"Python {platform.python_version()}, {platform.system()}, {options.rounds} rounds\n")
    print("| client | in flight | CPU µs a request | of pyreqwest | requests/s | KiB a call |")
    print("|---|---|---|---|---|---|")
    for (name, in_flight), rounds in found.items():
        cpu = [one["cpu_us"] for one in rounds]
        base = statistics.median(one["cpu_us"] for one in found["pyreqwest", in_flight])
        print(
            f"| {name} {version(name)} | {in_flight} "
            f"| {statistics.median(cpu):.0f} ({min(cpu):.0f} to {max(cpu):.0f}) "
            f"| {statistics.median(cpu) / base:.2f} "
            f"| {statistics.median(one['per_second'] for one in rounds):.0f} "
            f"| {statistics.median(one['kib'] for one in rounds):.0f} |"
        )


if __name__ == "__main__":
    main()
