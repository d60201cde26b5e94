"""Servers of one's own, over sockets: asked once, filled, and never fatal."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig
from batch_llm.core.request import Request
from batch_llm.providers import local_servers
from batch_llm.providers.local_servers import MOST_BYTES
from batch_llm.providers.registry import resolve_pool
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import HttpTransport
from batch_llm.simulator.server import Simulator

LOOKS = {"/props", "/metrics", "/v1/models", "/api/version"}
ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


async def run(base_url, count=60, *, runs=1, ignore_slots=False, **config):
    """Run so many requests; return the result, the statistics and the seconds of the last run."""
    loop, transport = asyncio.get_running_loop(), HttpTransport()
    pool = resolve_pool("openai-chat:m", base_urls=base_url, environ={})
    built = ParallelBatchProcessor(
        config=ProcessorConfig(progress_interval=0, remember_limits=False, **config),
        requests=RequestCaller(pool, transport, ignore_slots=ignore_slots),
    )
    try:
        for _ in range(runs):
            start = loop.time()
            items = [LLMWorkItem(str(n), request=Request.of("x:m", f"q{n}")) for n in range(count)]
            result = await built.process(items)
        return result, built.statistics(), loop.time() - start
    finally:
        await transport.aclose()


def known(statistics):
    return [(one.dimension, one.limit, one.source) for one in statistics.limits]


async def test_the_slots_of_a_llama_server_are_filled_and_its_queue_stays_short():
    with Simulator("fast?server=llama&slots=4&latency=0.1") as server:
        result, statistics, _ = await run(server.base_url, 100, runs=2)
        stats = server.stats()

    assert result.succeeded == 100
    assert known(statistics) == [("concurrency", 4, "server")]
    assert (stats.peak_in_work, stats.peak_in_flight, stats.refused) == (4, 6, 0)
    assert stats.looks == dict.fromkeys(LOOKS, 1)


async def test_the_slots_of_a_llama_server_stay_filled():
    """A process that stands still for a moment leaves slots empty; three times it does not."""
    with Simulator("fast?server=llama&slots=4&latency=0.1") as server:
        for _ in range(3):
            _, _, seconds = await run(server.base_url, 100)
            if seconds < 2 * 100 / 4 * 0.1:
                return
    pytest.fail(f"{seconds:.1f} s for what takes 2.5")


async def test_a_vllm_server_gets_what_is_usual_for_one():
    with Simulator("fast?server=vllm&slots=300&latency=1.5") as server:
        result, statistics, _ = await run(server.base_url, 600)
        stats = server.stats()

    assert result.succeeded == 600
    assert known(statistics) == [("concurrency", 256, "assumed")]
    assert 64 < stats.peak_in_flight <= 256


async def test_a_given_number_is_a_ceiling_for_a_server_of_ones_own():
    with Simulator("fast?server=llama&slots=8&latency=0.02") as server:
        await run(server.base_url, concurrency=3)
        assert server.stats().peak_in_flight == 3
        server.reset()
        await run(server.base_url, max_workers=5)
        assert server.stats().peak_in_flight == 5


async def test_who_does_not_want_it_has_nobody_asked():
    with Simulator("fast?server=llama&slots=4&latency=0.1") as server:
        _, statistics, _ = await run(server.base_url, ignore_slots=True)
        stats = server.stats()

    assert (stats.looks, known(statistics)) == ({}, [])
    assert stats.peak_in_flight > 6


async def test_two_servers_are_asked_and_filled_each():
    with (
        Simulator("fast?server=llama&slots=4&latency=0.1") as one,
        Simulator("fast?server=llama&slots=2&latency=0.1") as other,
    ):
        _, statistics, _ = await run(f"{one.base_url},{other.base_url}", 100)
        peaks = [server.stats().peak_in_flight for server in (one, other)]

    assert peaks == [6, 4]
    assert [limit.limit for limit in statistics.limits] == [4, 2]


async def test_tokens_per_second_are_shared_by_all_calls():
    profile = "fast?server=llama&slots=4&latency=0.01&tps=1000"
    with Simulator(profile) as server:
        _, statistics, seconds = await run(server.base_url, 40)

    assert seconds >= statistics.output_tokens / 1000


class Server:
    """Answers calls; at its other addresses it does what ``behaviour`` says."""

    def __init__(self, behaviour):
        self.behaviour = behaviour
        self.looks = []
        self.calls = 0

    async def serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"POST"):
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                    await reader.readexactly(length)
                    self.calls += 1
                    await self.answer(writer, 200, json.dumps(ANSWER).encode())
                else:
                    self.looks.append(head.split(b" ")[1].decode())
                    await self.behaviour(self, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, writer, status, body, extra=b""):
        head = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n" % (status, len(body))
        writer.write(head + extra + b"\r\n" + body)


async def not_found(server, writer):
    await server.answer(writer, 404, b"nothing here")


async def garbage(server, writer):
    await server.answer(writer, 200, b"\x00\xff{]" * 1000)


async def no_http(_, writer):
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def reset(_, writer):
    writer.transport.abort()


async def elsewhere(server, writer):
    await server.answer(writer, 302, b"", b"location: /elsewhere\r\n")


async def hang(_server, _writer):
    await asyncio.sleep(60)


async def endless(_, writer):
    writer.write(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
    piece = b'{"total_slots": 4, "x": "' + b"a" * 65_536
    for _ in range(2 * MOST_BYTES // len(piece)):
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
    await asyncio.sleep(60)


@asynccontextmanager
async def serving(behaviour):
    server = Server(behaviour)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield server, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    finally:
        listener.close()


@pytest.mark.parametrize(
    "behaviour", [not_found, garbage, no_http, reset, elsewhere, hang, endless]
)
async def test_a_server_that_says_nothing_of_itself_is_called_all_the_same(behaviour):
    async with serving(behaviour) as (server, url):
        async with asyncio.timeout(40):  # and not for as long as it hangs
            result, _, _ = await run(url)
        assert result.succeeded == 60
        assert server.calls == 60
        # aiohttp itself repeats a GET whose connection was cut.
        assert sorted(server.looks) == sorted([*LOOKS] * (2 if behaviour is reset else 1))


async def test_of_an_endless_answer_no_more_is_read_than_is_wanted():
    transport = HttpTransport()
    async with serving(endless) as (_, url), asyncio.timeout(10):
        response = await transport.get(url, {}, 100_000)
        await transport.aclose()

    assert len(response.body) == 100_000


async def test_a_hung_server_is_waited_for_once_and_not_for_long(monkeypatch):
    async def hang_for_long(_server, _writer):
        monkeypatch.setattr(local_servers, "ASK_SECONDS", 600)  # for whoever asks again
        await asyncio.sleep(600)

    async with serving(hang_for_long) as (server, url), asyncio.timeout(60):
        await run(url, runs=2)

        assert len(server.looks) == len(LOOKS)


async def test_nobody_there_is_told_by_the_calls():
    result, _, _ = await run("http://127.0.0.1:9/v1", 2)

    assert [one.error_code for one in result.results] == ["connection", "connection"]


@pytest.mark.parametrize(
    ("profile", "flags", "limits"),
    [
        ("fast?server=llama&slots=4&latency=0.02", [], "in flight 4 (server)"),
        ("fast?server=vllm&latency=0.02", [], "in flight 256 (assumed)"),
        ("fast?server=llama&slots=4&latency=0.02", ["-c", "2"], "in flight 4 (server)"),
        ("fast?server=llama&slots=4&latency=0.02", ["--ignore-slots"], None),
        ("fast?latency=0.02", ["-c", "knee"], "(learned)"),
    ],
)
def test_the_command_shows_the_slots(tmp_path, profile, flags, limits):
    (tmp_path / "q.txt").write_text("".join(f"Question {n}?\n" for n in range(200)))
    with Simulator(profile) as server:
        done = subprocess.run(
            [
                *[sys.executable, "-m", "batch_llm", "run", "q.txt", "-m", "openai-chat:x"],
                *["--base-url", server.base_url, *flags],
            ],
            cwd=tmp_path,
            env=os.environ | {"OPENAI_API_KEY": "any", "BATCH_LLM_LIMITS_FILE": ""},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        stats = server.stats()

    assert done.returncode == 0, done.stderr
    assert stats.successes == 200
    if limits is None:
        assert "limits" not in done.stderr
        assert stats.looks == {}
    else:
        assert limits in done.stderr
    if "-c" in flags and flags[1] == "2":
        assert stats.peak_in_flight == 2
