"""What a request costs: HTTP clients, our transport, our whole engine, and other libraries.

    uv run --group bench python benchmarks/http_clients.py [--requests 20000] [--rounds 5]

Each measurement is a process of its own, so that clients do not share memory; the server is
another one and answers a fixed chat completion of 1 kB. CPU is user + system of the client's
process, all its threads, per request, after a warm-up that opens the connections. Memory is the
growth of the resident set from before the client was made to the end, per request in flight. The
rounds of all clients are interleaved; the median is shown, and the range in brackets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from batch_llm.base import LLMWorkItem
from batch_llm.core.config import ProcessorConfig
from batch_llm.core.request import Request
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.providers.base import Try
from batch_llm.providers.openai import CHAT
from batch_llm.providers.registry import resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import HttpTransport, raise_file_limit

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
BODY = CHAT.encode(Request.of("openai-chat:m", PROMPT))


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


def by_workers(one, in_flight):
    """Make a run of ``one``: ``in_flight`` tasks call it, so many times in all."""

    async def run(count):
        left = iter(range(count))

        async def worker():
            for _ in left:
                await one()

        await asyncio.gather(*(worker() for _ in range(in_flight)))

    return run


async def with_aiohttp(url, in_flight):
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight))

    async def one():
        async with session.post(url, headers=HEADERS, data=BODY) as response:
            assert len(await response.read()) == len(ANSWER)

    return by_workers(one, in_flight), session.close


async def with_pyreqwest(url, in_flight):
    from pyreqwest.client import ClientBuilder

    client = ClientBuilder().http1_only().no_proxy().pool_max_idle_per_host(in_flight).build()

    async def one():
        response = await client.post(url).headers(HEADERS).body_bytes(BODY).build().send()
        assert len(await response.bytes()) == len(ANSWER)

    return by_workers(one, in_flight), client.close


async def with_httpx2(url, in_flight):
    import httpx2

    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    client = httpx2.AsyncClient(limits=limits, timeout=60, trust_env=False)

    async def one():
        response = await client.post(url, headers=HEADERS, content=BODY)
        assert len(response.content) == len(ANSWER)

    return by_workers(one, in_flight), client.aclose


async def with_our_transport(url, in_flight):
    transport = HttpTransport()

    async def one():
        assert len((await transport.post(url, HEADERS, BODY)).body) == len(ANSWER)

    return by_workers(one, in_flight), transport.aclose


def our_endpoint(url):
    base_url = url.removesuffix("/chat/completions")
    return resolve("openai-chat:m", base_url=base_url, environ={})


async def with_our_codec(url, in_flight):
    transport = HttpTransport()
    caller = RequestCaller(our_endpoint(url), transport, ignore_slots=True)
    item = LLMWorkItem("1", request=Request.of("openai-chat:m", PROMPT))
    attempt = Try(1, 60.0, None, {})

    async def one():
        outcome = await caller.call(item, attempt)
        assert outcome.usage["total_tokens"] == 220

    return by_workers(one, in_flight), transport.aclose


async def with_batch_llm(url, in_flight):
    transport = HttpTransport()
    processor = ParallelBatchProcessor(
        config=ProcessorConfig(max_workers=in_flight, progress_interval=0, dedupe=False),
        requests=RequestCaller(our_endpoint(url), transport, ignore_slots=True),
    )

    async def run(count):
        items = (
            LLMWorkItem(str(n), request=Request.of("openai-chat:m", f"{n} {PROMPT}"))
            for n in range(count)
        )
        async for result in processor.stream(items):
            assert result.token_usage["total_tokens"] == 220

    return run, transport.aclose


async def with_lm_deluge(url, in_flight):
    import lm_deluge
    from lm_deluge.models import register_model

    base_url = url.removesuffix("/chat/completions")
    os.environ["NO_KEY"] = "none"
    register_model("bench", "m", base_url, "NO_KEY", "openai")
    client = lm_deluge.LLMClient(
        "bench",
        max_requests_per_minute=10**9,
        max_tokens_per_minute=10**12,
        max_concurrent_requests=in_flight,
    )

    async def run(count):
        for answer in await client.process_prompts_async([PROMPT] * count, show_progress=False):
            assert answer.usage.output_tokens == 120

    async def close():
        client.close()

    return run, close


async def with_openai(url, in_flight):
    import openai as sdk

    client = sdk.AsyncOpenAI(
        base_url=url.removesuffix("/chat/completions"),
        api_key="none",
        max_retries=0,
        timeout=120.0,  # to connect, too: 5 s are little for 500 connections on a busy machine
    )
    messages = [{"role": "user", "content": PROMPT}]

    async def one():
        answer = await client.chat.completions.create(model="m", messages=messages)
        assert answer.usage.total_tokens == 220

    return by_workers(one, in_flight), client.close


async def with_pydantic_ai(url, in_flight):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=url.removesuffix("/chat/completions"), api_key="none")
    agent = Agent(OpenAIChatModel("m", provider=provider))

    async def one():
        assert (await agent.run(PROMPT)).usage.total_tokens == 220

    return by_workers(one, in_flight), provider.client.close


#: name: (what opens it, the package it is, how many times fewer requests it gets)
CLIENTS = {
    "aiohttp": (with_aiohttp, "aiohttp", 1),
    "pyreqwest": (with_pyreqwest, "pyreqwest", 1),
    "httpx2": (with_httpx2, "httpx2", 10),
    "our transport": (with_our_transport, None, 1),
    "+ codec": (with_our_codec, None, 1),
    "+ engine: batch-llm": (with_batch_llm, None, 1),
    "lm-deluge": (with_lm_deluge, "lm-deluge", 10),
    "openai SDK": (with_openai, "openai", 20),
    "pydantic-ai": (with_pydantic_ai, "pydantic-ai-slim", 20),
}


def resident_kib():
    with Path("/proc/self/status").open(encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(name, port, in_flight, requests):
    before = resident_kib()
    open_client, _, _ = CLIENTS[name]
    run, close = await open_client(f"http://127.0.0.1:{port}/v1/chat/completions", in_flight)
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
        found = asyncio.run(measure(name, port, int(in_flight), options.requests))
        print(json.dumps(found), flush=True)
        os._exit(0)  # pyreqwest 0.15 at times aborts the process when the interpreter ends
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    found = {}
    for in_flight in (50, 500):
        for _ in range(options.rounds):
            for name, (_, _, fewer) in CLIENTS.items():
                # Each gets enough for a second or two of work; some walk their whole pool for
                # each request.
                count = options.requests // fewer
                command = [sys.executable, __file__, "--requests", str(count)]
                command += ["--one", name, str(port), str(in_flight)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.setdefault((name, in_flight), []).append(json.loads(out.splitlines()[-1]))
    server.terminate()

    print(f"Python {platform.python_version()}, {platform.system()}, {options.rounds} rounds\n")
    print("| client | in flight | CPU µs a request | of aiohttp | requests/s | KiB a call |")
    print("|---|---|---|---|---|---|")
    for (name, in_flight), rounds in found.items():
        cpu = [one["cpu_us"] for one in rounds]
        base = statistics.median(one["cpu_us"] for one in found["aiohttp", in_flight])
        package = CLIENTS[name][1]
        print(
            f"| {name}{f' {version(package)}' if package else ''} | {in_flight} "
            f"| {statistics.median(cpu):,.0f} ({min(cpu):,.0f} to {max(cpu):,.0f}) "
            f"| {statistics.median(cpu) / base:.2f} x "
            f"| {statistics.median(one['per_second'] for one in rounds):,.0f} "
            f"| {statistics.median(one['kib'] for one in rounds):.0f} |"
        )


if __name__ == "__main__":
    main()
