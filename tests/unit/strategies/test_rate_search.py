"""An unknown limit's rate is searched upwards, and enclosed."""

from __future__ import annotations

import math

import pytest

from admissions import ONE, admission
from batch_llm import Limits
from batch_llm.strategies.belief import Known
from batch_llm.strategies.dimensions import REQUESTS
from batch_llm.strategies.header_belief import LimitHeader
from batch_llm.strategies.rate_search import overtaken
from virtual_lane import Lane, Reply


def searching(*, rate_at_start, reopened_at=10.5):
    """Return one in search whose bucket was empty at 10.0, and was filled at 50 a second since."""
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE))
    one.refused(0.2, one.start(0.1, ONE), latency=0.1)
    requests = one.budgets[REQUESTS]
    requests.burst = 1e9  # the bucket may be large: nothing is to be learned from its size
    one.accepted(9.9, one.start(9.8, ONE))
    one._epoch.cut_at, one._epoch.reopened_at = 10.0, reopened_at
    requests.spent_when_empty = requests.spent
    requests.rate_at_start = rate_at_start
    for n in range(500):
        one.accepted(10.5 + n / 100, one.start(10.5 + n / 100, ONE))
    requests.rate = 200.0
    one.refused(20.0, one.start(20.0, ONE), latency=0.0)
    return one


def test_what_was_let_in_between_two_refusals_ends_the_search():
    one = searching(rate_at_start=60.0)

    assert not one._belief.is_searching
    assert one.budgets[REQUESTS].rate == pytest.approx(0.9 * 50)


def test_a_bucket_that_may_have_run_over_in_between_is_searched_on():
    one = searching(rate_at_start=30.0)

    assert one._belief.is_searching  # from 50, which it is at least
    assert one.budgets[REQUESTS].rate == pytest.approx(0.87 * 50)


def test_after_a_long_closure_the_search_goes_on_between_the_least_and_the_most():
    one = searching(rate_at_start=60.0, reopened_at=17.0)

    assert one._belief.is_searching  # between 50 and 200, which was refused
    assert one.budgets[REQUESTS].rate == pytest.approx(0.87 * 100)


def test_a_known_limit_is_not_searched():
    one = admission(limits=Limits(requests_per_minute=600))
    one.refused(0.1, one.start(0.0, ONE), latency=0.1)
    assert not one._belief.is_searching

    unknown = admission()
    unknown.accepted(0.1, unknown.start(0.0, ONE))
    unknown.refused(0.2, unknown.start(0.1, ONE), latency=0.1)
    assert unknown._belief.is_searching
    headers = {REQUESTS: LimitHeader(600, 9, 0.1)}
    unknown.accepted(5.0, unknown.start(4.0, ONE), None, headers)
    assert not unknown._belief.is_searching


@pytest.mark.parametrize("limit", [600.0, None], ids=["told by headers then", "learned then"])
def test_what_is_remembered_far_too_low_is_corrected_within_a_minute(limit):
    """Ten a second are remembered; the provider takes a hundred, and says nothing of limits."""
    one = admission(dimensions=(REQUESTS,))
    one.recall({REQUESTS: Known(limit, 10.0, 10.0)}, share=0.9)
    bucket, filled_at = 100.0, 0.0

    def reply(now):
        nonlocal bucket, filled_at
        bucket, filled_at = min(100.0, bucket + 100 * (now - filled_at)), now
        if bucket < 1:
            return Reply("refused", 0.1)
        bucket -= 1
        return Reply("taken", 0.3)

    lane = Lane(one, reply).run(70.0)

    assert lane.count("taken", 0.0, 15.0) <= 160  # it is kept to at first
    assert lane.count("taken", 60.0, 70.0) > 700
    assert len(lane.ends["refused"]) < 0.03 * len(lane.ends["taken"])


def test_a_rate_that_grew_over_a_small_bucket_tells_which_it_hasovertaken():
    # From 100 a second to 200, e-fold in each second: 100 * (e**ln(2) - 1 - ln(2)) calls too many.
    too_many = 100 * (1 - math.log(2))

    assert overtaken(200.0, too_many) == pytest.approx(100.0, rel=1e-3)
    assert overtaken(200.0, 250.0) == 0.0
    assert overtaken(math.inf, 10.0) == 0.0
