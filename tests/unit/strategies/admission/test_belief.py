"""Where limits are from decides whether there is anything to search."""

from __future__ import annotations

import pytest

from batch_llm.strategies.admission.belief import Belief


@pytest.mark.parametrize("seen", ["sees_headers", "is_by_window", "is_recalled"])
def test_limits_that_were_seen_or_found_or_remembered_leave_nothing_to_search(seen):
    one = Belief(is_told=False)
    assert not one.knows_limits

    setattr(one, seen, True)
    assert one.knows_limits


def test_told_limits_leave_nothing_to_search():
    assert Belief(is_told=True).knows_limits


def test_what_is_remembered_may_be_searched_on():
    one = Belief(is_told=False)
    one.is_recalled = one.is_searching = True

    assert not one.knows_limits
