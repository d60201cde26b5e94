from __future__ import annotations

import base64
import json
import struct
import urllib.request
import zlib

import pytest

from batch_llm.simulator.server import SimulatorProcess


@pytest.fixture(scope="module")
def server():
    """A simulator in a process of its own, for all tests of a module."""
    with SimulatorProcess("fast?latency=0") as running:
        yield running


@pytest.fixture
def stats(server):
    """Forget what was done; returns a function that reads what is done from here on."""
    root = server.base_url.removesuffix("/v1")
    urllib.request.urlopen(urllib.request.Request(f"{root}/sim/reset", data=b"")).close()

    def read():
        with urllib.request.urlopen(f"{root}/sim/stats") as answer:
            return json.loads(answer.read())

    return read


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture(scope="session")
def image():
    """A PNG of one pixel."""
    size = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", size)
        + _chunk(b"IDAT", zlib.compress(b"\x00\xff\x00\x00"))
        + _chunk(b"IEND", b"")
    )


@pytest.fixture(scope="session")
def image_base64(image):
    return base64.b64encode(image).decode()
