"""The official OpenAI SDK takes the simulator for the service."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from pydantic import BaseModel

from batch_llm.exceptions import ConfigError
from batch_llm.simulator import Profile, answer_digest
from batch_llm.simulator.instances import SchemaError, conforming
from batch_llm.simulator.server import Simulator, SimulatorProcess, serve
from batch_llm.testing.simulator import simulator  # noqa: F401 - a fixture

QUESTION = [{"role": "user", "content": "Capital of Peru?"}]


def sdk(running, *, key="any", retries=0, timeout=30.0):
    return openai.OpenAI(
        base_url=running.base_url, api_key=key, max_retries=retries, timeout=timeout
    )


def async_sdk(running):
    return openai.AsyncOpenAI(base_url=running.base_url, api_key="any", max_retries=0, timeout=30)


def ask(profile, *, key="any", timeout=30.0, **arguments):
    with Simulator(profile) as running, sdk(running, key=key, timeout=timeout) as client:
        return client.chat.completions.create(
            **({"model": "gpt-x", "messages": QUESTION} | arguments)
        )


def fetch(running, path, data=None):
    url = running.base_url.removesuffix("/v1") + path
    with urllib.request.urlopen(urllib.request.Request(url, data=data)) as answer:
        return json.loads(answer.read())


def raw_request():
    body = json.dumps({"model": "x", "messages": QUESTION}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\n"
        "authorization: Bearer x\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def port_of(running):
    return int(running.base_url.split(":")[2].split("/")[0])


def wait_for(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def test_an_answer_has_all_that_the_sdk_reads():
    answer = ask("fast")

    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model, answer.service_tier) == (
        "chat.completion", "gpt-x", "default",
    )  # fmt: skip
    assert answer.system_fingerprint
    assert abs(answer.created - time.time()) < 60
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.refusal) == ("assistant", None)
    assert choice.message.annotations == []
    assert choice.message.content.startswith(f"Answer {answer_digest('Capital of Peru?')}: ")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert usage.prompt_tokens_details.audio_tokens == 0
    details = usage.completion_tokens_details.model_dump()
    assert {
        details[f"{kind}_tokens"]
        for kind in ("reasoning", "audio", "accepted_prediction", "rejected_prediction")
    } == {0}
    assert answer._request_id.startswith("req_")


def test_the_headers_are_the_services():
    with Simulator("fast") as running, sdk(running) as client:
        raw = client.chat.completions.with_raw_response.create(model="x", messages=QUESTION)

    assert int(raw.headers["openai-processing-ms"]) >= 5
    assert raw.headers["openai-version"] == "2020-10-01"
    assert "x-ratelimit-limit-requests" not in raw.headers


async def test_async_answers_come_back_to_their_questions():
    async with async_sdk_of_fast() as (client, running):
        texts = [f"<<echo>>row {number}" for number in range(100)]
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model="x", messages=[{"role": "user", "content": text}]
                )
                for text in texts
            )
        )
        stats = running.stats()

    assert [answer.choices[0].message.content for answer in answers] == [
        text.removeprefix("<<echo>>") for text in texts
    ]
    assert (stats.calls, stats.successes) == (100, 100)
    assert 1 < stats.peak_in_flight <= 100
    assert stats.input_tokens == sum(answer.usage.prompt_tokens for answer in answers)
    assert stats.output_tokens == sum(answer.usage.completion_tokens for answer in answers)


class async_sdk_of_fast:  # noqa: N801 - reads as a function
    async def __aenter__(self):
        self._running = Simulator("fast").start()
        self._client = async_sdk(self._running)
        return self._client, self._running

    async def __aexit__(self, *_error):
        await self._client.close()
        await asyncio.to_thread(self._running.stop)


def test_several_choices_can_be_asked_for():
    choices = ask("fast", n=3).choices

    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) == 3


class City(BaseModel):
    name: str
    people: int
    districts: list[str]


SHAPE = {
    "type": "json_schema",
    "json_schema": {"name": "City", "schema": City.model_json_schema(), "strict": True},
}


def test_structured_answers_fit_their_schema():
    City.model_validate_json(ask("fast", response_format=SHAPE).choices[0].message.content)
    with Simulator("fast") as running, sdk(running) as client:
        parsed = client.chat.completions.parse(
            model="gpt-x", messages=QUESTION, response_format=City
        )

    assert isinstance(parsed.choices[0].message.parsed, City)


def test_json_mode_gives_an_object():
    answer = ask("fast", response_format={"type": "json_object"})

    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_a_long_answer_is_cut_at_the_limit():
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        answer = ask("fast", **limit)

        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 2


def test_a_stream_gives_the_same_answer_in_pieces():
    with Simulator("fast") as running, sdk(running) as client:
        whole = client.chat.completions.create(model="x", messages=QUESTION)
        with client.chat.completions.create(
            model="x", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
        stats = running.stats()

    *pieces, last = chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
    assert text == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert (last.choices, last.usage) == ([], whole.usage)
    assert stats.output_tokens == 2 * whole.usage.completion_tokens


async def test_an_async_stream_takes_its_time_for_each_token():
    with Simulator("fast?latency=0&per_token=0.01") as running:
        async with async_sdk(running) as client:
            start = time.perf_counter()
            stream = await client.chat.completions.create(model="x", messages=QUESTION, stream=True)
            count = len([chunk async for chunk in stream])
            elapsed = time.perf_counter() - start

    assert elapsed > count * 0.01 * 0.8


async def test_a_token_of_a_stream_does_not_wait_for_the_next():
    with Simulator("fast?latency=0&per_token=600") as running:
        async with async_sdk(running) as client:
            stream = await client.chat.completions.create(model="x", messages=QUESTION, stream=True)
            first = await anext(aiter(stream))
            await stream.close()

    assert first.choices[0].delta.role == "assistant"


def test_a_whole_answer_takes_its_time_for_each_token_too():
    start = time.perf_counter()
    answer = ask("fast?latency=0&per_token=0.02")

    assert time.perf_counter() - start > answer.usage.completion_tokens * 0.02


def test_a_stream_can_break():
    with Simulator(Profile(preset=1)) as running, sdk(running) as client:
        stream = client.chat.completions.create(model="x", messages=QUESTION, stream=True)
        with pytest.raises(openai.APIConnectionError):
            list(stream)


def test_a_stream_can_be_garbage():
    with Simulator(Profile(pgarbage=1)) as running, sdk(running) as client:
        stream = client.chat.completions.create(model="x", messages=QUESTION, stream=True)
        with stream, pytest.raises(json.JSONDecodeError):
            list(stream)


@pytest.mark.parametrize(
    ("profile", "kind", "status", "type_", "code"),
    [
        (Profile(p429=1), openai.RateLimitError, 429, "requests", "rate_limit_exceeded"),
        (Profile(pquota=1), openai.RateLimitError, 429, "insufficient_quota", "insufficient_quota"),
        (Profile(p500=1), openai.InternalServerError, 500, "server_error", None),
        (Profile(p503=1), openai.InternalServerError, 503, "service_unavailable",
         "server_is_overloaded"),
        (Profile(p529=1), openai.InternalServerError, 529, "overloaded", "overloaded"),
        (Profile(down=(0, 60)), openai.InternalServerError, 503, "service_unavailable",
         "server_is_overloaded"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)  # fmt: skip
def test_error_answers_raise_the_sdks_own_classes(profile, kind, status, type_, code):
    with pytest.raises(kind) as caught:
        ask(profile)

    error = caught.value
    assert (error.status_code, error.type, error.code, error.param) == (status, type_, code, None)
    assert error.request_id.startswith("req_")
    assert error.body["message"] in error.message
    assert "openai-processing-ms" in error.response.headers


@pytest.mark.parametrize(
    ("how", "headers"),
    [("header", {"retry-after": "1"}), ("ms", {"retry-after-ms": "300"}), ("none", {})],
)
def test_a_refusal_tells_when_to_come_back(how, headers):
    with pytest.raises(openai.RateLimitError, match="Please try again in 300ms") as caught:
        ask(Profile(p429=1, retry_after=how))

    told = caught.value.response.headers
    assert {name: told[name] for name in told if name.startswith("retry")} == headers


@pytest.mark.parametrize(
    ("arguments", "kind", "code", "param"),
    [
        ({"key": "invalid"}, openai.AuthenticationError, "invalid_api_key", None),
        ({"model": "missing-1"}, openai.NotFoundError, "model_not_found", None),
        ({"messages": []}, openai.BadRequestError, "empty_array", "messages"),
        ({"max_tokens": 0}, openai.BadRequestError, "integer_below_min_value", "max_tokens"),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "pasta"}}}},
         openai.BadRequestError, None, "response_format"),
    ],
    ids=["key", "model", "messages", "max_tokens", "schema"],
)  # fmt: skip
def test_bad_calls_are_refused_as_the_service_does(arguments, kind, code, param):
    with pytest.raises(kind) as caught:
        ask("fast", **arguments)

    assert (caught.value.type, caught.value.code) == ("invalid_request_error", code)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat/completions", 401),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/models", 401),
        ("GET", "/v1/modelsandmore", 404),
        ("GET", "/sim/reset", 404),
        ("GET", "/", 404),
    ],
)
def test_other_addresses_are_refused_in_the_same_format(simulator, method, path, status):  # noqa: F811
    url = simulator.base_url.removesuffix("/v1") + path
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, method=method))

    with caught.value:
        error = json.loads(caught.value.read())["error"]
    assert caught.value.code == status
    assert error["type"] == "invalid_request_error"


def test_a_broken_connection_is_one_for_the_sdk():
    with Simulator(Profile(preset=1)) as running, sdk(running) as client:
        for _ in range(20):
            with pytest.raises(openai.APIConnectionError) as caught:
                client.chat.completions.create(model="x", messages=QUESTION)
            assert not isinstance(caught.value, openai.APITimeoutError)
        stats = running.stats()

    assert (stats.faults, stats.answers) == ({"preset": 20}, 20)


def test_a_broken_connection_is_reset_in_mid_body():
    received = b""
    with (
        Simulator(Profile(preset=1)) as running,
        socket.create_connection(("127.0.0.1", port_of(running)), timeout=30) as client,
    ):
        client.sendall(raw_request())
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - which read fails is open
            while True:
                received += client.recv(4096) or pytest.fail("ended in order")

    answer_head, _, part = received.partition(b"\r\n\r\n")
    assert answer_head.startswith(b"HTTP/1.1 200 OK")
    length = int(answer_head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert 0 < len(part) < length


def test_a_held_back_answer_is_a_timeout_for_the_sdk():
    with Simulator(Profile(ptimeout=1)) as running, sdk(running, timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="x", messages=QUESTION)
        client.close()
        # The server notices that the client has left.
        wait_for(lambda: running.stats().calls == 1 and not running._app._in_flight)
        stats = running.stats()

    assert (stats.faults, stats.answers) == ({"ptimeout": 1}, 0)


def test_a_held_back_answer_comes_in_the_end():
    assert ask(Profile(ptimeout=1, hang=0.05)).choices[0].finish_reason == "stop"


def test_garbage_is_not_json():
    with pytest.raises(json.JSONDecodeError):
        ask(Profile(pgarbage=1))


def test_refusals_and_filters_look_like_the_services():
    refused = ask(Profile(prefuse=1)).choices[0]
    filtered = ask(Profile(pfilter=1)).choices[0]

    assert "cannot assist" in refused.message.refusal
    assert (refused.message.content, refused.finish_reason) == (None, "stop")
    assert filtered.finish_reason == "content_filter"


def test_the_sdks_parse_helper_sees_spoilt_answers():
    def parse(profile):
        with Simulator(profile) as running, sdk(running) as client:
            return client.chat.completions.parse(model="x", messages=QUESTION, response_format=City)

    with pytest.raises(openai.LengthFinishReasonError):
        parse(Profile(ptruncate=1))
    with pytest.raises(openai.ContentFilterFinishReasonError):
        parse(Profile(pfilter=1))
    with pytest.raises(ValueError, match="validation error"):
        parse(Profile(pschema=1))
    assert parse(Profile(prefuse=1)).choices[0].message.parsed is None


def test_limits_are_told_in_headers_and_kept():
    with Simulator("fast?rpm=2&burst=60") as running, sdk(running) as client:
        raw = client.chat.completions.with_raw_response
        start = time.monotonic()
        headers = raw.create(model="x", messages=QUESTION).headers
        raw.create(model="x", messages=QUESTION)
        with pytest.raises(openai.RateLimitError, match="requests per min") as caught:
            raw.create(model="x", messages=QUESTION)
        seconds = time.monotonic() - start
        stats = running.stats()

    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert headers["x-ratelimit-reset-requests"] == "30s"
    told = caught.value.response.headers
    assert 29 - seconds <= int(told["retry-after"]) <= 30
    assert told["x-ratelimit-remaining-requests"] == "0"
    assert caught.value.type == "requests"
    assert (stats.calls, stats.answers, stats.refused) == (3, 2, 1)


def test_a_slot_is_free_again_as_soon_as_the_answer_is_there():
    with Simulator("fast?slots=2&latency=0.002") as running, sdk(running) as client:

        def ask_often(_):
            for _ in range(20):
                client.chat.completions.create(model="x", messages=QUESTION)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ask_often, range(2)))
        stats = running.stats()

    assert (stats.successes, stats.refused) == (40, 0)


def test_a_call_beyond_the_slots_is_refused_at_once():
    with (
        Simulator("fast?slots=1&latency=600") as running,
        sdk(running) as client,
        socket.create_connection(("127.0.0.1", port_of(running)), timeout=30) as first,
    ):
        first.sendall(raw_request())
        wait_for(lambda: running.stats().calls)
        with pytest.raises(openai.RateLimitError, match="concurrency: 1") as caught:
            client.chat.completions.create(model="x", messages=QUESTION)

    assert "retry-after" not in caught.value.response.headers
    assert "x-ratelimit-limit-requests" not in caught.value.response.headers


@pytest.mark.parametrize("fault", ["p500", "preset", "pgarbage", "ptimeout"])
def test_a_spoilt_call_frees_its_slot_too(fault):
    timeout = 0.2 if fault == "ptimeout" else 30
    with Simulator(f"fast?slots=1&{fault}=1") as running, sdk(running, timeout=timeout) as client:
        for number in range(3):
            with pytest.raises((openai.OpenAIError, ValueError)):
                client.chat.completions.create(model="x", messages=QUESTION)
            # A client is told of the end sooner than the server.
            wait_for(lambda past=number: running.stats().calls > past)
            wait_for(lambda: not running._app._in_flight)
        stats = running.stats()

    assert (stats.faults, stats.refused) == ({fault: 3}, 0)


def test_a_quota_ends_for_good():
    with Simulator("fast?quota_after=2") as running, sdk(running) as client:
        for _ in range(2):
            client.chat.completions.create(model="x", messages=QUESTION)
        for _ in range(2):
            with pytest.raises(openai.RateLimitError, match="exceeded your current quota"):
                client.chat.completions.create(model="x", messages=QUESTION)


def test_the_sdks_own_retries_recover():
    with (
        Simulator("fast?p429=1&recover=2&retry_after=ms") as running,
        sdk(running, retries=2) as client,
    ):
        assert client.chat.completions.create(model="x", messages=QUESTION).choices


def test_every_call_is_in_the_bill_whatever_the_concurrency():
    """Two runs at different concurrency see the same faults, and each bill adds up."""

    def run(workers):
        with (
            Simulator(
                "flaky?latency=0&tail=0&ptimeout=0&p500=0.2&retry_after=none", seed=5
            ) as running,
            sdk(running) as client,
            ThreadPoolExecutor(workers) as pool,
        ):
            return list(pool.map(lambda row: until_good(client, row), range(60))), running.stats()

    (alone, alone_stats), (together, together_stats) = run(1), run(8)

    assert alone == together
    assert max(len(outcomes) for outcomes in alone) <= 4
    assert alone_stats.faults == together_stats.faults
    for stats in (alone_stats, together_stats):
        assert stats.successes == 60
        assert stats.calls == stats.successes + sum(stats.faults.values())


def test_the_seed_can_be_given_apart_from_the_profile():
    def faults(**options):
        profile = "fast?latency=0&p500=0.5&seed=1"
        with Simulator(profile, **options) as running, sdk(running) as client:
            return [until_good(client, row) for row in range(12)]

    assert faults() == faults(seed=1) != faults(seed=2)


def test_a_schema_is_never_fetched_from_elsewhere(simulator):  # noqa: F811
    elsewhere = simulator.base_url.replace("/v1", "/sim/stats")

    with pytest.raises(SchemaError, match="Retrieval is disabled"):
        conforming({"$ref": elsewhere}, "seed")


def until_good(client, row):
    outcomes = []
    messages = [{"role": "user", "content": f"row {row}"}]
    while not outcomes or outcomes[-1] != "stop":
        try:
            answer = client.chat.completions.create(
                model="x", messages=messages, response_format=SHAPE
            )
            content = answer.choices[0].message.content
            outcomes.append(answer.choices[0].finish_reason)
            if outcomes[-1] == "stop":
                City.model_validate_json(content)
        except openai.APIStatusError as error:
            outcomes.append(error.status_code)
        except (openai.APIConnectionError, ValueError) as error:
            outcomes[:] = [*outcomes[: -1 if outcomes[-1:] == ["stop"] else None], type(error)]
    return outcomes


def test_the_statistics_are_served_and_can_be_reset():
    with Simulator("fast") as running, sdk(running) as client:
        client.chat.completions.create(model="x", messages=QUESTION)
        served = fetch(running, "/sim/stats")
        fetch(running, "/sim/reset", data=b"")
        after = fetch(running, "/sim/stats")

    assert (served["calls"], served["successes"], served["faults"]) == (1, 1, {})
    assert after["calls"] == after["peak_in_flight"] == 0


def test_a_reset_with_calls_in_flight_starts_a_clean_count():
    with (
        Simulator("fast?latency=0.3") as running,
        sdk(running) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(client.chat.completions.create, model="x", messages=QUESTION)
        wait_for(lambda: running.stats().calls)
        running.reset()
        call.result()
        client.chat.completions.create(model="x", messages=QUESTION)
        stats = running.stats()

    assert (stats.calls, stats.successes, stats.peak_in_flight) == (1, 1, 1)


def test_models_are_listed(simulator):  # noqa: F811
    with sdk(simulator) as client:
        assert "fast" in [model.id for model in client.models.list()]
        assert client.models.retrieve("gpt-x").id == "gpt-x"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("missing-1")


@pytest.mark.parametrize("simulator", ["fast?prefuse=1"], indirect=True)
def test_the_fixture_takes_a_profile(simulator):  # noqa: F811
    with sdk(simulator) as client:
        answer = client.chat.completions.create(model="x", messages=QUESTION)

    assert answer.choices[0].message.refusal


def test_an_answer_does_not_wait_for_the_clients_acknowledgement():
    """Head and body are two writes: with Nagle's algorithm on, each call takes 40 ms longer."""
    with (
        Simulator("fast?latency=0") as running,
        socket.create_connection(("127.0.0.1", port_of(running)), timeout=30) as client,
    ):
        client.sendall(raw_request())
        received = b""
        while not received.endswith(b"}"):
            received += client.recv(65536)
        (served,) = running._server.server_state.connections
        raw = served.transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_simulator_can_start_again_with_nothing_remembered():
    running = Simulator("fast")
    for _ in range(2):
        with running, sdk(running) as client:
            client.chat.completions.create(model="x", messages=QUESTION)
        assert running.stats().calls == 1


def test_a_simulator_process_ends_with_its_block():
    with SimulatorProcess("fast") as running:
        process = running._process
        with sdk(running) as client:
            assert client.chat.completions.create(model="x", messages=QUESTION).choices

    assert process.poll() is not None


def test_a_simulator_process_ends_when_its_parent_is_killed():
    code = (
        "import time\n"
        "from batch_llm.simulator.server import SimulatorProcess\n"
        "running = SimulatorProcess('fast').start()\n"
        "print(running._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.kill()

    try:
        wait_for(lambda: not is_alive(child))
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_port_in_use_is_named(simulator, capfd):  # noqa: F811
    port = port_of(simulator)
    with pytest.raises(OSError, match=f"port {port} on 127.0.0.1 cannot be used"):
        Simulator("fast", port=port).start()
    with pytest.raises(OSError, match="did not start"):
        SimulatorProcess("fast", port=port).start()

    assert f"port {port} on 127.0.0.1 cannot be used" in capfd.readouterr().err


def test_only_this_machine_is_served():
    with pytest.raises(ConfigError, match=r"host must be 127\.0\.0\.1 or localhost"):
        serve("fast", host="0.0.0.0", on_started=pytest.fail)
    with pytest.raises(ConfigError, match="port must be from 0 to 65535"):
        Simulator("fast", port=65536).start()


def test_serving_ends_quietly_with_ctrl_c():
    code = (
        "from batch_llm.simulator.server import serve\n"
        "serve('fast', on_started=lambda url: print(url, flush=True))\n"
        "print('ended', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        url = server.stdout.readline().strip()
        with urllib.request.urlopen(url.removesuffix("/v1") + "/sim/stats") as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)

    assert (out, err, server.returncode) == ("ended\n", "", 0)
