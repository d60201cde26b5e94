from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_llm.exceptions import InputError
from batch_llm.inputs import Problem, Row, Source, ValueSource, check_is_rows


@pytest.mark.parametrize(
    ("value", "data", "shape"),
    [
        ("hi", {"prompt": "hi"}, "prompt"),
        ({"text": "hi"}, {"text": "hi"}, "rows"),
        ([{"role": "user", "content": "hi"}], None, "chat"),
    ],
)
def test_each_kind_of_value_is_a_row(value, data, shape):
    source = ValueSource([value])

    (row,) = source
    assert source.format == shape
    assert row.data == (data or {"messages": value})
    assert row.item_id == "row-1"


@pytest.mark.parametrize("value", [3, None, b"x", [], [1], {1: "x"}])
def test_what_is_no_row_is_a_problem_with_its_place(value):
    _, problem = ValueSource(["hi", value])

    assert isinstance(problem, Problem)
    assert problem.line == 2


def test_values_are_read_as_often_as_wanted_up_to_a_limit():
    source = ValueSource([{"id": n, "prompt": "x"} for n in range(5)], limit=3)

    assert [row.item_id for row in source] == [row.item_id for row in source] == ["0", "1", "2"]
    assert source.id_column == "id"
    assert not source.has_changed()


@pytest.mark.parametrize("rows", [3, None, {"a": 1}, b"x"])
def test_what_is_no_collection_is_refused(rows):
    with pytest.raises(InputError, match="put one row into a list"):
        check_is_rows(rows)


def test_values_of_parquet_become_what_json_knows(tmp_path):
    path = tmp_path / "in.parquet"
    at = datetime(2026, 1, 2, 3, tzinfo=UTC)
    columns = {
        "id": [1, 2], "at": [at, None], "price": [Decimal("1.50"), None], "raw": [b"\xff", b"a"],
        "deep": [{"a": [at]}, None],
    }  # fmt: skip
    pq.write_table(pa.table(columns), path)

    first, second = Source(str(path))

    assert isinstance(first, Row)
    assert first.data == {
        "id": 1, "at": "2026-01-02T03:00:00+00:00", "price": "1.50", "raw": "\ufffd",
        "deep": {"a": ["2026-01-02T03:00:00+00:00"]},
    }  # fmt: skip
    assert second.data == {"id": 2, "at": None, "price": None, "raw": "a", "deep": None}


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "in.parquet").write_bytes(b"PAR1 nonsense")

    with pytest.raises(InputError, match=r"in\.parquet is no Parquet file"):
        list(Source(str(tmp_path / "in.parquet")))
