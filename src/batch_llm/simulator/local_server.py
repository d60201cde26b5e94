"""Servers that people run themselves: what they say of themselves, and how they saturate.

llama.cpp, vLLM and Ollama refuse nothing: they work on as many calls as they have slots, the others
wait in a queue. What they write per second is shared by all calls in work.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any, NamedTuple

import msgspec

#: Slots, where the profile names none.
USUAL_SLOTS = {"llama": 4, "vllm": 256, "ollama": 1}
_OWNERS = {"llama": "llamacpp", "vllm": "vllm", "ollama": "library"}
_MODEL = "simulated"
_CONTEXT_TOKENS = 8192
_JSON = b"application/json; charset=utf-8"
_encode = msgspec.json.Encoder().encode


class Line:
    """The calls of a server: some in its slots, the others in its queue, first come first served.

    Args:
        slots: Calls in work at the most; infinity where nobody queues.
        tokens_per_second: What it writes for all calls together at the most; 0 = unlimited.
    """

    def __init__(self, slots: float, tokens_per_second: float = 0.0) -> None:
        self.slots = slots
        self.in_work = self.peak_in_work = 0
        self._tokens_per_second = tokens_per_second
        self._written_until = -math.inf
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """Calls that wait for a slot."""
        return sum(not place.done() for place in self._queue)

    def enter(self) -> asyncio.Future[None] | None:
        """Take a slot, or a place in the queue: a future that is done when the slot is there."""
        if self.in_work < self.slots:
            self._take()
            return None
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        return place

    def leave(self) -> None:
        """Give a slot to the next one in the queue."""
        self.in_work -= 1
        while self._queue and self.in_work < self.slots:
            place = self._queue.popleft()
            if not place.done():
                self._take()
                place.set_result(None)

    def write(self, tokens: int, now: float) -> float:
        """Return the seconds until the server has written these tokens too, beside all others."""
        if not self._tokens_per_second:
            return 0.0
        self._written_until = max(now, self._written_until) + tokens / self._tokens_per_second
        return self._written_until - now

    def _take(self) -> None:
        self.in_work += 1
        self.peak_in_work = max(self.peak_in_work, self.in_work)


class Page(NamedTuple):
    """What a server answers to a look at one of its own addresses."""

    status: int
    kind: bytes
    body: bytes


def page(server: str, path: str, line: Line) -> Page | None:
    """Return what a kind of server says at a path; None where it has nothing.

    Args:
        server: ``llama``, ``vllm`` or ``ollama``.
        path: Of a GET.
        line: Its calls.
    """
    if path in {"/v1/models", "/models"}:
        return _json({"object": "list", "data": [_model(server)]})
    if server == "llama":
        return _llama(path, line)
    if server == "vllm":
        return _vllm(path, line)
    return _ollama(path)


def _llama(path: str, line: Line) -> Page | None:
    if path == "/props":
        return _json(
            {
                "default_generation_settings": {"n_ctx": _CONTEXT_TOKENS},
                "total_slots": int(line.slots),
                "model_alias": _MODEL,
                "model_path": f"{_MODEL}.gguf",
                "chat_template": "",
                "build_info": "b0-simulator",
                "is_sleeping": False,
            }
        )
    if path == "/slots":
        return _json(
            [
                {"id": n, "n_ctx": _CONTEXT_TOKENS, "is_processing": n < line.in_work}
                for n in range(int(line.slots))
            ]
        )
    if path == "/health":
        return _json({"status": "ok"})
    if path == "/metrics":
        message = "This server does not support metrics endpoint. Start it with `--metrics`"
        error = {"code": 501, "message": message, "type": "not_supported_error"}
        return _json({"error": error}, 501)
    return None


def _vllm(path: str, line: Line) -> Page | None:
    if path == "/version":
        return _json({"version": "0.0.0+simulator"})
    if path == "/health":
        return Page(200, _JSON, b"")
    if path == "/metrics":
        labels = f'{{engine="0",model_name="{_MODEL}"}}'
        text = (
            "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
            "# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{labels} {float(line.in_work)}\n"
            "# HELP vllm:num_requests_waiting Number of requests waiting to be processed.\n"
            "# TYPE vllm:num_requests_waiting gauge\n"
            f"vllm:num_requests_waiting{labels} {float(line.queued)}\n"
            "# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig\n"
            "# TYPE vllm:cache_config_info gauge\n"
            'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="4096"} 1.0\n'
        )
        return Page(200, b"text/plain; version=0.0.4; charset=utf-8", text.encode())
    return None


def _ollama(path: str) -> Page | None:
    if path == "/":
        return Page(200, b"text/plain; charset=utf-8", b"Ollama is running")
    if path == "/api/version":
        return _json({"version": "0.0.0"})
    if path == "/api/ps":
        return _json({"models": [{"name": _MODEL, "model": _MODEL, "size": 0, "size_vram": 0}]})
    return None


def _model(server: str) -> dict[str, Any]:
    model = {
        "id": _MODEL,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": _OWNERS[server],
    }
    return model | ({"max_model_len": _CONTEXT_TOKENS} if server == "vllm" else {})


def _json(value: Any, status: int = 200) -> Page:
    return Page(status, _JSON, _encode(value))
