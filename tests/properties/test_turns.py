"""Whose turn it is: nobody waits for ever, shares follow the weights, and order holds otherwise."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from batch_llm._engine.turns import LONGEST_WAITING_EVERY, Flow, Queue
from batch_llm.strategies.costs import Cost

WEIGHTS = (0.1, 1.0, 3.0)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), st.integers(-2, 2), st.booleans()),
        st.tuples(st.just("take")),
        st.tuples(st.just("cancel"), st.integers(0, 100)),
    ),
    max_size=120,
)


class Future:
    """What a queue asks of a future."""

    def __init__(self):
        self.is_done = False

    def done(self):
        return self.is_done


class Line:
    """A queue and its runs, and what a reader of its contract expects of it."""

    def __init__(self, weights):
        self.queue = Queue("a")
        self.flows = [Flow(weight, lambda: None) for weight in weights]
        self.waiting = {}  # by future: the run, and the order among its calls
        self.arrivals = 0

    def add(self, run, priority=0, is_retry=0):
        future = Future()
        self.queue.add(future, Cost(), self.flows[run], priority=priority, is_retry=is_retry)
        self.arrivals += 1
        self.waiting[future] = run, (not is_retry, -priority, self.arrivals)
        return future

    def take(self):
        found = self.queue.next()
        if found is None:
            assert not self.waiting
            return None
        self.queue.take(found)
        found.future.is_done = True
        run, order = self.waiting.pop(found.future)
        assert self.flows[run] is found.flow
        return found.future, run, order

    def cancel(self, future):
        run, _ = self.waiting.pop(future)
        future.is_done = True
        self.queue.give_up(self.flows[run])

    def play(self, steps):
        for kind, *details in steps:
            if kind == "add":
                self.add(*details)
            elif kind == "take":
                self.take()
            elif details[0] < len(self.waiting):
                self.cancel(list(self.waiting)[details[0]])
            for run, flow in enumerate(self.flows):
                live = sum(of == run for of, _ in self.waiting.values())
                assert flow.all_waiting == flow.waiting.get("a", 0) == live


@given(STEPS, st.integers(0, 2))
def test_nobody_starves_whatever_comes_after_it(steps, run):
    line = Line(WEIGHTS)
    line.play(steps)
    older = sum(of == run for of, _ in line.waiting.values())
    last = line.add(run, priority=-9)
    own = LONGEST_WAITING_EVERY * (older + 1)
    most = sum(math.ceil(own * weight / WEIGHTS[run]) + 2 for weight in WEIGHTS)

    for _ in range(most):  # for each call that goes, a more urgent one comes in every run
        for other in range(len(WEIGHTS)):
            line.add(other, priority=9, is_retry=True)
        taken = line.take()
        assert taken is not None
        if taken[0] is last:
            return

    raise AssertionError(f"not let in after {most} others")


@given(STEPS)
def test_of_a_run_the_first_in_order_goes_or_else_the_one_that_has_waited_longest(steps):
    line = Line(WEIGHTS)
    line.play(steps)
    while line.waiting:
        before = dict(line.waiting)
        _, run, order = line.take()
        orders = [one for of, one in before.values() if of == run]
        oldest = min(orders, key=lambda one: one[2])
        is_for_longest = line.flows[run].taken["a"] % LONGEST_WAITING_EVERY == 0
        assert order == (oldest if is_for_longest else min(orders))


@given(st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 8.0]), min_size=2, max_size=4))
def test_runs_that_all_wait_get_their_shares(weights):
    line = Line(weights)
    calls = 400
    for run in range(len(weights)):
        for _ in range(calls):
            line.add(run)

    taken = [0] * len(weights)
    for _ in range(calls):
        taken[line.take()[1]] += 1
        done = sum(taken)
        for run, weight in enumerate(weights):
            share = done * weight / sum(weights)
            assert abs(taken[run] - share) <= len(weights)
