"""While nothing is limited, calls are charged later: nobody may see a difference."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from batch_llm import Limits
from batch_llm._engine import uncharged
from batch_llm._engine.admission_gate import AdmissionGate
from batch_llm._engine.lanes import Lanes
from batch_llm.providers.base import Outcome
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.errors import ErrorCode
from batch_llm.testing.clock import VirtualTimeLoop
from fakes import Models, RateLimited, asked

USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


class Door:
    """A gate to one lane."""

    def __init__(self, limits=None, **estimates):
        lanes = Lanes(1000, limits, Models(), None, asyncio.get_running_loop())
        self.gate = AdmissionGate(lanes, lambda *_: None, lambda: None)
        self.item = asked("m", "item", **estimates)
        self.lane = lanes.of(self.item)
        self.admission = self.lane.places[0].admission
        self.tickets = []

    def enter(self):
        ticket = self.gate.enter_now(self.item)
        if ticket is not None:
            self.tickets.append(ticket)
        return ticket

    def answer(self, ticket, *, usage=USAGE, limits=None):
        self.gate.succeeded(ticket, self.item, Outcome("ok", usage, limits=limits))
        self.gate.leave(ticket)

    def refuse(self, ticket):
        self.gate.refused(ticket, 0, None, Outcome(error=RateLimited()))
        self.gate.leave(ticket)

    def fail(self, ticket, code=ErrorCode.OVERLOADED):
        self.gate.failed(ticket, self.item, Outcome(error=RuntimeError()), code)
        self.gate.leave(ticket)

    def spent(self):
        return {name: budget.spent for name, budget in self.admission.budgets.items()}


async def test_what_was_answered_is_charged_when_somebody_asks():
    door = Door()
    for _ in range(3):
        door.answer(door.enter())
    assert door.spent() == {"requests": 0, "tokens": 0}

    door.lane.book()

    assert door.spent() == {"requests": 3, "tokens": 21}
    assert door.admission.budgets["tokens"].log.used(door.gate._time()) == 21
    assert len(door.lane.uncharged) == 0


async def test_what_is_put_down_is_bounded():
    door = Door()
    for _ in range(10 * uncharged.MOST_PUT_DOWN):
        door.answer(door.enter())
        assert len(door.lane.uncharged) <= uncharged.MOST_PUT_DOWN


async def test_a_refusal_finds_everything_charged_in_order():
    door = Door()
    door.answer(door.enter())
    before, refused = door.enter(), door.enter()

    door.refuse(refused)

    assert before.grant.spent_then[0] == 2
    assert refused.grant.spent_then[0] == 3
    assert refused.grant.cost.requests == 1
    assert door.spent()["requests"] == 2  # what is refused is not spent
    assert not door.admission.is_unlimited


async def test_the_first_header_finds_everything_charged():
    door = Door()
    for _ in range(5):
        door.answer(door.enter())
    last = door.enter()

    door.answer(last, limits={"requests": LimitHeader(60, 10.0, 50.0)})

    assert last.grant.spent_then[0] == 6
    assert door.admission.budgets["requests"].limit == 60
    assert len(door.lane.uncharged) == 0


async def test_a_call_that_ends_after_it_was_charged_is_settled_once():
    door = Door()
    ticket = door.enter()
    door.lane.book()
    expected = door.spent()["tokens"]
    assert door.admission.budgets["tokens"].pending > 0

    door.answer(ticket)
    assert door.spent()["tokens"] == expected
    door.lane.book()
    door.lane.book()

    assert door.spent() == {"requests": 1, "tokens": 7}
    assert door.admission.budgets["tokens"].pending == 0


async def test_answers_whose_tokens_nobody_told_are_charged_their_estimate():
    door = Door()

    door.answer(door.enter(), usage=None)
    door.lane.book()

    assert door.spent()["requests"] == 1
    assert door.spent()["tokens"] > 7
    assert door.admission.budgets["tokens"].pending == 0


async def test_where_a_limit_is_told_calls_are_charged_at_once():
    door = Door(Limits(requests_per_minute=60))

    door.enter()

    assert door.spent()["requests"] == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enter"] * 6 + ["answer"] * 5 + ["refuse", "fail", "give up", "unsent"]),
        st.integers(0, 30),
        st.sampled_from([0.0, 0.01, 0.4, 3.0]),
    ),
    max_size=120,
)


@given(STEPS)
def test_charged_later_or_at_once_comes_to_the_same(steps):
    async def both():
        # Told: what is charged later is estimated later, when more may have been learned.
        estimates = {"estimated_input_tokens": 5, "estimated_output_tokens": 50}
        doors = later, at_once = Door(**estimates), Door(**estimates)
        for one in doors:
            one.admission._dice.seed(1)
        for step, which, pause in steps:
            await asyncio.sleep(pause)
            if step == "enter":
                assert (later.enter() is None) == (at_once.enter() is None)
            elif later.tickets:
                for one in doors:
                    ticket = one.tickets.pop(which % len(one.tickets))
                    if step == "answer":
                        one.answer(ticket)
                    elif step == "refuse":
                        one.refuse(ticket)
                    elif step == "fail":
                        one.fail(ticket)
                    else:
                        one.gate.leave(ticket, was_sent=step == "give up")
            at_once.lane.book()
            assert later.admission.is_unlimited == at_once.admission.is_unlimited
            assert later.admission.in_flight == at_once.admission.in_flight
        for one in doors:
            for ticket in one.tickets:
                one.answer(ticket)
            one.lane.book()
        for mine, other in zip(
            later.admission.budgets.values(), at_once.admission.budgets.values(), strict=True
        ):
            assert abs(mine.spent - other.spent) < 1e-6
            assert abs(mine.pending) < 1e-6 > abs(other.pending)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(both())
