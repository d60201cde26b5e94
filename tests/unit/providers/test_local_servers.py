"""What servers say of themselves is understood, and whatever else they say is harmless."""

from __future__ import annotations

import asyncio
import json

import pytest

from batch_llm.exceptions import TransportError
from batch_llm.providers.base import Capacity
from batch_llm.providers.local_servers import (
    ASK_SECONDS,
    FIRST_CALLS,
    MOST_BYTES,
    MOST_SLOTS,
    OLLAMA_FIRST_CALLS,
    VLLM_SLOTS,
    ask_capacity,
    is_local_host,
    read_capacity,
)
from batch_llm.providers.registry import resolve
from batch_llm.providers.transport import Response

LLAMA = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4, "chat_template": "x"}
RUNNING = b'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
UNKNOWN = Capacity(FIRST_CALLS, "searched")


def owned_by(owner):
    return json.dumps({"object": "list", "data": [{"id": "m", "owned_by": owner}]}).encode()


@pytest.mark.parametrize(
    ("answers", "capacity"),
    [
        ({"/props": json.dumps(LLAMA).encode()}, Capacity(4, "server")),
        ({"/metrics": b"# TYPE x\n" + RUNNING}, Capacity(VLLM_SLOTS, "assumed")),
        ({"/v1/models": owned_by("vllm")}, Capacity(VLLM_SLOTS, "assumed")),
        (
            {"/metrics": RUNNING + b'vllm:scheduler_config_info{a="b",max_num_seqs="512"} 1.0\n'},
            Capacity(512, "server"),
        ),
        ({"/api/version": b'{"version": "0.13.1"}'}, Capacity(OLLAMA_FIRST_CALLS, "searched")),
        ({"/v1/models": owned_by("someone")}, UNKNOWN),
        ({"/v1/models": owned_by("simulator")}, None),
        ({}, UNKNOWN),
    ],
)
def test_each_kind_of_server_is_understood(answers, capacity):
    assert read_capacity(answers) == capacity


@pytest.mark.parametrize(
    "slots",
    [0, -1, MOST_SLOTS + 1, 1e9, 4.0, "4", True, None, [4], {"a": 1}, 10**400],
)
def test_a_number_of_slots_that_cannot_be_is_none(slots):
    assert read_capacity({"/props": json.dumps({"total_slots": slots}).encode()}) == UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"total_slots"',
        b"<html>",
        b"\xff\xfe\x00",
        b"{" * 100_000,
        b"[" * 100_000,
        b'{"data": {"owned_by": "vllm"}}',
        b'{"data": [1, null, {"owned_by": ["vllm"]}]}',
        b'{"version": 7}',
        b'{"total_slots": 1e400}',
        b'xvllm:a{max_num_seqs="4"} 1',
        b'vllm_a{max_num_seqs="999999"} 1',
        b"vllm" + b'{max_num_seqs="' * 50_000,
    ],
)
def test_garbage_at_every_address_says_nothing(text):
    paths = ("/props", "/metrics", "/v1/models", "/api/version")

    assert read_capacity(dict.fromkeys(paths, text)) == UNKNOWN


@pytest.mark.parametrize("number", ["0", "999999", "12345678", "-4", "4.5", "None"])
def test_a_metric_that_cannot_be_a_number_of_slots_still_shows_a_vllm(number):
    line = f'vllm:config_info{{max_num_seqs="{number}"}} 1.0\n'.encode()

    assert read_capacity({"/metrics": line}) == Capacity(VLLM_SLOTS, "assumed")


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("10.0.0.7", True),
        ("172.16.3.4", True),
        ("192.168.1.20", True),
        ("100.64.1.2", True),
        ("fd00::1", True),
        ("fe80::1%eth0", True),
        ("gpu-box", True),
        ("vllm.localhost", True),
        ("gpu.local.", True),
        ("host.docker.internal", True),
        ("api.openai.com", False),
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("local.example.com", False),
        ("notlocal", True),
        ("evil-localhost.com", False),
        ("", False),
        (None, False),
    ],
)
def test_a_local_host_is_known_by_its_name_or_address(host, is_local):
    assert is_local_host(host) is is_local


def test_only_servers_of_ones_own_may_be_asked():
    def may_be_asked(model, base_url=None):
        environ = {"OPENAI_API_KEY": "k"}
        return resolve(model, base_url=base_url, environ=environ).is_local

    assert may_be_asked("openai-chat:m", "http://127.0.0.1:8000/v1")
    assert may_be_asked("openai-chat:m", "http://gpu-box/v1")
    assert may_be_asked("ollama:m")
    assert may_be_asked("vllm:m", "https://vllm.example.com/v1")
    assert not may_be_asked("openai-chat:m")
    assert not may_be_asked("openai-chat:m", "https://vllm.example.com/v1")
    assert not may_be_asked("vllm:m", "https://api.openai.com/v1")
    assert not may_be_asked("openai-chat:m", "https://api.openai.com:443/v1")


def test_a_local_provider_needs_no_key_and_takes_one():
    assert "authorization" not in resolve("vllm:m", environ={}).headers
    with_key = resolve("vllm:m", environ={"VLLM_API_KEY": "k"})
    assert with_key.headers["authorization"] == "Bearer k"
    assert resolve("ollama:m", environ={}).url == "http://127.0.0.1:11434/v1/chat/completions"


class Looks:
    """Answers looks at a server: by path with bytes, an error, a status, or never (None)."""

    def __init__(self, **answers):
        self.answers = answers
        self.seen = []

    async def get(self, url, headers, most_bytes, /):
        self.seen.append((url, dict(headers), most_bytes))
        answer = self.answers.get(url.rpartition("/")[2], 404)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return Response(answer, {}, json.dumps(LLAMA).encode())
        return Response(200, {}, answer)


def local(base_url="http://127.0.0.1:8080/v1", key="secret"):
    return resolve("openai-chat:m", base_url=base_url, environ={"OPENAI_API_KEY": key})


async def asked(looks, endpoint=None):
    start = asyncio.get_running_loop().time()
    capacity = await ask_capacity(looks, endpoint or local())
    return capacity, asyncio.get_running_loop().time() - start


async def test_it_asks_the_server_of_the_calls_with_their_key_and_without_a_query():
    looks = Looks(props=json.dumps(LLAMA).encode())
    await asked(looks, local("http://127.0.0.1:8080/llama/v1?key=hush"))

    assert {url for url, _, _ in looks.seen} == {
        "http://127.0.0.1:8080/llama/props",
        "http://127.0.0.1:8080/llama/metrics",
        "http://127.0.0.1:8080/llama/v1/models",
        "http://127.0.0.1:8080/llama/api/version",
    }
    assert {headers["authorization"] for _, headers, _ in looks.seen} == {"Bearer secret"}
    assert {most for _, _, most in looks.seen} == {MOST_BYTES}


async def test_a_server_that_hangs_holds_nobody_up_for_longer_than_said():
    looks = Looks(props=None, metrics=None, models=None, version=None)
    before = asyncio.all_tasks()

    assert await asked(looks) == (UNKNOWN, ASK_SECONDS)
    assert asyncio.all_tasks() == before


async def test_one_address_that_hangs_does_not_hide_the_others():
    capacity, seconds = await asked(Looks(models=owned_by("vllm"), metrics=None))
    assert (capacity, seconds) == (Capacity(VLLM_SLOTS, "assumed"), ASK_SECONDS)

    capacity, seconds = await asked(Looks(props=json.dumps(LLAMA).encode(), metrics=None))
    assert (capacity, seconds) == (Capacity(4, "server"), 0.0)  # that says it all


@pytest.mark.parametrize("answer", [404, 500, 301, TransportError("down"), b"\x00garbage"])
async def test_errors_and_garbage_are_no_answer(answer):
    looks = Looks(props=answer, metrics=answer, models=answer, version=answer)

    assert await asked(looks) == (UNKNOWN, 0.0)


async def test_a_run_that_is_given_up_gives_up_asking():
    looks = Looks(props=None)
    before = asyncio.all_tasks()
    task = asyncio.create_task(ask_capacity(looks, local()))
    await asyncio.sleep(0.1)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
