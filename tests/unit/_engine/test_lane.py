from __future__ import annotations

from batch_llm import Limits
from batch_llm._engine.lane import waits_for
from batch_llm._engine.places import Place
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS


def test_output_that_counts_later_is_not_what_a_call_is_said_to_wait_for():
    one = Admission(0.0, Limits(requests_per_minute=60, tokens_per_minute=1000))
    requests, tokens = one.budgets[REQUESTS], one.budgets[TOKENS]
    requests.level = 0.0
    tokens.is_window, tokens.level, tokens.reset_at = True, 120.0, 40.0
    cost = Cost(1.0, 150.0, 100.0, 50.0, pending=50.0)

    wait = one.wait(0.0, cost)

    assert wait == 1.0
    assert waits_for(Place(0, one), 0.0, wait, cost) == REQUESTS
