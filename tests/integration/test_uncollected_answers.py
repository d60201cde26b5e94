"""The simulator tells which of the answers that it has billed nobody has collected."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator, was_reset


@pytest.fixture
def simulator():
    with Simulator("fast?latency=0.1&log=on") as running:
        yield running


class Client:
    """A connection on which calls are made by hand. Use it as a context manager."""

    def __init__(self, simulator):
        parts = urlsplit(simulator.base_url)
        self.socket = socket.create_connection((parts.hostname, parts.port))

    def ask(self, prompt, *, streams=False, model="m"):
        body = json.dumps(
            {
                "model": model,
                "messages": [{"role": "user", "content": prompt}],
                "stream": streams,
            }
        ).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n"
        self.socket.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def read(self):
        """Read the one answer that has come, to its end."""
        head, _, body = self.socket.recv(1 << 20).partition(b"\r\n\r\n")
        (length,) = (
            int(line.split(b":")[1]) for line in head.splitlines() if b"content-length" in line
        )
        while len(body) < length:
            body += self.socket.recv(1 << 20)
        return body

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.socket.close()


def answered(simulator, count):
    """Wait until so many calls are billed, and whoever was to hang up has done so."""
    deadline = time.monotonic() + 20
    while simulator.stats().answers < count and time.monotonic() < deadline:
        time.sleep(0.01)


def settled(simulator, calls):
    """Return what nobody has collected, as soon as there is so much of it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = simulator.stats().uncollected
        if sum(one.calls for one in found.values()) >= calls:
            return found
        time.sleep(0.01)
    return simulator.stats().uncollected


def collected(simulator):
    """Return by question whether its answer was collected."""
    return {call.asked: call.is_collected for call in simulator.billed_calls()}


def test_an_answer_that_was_read_is_collected_however_the_client_goes(simulator):
    for prompt in ("one", "two"):
        with Client(simulator) as client:
            client.ask(prompt)
            client.read()
    with Client(simulator) as gone:
        gone.ask("gone")

    assert {model: one.calls for model, one in settled(simulator, 1).items()} == {"m": 1}
    assert collected(simulator) == {
        answer_digest("one"): True,
        answer_digest("two"): True,
        answer_digest("gone"): False,
    }


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_lies_in_the_socket_of_who_goes_is_not_collected(simulator, streams):
    with Client(simulator) as client:
        client.ask("unread", streams=streams, model="other")
        client.socket.recv(1, socket.MSG_PEEK)  # it is there
        answered(simulator, 1)

    (call,) = simulator.billed_calls()
    found = settled(simulator, 1)["other"]
    assert (found.calls, found.input_tokens, found.output_tokens) == (
        1,
        call.input_tokens,
        call.output_tokens,
    )
    assert found.output_tokens == simulator.stats().output_tokens


def test_an_answer_to_a_socket_that_is_closed_is_not_collected(simulator):
    with Client(simulator) as client:
        client.ask("at once")
        # Whoever goes does so a little before the answer comes, or a little after that.
        for milliseconds in range(80, 125, 5):
            with Client(simulator) as gone:
                gone.ask(f"after {milliseconds}")
                time.sleep(milliseconds / 1000)
        client.read()

    assert sum(one.calls for one in settled(simulator, 9).values()) == 9
    assert collected(simulator)[answer_digest("at once")]


def test_who_asks_again_on_a_connection_has_read_what_came_before(simulator):
    with Client(simulator) as client:
        client.ask("first")
        client.read()
        client.ask("second")

    settled(simulator, 1)
    assert collected(simulator) == {answer_digest("first"): True, answer_digest("second"): False}


def test_calls_are_told_over_http_where_they_are_kept(simulator):
    with Client(simulator) as client:
        client.ask("one")
        client.read()
    root = simulator.base_url.removesuffix("/v1")
    with urllib.request.urlopen(f"{root}/sim/calls") as answer:
        (call,) = json.load(answer)
    assert call["asked"] == answer_digest("one")
    assert call["is_collected"]
    assert call["request_id"]
    with Simulator("fast") as other:
        assert other.billed_calls() is None
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            urllib.request.urlopen(other.base_url.replace("/v1", "/sim/calls"))
        with refused.value as answer:
            assert b"log=on" in answer.read()


class Told:
    """A transport that tells no more than its socket."""

    def __init__(self, raw):
        self.raw = raw

    def get_extra_info(self, _name):
        return self.raw


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="the system cannot be asked")
@pytest.mark.parametrize("is_read", [True, False])
def test_a_reset_after_the_end_is_known_although_only_the_end_can_be_read(is_read):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            served, _ = listener.accept()
            if is_read:
                served.sendall(b"answer")
                assert client.recv(100) == b"answer"
        with served:
            if not is_read:
                served.sendall(b"answer")  # taken by the system, and thrown away by the other's
            deadline = time.monotonic() + 5
            while not (found := was_reset(Told(served))) and time.monotonic() < deadline:
                if is_read:
                    break
            assert served.recv(100) == b""
            assert found is not is_read
