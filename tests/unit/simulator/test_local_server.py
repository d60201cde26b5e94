from __future__ import annotations

import asyncio
import json
import math

import pytest

from batch_llm.exceptions import ConfigError
from batch_llm.simulator import Profile
from batch_llm.simulator.account import Account
from batch_llm.simulator.local_server import USUAL_SLOTS, Line, page
from batch_llm.simulator.openai_chat import OPENAI_CHAT
from batch_llm.simulator.profile import parse_profile


async def test_calls_beyond_the_slots_wait_and_are_served_in_their_order():
    line = Line(2)
    assert [line.enter(), line.enter()] == [None, None]
    first, second = line.enter(), line.enter()
    assert (line.in_work, line.queued) == (2, 2)

    line.leave()
    assert (first.done(), second.done(), line.in_work) == (True, False, 2)
    line.leave()
    assert (second.done(), line.in_work, line.queued) == (True, 2, 0)
    line.leave()
    line.leave()
    assert (line.in_work, line.peak_in_work) == (0, 2)


async def test_who_gave_up_waiting_is_passed_over():
    line = Line(1)
    line.enter()
    gone, there = line.enter(), line.enter()
    gone.cancel()
    line.leave()

    assert there.done()
    assert line.in_work == 1


def test_the_speed_is_shared_by_all():
    line = Line(8, tokens_per_second=100)

    assert line.write(50, now=0.0) == 0.5
    assert line.write(50, now=0.0) == 1.0
    assert line.write(50, now=0.9) == pytest.approx(0.6)
    assert line.write(50, now=10.0) == 0.5
    assert Line(8).write(1000, now=0.0) == 0.0


@pytest.mark.parametrize(
    ("server", "path", "expected"),
    [
        ("llama", "/props", {"total_slots": 3, "model_alias": "simulated"}),
        ("vllm", "/version", {"version": "0.0.0+simulator"}),
        ("ollama", "/api/version", {"version": "0.0.0"}),
    ],
)
def test_each_server_tells_of_itself(server, path, expected):
    told = json.loads(page(server, path, Line(3)).body)

    assert {name: told[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("server", "owner"), [("llama", "llamacpp"), ("vllm", "vllm"), ("ollama", "library")]
)
def test_its_models_say_whose_they_are(server, owner):
    (model,) = json.loads(page(server, "/v1/models", Line(3)).body)["data"]

    assert model["owned_by"] == owner
    assert ("max_model_len" in model) is (server == "vllm")


def test_slots_and_metrics_show_what_is_in_work():
    line = Line(3)
    line.enter()

    slots = json.loads(page("llama", "/slots", line).body)
    assert [slot["is_processing"] for slot in slots] == [True, False, False]
    metrics = page("vllm", "/metrics", line).body.decode()
    assert 'vllm:num_requests_running{engine="0",model_name="simulated"} 1.0\n' in metrics
    assert page("llama", "/metrics", line).status == 501


@pytest.mark.parametrize("server", ["llama", "vllm", "ollama"])
def test_other_addresses_are_not_there(server):
    assert page(server, "/elsewhere", Line(1)) is None
    assert page(server, "/props", Line(1)) is None or server == "llama"


@pytest.mark.parametrize(("server", "slots"), USUAL_SLOTS.items())
def test_without_a_number_it_has_the_usual_slots(server, slots):
    assert Account(Profile(server=server), 0.0).line.slots == slots
    assert Account(Profile(server=server, slots=7), 0.0).line.slots == 7


def test_a_hosted_provider_tells_nothing_and_has_no_queue():
    account = Account(Profile(slots=2), 0.0)

    assert account.line.slots == math.inf
    assert account.look("/props") is None
    assert account.stats().looks == {}


def test_looks_are_counted():
    account = Account(Profile(server="llama"), 0.0)
    account.look("/props")
    account.look("/props")
    account.look("/nothing")

    assert account.stats().looks == {"/props": 2, "/nothing": 1}


def test_a_server_of_ones_own_wants_no_key():
    body = json.dumps({"model": "x", "messages": [{"role": "user", "content": "hi"}]}).encode()

    assert Account(Profile(server="vllm"), 0.0).read(OPENAI_CHAT, [], body).prompt == "hi"


def test_an_unknown_server_is_refused():
    with pytest.raises(ConfigError, match="server must be hosted, llama, vllm or ollama"):
        parse_profile("fast?server=lama")
    assert parse_profile("fast?server=llama&slots=2&tps=1k").tps == 1000.0


async def test_a_client_that_hangs_up_in_the_queue_leaves_it():
    from batch_llm.simulator.app import _gets_slot

    line = Line(1)
    line.enter()

    async def hangs_up():
        await asyncio.sleep(1)
        return {"type": "http.disconnect"}

    async def stays():
        await asyncio.Event().wait()

    assert await _gets_slot(line, hangs_up) is False
    waiting = asyncio.ensure_future(_gets_slot(line, stays))
    await asyncio.sleep(1)
    line.leave()
    assert await waiting is True
    assert line.in_work == 1
