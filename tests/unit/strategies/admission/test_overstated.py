"""Headers that promise more than is let in are set aside; refusals by chance do not speak against
them, nor do those of the limits that they tell."""

from __future__ import annotations

import math

import pytest

from admissions import ONE, admission
from batch_llm import Limits
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.dimensions import REQUESTS
from virtual_lane import Bucket, Lane, Reply

RATE, BURST = 50.0, 100.0


def replies(provider, header, *, in_refusals=True):
    """Let a provider's replies tell limits."""

    def reply(now):
        one = provider(now)
        tells = in_refusals or one.end != "refused"
        return Reply(one.end, one.seconds, one.retry_after, None, header() if tells else None)

    return reply


def hidden(retry_after=None):
    return Bucket(1, rate=RATE, burst=BURST, retry_after=retry_after, seconds=(0.03, 0.08))


def promises(limit):
    return lambda: {REQUESTS: LimitHeader(limit, limit - 10, 0.06)}


@pytest.mark.parametrize("in_refusals", [True, False])
@pytest.mark.parametrize("retry_after", [None, 1.0])
@pytest.mark.parametrize("limit", [3000.0, 10_000.0, 1e18])
def test_a_limit_below_what_headers_promise_is_learned(limit, retry_after, in_refusals):
    reply = replies(hidden(retry_after), promises(limit), in_refusals=in_refusals)
    lane = Lane(admission(), reply).run(60.0)

    assert len(lane.ends["refused"]) < 0.1 * len(lane.ends["taken"])
    assert len(lane.ends["taken"]) > 0.9 * (BURST + 60 * RATE)
    [(name, learned, source)] = lane.admission.known_limits()
    assert (name, source) == (REQUESTS, "learned")
    assert learned == pytest.approx(60 * RATE, rel=0.25)


def test_where_the_limit_was_told_too_that_one_is_kept_to_again():
    one = admission(limits=Limits(requests_per_minute=20_000))
    lane = Lane(one, replies(hidden(1.0), promises(10_000.0))).run(30.0)

    assert len(lane.ends["refused"]) < 0.2 * len(lane.ends["taken"])
    assert [(name, source) for name, _, source in one.known_limits()] == [(REQUESTS, "told")]


@pytest.mark.parametrize("in_refusals", [True, False])
def test_refusals_of_the_limit_that_headers_tell_do_not_speak_against_them(in_refusals):
    provider = hidden(1.0)

    def header():
        left = math.floor(provider.level)
        return {REQUESTS: LimitHeader(60 * RATE, left, (BURST - provider.level) / RATE)}

    lane = Lane(admission(), replies(provider, header, in_refusals=in_refusals)).run(60.0)

    assert lane.admission.known_limits() == [(REQUESTS, 60 * RATE, "header")]


def test_refusals_by_chance_do_not_speak_against_headers():
    provider = Bucket(1, chance=0.04, retry_after=1.0)
    lane = Lane(admission(), replies(provider, promises(6000.0))).run(120.0)

    assert lane.ends["refused"]
    assert lane.admission.known_limits() == [(REQUESTS, 6000.0, "header")]


def test_headers_are_believed_again_where_a_limit_on_calls_in_flight_refused():
    lane = None

    def reply(_now):
        if lane.admission.in_flight > 20:
            return Reply("refused", 0.03, None, None, promises(60_000.0)())
        return Reply("taken", 0.5, None, None, promises(60_000.0)())

    lane = Lane(admission(), reply)
    lane.run(60.0)

    assert (REQUESTS, 60_000.0, "header") in lane.admission.known_limits()
    assert len(lane.ends["refused"]) < 0.1 * len(lane.ends["taken"])


def test_where_some_limit_has_next_to_nothing_left_the_headers_have_told_so():
    one = admission()
    used_up = {**promises(10_000.0)(), "tokens": LimitHeader(1e6, 0.0, 1.0)}
    for at in range(40):
        grant = one.start(float(at), ONE)
        one.refused(at + 0.02, grant, latency=0.02, retry_after=0.5, headers=used_up)

    assert {source for _, _, source in one.known_limits()} == {"header"}


def test_what_a_small_bucket_holds_is_plenty_though_it_is_little_of_a_minutes_limit():
    header = {REQUESTS: LimitHeader(16_000.0, 490.0, 0.04)}
    lane = Lane(admission(), replies(hidden(), lambda: header)).run(60.0)

    assert len(lane.ends["refused"]) < 0.1 * len(lane.ends["taken"])
    assert len(lane.ends["taken"]) > 0.9 * (BURST + 60 * RATE)
