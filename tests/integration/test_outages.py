"""A provider that goes away in mid-run and comes back: nothing is lost, and no attempt used up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from batch_llm.simulator.server import SimulatorProcess

ROWS = 200


@pytest.fixture
def start(tmp_path):
    """Start `batch-llm run` over so many rows."""
    (tmp_path / "a.txt").write_text("".join(f"Question {n}\n" for n in range(ROWS)))
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    started = []

    def start(*arguments):
        running = subprocess.Popen(
            [sys.executable, "-m", "batch_llm", "run", "a.txt", "--json", *arguments],
            cwd=tmp_path,
            env=environ | {"OPENAI_API_KEY": "any"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(running)
        return running

    yield start
    for running in started:
        running.kill()
        running.communicate()


def end_of(running):
    told, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    return json.loads(told.splitlines()[-1])


def answers_of(url):
    with urllib.request.urlopen(url.removesuffix("/v1") + "/sim/stats", timeout=10) as answer:
        return json.load(answer)["answers"]


@pytest.mark.parametrize("model", ["sim:fast", "sim-anthropic:fast"])
def test_a_provider_that_is_overloaded_for_a_while_is_waited_for(start, model):
    end = end_of(start("--retries", "0", "-m", f"{model}?rpm=6000&burst=1&down=0.5-4"))

    assert (end["succeeded"], end["failed"]) == (ROWS, 0)
    assert end["retries"]["overloaded"] > 0
    assert end["retries"]["overloaded"] < ROWS / 2  # single probes, once it is known


def test_a_server_that_is_gone_for_a_while_is_waited_for(start):
    """The calls that its end cuts off use up one attempt; who finds nobody there uses up none."""
    profile = "fast?rpm=3000&burst=0.2"
    with socket.socket() as ours:  # so that nobody else gets the port in between
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind(("127.0.0.1", 0))
        port = ours.getsockname()[1]
        with SimulatorProcess(profile, port=port) as first:
            base_url = first.base_url
            running = start("--retries", "1", "-m", "openai-chat:m", "--base-url", base_url)
            while (before := answers_of(base_url)) < ROWS / 10:
                time.sleep(0.05)
        time.sleep(2)
        with SimulatorProcess(profile, port=port):
            end = end_of(running)
            after = answers_of(base_url)

    assert (end["succeeded"], end["failed"]) == (ROWS, 0)
    assert end["retries"]["connection"] > 0
    assert before < ROWS
    assert 0 < after < ROWS
