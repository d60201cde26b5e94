from __future__ import annotations

import asyncio

from batch_llm._engine.cooldown_gate import CooldownGate
from fakes import Ramp


def now():
    return asyncio.get_running_loop().time()


def gate(limit=1, strategy=None, events=None):
    def emit(event, data):
        if events is not None:
            events.append((now(), event.value))

    return CooldownGate(limit, strategy or Ramp(), emit)


async def hold(gate, log, name, *, seconds=1.0, is_retry=False):
    await gate.enter(None, is_retry=is_retry)
    log.append((now(), name))
    await asyncio.sleep(seconds)
    gate.leave(0)


async def test_retries_go_before_fresh_items_and_both_in_order():
    one, log = gate(), []
    async with asyncio.TaskGroup() as tasks:
        for name, is_retry in [("a", False), ("b", False), ("R", True), ("S", True)]:
            tasks.create_task(hold(one, log, name, is_retry=is_retry))

    assert log == [(0.0, "a"), (1.0, "R"), (2.0, "S"), (3.0, "b")]


async def test_a_cancelled_waiter_gives_its_place_back():
    one, log = gate(), []
    holder = asyncio.create_task(hold(one, log, "a", seconds=2.0))
    waiter = asyncio.create_task(hold(one, log, "b"))
    last = asyncio.create_task(hold(one, log, "c"))
    await asyncio.sleep(1)

    waiter.cancel()
    await asyncio.wait([holder, waiter, last])

    assert log == [(0.0, "a"), (2.0, "c")]
    assert one.in_flight == one.waiting == 0


async def test_a_waiter_cancelled_in_the_step_in_which_it_is_let_in_gives_its_place_back():
    one, log = gate(), []
    await one.enter(None, is_retry=False)
    waiter = asyncio.create_task(hold(one, log, "b"))
    await asyncio.sleep(1)

    one.leave(0)  # lets b in …
    waiter.cancel()  # … which never wakes to know it
    await asyncio.wait([waiter])

    assert (one.in_flight, log) == (0, [])


async def test_who_was_let_in_when_the_cooldown_began_goes_first_after_it():
    one, log = gate(limit=2, strategy=Ramp(cooldown=5.0)), []
    first, second = await one.enter(None, is_retry=False), await one.enter(None, is_retry=False)
    waiters = [asyncio.create_task(hold(one, log, name)) for name in "abcd"]
    await asyncio.sleep(0)

    one.leave(first)  # lets a in …
    one.refused(second, 0, None, None)  # … and before it wakes, everyone has to wait
    one.leave(second)
    await asyncio.wait(waiters)

    assert [name for _, name in log] == ["a", "b", "c", "d"]
    assert log[0][0] == 5.0


async def test_the_cooldown_ends_on_time_although_its_reporter_is_cancelled():
    events = []
    one = gate(strategy=Ramp(cooldown=10.0), events=events)
    log = []

    async def report():
        episode = await one.enter(None, is_retry=False)
        one.refused(episode, 0, None, None)
        one.leave(0)
        await one.enter(None, is_retry=True)

    reporter = asyncio.create_task(report())
    await asyncio.sleep(3)
    reporter.cancel()
    await hold(one, log, "b")

    assert log == [(10.0, "b")]
    assert events == [(0.0, "cooldown_started"), (10.0, "cooldown_ended")]


async def test_closing_in_mid_cooldown_leaves_no_task_behind():
    before = asyncio.all_tasks()
    one = gate()
    episode = await one.enter(None, is_retry=False)
    one.refused(episode, 0, None, None)
    await asyncio.sleep(1)

    await one.close()

    assert asyncio.all_tasks() == before
