"""Files that hold no rows as they are."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import zipfile

import pytest

from batch_llm import InputError
from batch_llm.inputs import Problem, Source

ROWS = b'{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": "y"}\n'


def zipped():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return packed.getvalue()


def database():
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE a (b)")
        return connection.serialize()


def parquet():
    import pyarrow as pa
    from pyarrow import parquet

    written = io.BytesIO()
    parquet.write_table(pa.table({"prompt": ["x"]}), written)
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            gzip.compress(ROWS, mtime=0),
            "compressed by gzip; unpack it: gunzip -c 'my rows.jsonl' > FILE",
        ),
        (bz2.compress(ROWS), "compressed by bzip2; unpack it: bunzip2 -c 'my rows.jsonl' > FILE"),
        (lzma.compress(ROWS), "compressed by xz; unpack it: unxz -c 'my rows.jsonl' > FILE"),
        (b"\x28\xb5\x2f\xfd\x24\x00", "compressed by zstd; unpack it: unzstd -c"),
        (zipped(), "a ZIP archive, as Excel's files are; unpack it, or save its sheet as CSV"),
        (database(), "an SQLite database; export its rows as CSV"),
        (parquet(), "a Parquet file; read it as one: --format parquet"),
        (ROWS.decode().encode("utf-16"), "UTF-16; make it UTF-8: iconv -f UTF-16"),
        (b"\xfe\xff" + ROWS.decode().encode("utf-16-be"), "UTF-16; make it UTF-8: iconv"),
    ],
)
@pytest.mark.parametrize("format_", [None, "csv", "prompt"])
def test_a_file_that_is_no_text_is_called_what_it_is(tmp_path, content, told, format_):
    path = tmp_path / "my rows.jsonl"
    path.write_bytes(content)

    with pytest.raises(InputError) as caught:
        Source(str(path), format=format_)

    assert str(caught.value).startswith(f"my rows.jsonl is {told}")


@pytest.mark.parametrize(
    "content",
    [
        '[{"prompt": "x"}, {"prompt": "y"}]',
        '\ufeff\n [\n  {"prompt": "x"}\n]\n',
        '[{"prompt": "x"},\n{"prompt": "y"}]\n',
        "[]",
        f'[{{"prompt": "{"x" * 100_000}"}}]',
    ],
)
def test_one_array_of_records_is_told_with_the_way_to_make_lines_of_it(tmp_path, content):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")

    with pytest.raises(InputError, match=r"one JSON array, .* jq -c '\.\[\]' a\.json > FILE"):
        Source(str(tmp_path / "a.json"))


def test_a_list_among_records_is_one_bad_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('[1]\n{"prompt": "x"}\n')

    first, second = Source(str(tmp_path / "a.jsonl"))

    assert isinstance(first, Problem)
    assert first.code == "invalid_row"
    assert second.data == {"prompt": "x"}


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv"])
def test_a_text_or_a_table_may_begin_with_a_bracket(tmp_path, name):
    (tmp_path / name).write_text("[prompt]\nWhat is [1]?\n")

    assert [row.data for row in Source(str(tmp_path / name))][-1] == (
        {"prompt": "What is [1]?"} if name == "a.txt" else {"[prompt]": "What is [1]?"}
    )


@pytest.mark.parametrize("line", ["PK is a text", "PAR1 is one", "BZhang is one", "[1], [2]?"])
def test_a_text_that_begins_alike_is_a_text(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"{line}\n")

    assert [row.data["prompt"] for row in Source(str(tmp_path / "a.txt"))] == [line]


@pytest.mark.parametrize(
    ("value", "told"), [("9" * 5000, "too many digits"), ("[" * 99_999, "nested too deeply")]
)
def test_what_python_cannot_read_is_told_without_python(tmp_path, value, told):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "x", "a": {value}}}\n')

    (problem,) = Source(str(tmp_path / "a.jsonl"))

    assert told in problem.message
