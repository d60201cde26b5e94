"""What was charged in the last minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batch_llm.strategies.admission.windows import MinuteLog

charges = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60)


def test_a_charge_leaves_the_window_a_moment_late():
    log = MinuteLog(60.0)
    log.charge(10.6, 5.0)

    assert log.used(70.7) == 5.0
    assert log.used(70.75) == 0.0


def test_a_wait_is_until_enough_has_left():
    log = MinuteLog(60.0)
    for now in (1.0, 2.0, 3.0):
        log.charge(now, 10.0)

    assert log.wait(3.0, 30.0) == 0.0
    assert log.wait(3.0, 20.0) == 61.25 - 3.0
    assert log.wait(3.0, 5.0) == 63.25 - 3.0


def test_what_is_taken_back_is_room_again():
    log = MinuteLog(60.0)
    log.charge(1.0, 10.0)
    log.charge(3.0, 5.0)
    log.take_back(1.2, 4.0)

    assert log.wait(5.0, 11.0) == 0.0
    assert log.used(62.0) == 5.0  # what is taken back leaves with its charge


def test_what_has_left_the_window_is_not_taken_back():
    log = MinuteLog(60.0)
    log.charge(1.0, 10.0)
    log.charge(80.0, 5.0)

    log.take_back(1.0, 10.0)

    assert log.used(80.0) == 5.0


def test_what_has_just_left_is_known_to_have_been_there_then():
    log = MinuteLog(60.0)
    log.charge(1.0, 10.0)
    log.charge(3.0, 5.0)

    assert log.used(61.5) == 5.0
    assert log.used_then(61.5, 61.0) == 15.0
    assert log.used_then(61.5, 61.3) == 5.0
    assert log.used_then(63.0, 61.0) == 5.0  # longer ago


@given(charges)
def test_no_window_holds_more_than_what_it_waited_for(steps):
    log, now, sent = MinuteLog(60.0), 0.0, []
    for pause, amount in steps:
        now += pause
        now += log.wait(now, 100.0 - amount)
        assert log.wait(now, 100.0 - amount) == 0.0
        log.charge(now, amount)
        sent.append((now, amount))
        assert sum(amount for at, amount in sent if at > now - 60.0) <= 100


def test_what_is_taken_back_late_has_left_already():
    log = MinuteLog(60.0)
    log.charge(1.0, 10.0)

    assert log.used(62.0) == 0.0
    log.take_back(1.0, 10.0)

    assert log.used(62.0) == 0.0
