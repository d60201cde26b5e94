"""Tables as programs of many countries write them."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest
from pyarrow import parquet

from batch_llm.inputs import Problem, Source
from batch_llm.inputs.blocks import KnownBlocks


def read(path, content, **options):
    path.write_text(content, encoding="utf-8", newline="")
    return [row if isinstance(row, Problem) else row.data for row in Source(str(path), **options)]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_fields_are_separated_by_what_the_header_has_instead_of_commas(tmp_path, delimiter):
    lines = ["id;prompt", "1;Hello, you", '2;"a;b ""c""\nd"', "3;"]
    content = "\r\n".join(lines).replace(";", delimiter)

    found = read(tmp_path / "a.csv", content)

    assert found == [
        {"id": "1", "prompt": "Hello, you"},
        {"id": "2", "prompt": f'a{delimiter}b "c"\nd'},
        {"id": "3", "prompt": ""},
    ]


def test_commas_inside_of_a_quoted_name_separate_nothing(tmp_path):
    found = read(tmp_path / "a.csv", '\n"id, of the row";"prompt"\n1;x\n')

    assert found == [{"id, of the row": "1", "prompt": "x"}]


@pytest.mark.parametrize("header", ["id,a;b", '"a;b"', "prompt", "id,prompt\tx|y"])
def test_where_commas_separate_or_nothing_does_all_else_is_text(tmp_path, header):
    content = f"{header}\n" + ",".join("x;y" for _ in header.split(",")) + "\n"

    (found,) = read(tmp_path / "a.csv", content)

    assert list(found) == header.replace('"', "").split(",")
    assert set(found.values()) == {"x;y"}


def test_with_names_given_it_is_what_makes_as_many_fields(tmp_path):
    assert read(tmp_path / "a.csv", "1;x,y\n2;z\n", columns=["id", "prompt"]) != []
    assert read(tmp_path / "b.csv", "1;x\n2;y\n", columns=["id", "prompt"]) == [
        {"id": "1", "prompt": "x"},
        {"id": "2", "prompt": "y"},
    ]
    assert read(tmp_path / "c.csv", "one; two\nthree\n", columns=["prompt"]) == [
        {"prompt": "one; two"},
        {"prompt": "three"},
    ]
    assert read(tmp_path / "d.csv", "one; two\n", has_header=False) == [{"1": "one; two"}]


def test_the_records_of_a_block_are_read_as_those_of_the_whole(tmp_path):
    (tmp_path / "a.csv").write_text("id;prompt\n1;x\n2;y\n")
    source = Source(str(tmp_path / "a.csv"))

    rows = [row.data for block in source.body().blocks(KnownBlocks()) for row in block.rows]

    assert rows == [row.data for row in source]


def test_columns_of_parquet_that_are_called_alike_are_all_there(tmp_path):
    path = tmp_path / "a.parquet"
    columns = [pa.array(["x", "y"]), pa.array(["z", None]), pa.array([1, 2])]
    parquet.write_table(pa.Table.from_arrays(columns, names=["prompt", "prompt", " n"]), path)
    source = Source(str(path))

    assert source.columns == ["prompt", "prompt_2", " n"]
    assert [row.data for row in source] == [
        {"prompt": "x", "prompt_2": "z", " n": 1},
        {"prompt": "y", "prompt_2": None, " n": 2},
    ]


def test_maps_of_parquet_are_objects_wherever_they_stand(tmp_path):
    to_dates = pa.map_(pa.int64(), pa.date32())
    schema = pa.schema(
        {
            "map": pa.map_(pa.string(), pa.list_(to_dates)),
            "within": pa.struct({"of": pa.large_list(to_dates)}),
        }
    )
    day = dt.date(2026, 11, 30)
    records = [
        {"map": [("a", [[(1, day)], []]), ("b", None)], "within": {"of": [[(2, None)]]}},
        {"map": None, "within": None},
        {"map": [], "within": {"of": None}},
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(records, schema=schema), path)

    assert [row.data for row in Source(str(path))] == [
        {"map": {"a": [{"1": "2026-11-30"}, {}], "b": None}, "within": {"of": [{"2": None}]}},
        {"map": None, "within": None},
        {"map": {}, "within": {"of": None}},
    ]
