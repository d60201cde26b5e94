"""Which parts of an output stay as they are."""

from __future__ import annotations

from array import array

from batch_llm.outputs.notes import Part
from batch_llm.runs.kept_parts import keep_parts
from batch_llm.runs.passing import DONE, FAILED, IN_PLACE, NO_ROW, TO_DO, WRITTEN


class Known:
    """What a survey has found of the lines 1, 2, …, and where they were."""

    def __init__(self, *states, moved=None):
        self.lines = bytearray([NO_ROW, *states])
        self.moved = None if moved is None else array("I", [0, *moved])

    def moved_lines(self):
        return self.moved


def part(*lines):
    return Part(10, b"", array("I", lines).tobytes())


def kept(known, parts, **options):
    """Return the places of the parts that are kept."""
    options = {"keeps_order": False} | options
    return [place for place, _ in keep_parts(known, parts, **options)]


def test_a_part_whose_rows_are_done_is_kept_wherever_it_stands():
    known = Known(IN_PLACE, TO_DO, IN_PLACE, IN_PLACE)

    assert kept(known, [(0, part(3)), (10, part(2)), (30, part(4, 1))]) == [0, 30]
    assert list(known.lines[1:]) == [WRITTEN, TO_DO, WRITTEN, WRITTEN]


def test_in_the_input_s_order_what_is_behind_a_gap_is_not():
    known = Known(IN_PLACE, FAILED, IN_PLACE)

    assert kept(known, [(0, part(1)), (20, part(3))], keeps_order=True) == [0]
    assert list(known.lines[1:]) == [WRITTEN, FAILED, IN_PLACE]


def test_in_the_input_s_order_no_part_stays_behind_a_row_that_is_to_be_written():
    known = Known(IN_PLACE, TO_DO, IN_PLACE)

    assert kept(known, [(0, part(1)), (10, part(3))], keeps_order=True) == [0]
    assert list(known.lines[1:]) == [WRITTEN, TO_DO, IN_PLACE]


def test_without_the_part_that_has_the_header_none_is_kept():
    parts = [(10, part(1)), (20, part(2))]

    assert kept(Known(IN_PLACE, IN_PLACE), parts, has_header=True) == []
    assert kept(Known(IN_PLACE, IN_PLACE), parts) == [10, 20]


def test_rows_that_have_moved_are_noted_anew():
    known, moved = Known(DONE, DONE, moved=[2, 1]), part(1, 2)

    assert kept(known, [(0, moved)]) == [0]
    assert list(moved.lines()) == [2, 1]


def test_where_no_row_has_moved_one_that_was_read_is_written():
    assert kept(Known(DONE), [(0, part(1))]) == []


def test_a_part_with_a_row_that_the_input_has_no_more_is_not_kept():
    assert kept(Known(IN_PLACE, moved=[1, 0]), [(0, part(1, 2))]) == []
    assert kept(Known(IN_PLACE), [(0, part(1, 2))]) == []
    assert kept(Known(IN_PLACE, moved=[1]), [(0, part(1, 5))]) == []


def test_rows_that_the_input_has_not_any_more_are_in_no_part_that_is_kept():
    known = Known(IN_PLACE, IN_PLACE, moved=(2, 1))

    assert kept(known, [(0, part(3)), (10, part(1, 2)), (30, part(9, 1))]) == [10]
    assert list(known.lines[1:]) == [WRITTEN, WRITTEN]
