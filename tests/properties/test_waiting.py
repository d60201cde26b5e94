"""Whoever waits in a lane is let in or gives its place back, whatever else happens."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from batch_llm import Limits
from batch_llm._engine.admission_gate import AdmissionGate
from batch_llm._engine.lanes import Lanes
from batch_llm.testing import VirtualTimeLoop
from fakes import Models, asked

ENTER = st.tuples(
    st.just("enter"),
    st.integers(0, 2),  # the run
    st.sampled_from("ab"),  # the lane
    st.integers(-1, 1),  # its priority
    st.booleans(),  # whether it is a retry
    st.sampled_from([1, 100, 900]),  # its tokens
)
STEPS = st.one_of(
    ENTER,
    ENTER,
    st.tuples(st.just("cancel"), st.integers(0, 50)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.3, 5.0])),
)


@given(
    most=st.integers(1, 4),
    is_limited=st.booleans(),
    steps=st.lists(STEPS, max_size=60),
)
@settings(max_examples=150)
def test_nobody_is_lost_and_every_place_comes_back(most, is_limited, steps):
    limits = Limits(tokens_per_minute=6000, burst_seconds=10.0) if is_limited else Limits()

    async def live():
        lanes = Lanes(most, limits, Models(), None, asyncio.get_running_loop())
        gates = [
            AdmissionGate(lanes, lambda *_: None, lambda: None, weight=weight)
            for weight in (0.1, 1.0, 3.0)
        ]
        tasks, let_in = [], []

        async def go_through(name, run, lane, priority, is_retry, size):
            one = asked(
                lane,
                name,
                priority=priority,
                estimated_input_tokens=size,
                estimated_output_tokens=0,
            )
            ticket = await gates[run].enter(one, is_retry=is_retry)
            try:
                assert lanes.in_flight <= most
                await asyncio.sleep(1.0)
            finally:
                gates[run].leave(ticket)
            let_in.append(name)

        for number, (kind, *details) in enumerate(steps):
            if kind == "enter":
                tasks.append(asyncio.create_task(go_through(number, *details)))
            elif kind == "cancel" and details[0] < len(tasks):
                tasks[details[0]].cancel()
            elif kind == "wait":
                await asyncio.sleep(details[0])
            still = sum(gate.waiting for gate in gates)
            assert still == sum(count for gate in gates for count in gate._flow.waiting.values())
        await asyncio.gather(*tasks, return_exceptions=True)

        errors = [task.exception() for task in tasks if not task.cancelled()]
        assert errors == [None] * len(errors)
        assert len(let_in) == len(errors)
        assert [(gate.in_flight, gate.waiting) for gate in gates] == [(0, 0)] * 3
        assert lanes.in_flight == 0
        assert not any(lane.queue.next() for lane in lanes.by_name.values())
        lanes.close()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(live())
