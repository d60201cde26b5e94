from __future__ import annotations

import asyncio
import time

from batch_llm._engine.clock import clock_of
from batch_llm.testing.clock import VirtualTimeLoop


def test_a_loop_of_asyncio_is_read_without_a_detour():
    loop = asyncio.new_event_loop()
    try:
        assert clock_of(loop) is time.monotonic
    finally:
        loop.close()


def test_a_loop_with_a_clock_of_its_own_is_asked_itself():
    loop = VirtualTimeLoop()
    try:
        assert clock_of(loop)() == loop.time() < time.monotonic()
    finally:
        loop.close()


def test_a_loop_whose_clock_was_replaced_is_asked_itself():
    loop = asyncio.new_event_loop()
    try:
        loop.time = lambda: 7.0
        assert clock_of(loop)() == 7.0
    finally:
        loop.close()
