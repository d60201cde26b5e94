"""Which rates of a bucket explain what was let in between its refusals?"""

from __future__ import annotations

import pytest

from batch_llm.strategies.admission.stretches import Stretch, explaining_rates


def test_a_stretch_knows_the_least_and_the_most_rate_that_it_allows():
    even = Stretch(is_first=False, seconds=[0.0, 1.0, 2.0], let_in=[0.0, 0.0, 100.0], held=1.0)

    assert 40 < even.least(1.0) < 50  # all that was let in came back in two seconds
    assert 90 < even.most() < 101  # and it was sent in one of them


def test_calls_that_arrive_a_little_earlier_than_they_were_sent_ask_for_no_higher_rate():
    """Fifteen calls that a bucket of 50 a second let in within 0.2 s were sent within 0.1 s."""
    seconds, let_in = [0.0, 0.1, 2.5, 3.0], [0.0, 15.0, 80.0, 150.0]

    assert Stretch(is_first=False, seconds=seconds, let_in=let_in, held=1.0).least(1.0) < 50


def stretch(rate, burst, per_second, *, is_first=False):
    """Return what a bucket lets in that is sent so many calls a second until it refuses one.

    It is full at the start, and empty at the start of later stretches.
    """
    level, now, let_in = burst if is_first else 0.0, 0.0 if is_first else 1.0, 0.0
    level += rate * now
    seconds, amounts = [0.0], [0.0]
    while level >= 1 and let_in < 10_000:
        level, let_in = level - 1, let_in + 1
        seconds.append(now)
        amounts.append(let_in)
        level, now = min(burst, level + rate / per_second), now + 1 / per_second
    return Stretch(is_first, [*seconds, now], [*amounts, let_in], 1.0)


@pytest.mark.parametrize(("rate", "burst"), [(5.0, 20.0), (20.0, 20.0), (100.0, 300.0)])
def test_the_rate_of_a_bucket_is_among_those_that_explain_its_refusals(rate, burst):
    found = list(
        explaining_rates(
            [
                stretch(rate, burst, 4 * rate, is_first=True),
                stretch(rate, burst, 1.5 * rate),
                stretch(rate, burst, 1.2 * rate),
            ],
            1.0,
        )
    )

    assert 0.7 * rate < found[0] <= rate <= found[-1] * 1.05
    assert found[-1] < 1.6 * rate


def test_no_bucket_explains_a_refusal_far_below_the_rate_that_it_has_let_in():
    fast, slow = stretch(50.0, 50.0, 100.0), stretch(5.0, 5.0, 10.0)

    assert list(explaining_rates([fast, slow], 1.0)) == []


def test_no_bucket_explains_refusals_that_need_two_sizes_of_it():
    """One let ten in at once beyond its rate, the other a hundred; both were full at the start."""
    small = stretch(10.0, 10.0, 40.0, is_first=True)
    large = stretch(10.0, 100.0, 40.0, is_first=True)

    assert list(explaining_rates([small], 1.0))
    assert list(explaining_rates([large], 1.0))
    assert list(explaining_rates([small, large], 1.0)) == []


def test_without_a_stretch_there_is_nothing_to_explain():
    assert list(explaining_rates([], 1.0)) == []


def test_what_a_bucket_held_is_known_where_it_was_full():
    largest, at_end, was_full = stretch(10.0, 30.0, 40.0, is_first=True).sizes(10.0, 1.0)

    assert was_full
    assert largest == pytest.approx(30.0, abs=1.0)
    assert at_end == pytest.approx(largest, abs=1.0)
