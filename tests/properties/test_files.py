"""What our writers write, our reader reads: a failed file is good for another run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.inputs import Row, Source
from batch_llm.outputs import FailedWriter, Finished, ResultWriter

#: Everything that spreadsheets, chats and models put into a cell, lone surrogates included.
anything = st.text(
    st.one_of(
        st.sampled_from(list("\r\n\t\",;'\\ \u2028\u0085\ud800é日")),
        st.characters(codec="utf-8", exclude_characters="\0"),
    ),
    max_size=12,
)
one_line = anything.map(lambda text: text.replace("\n", " ").replace("\r", " ").replace("\t", " "))


def cleaned(text):
    return text.encode("utf-8", "replace").decode()


def read_back(path, **options):
    records = list(Source(str(path), **options))
    assert all(isinstance(record, Row) for record in records), records
    return [record.data for record in records]


def write_failed(folder, suffix, rows):
    path = folder / f"f{suffix}"
    path.unlink(missing_ok=True)
    writer = FailedWriter(str(path), columns=["text", "more"])
    for number, row in enumerate(rows, 1):
        writer.write(Row(f"row-{number}", number, row), "StatusError: no")
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@given(st.lists(st.tuples(anything, anything), min_size=1, max_size=4))
def test_failed_rows_of_jsonl_and_csv_are_read_back_as_they_were(folder, rows):
    rows = [{"text": text, "more": more} for text, more in rows]
    for suffix in (".jsonl", ".csv"):
        found = read_back(write_failed(folder, suffix, rows))

        wanted = [{name: cleaned(value) for name, value in row.items()} for row in rows]
        assert [{n: row[n] for n in ("text", "more")} for row in found] == wanted
        assert {row["error"] for row in found} == {"StatusError: no"}


@given(st.lists(st.tuples(one_line, one_line), min_size=1, max_size=4))
def test_failed_rows_of_a_tsv_are_read_back_as_they_were(folder, rows):
    rows = [{"text": text, "more": more} for text, more in rows]

    found = read_back(write_failed(folder, ".tsv", rows))

    wanted = [{name: cleaned(value) for name, value in row.items()} for row in rows]
    assert [{n: row[n] for n in ("text", "more")} for row in found] == wanted


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_whatever_a_model_says_is_one_line_that_our_reader_takes(folder, output):
    path = folder / "r.jsonl"
    writer = ResultWriter(str(path), overwrite=True)
    writer.write(Finished(row=Row("row-1", 1, {"text": "hi"}), output=output))
    writer.close()

    (found,) = read_back(path)

    assert found["id"] == "row-1"


def test_a_value_that_contains_itself_is_still_written(folder):
    loop = []
    loop.append(loop)
    path = folder / "loop.jsonl"
    writer = ResultWriter(str(path), overwrite=True)
    writer.write(Finished(row=Row("row-1", 1, {}), output=loop))
    writer.close()

    assert len(read_back(path)) == 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_keeps_columns_that_come_later(folder, suffix):
    path = folder / f"late{suffix}"
    writer = ResultWriter(str(path), columns=["a", "b", "output"], overwrite=True)
    writer.write(Finished(row=Row("1", 1, {"a": "1"}), output="x"))
    writer.write(Finished(row=Row("2", 2, {"b": "2", "output": "mine"}), output="y"))
    writer.close()

    first, second = read_back(path)

    assert (first["a"], first["b"], first["output"]) == ("1", "", "x")
    assert (second["b"], second["input_output"], second["output"]) == ("2", "mine", "y")


def test_no_column_is_lost_to_a_name(folder):
    path = folder / "names.jsonl"
    data = {"id": "1", "output": "a", "input_output": "b", "error": "c"}
    writer = ResultWriter(str(path), columns=list(data), overwrite=True)
    writer.write(Finished(row=Row("1", 1, data), output="new"))
    writer.close()

    found = json.loads(path.read_text())

    assert found["output"] == "new"
    assert (found["input_input_output"], found["input_output"]) == ("a", "b")
    assert (found["input_error"], found["error"]) == ("c", None)


def test_a_tsv_with_fields_over_several_lines_is_read_with_its_quotes(folder):
    path = folder / "spans.tsv"
    path.write_text('id\ttext\n1\t"two\nlines"\n2\t"a\ttab"\n')

    assert [row["text"] for row in read_back(path)] == ["two\nlines", "a\ttab"]


def test_columns_of_one_name_are_both_kept(folder):
    path = folder / "twice.csv"
    path.write_text("a,a\n1,2\n")

    assert read_back(path) == [{"a": "1", "a_2": "2"}]


def test_the_first_record_decides_where_the_ids_are(folder):
    path = folder / "ids.jsonl"
    path.write_text('{"p":1}\n{"p":2,"id":"row-1"}\n')

    assert [record.item_id for record in Source(str(path))] == ["row-1", "row-2"]
