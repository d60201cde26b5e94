from __future__ import annotations

import pytest
from msgspec.structs import replace

from batch_llm.base import WorkItemResult
from batch_llm.stores.base import Attempt
from batch_llm.stores.ledger_groups import Group, Pace, RowMaker, Work, in_order

USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
LANE = ("p:m", "", "standard")


def maker(**names):
    return RowMaker(7, 1000.0, names, lambda: 5000.0)


def taken(group, *numbers, is_new=True, **fields):
    """Results that a group has taken, with the usual one attempt."""
    for number in numbers:
        work = Work(number, f"row-{number}", b"digest", 0, is_new, group=group)
        told = {"success": True, "output": "out", "token_usage": dict(USAGE)} | fields
        result = WorkItemResult(work.item_id, **told)
        made = Attempt(1, 2.0, 0.5, dict(USAGE), billed_as=LANE)
        group.taken += (work, result, made)
        group.results += 1
    return group


def rows(group):
    return {name: values for name, values in group.rows() if values}


def new_group():
    return Group(Pace(lambda error, item_id: RuntimeError(item_id, error)))


def test_a_new_items_result_is_one_row_of_each_kind():
    group = taken(new_group(), 4)

    maker().make_rows(group)

    tokens = '{"input_tokens":3,"output_tokens":2,"total_tokens":5}'
    assert rows(group) == {
        "billed_as": [1, *LANE],
        "insert_done": [4, "row-4", b"digest", "done", 7, 0, 1002.5],
        "payload_answer": [4, '"out"', None, tokens, 0.0],
        "try_told": [4, 7, 1, 1002.0, 0.5, 3, 2, None, 1],
    }
    assert [work.number for work in group.works] == [4]
    assert group.taken == []


def fail(group):
    group.taken[1].success, group.taken[1].error = False, "no"


def attempt(group, **fields):
    _, result, made = group.taken
    group.taken[2] = replace(made, **fields)
    result.token_usage = group.taken[2].usage


@pytest.mark.parametrize(
    "change",
    [
        fail,
        lambda group: setattr(group.taken[1], "gemini_safety_ratings", {"a": "b"}),
        lambda group: setattr(group.taken[1], "response_body", b"{}"),
        lambda group: group.taken.__setitem__(2, 2 * (group.taken[2],)),
        lambda group: group.taken.__setitem__(2, ()),
        lambda group: attempt(group, error_code="timeout"),
        lambda group: attempt(group, change="other"),
        lambda group: attempt(group, billed_as=None),
        lambda group: setattr(group.taken[0], "is_written", True),
    ],
)
def test_a_result_of_another_kind_has_all_columns(change):
    group = taken(new_group(), 4)
    change(group)

    maker().make_rows(group)

    assert set(rows(group)) & {"insert_done", "payload_answer", "try_told"} == set()


def test_a_known_items_result_starts_it_and_ends_it():
    group = taken(new_group(), 4, is_new=False)

    maker().make_rows(group)

    assert rows(group)["start"] == [4, b"digest", 7]
    assert rows(group)["finish"] == [4, "done", 7, None, 0, 1002.5]
    assert "insert" not in rows(group)


def test_other_tokens_than_the_attempts_are_written_as_they_are():
    group = taken(new_group(), 4, token_usage={**USAGE, "reasoning_tokens": 1})

    maker().make_rows(group)

    assert rows(group)["payload"][4].endswith('"reasoning_tokens":1}')
    assert rows(group)["try"][5:8] == [3, 2, None]


def test_a_result_that_is_no_plain_data_is_refused_alone_and_its_call_is_booked():
    group = new_group()
    taken(group, 1)
    taken(group, 2, output=object())
    taken(group, 3)

    maker().make_rows(group)

    first, second, third = group.works
    group.is_settled = True
    assert "plain data" in str(group.error_of(second))
    assert group.error_of(first) is group.error_of(third) is None
    assert rows(group)["payload_answer"][::5] == [1, 3]
    assert rows(group)["try_told"][::9] == [1, 3]
    assert rows(group)["try"][::12] == [2]
    assert rows(group)["forget"] == [2]
    assert group.results == 2


@pytest.mark.parametrize("model", [["m"], "m" * 10])
def test_whatever_a_hook_has_put_in_for_the_model_is_written_as_text(model):
    group = taken(new_group(), 4)
    group.taken[1].model = model

    maker().make_rows(group)

    assert rows(group)["payload_answer"][2] == str(model)


def test_groups_of_new_items_are_written_together_and_others_in_their_turn():
    groups = [new_group() for _ in range(5)]
    steps = maker()
    for number, group in enumerate(groups):
        steps.make_rows(taken(group, number, is_new=number != 2))

    written = [dict(one) for one in in_order(groups)]

    assert [one["payload_answer"][::5] for one in written] == [[0, 1], [], [3, 4]]
    assert written[1]["payload"][::8] == [2]
    assert [bool(one["start"]) for one in written] == [False, True, False]
    assert written[0]["billed_as"] == [1, *LANE]
    assert written[0]["insert_done"][::7] == [0, 1]
