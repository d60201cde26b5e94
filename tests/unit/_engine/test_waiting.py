"""Whose turn it is: within a run, between runs, between lanes."""

from __future__ import annotations

import asyncio

import pytest

from batch_llm import Limits
from batch_llm._engine.admission_gate import AdmissionGate
from batch_llm._engine.lanes import Lanes
from batch_llm._engine.turns import LONGEST_WAITING_EVERY
from fakes import Models, asked


def now():
    return asyncio.get_running_loop().time()


def lanes(limits=None, most=1000):
    return Lanes(most, limits, Models(), None, asyncio.get_running_loop())


def gate(of, weight=1.0):
    return AdmissionGate(of, lambda *_: None, lambda: None, weight=weight)


class Door:
    """Takes one call at a time through a gate, and notes the order."""

    def __init__(self):
        self.order = []
        self.tasks = {}

    def wait(self, at, name, *, model="m", is_retry=False, seconds=1.0, **fields):
        async def go_through():
            ticket = await at.enter(asked(model, name, **fields), is_retry=is_retry)
            self.order.append((now(), name))
            await asyncio.sleep(seconds)
            at.leave(ticket)

        self.tasks[name] = asyncio.create_task(go_through())

    async def all(self):
        await asyncio.wait(self.tasks.values())
        return [name for _, name in self.order]


async def test_who_came_first_goes_first_and_a_retry_before_them():
    one, door = gate(lanes(most=1)), Door()

    for name in ("0", "a", "b", "c"):
        door.wait(one, name)
    await asyncio.sleep(0)
    door.wait(one, "retry", is_retry=True)

    assert await door.all() == ["0", "retry", "a", "b", "c"]


async def test_a_retry_goes_before_a_higher_priority():
    one, door = gate(lanes(most=1)), Door()

    door.wait(one, "0")
    door.wait(one, "high", priority=9)
    door.wait(one, "retry", is_retry=True)

    assert await door.all() == ["0", "retry", "high"]


async def test_a_low_priority_waits_for_a_tenth_of_the_calls_and_no_longer():
    one, door = gate(lanes(most=1)), Door()

    door.wait(one, "0")
    await asyncio.sleep(0)
    door.wait(one, "low", priority=-1)
    for n in range(100):  # higher ones never end
        door.wait(one, f"high {n}", priority=1)

    order = await door.all()
    assert order.index("low") == LONGEST_WAITING_EVERY


async def test_a_large_call_is_not_overtaken_by_small_ones():
    """Told tokens come back at 100 a second; the large call waits for 90 s of them."""
    limits = Limits(tokens_per_minute=6000, burst_seconds=90.0)
    one, door = gate(lanes(limits)), Door()

    def sized(name, count):
        door.wait(one, name, estimated_input_tokens=count, estimated_output_tokens=0, seconds=200)

    sized("first", 9000)
    await asyncio.sleep(0.01)
    sized("large", 9000)
    await asyncio.sleep(0.01)
    for n in range(20):
        sized(f"small {n}", 10)

    order = await door.all()
    assert order[:2] == ["first", "large"]
    assert door.order[1][0] == pytest.approx(90.0, abs=0.1)


async def test_when_a_large_call_is_cancelled_those_behind_it_go_at_once():
    limits = Limits(tokens_per_minute=6000, burst_seconds=90.0)
    one, door = gate(lanes(limits)), Door()
    sizes = {"estimated_output_tokens": 0, "seconds": 500}
    door.wait(one, "first", estimated_input_tokens=8900, **sizes)
    await asyncio.sleep(0.6)
    door.wait(one, "large", estimated_input_tokens=9000, **sizes)
    door.wait(one, "small", estimated_input_tokens=50, **sizes)
    await asyncio.sleep(1.0)

    door.tasks["large"].cancel()
    await asyncio.sleep(0.01)

    assert [name for _, name in door.order] == ["first", "small"]
    for task in door.tasks.values():
        task.cancel()


async def test_a_cancelled_waiter_costs_its_run_none_of_its_share():
    shared = lanes(most=1)
    one, other, door = gate(shared), gate(shared), Door()
    door.wait(one, "0")
    await asyncio.sleep(0)
    for n in range(50):
        door.wait(one, f"cancelled {n}")
    await asyncio.sleep(0)
    for n in range(50):
        door.tasks.pop(f"cancelled {n}").cancel()
    for n in range(3):
        door.wait(other, f"other {n}")
        door.wait(one, f"one {n}")

    order = await door.all()
    assert {name.split()[0] for name in order[1:3]} == {"one", "other"}
    assert {name.split()[0] for name in order[3:5]} == {"one", "other"}
    assert (one.waiting, shared.by_name["m"].queue.lines) == (0, {})


async def test_what_was_cancelled_does_not_stay_in_the_queue():
    one, door = gate(lanes(most=1)), Door()
    door.wait(one, "0", seconds=1e6)
    door.wait(one, "first in the queue")
    for n in range(2000):
        door.wait(one, f"{n}", priority=n % 7)
        await asyncio.sleep(0)
        door.tasks[f"{n}"].cancel()
        await asyncio.sleep(0)

    (line,) = one.lanes.by_name["m"].queue.lines.values()
    assert len(line.by_rank) + len(line.by_arrival) < 200
    for task in door.tasks.values():
        task.cancel()


async def test_priorities_are_a_matter_of_one_run_and_starve_no_other():
    shared = lanes(most=1)
    modest, pushing, door = gate(shared), gate(shared), Door()
    for n in range(20):
        door.wait(pushing, f"pushing {n}", priority=100, is_retry=n % 2 == 0)
        door.wait(modest, f"modest {n}", priority=-100)

    order = await door.all()
    assert 9 <= sum(name.startswith("modest") for name in order[:20]) <= 11


@pytest.mark.parametrize(("weight", "share"), [(0.01, 1 / 101), (0.25, 0.2), (4.0, 0.8)])
async def test_a_run_gets_the_share_of_its_weight_however_small(weight, share):
    shared = lanes(most=1)
    one, other, door = gate(shared, weight), gate(shared), Door()
    for n in range(400):
        door.wait(one, f"one {n}", seconds=0.1)
        door.wait(other, f"other {n}", seconds=0.1)
    await asyncio.sleep(400 * 0.1)

    got = sum(name.startswith("one") for _, name in door.order)
    assert got == pytest.approx(share * 400, abs=3)
    for task in door.tasks.values():
        task.cancel()


async def test_a_run_that_was_idle_has_saved_nothing_up():
    shared = lanes(most=1)
    busy, late, door = gate(shared), gate(shared), Door()
    for n in range(60):
        door.wait(busy, f"busy {n}")
    await asyncio.sleep(30.5)
    for n in range(20):
        door.wait(late, f"late {n}")

    order = await door.all()
    assert 9 <= sum(name.startswith("late") for name in order[31:51]) <= 11


async def test_lanes_that_wait_for_the_same_calls_to_end_take_turns():
    shared = lanes(most=2)
    one, door = gate(shared), Door()
    for n in range(40):
        door.wait(one, f"a {n}", model="a")
    for n in range(10):
        door.wait(one, f"b {n}", model="b")

    order = await door.all()
    assert sum(name.startswith("b") for name in order[:22]) >= 9


async def test_a_weight_counts_for_the_calls_of_whole_runs():
    provider = Models(seconds=0.1)
    built = provider.processor(max_workers=4)
    light = asyncio.create_task(built.process([asked("light", n) for n in range(50)], weight=1))
    same = [
        asyncio.create_task(
            built.process([asked("m", f"{name} {n}") for n in range(400)], weight=w)
        )
        for name, w in (("one", 1.0), ("three", 3.0))
    ]
    await asyncio.sleep(8)

    done = sorted(run.statistics(0).processed for run in built._runs)
    built.stop(drain=False)
    await asyncio.gather(light, *same)
    assert done[1] / done[0] == pytest.approx(3.0, rel=0.25)
