"""What was seen since the last cut, and before it."""

from __future__ import annotations

import pytest

from admissions import ONE, admission
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS, TOKENS


def test_calls_in_flight_at_a_cut_belong_to_the_time_before():
    one = admission(dimensions=(REQUESTS,))
    before = one.start(0.0, ONE)
    one._epoch.close()
    after = one.start(0.1, ONE)

    assert not one._epoch.is_current(before)
    assert one._epoch.is_current(after)


def test_a_charge_that_was_not_made_is_taken_back_from_what_was_spent_when_the_bucket_was_empty():
    one = admission(dimensions=(REQUESTS,))
    epoch, requests = one._epoch, one.budgets[REQUESTS]
    early, refused, late = (one.start(0.0, ONE) for _ in range(3))
    epoch.note_empty(0.1, refused, 0.0, [requests])
    epoch.close()
    after = one.start(0.2, ONE)

    assert (requests.charged_when_empty, requests.spent_when_empty) == (3, 1)
    epoch.forget(after, requests, 1.0)
    assert (requests.charged_when_empty, requests.spent_when_empty) == (3, 1)
    epoch.forget(late, requests, 1.0)
    assert (requests.charged_when_empty, requests.spent_when_empty) == (2, 1)
    epoch.forget(refused, requests, 1.0)
    assert (requests.charged_when_empty, requests.spent_when_empty) == (1, 1)
    epoch.forget(early, requests, 1.0)
    assert (requests.charged_when_empty, requests.spent_when_empty) == (0, 0)


def test_what_a_call_takes_is_known_from_all_that_were_sent():
    one = admission(dimensions=(REQUESTS, TOKENS))
    for tokens in (100.0, 300.0):
        one.start(0.0, Cost(1.0, tokens, tokens))

    assert one._epoch.per_call(one.budgets[TOKENS]) == pytest.approx(200.0)
