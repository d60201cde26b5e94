from __future__ import annotations

import math
import random

import pytest

from batch_llm import Limits
from batch_llm.strategies.admission import REQUESTS, TOKENS, Admission, Cost, Known, _overtaken
from batch_llm.strategies.budgets import LimitHeader
from virtual_lane import Lane, Reply

ONE = Cost()


def admission(**arguments):
    return Admission(0.0, dice=random.Random(1), **arguments)


def start_all(one, now, cost=ONE):
    """Start calls until one has to wait; return their grants."""
    grants = []
    while one.wait(now, cost) <= 0:
        grants.append(one.start(now, cost))
    return grants


def past_the_first_refusal(one, cost=ONE):
    """Refuse one call, which shows a told limit's bucket; return the time when one was let in."""
    one.refused(0.1, one.start(0.0, cost), latency=0.1)
    now = one.closed_until + 20.0
    one.accepted(now, one.start(now, cost))
    return now


def test_few_calls_are_in_doubt_at_the_start_and_silence_is_consent():
    one = admission()

    first = start_all(one, 0.0)
    later = start_all(one, 0.6)

    assert len(first) == 2
    assert len(later) > len(first)


def test_a_told_limit_is_used_up_at_once_and_then_kept():
    one = admission(limits=Limits(requests_per_minute=60), burst_seconds=10)
    started, now = 0, 0.0
    while now < 60:
        for grant in start_all(one, now):
            one.accepted(now, grant)
            started += 1
        now += 0.1

    assert started == pytest.approx(10 + 60, abs=2)


def test_a_call_larger_than_the_bucket_waits_for_a_full_one_and_leaves_a_debt():
    one = admission(limits=Limits(tokens_per_minute=600), burst_seconds=10)
    large = Cost(1.0, 250.0)

    one.start(0.0, large)  # the bucket holds 100, and they are there

    assert one.wait(0.0, large) == pytest.approx(25.0)  # back from -150 to 100, at 10 a second


def test_retry_after_closes_the_gate_for_exactly_that_long():
    one = admission()
    grant = one.start(0.0, ONE)

    assert one.refused(0.1, grant, latency=0.1, retry_after=7.0)

    assert one.wait(0.1, ONE) == pytest.approx(7.0, abs=0.03)
    assert one.wait(7.2, ONE) < 1


def test_refusals_of_one_burst_are_one_cut():
    one = admission(limits=Limits(requests_per_minute=6000))
    now = past_the_first_refusal(one) + 6.0
    grants = [one.start(now, ONE) for _ in range(5)]
    before = one.budgets[REQUESTS].rate

    news = [one.refused(now + 0.2, grant, latency=0.2).is_news for grant in grants]

    assert news == [True] + [False] * (len(grants) - 1)
    assert one.budgets[REQUESTS].rate == pytest.approx(before * 0.87)


def test_a_refusal_after_an_honoured_retry_after_is_waited_for_longer():
    one, now, waits = admission(), 0.0, []
    for _ in range(4):
        grant = one.start(now, ONE)
        one.refused(now, grant, latency=0.1, retry_after=1.0)
        waits.append(one.closed_until - now)
        now = one.closed_until + 0.01

    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(1.0, abs=0.03)
    assert waits[-1] > 1.5


def test_headers_are_believed_over_what_was_learned():
    one = admission()
    grant = one.start(0.0, ONE)

    one.accepted(0.5, grant, None, {REQUESTS: LimitHeader(600, 9, 0.1)})

    assert one.known_limits() == [(REQUESTS, 600.0, "header")]
    # 9 left, 0.1 s from full: 10, of which two are held back.
    assert one.budgets[REQUESTS].capacity == pytest.approx(8.0)


@pytest.mark.parametrize(
    "header",
    [
        LimitHeader(0, 5, 1),
        LimitHeader(-1, -1, 0),
        LimitHeader(60, -1, 0),
        LimitHeader(60, 5, -1),
        LimitHeader(math.inf, 5, 1),
    ],
)
def test_nonsense_in_headers_is_ignored(header):
    one = admission()
    grant = one.start(0.0, ONE)

    one.accepted(0.5, grant, None, {REQUESTS: header})

    assert one.known_limits() == []


def test_what_others_use_of_the_key_is_noticed():
    one = admission()
    one.accepted(0.1, one.start(0.0, ONE), None, {REQUESTS: LimitHeader(600, 599, 0.1)})
    assert one.budgets[REQUESTS].level > 590

    for _ in range(6):
        one.accepted(0.2, one.start(0.2, ONE), None, {REQUESTS: LimitHeader(600, 20, 58.0)})

    assert one.budgets[REQUESTS].level < 50


def test_a_told_limit_is_a_ceiling_for_what_grows_too():
    one, now = admission(limits=Limits(requests_per_minute=600), burst_seconds=1), 0.0
    one.refused(0.1, one.start(0.0, ONE), latency=0.1)
    fastest = 0.0
    while now < 100:
        now += 0.05
        for grant in start_all(one, now):
            one.accepted(now, grant)
        fastest = max(fastest, one.budgets[REQUESTS].rate)

    assert fastest == 10.0


def test_the_dimension_that_is_used_up_is_the_one_that_is_cut():
    one = admission()
    headers = {REQUESTS: LimitHeader(600, 100, 1.0), TOKENS: LimitHeader(6000, 0, 1.0)}
    now = past_the_first_refusal(one, Cost(1.0, 50.0)) + 6.0
    one.accepted(now + 0.2, one.start(now, Cost(1.0, 50.0)), None, headers)
    grant = one.start(now + 0.3, Cost(1.0, 50.0))
    rate = one.budgets[REQUESTS].rate

    one.refused(now + 0.4, grant, latency=0.1, headers=headers)

    assert one.budgets[REQUESTS].rate == rate
    assert one.budgets[TOKENS].rate < 100


def test_an_estimate_is_settled_with_what_was_used():
    one = admission(limits=Limits(tokens_per_minute=6000), burst_seconds=60)
    level = one.budgets[TOKENS].level
    for used in (20.0, 500.0):
        grant = one.start(0.0, Cost(1.0, 100.0))
        one.accepted(0.0, grant, Cost(1.0, used))
        level -= used

    assert one.budgets[TOKENS].level == pytest.approx(level)


def test_a_call_that_was_never_sent_costs_nothing():
    one = admission(limits=Limits(requests_per_minute=60))
    level = one.budgets[REQUESTS].level

    one.cancelled(0.0, one.start(0.0, ONE), was_sent=False)

    assert one.budgets[REQUESTS].level == level
    assert one.in_flight == 0


def test_an_overloaded_provider_gets_fewer_calls_at_a_time_and_more_again_later():
    one, now = admission(), 0.0
    for _ in range(200):
        now += 0.5
        for grant in start_all(one, now)[:20]:
            one.failed(now + 0.1, grant)
    assert one._overload.concurrency < 20

    while one._overload.concurrency < math.inf and now < 1000:
        now += 1.0
        for grant in start_all(one, now):
            one.accepted(now, grant)
    assert one._overload.concurrency == math.inf


def test_headers_that_always_show_a_full_bucket_let_in_no_more_than_the_told_limit():
    one, started = admission(limits=Limits(requests_per_minute=600), burst_seconds=1), 0
    for tenth in range(100):
        now = tenth / 10
        for grant in start_all(one, now):
            started += 1
            one.accepted(now, grant, None, {REQUESTS: LimitHeader(600, 600, 0.0)})

    assert started <= 10 + 10 * 10


def test_a_smaller_bucket_in_headers_is_believed_at_once():
    one = admission(limits=Limits(requests_per_minute=600))

    one.accepted(0.1, one.start(0.0, ONE), None, {REQUESTS: LimitHeader(600, 9, 0.1)})

    assert one.budgets[REQUESTS].level <= one.budgets[REQUESTS].capacity == pytest.approx(8.0)


@pytest.mark.parametrize(
    "headers",
    [{REQUESTS: LimitHeader(-1, -1, 0)}, {"tea": LimitHeader(60, 0, 1)}],
    ids=["counts nothing", "unknown dimension"],
)
def test_nonsense_in_a_refusal_s_headers_spares_no_dimension_the_cut(headers):
    one = admission(limits=Limits(requests_per_minute=600, tokens_per_minute=6000))
    now = past_the_first_refusal(one, Cost(1.0, 10.0)) + 6.0
    grant = one.start(now, Cost(1.0, 10.0))

    one.refused(now + 0.1, grant, latency=0.1, headers=headers)

    assert one.budgets[TOKENS].rate == pytest.approx(0.87 * 100)
    assert one.budgets[REQUESTS].rate == pytest.approx(0.87 * 10)


def burst_refused(*, accepted_after, refused_after):
    """Let 30 calls be sent, refuse the tenth first, and end those after it as given."""
    one = admission(dimensions=(REQUESTS,))
    one._doubt_limit = 32.0
    grants = [one.start(0.1 * n, ONE) for n in range(30)]
    one.refused(3.0, grants[9], latency=0.1)
    low = one.budgets[REQUESTS].rate
    for grant in grants[10 : 10 + refused_after]:
        one.refused(3.05, grant, latency=0.1)
    for grant in grants[10 + refused_after : 10 + refused_after + accepted_after]:
        one.accepted(3.1, grant)
    return low, one.budgets[REQUESTS].rate


def test_calls_sent_after_the_first_refusal_that_are_let_in_show_that_no_burst_was_used_up():
    low, rate = burst_refused(accepted_after=8, refused_after=0)

    assert low < 1
    assert rate > 10


@pytest.mark.parametrize(("accepted", "refused"), [(7, 0), (8, 3)], ids=["too few", "many refused"])
def test_too_few_of_them_show_nothing(accepted, refused):
    low, rate = burst_refused(accepted_after=accepted, refused_after=refused)

    assert rate == low


def test_calls_sent_before_the_first_refusal_show_nothing_of_it():
    one = admission(dimensions=(REQUESTS,))
    one._doubt_limit = 32.0
    grants = [one.start(0.1 * n, ONE) for n in range(30)]
    one.refused(3.0, grants[-1], latency=0.1)
    low = one.budgets[REQUESTS].rate
    for grant in grants[:-1]:
        one.accepted(3.1, grant)

    assert one.budgets[REQUESTS].rate == low


def test_the_first_call_let_in_after_the_first_refusal_shows_how_fast_its_cost_comes_back():
    one = admission(dimensions=(REQUESTS, TOKENS))
    cost = Cost(1.0, 1000.0)
    one.accepted(0.1, one.start(0.0, cost))
    one.refused(0.2, one.start(0.1, cost), latency=0.1)
    one.accepted(4.2, one.start(4.1, cost))

    assert one.budgets[TOKENS].rate == pytest.approx(0.5 * 1000 / 4.0)


def test_a_cost_that_comes_back_late_lowers_no_rate():
    one = admission(dimensions=(REQUESTS,))
    for n in range(20):
        one.accepted(0.1 * n, one.start(0.1 * n, ONE))
    one.refused(2.1, one.start(2.0, ONE), latency=0.1)
    low = one.budgets[REQUESTS].rate

    one.accepted(60.1, one.start(60.0, ONE))

    assert one.budgets[REQUESTS].rate >= low


def searching(*, rate_at_start, reopened_at=10.5):
    """Return one in search whose bucket was empty at 10.0, and was filled at 50 a second since."""
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE))
    one.refused(0.2, one.start(0.1, ONE), latency=0.1)
    requests = one.budgets[REQUESTS]
    requests.burst = 1e9  # the bucket may be large: nothing is to be learned from its size
    one.accepted(9.9, one.start(9.8, ONE))
    one._cut_at, one._reopened_at, requests.spent_when_empty = 10.0, reopened_at, requests.spent
    requests.rate_at_start = rate_at_start
    for n in range(500):
        one.accepted(10.5 + n / 100, one.start(10.5 + n / 100, ONE))
    requests.rate = 200.0
    one.refused(20.0, one.start(20.0, ONE), latency=0.0)
    return one


def test_what_was_let_in_between_two_refusals_ends_the_search():
    one = searching(rate_at_start=60.0)

    assert not one._is_searching
    assert one.budgets[REQUESTS].rate == pytest.approx(0.9 * 50)


def test_a_bucket_that_may_have_run_over_in_between_is_searched_on():
    one = searching(rate_at_start=30.0)

    assert one._is_searching  # from 50, which it is at least
    assert one.budgets[REQUESTS].rate == pytest.approx(0.87 * 50)


def test_after_a_long_closure_the_search_goes_on_between_the_least_and_the_most():
    one = searching(rate_at_start=60.0, reopened_at=17.0)

    assert one._is_searching  # between 50 and 200, which was refused
    assert one.budgets[REQUESTS].rate == pytest.approx(0.87 * 100)


def test_a_rate_that_grew_over_a_small_bucket_tells_which_it_has_overtaken():
    # From 100 a second to 200, e-fold in each second: 100 * (e**ln(2) - 1 - ln(2)) calls too many.
    too_many = 100 * (1 - math.log(2))

    assert _overtaken(200.0, too_many) == pytest.approx(100.0, rel=1e-3)
    assert _overtaken(200.0, 250.0) == 0.0
    assert _overtaken(math.inf, 10.0) == 0.0


def test_a_told_limit_that_opens_when_its_first_call_is_a_minute_old_is_counted_by_the_minute():
    one = admission(limits=Limits(requests_per_minute=60))
    requests = one.budgets[REQUESTS]
    for n in range(60):
        one.accepted(0.5 * n, one.start(0.5 * n, ONE))
    one.refused(30.0, one.start(30.0, ONE), latency=0.1)
    assert requests.rate == 1.0  # it is no lower for that

    one.accepted(60.2, one.start(60.1, ONE))

    assert requests.is_sliding
    assert one.wait(60.2, ONE) == pytest.approx(61.0 - 60.2)  # until the first second's have left


def test_one_that_opens_sooner_is_one_per_fixed_minute():
    one = admission(limits=Limits(requests_per_minute=60))
    for n in range(60):
        one.accepted(0.5 * n, one.start(0.5 * n, ONE))
    one.refused(30.0, one.start(30.0, ONE), latency=0.1)

    one.accepted(40.1, one.start(40.0, ONE))

    assert one.budgets[REQUESTS].is_window
    assert one.budgets[REQUESTS].reset_at == 100.0


@pytest.mark.parametrize(
    ("calls", "seconds"), [(20, 30.0), (75, 30.0), (60, 70.0), (60, 2.0)],
    ids=["a small bucket", "a bucket", "too late", "too soon"],
)  # fmt: skip
def test_a_told_limit_is_not_counted_unless_just_a_minute_s_worth_was_let_in(calls, seconds):
    one = admission(limits=Limits(requests_per_minute=60))
    for n in range(calls):
        at = seconds * n / calls
        one.accepted(at, one.start(at, ONE))
    one.refused(seconds, one.start(seconds, ONE), latency=0.1)

    one.accepted(seconds + 40, one.start(seconds + 39.9, ONE))

    assert not one.budgets[REQUESTS].is_window
    assert not one.budgets[REQUESTS].is_sliding


def test_the_first_refusal_of_a_told_limit_shows_a_smaller_bucket_and_no_lower_rate():
    one = admission(limits=Limits(requests_per_minute=600))
    for _ in range(20):
        one.accepted(0.0, one.start(0.0, ONE))
    one.refused(0.1, one.start(0.0, ONE), latency=0.1)

    assert one.budgets[REQUESTS].rate == 10.0
    assert one.budgets[REQUESTS].capacity == pytest.approx(0.8 * 21)


def test_what_a_closed_gate_saves_up_is_not_sent_in_one_burst():
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE))
    one.refused(0.2, one.start(0.1, ONE), latency=0.1, retry_after=30.0)
    one.budgets[REQUESTS].burst = one._doubt_limit = 1000.0

    assert len(start_all(one, one.closed_until + 1e-3)) == 1


def test_a_known_limit_is_not_searched():
    one = admission(limits=Limits(requests_per_minute=600))
    one.refused(0.1, one.start(0.0, ONE), latency=0.1)
    assert not one._is_searching

    unknown = admission()
    unknown.accepted(0.1, unknown.start(0.0, ONE))
    unknown.refused(0.2, unknown.start(0.1, ONE), latency=0.1)
    assert unknown._is_searching
    headers = {REQUESTS: LimitHeader(600, 9, 0.1)}
    unknown.accepted(5.0, unknown.start(4.0, ONE), None, headers)
    assert not unknown._is_searching


@pytest.mark.parametrize(("let_in", "share"), [(3, 0.87), (14, 9 / 8.7 * 0.7), (40, 0.87)])
def test_a_second_cut_within_moments_leaves_what_was_let_in_between(let_in, share):
    one = admission(limits=Limits(requests_per_minute=600))
    now = past_the_first_refusal(one) + 6.0
    one.refused(now, one.start(now, ONE), latency=0.0)
    before = one.budgets[REQUESTS].rate
    one._grown_at = math.inf  # growth is not what is tested
    for n in range(let_in):
        one.accepted(now + 1.0, one.start(now + 0.5 + 0.01 * n, ONE))

    one.refused(now + 2.0, one.start(now + 2.0, ONE), latency=0.0)

    assert one.budgets[REQUESTS].rate / before == pytest.approx(share)


def test_while_the_gate_proves_closed_again_one_call_at_a_time_is_tried():
    one = admission(limits=Limits(requests_per_minute=6000))
    for _ in range(2):
        now = one.closed_until + 0.01
        one.refused(now, one.start(now, ONE), latency=0.1)

    assert len(start_all(one, one.closed_until + 0.01)) == 1


def test_a_late_refusal_of_the_same_burst_may_keep_the_gate_closed_longer():
    one = admission()
    first, second = one.start(0.0, ONE), one.start(0.0, ONE)
    one.refused(0.1, first, latency=0.1)

    one.refused(0.2, second, latency=0.2, retry_after=9.0)

    assert one.wait(0.2, ONE) == pytest.approx(9.0)


def test_who_tells_limits_tells_them_all():
    one = admission(dimensions=(REQUESTS, TOKENS))
    one.accepted(0.1, one.start(0.0, Cost(1.0, 100.0)))
    one.refused(0.2, one.start(0.1, Cost(1.0, 100.0)), latency=0.1)
    assert one.budgets[TOKENS].is_limited

    grant = one.start(3.0, Cost(1.0, 100.0))
    one.accepted(3.1, grant, None, {REQUESTS: LimitHeader(600, 9, 0.1)})

    assert not one.budgets[TOKENS].is_limited


def test_a_dimension_that_is_not_used_up_does_not_grow():
    one = admission(limits=Limits(requests_per_minute=600, tokens_per_minute=60_000))
    now = past_the_first_refusal(one, Cost(1.0, 10.0)) + 6.0
    one.refused(now + 0.1, one.start(now, Cost(1.0, 10.0)), latency=0.1)
    one.budgets[TOKENS].level = one.budgets[TOKENS].capacity
    requests, tokens = one.budgets[REQUESTS].rate, one.budgets[TOKENS].rate
    now = ends = now + 1.0
    while now < ends + 20.0:  # all requests that there may be, and few tokens
        now += 0.05
        for grant in start_all(one, now, Cost(1.0, 1.0)):
            one.accepted(now, grant)

    assert one.budgets[REQUESTS].rate > requests
    assert one.budgets[TOKENS].rate == tokens


def test_a_probe_that_is_given_up_is_followed_by_another():
    one, now = admission(), 0.0
    for _ in range(10):
        now += 1.0
        one.failed(now, one.start(now, ONE))
    now += one.wait(now, ONE)
    probe = one.start(now, ONE)
    assert one.wait(now, ONE) == math.inf

    one.cancelled(now + 1.0, probe, was_sent=True)

    assert one.wait(now + 1.0, ONE) == 0.0


def test_a_long_closure_that_a_bucket_explains_not_twice_a_minute_apart_is_a_fixed_minute():
    one = admission(limits=Limits(requests_per_minute=600))
    for opened_at in (60.0, 120.0):
        one.accepted(opened_at - 40, one.start(opened_at - 41, ONE))
        one.refused(opened_at - 29.9, one.start(opened_at - 30, ONE), latency=0.1)
        one.accepted(opened_at + 0.1, one.start(opened_at, ONE))

    assert one.budgets[REQUESTS].is_window
    assert one.budgets[REQUESTS].reset_at == 180.0

    one.refused(150.0, one.start(149.9, ONE), latency=0.1)  # in mid-minute, with room left
    assert not one.budgets[REQUESTS].is_window


def test_a_gate_that_was_closed_for_moments_is_no_fixed_minute():
    one = admission(limits=Limits(requests_per_minute=600))
    for opened_at in (60.0, 120.0):
        one.accepted(opened_at - 40, one.start(opened_at - 41, ONE))
        one.refused(opened_at - 3.9, one.start(opened_at - 4, ONE), latency=0.1)
        one.accepted(opened_at + 0.1, one.start(opened_at, ONE))

    assert not one.budgets[REQUESTS].is_window


def test_a_refusal_for_the_day_says_nothing_of_the_minutes_rate():
    one = admission()
    for n in range(20):
        one.accepted(0.1 * n + 0.05, one.start(0.1 * n, ONE))

    grant = one.start(3.0, ONE)
    one.refused(3.1, grant, latency=0.1, retry_after=3600.0, dimension="requests_per_day")

    assert one.closed_until >= 3603.0
    assert one.budgets[REQUESTS].rate == math.inf


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


def test_a_limit_that_headers_tell_is_kept_beside_one_that_was_told():
    one = admission(limits=Limits(requests_per_minute=6000))
    cost = Cost(1.0, 100.0)

    one.accepted(0.1, one.start(0.0, cost), None, {TOKENS: LimitHeader(6000, 0.0, 60.0)})
    one.accepted(0.2, one.start(0.1, cost), None, {TOKENS: LimitHeader(6000, 0.0, 60.0)})

    assert one.wait(0.2, cost) > 0.5


def test_as_many_calls_are_in_doubt_as_a_high_rate_needs():
    one = admission(dimensions=(REQUESTS,))
    one.accepted(0.1, one.start(0.0, ONE))
    one.refused(0.2, one.start(0.1, ONE), latency=0.1)
    one.budgets[REQUESTS].learn_rate(2000.0)
    for now in (5.0, 5.1):
        one.accepted(now, one.start(now, ONE))

    assert one._doubt_limit >= 2000 * one._doubt_seconds


def test_a_day_s_limit_that_is_refused_without_a_time_is_tried_ever_more_rarely():
    one, now, refused = admission(), 0.0, 0
    while now < 600.0:
        wait = one.wait(now, ONE)
        if wait > 0:
            now += wait
            continue
        one.refused(now + 0.1, one.start(now, ONE), latency=0.1, dimension="requests_per_day")
        refused += 1

    assert refused < 200


def test_what_another_version_remembered_of_an_unknown_dimension_is_passed_over():
    one = admission()

    one.recall({"tea": Known(None, 1.0, 1.0), REQUESTS: Known(None, 5.0, 5.0)}, share=0.9)

    assert one.budgets[REQUESTS].rate == pytest.approx(4.5)


def test_fixed_minutes_that_are_told_by_late_answers_only_do_not_close_the_gate_for_ever():
    one, now, under_way = admission(dimensions=(REQUESTS,)), 0.0, []
    while now < 900.0:
        while under_way and under_way[0][0] <= now:
            at, grant, left = under_way.pop(0)
            header = LimitHeader(60, left, 60 - grant.at % 60)
            one.accepted(at, grant, None, {REQUESTS: header})
        if one.wait(now, ONE) <= 0:
            used = sum(grant.at // 60 == now // 60 for _, grant, _ in under_way)
            under_way.append((now + 70.0, one.start(now, ONE), max(0, 59 - used)))
        now += 0.5

    assert under_way  # it goes on to the end
    assert under_way[-1][0] > 900.0


def test_what_is_charged_before_any_limit_is_known_counts_in_the_window_that_turns_out():
    one = Admission(0.0)
    budget = one.budgets["requests"]

    grants = [one.start(0.1 * n, ONE) for n in range(5)]
    one.cancelled(0.6, grants[0], was_sent=False)

    assert budget.log.used(0.7) == budget.spent == 4
