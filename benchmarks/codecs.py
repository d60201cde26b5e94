"""What each wire format costs: a request of the same prompt and a 0.6 kB answer, in each.

    uv run python benchmarks/codecs.py [--requests 5000] [--rounds 3]

Beside each other: aiohttp with the body that the codec wrote, the answer read and thrown away; the
request as data through codec and transport; and that through the whole engine. As in
``http_clients.py``, each measurement is a process of its own and CPU is user + system of that
process per request, after a warm-up; the server is another process. The rounds are interleaved;
the median is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys

from http_clients import PROMPT, by_workers, cpu_seconds

from batch_llm.base import LLMWorkItem
from batch_llm.core.config import ProcessorConfig
from batch_llm.core.request import Request, Settings
from batch_llm.core.schema import OutputSchema
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.providers.base import Try
from batch_llm.providers.registry import resolve
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.transport import HttpTransport, raise_file_limit

IN_FLIGHT = 500
TEXT = "word " * 120
VALUE = {"summary": TEXT, "label": "good"}
SHAPE = OutputSchema.json_schema(
    {
        "type": "object",
        "properties": {"summary": {"type": "string"}, "label": {"enum": ["good", "bad"]}},
        "required": ["summary", "label"],
    },
    "answer",
)
CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 120,
    "total_tokens": 220,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def chat(text):
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice],
            "usage": CHAT_USAGE}  # fmt: skip


def responses(text):
    said = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": "r", "object": "response", "model": "m", "status": "completed", "error": None,
        "incomplete_details": None,
        "output": [{"id": "m", "type": "message", "role": "assistant", "content": [said]}],
        "usage": {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 0},
                  "output_tokens": 120, "output_tokens_details": {"reasoning_tokens": 0},
                  "total_tokens": 220},
    }  # fmt: skip


def messages(text):
    content = [{"type": "text", "text": text}]
    if text != TEXT:  # the input of a tool
        content = [{"type": "tool_use", "id": "t", "name": "answer", "input": VALUE}]
    return {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "content": content,
        "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 100, "cache_creation_input_tokens": 0,
                  "cache_read_input_tokens": 0, "output_tokens": 120},
    }  # fmt: skip


def stream(text):
    """The same message as events, five tokens each."""
    start = messages(TEXT) | {"content": [], "stop_reason": None}
    pieces = [text[n : n + 25] for n in range(0, len(text), 25)]
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": one}}
          for one in pieces),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"},
         "usage": {"output_tokens": 120}},
        {"type": "message_stop"},
    ]  # fmt: skip
    lines = [f"event: {event['type']}\ndata: {json.dumps(event)}\n" for event in events]
    return "\n".join(lines).encode()


def gemini(text):
    rated = [
        {"category": f"HARM_CATEGORY_{name}", "probability": "NEGLIGIBLE"}
        for name in ("HATE_SPEECH", "DANGEROUS_CONTENT", "HARASSMENT", "SEXUALLY_EXPLICIT")
    ]
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": "STOP",
                 "index": 0, "safetyRatings": rated}  # fmt: skip
    return {
        "candidates": [candidate], "modelVersion": "m",
        "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 120,
                          "totalTokenCount": 220},
    }  # fmt: skip


#: name: (model, what makes the answer, whether by a schema, how long it may be)
FORMATS = {
    "chat completions": ("openai-chat:m", chat, False, None),
    "chat completions, schema": ("openai-chat:m", chat, True, None),
    "Responses": ("openai:m", responses, False, None),
    "Responses, schema": ("openai:m", responses, True, None),
    "Messages": ("anthropic:m", messages, False, None),
    "Messages, schema as a tool": ("anthropic:m", messages, True, None),
    "Messages, streamed": ("anthropic:m", stream, False, 30_000),
    "generateContent": ("google:m", gemini, False, None),
    "generateContent, schema": ("google:m", gemini, True, None),
    "Mistral": ("mistral:m", chat, False, None),
    "Groq": ("groq:m", chat, False, None),
}


def answer_in(name):
    _, make, has_schema, _ = FORMATS[name]
    body = make(json.dumps(VALUE) if has_schema else TEXT)
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def request_in(name):
    model, _, has_schema, length = FORMATS[name]
    shape = SHAPE if has_schema else None
    return Request.of(model, PROMPT, output=shape, settings=Settings(max_tokens=length))


class Server(asyncio.Protocol):
    """Answers with the body that the port stands for, as soon as a request is there."""

    def __init__(self, reply):
        self.reply = reply

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
            self.transport.write(self.reply)


def serve(pipe):
    async def main():
        loop, ports = asyncio.get_running_loop(), {}
        for name in FORMATS:
            body = answer_in(name)
            head = (
                f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            )
            reply = head.encode() + b"\r\n\r\n" + body
            server = await loop.create_server(
                lambda reply=reply: Server(reply), "127.0.0.1", 0, backlog=4096
            )
            ports[name] = server.sockets[0].getsockname()[1]
        pipe.send(ports)
        await asyncio.Event().wait()

    raise_file_limit(5000)
    asyncio.run(main())


def endpoint_at(name, port):
    return resolve(FORMATS[name][0], base_url=f"http://127.0.0.1:{port}/v1", environ={})


async def with_aiohttp(name, endpoint):
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT))
    body, size = endpoint.codec.encode(request_in(name)), len(answer_in(name))

    async def one():
        async with session.post(endpoint.url, headers=endpoint.headers, data=body) as response:
            assert len(await response.read()) == size

    return by_workers(one, IN_FLIGHT), session.close


async def with_codec(name, endpoint):
    transport = HttpTransport()
    caller = RequestCaller(endpoint, transport)
    item = LLMWorkItem("1", request=request_in(name))
    attempt = Try(1, 60.0, None, {})

    async def one():
        outcome = await caller.call(item, attempt)
        assert outcome.usage["total_tokens"] == 220

    return by_workers(one, IN_FLIGHT), transport.aclose


async def with_engine(name, endpoint):
    transport = HttpTransport()
    processor = ParallelBatchProcessor(
        config=ProcessorConfig(
            max_workers=IN_FLIGHT, progress_interval=0, remember_limits=False, dedupe=False
        ),
        requests=RequestCaller(endpoint, transport, ignore_slots=True),
    )

    async def run(count):
        items = (LLMWorkItem(str(n), request=request_in(name)) for n in range(count))
        async for result in processor.stream(items):
            assert result.token_usage["total_tokens"] == 220

    return run, transport.aclose


WAYS = {"aiohttp": with_aiohttp, "+ codec": with_codec, "+ engine": with_engine}


async def measure(name, way, port, requests):
    run, close = await WAYS[way](name, endpoint_at(name, port))
    await run(2 * IN_FLIGHT)
    start = cpu_seconds()
    await run(requests)
    cpu = cpu_seconds() - start
    await close()
    return cpu / requests * 1e6


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="formats whose names begin so")
    parser.add_argument("--one", nargs=3, metavar=("FORMAT", "WAY", "PORT"))
    options = parser.parse_args()
    if options.one:
        raise_file_limit(5000)
        name, way, port = options.one
        print(asyncio.run(measure(name, way, port, options.requests)), flush=True)
        os._exit(0)
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    ports, found = ours.recv(), {}
    formats = [name for name in FORMATS if name.startswith(options.only)]
    for _ in range(options.rounds):
        for name in formats:
            for way in WAYS:
                command = [sys.executable, __file__, "--requests", str(options.requests)]
                command += ["--one", name, way, str(ports[name])]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.setdefault((name, way), []).append(float(out.splitlines()[-1]))
    server.terminate()

    print(f"Python {platform.python_version()}, {IN_FLIGHT} in flight, {options.rounds} rounds\n")
    print("| format | aiohttp, µs | + codec, µs | of aiohttp | + engine, µs | of aiohttp |")
    print("|---|---|---|---|---|---|")
    for name in formats:
        bare, codec, engine = (statistics.median(found[name, way]) for way in WAYS)
        print(
            f"| {name} | {bare:.0f} | {codec:.0f} | {codec / bare:.2f} x "
            f"| {engine:.0f} | {engine / bare:.2f} x |"
        )


if __name__ == "__main__":
    main()
