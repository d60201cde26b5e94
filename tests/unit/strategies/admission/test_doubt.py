"""Only so many calls may be in doubt at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admissions import ONE, admission, start_all
from batch_llm.core.config import Limits
from batch_llm.strategies.admission.doubt import DOUBT_LEAST, Doubt
from batch_llm.strategies.admission.grants import Grant
from batch_llm.strategies.dimensions import REQUESTS
from virtual_lane import ExactBucket, Lane, Reply


def test_few_calls_are_in_doubt_at_the_start_and_silence_is_consent():
    one = admission()

    first = start_all(one, 0.0)
    later = start_all(one, 0.6)

    assert len(first) == 2
    assert len(later) > len(first)


def test_as_many_calls_are_in_doubt_as_a_high_rate_needs():
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE))
    one.refused(0.2, one.start(0.1, ONE), latency=0.1)
    one.budgets[REQUESTS].learn_rate(2000.0)
    for now in (5.0, 5.1):
        one.accepted(now, one.start(now, ONE))

    assert one._doubt.limit >= 2000 * one._doubt.seconds


def test_calls_that_are_silent_count_as_let_in_in_the_order_in_which_they_were_sent():
    doubt = Doubt(0.0, is_told=False)
    grants = [Grant(at, 0, ONE, n, 0) for n, at in enumerate((0.0, 0.125, 0.25))]
    for grant in grants:
        doubt.add(grant)
    doubt.settle(grants[0])

    assert doubt.silent(0.125 + 0.9 * doubt.seconds) is None
    assert doubt.silent(0.125 + doubt.seconds) is grants[1]
    assert doubt.silent(0.125 + doubt.seconds) is None
    assert doubt.wait(0.125 + doubt.seconds) == 0.125


def test_how_long_a_call_is_in_doubt_follows_the_refusals_within_bounds():
    doubt = Doubt(0.0, is_told=False)
    for _ in range(50):
        doubt.note_refused(0.001)
    assert doubt.seconds == 0.1

    doubt.note_refused(60.0)
    assert doubt.seconds == 2.0


@given(
    st.floats(2.0, 600.0),
    st.integers(0, 20_000),
    st.integers(1, 300),
)
def test_calls_let_in_many_at_once_count_as_one_by_one(limit, before, calls):
    at_once, one_by_one = Doubt(0.0, is_told=False), Doubt(0.0, is_told=False)
    at_once.limit = one_by_one.limit = limit

    at_once.note_accepted(before + calls, calls)
    for accepted in range(before + 1, before + calls + 1):
        one_by_one.note_accepted(accepted)

    assert at_once.limit == pytest.approx(one_by_one.limit)


def test_calls_answered_while_calm_let_more_be_in_doubt():
    one = admission(dimensions=(REQUESTS,))
    for n in range(40):
        one.end(n, one.begin(n))

    started = 0
    while one.wait(40.0, ONE) == 0:
        one.start(40.0, ONE)
        started += 1

    assert started == DOUBT_LEAST


class PlainServer:
    """Answers every call after the same time."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, now):
        return Reply("taken", self.seconds)


@pytest.mark.parametrize(
    ("in_flight", "latency", "seconds"),
    [
        (8, 0.3, 75.5),  # at best 75
        (50, 0.3, 13.0),  # 12
        (200, 0.3, 6.0),  # 3
        (1000, 0.3, 6.0),  # 0.6
        (50, 0.01, 0.45),  # 0.4
        (200, 3.0, 32.0),  # 30
    ],
)
def test_a_plain_server_is_full_soon_where_the_calls_in_flight_are_given(
    in_flight, latency, seconds
):
    one = admission(max_in_flight=in_flight, is_given=True)
    lane = Lane(one, PlainServer(latency)).run(seconds)

    assert len(lane.ends["taken"]) >= 2000
    assert lane.most_in_flight <= in_flight


def test_a_plain_server_is_filled_more_slowly_where_they_are_not_given():
    given, found = admission(is_given=True), admission()
    for one in (given, found):
        Lane(one, PlainServer(0.3)).run(3.0)

    assert given.calls > 3 * found.calls


@pytest.mark.parametrize(
    ("is_told", "limit"),
    [(True, 0.05 * 600), (False, 32.0)],  # 32 are allowed as soon as a limit is seen
)
def test_where_a_limit_is_known_that_calls_in_flight_are_given_allows_no_more(is_told, limit):
    doubt = Doubt(600.0 if is_told else 0.0, is_told=is_told, is_given=is_told)
    if not is_told:
        doubt.fit_to_limit(600.0)
    doubt.note_given()
    for accepted in range(1, 150):
        doubt.note_accepted(accepted)

    assert doubt.limit == limit


def test_a_small_bucket_refuses_few_calls_where_the_calls_in_flight_are_given():
    one = admission(dimensions=(REQUESTS,), max_in_flight=200, is_given=True)
    lane = Lane(one, ExactBucket(10.0, 10.0)).run(30.0)

    assert len(lane.ends["refused"]) < 20


def test_more_calls_are_in_doubt_at_the_start_the_higher_the_told_limit_is():
    limits = (10.0, 100.0, 6000.0)

    assert [Doubt(limit, is_told=True).limit for limit in limits] == [2.0, 5.0, 8.0]
    assert Doubt(0.0, is_told=True).limit == 2.0


def test_a_told_limit_whose_bucket_is_small_refuses_few_calls_where_refusals_take_their_time():
    limits = Limits(requests_per_minute=3000)
    one = admission(limits=limits, dimensions=(REQUESTS,))
    bucket = ExactBucket(50.0, 100.0)

    def reply(now):
        found = bucket(now)
        return found._replace(seconds=0.3 if found.end == "refused" else 2.0)

    lane = Lane(one, reply).run(20.0)

    assert len(lane.ends["refused"]) < 120


def test_a_told_limit_whose_bucket_holds_a_tenth_of_a_second_refuses_none_at_the_start():
    one = admission(limits=Limits(requests_per_minute=6000))

    assert len(start_all(one, 0.0)) <= 10


def test_whoever_let_a_quarter_of_a_told_minute_in_at_once_is_trusted_with_as_much_again():
    doubt = Doubt(600.0, is_told=True)

    for accepted in range(1, 150):
        doubt.note_accepted(accepted)
    assert doubt.limit == max(DOUBT_LEAST, 0.05 * 600)
    doubt.note_accepted(150)
    assert doubt.limit == 150


def test_after_a_refusal_a_told_limit_is_trusted_no_further_than_at_first():
    doubt = Doubt(600.0, is_told=True)
    doubt.note_accepted(150)

    doubt.fit_to_told(is_counted=False)
    assert doubt.limit == 32
    doubt.note_accepted(300)
    assert doubt.limit == 32

    doubt.fit_to_told(is_counted=True)
    assert doubt.limit == 2


def test_where_headers_are_seen_silent_calls_let_no_more_be_in_doubt_than_the_rate_needs():
    doubt = Doubt(0.0, is_told=False)
    doubt.note_headers(12_000.0)
    for accepted in range(1, 500):
        doubt.note_accepted(accepted)
    silent = doubt.limit
    for accepted in range(500, 600):
        doubt.note_accepted(accepted, is_seen=True)

    assert 200 * doubt.seconds <= silent < 2 * 200 * doubt.seconds
    assert doubt.limit == silent + 100


@pytest.mark.parametrize(("is_guess", "passed"), [(False, 2), (True, 1)])
def test_calls_sent_before_a_refused_one_that_are_silent_for_longer_were_let_in(is_guess, passed):
    doubt = Doubt(0.0, is_told=False)
    grants = [Grant(at, 0, ONE, n, 0) for n, at in enumerate((0.0, 0.2, 0.25, 0.375))]
    for grant in grants:
        doubt.add(grant)
    doubt.settle(grants[2])  # refused after a quarter of a second

    found = []
    while (one := doubt.passed(0.5, grants[2], is_guess=is_guess)) is not None:
        doubt.settle(one)
        found.append(one)

    assert found == grants[:passed]


def test_a_quarter_of_a_fixed_minute_that_has_opened_again_may_be_in_doubt():
    fixed, sliding = Doubt(0.0, is_told=False), Doubt(0.0, is_told=False)

    fixed.fit_to_minute(1000.0, is_fixed=True)
    sliding.fit_to_minute(1000.0, is_fixed=False)

    assert fixed.limit == 250.0
    assert sliding.limit < 50.0
