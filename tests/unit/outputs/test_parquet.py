from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from batch_llm.exceptions import OutputExistsError, OutputLostError
from batch_llm.inputs import Row, Source
from batch_llm.outputs import FIELDS, Finished, ResultWriter
from batch_llm.outputs import parquet as writer_module


def write(path, records, **options):
    writer = ResultWriter(str(path), **options)
    for number, record in enumerate(records, 1):
        output = record.pop("output", "out")
        row = Row(f"r{number}", number, record)
        writer.write(Finished(row=row, output=output))
    writer.close()
    writer.close()  # a second time it does nothing
    return pq.read_table(path)


@pytest.mark.parametrize(
    ("values", "kind", "read"),
    [
        ([1, None, 2], "int64", [1, None, 2]),
        ([1, 2.5, None], "double", [1.0, 2.5, None]),
        ([True, None, False], "bool", [True, None, False]),
        (["a", "b", None], "string", ["a", "b", None]),
        ([None, None, None], "string", [None, None, None]),
        ([1, "a", True], "string", ["1", "a", "true"]),
        ([True, 1, None], "string", ["true", "1", None]),
        ([{"a": 1}, [1], "x"], "string", ['{"a":1}', "[1]", "x"]),
        ([2**70, 1, 2], "string", [str(2**70), "1", "2"]),
    ],
)
def test_a_column_has_the_type_of_its_values_or_is_text(tmp_path, values, kind, read):
    table = write(tmp_path / "o.parquet", [{"value": value} for value in values])

    assert str(table.schema.field("value").type) == kind
    assert table["value"].to_pylist() == read


def test_rows_come_in_groups_and_leave_nothing_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "GROUP_ROWS", 10)

    table = write(tmp_path / "o.parquet", [{"n": n} for n in range(25)])

    assert table["n"].to_pylist() == list(range(25))
    assert pq.ParquetFile(tmp_path / "o.parquet").num_row_groups == 3
    assert [path.name for path in tmp_path.iterdir()] == ["o.parquet"]


def test_columns_of_the_input_come_first_and_all_are_there(tmp_path):
    table = write(
        tmp_path / "o.parquet", [{"a": 1}, {"model": "mine"}], columns=["a", "b", "model"]
    )

    assert table.column_names == ["id", "a", "input_model", "b", *FIELDS]
    assert table["b"].to_pylist() == [None, None]


def test_without_a_row_there_is_a_file_all_the_same(tmp_path):
    table = write(tmp_path / "o.parquet", [], columns=["a"])

    assert table.num_rows == 0
    assert table.column_names == ["a", *FIELDS]


def test_a_file_that_is_there_is_not_replaced_unless_that_is_said(tmp_path):
    path = tmp_path / "o.parquet"
    path.write_bytes(b"precious")

    with pytest.raises(OutputExistsError):
        ResultWriter(str(path))
    assert path.read_bytes() == b"precious"
    assert write(path, [{"a": 1}], overwrite=True).num_rows == 1


def test_rows_outlive_a_file_that_cannot_be_made(tmp_path):
    path = tmp_path / "o.parquet"
    writer = ResultWriter(str(path))
    writer.write(Finished(row=Row("r1", 1, {"a": 1}), output="x"))
    (tmp_path / "o.parquet.part").mkdir()

    with pytest.raises(OutputLostError, match=r"its rows are in .*o\.parquet\.rows\.jsonl"):
        writer.close()

    assert b'"output":"x"' in (tmp_path / "o.parquet.rows.jsonl").read_bytes()


def test_our_reader_takes_back_what_was_written(tmp_path):
    path = tmp_path / "o.parquet"
    write(path, [{"text": "a\n,\"'ü\x00", "n": 1}, {"text": None, "n": None}])

    rows = list(Source(str(path)))

    assert [row.item_id for row in rows] == ["r1", "r2"]
    assert rows[0].data["text"] == "a\n,\"'ü\x00"
    assert rows[1].data["n"] is None


def test_rows_that_a_run_without_a_ledger_left_are_not_replaced(tmp_path):
    rows = tmp_path / "o.parquet.rows.jsonl"
    rows.write_bytes(b'{"id":"r1"}\n')

    with pytest.raises(OutputExistsError, match=r"o\.parquet\.rows\.jsonl exists"):
        ResultWriter(str(tmp_path / "o.parquet"))

    assert rows.read_bytes() == b'{"id":"r1"}\n'
