from __future__ import annotations

import csv
import json

import pytest
from pydantic import BaseModel

from batch_llm.exceptions import (
    OutputExistsError,
    OutputGoneError,
    OutputInUseError,
    OutputLostError,
)
from batch_llm.inputs import Row
from batch_llm.outputs import FailedWriter, Finished, ResultWriter


def finished(**fields):
    return Finished(**({"row": Row("row-1", 1, {"text": "hi"}), "output": "out"} | fields))


def written(tmp_path, *rows, name="a.jsonl", **options):
    writer = ResultWriter(str(tmp_path / name), **options)
    for row in rows:
        writer.write(row)
    writer.close()
    return (tmp_path / name).read_text("utf-8")


def test_a_row_keeps_its_columns_and_gets_the_results(tmp_path):
    record = json.loads(written(tmp_path, finished(model="m", input_tokens=3, seconds=0.12345)))

    assert list(record) == [
        "id",
        "text",
        "output",
        "status",
        "error",
        "model",
        "input_tokens",
        "output_tokens",
        "attempts",
        "seconds",
    ]
    assert (record["id"], record["status"], record["seconds"]) == ("row-1", "ok", 0.123)


def test_a_column_with_a_results_name_is_kept_beside_it(tmp_path):
    row = Row("7", 1, {"id": "7", "output": "old"})

    record = json.loads(written(tmp_path, finished(row=row)))

    assert (record["input_output"], record["output"]) == ("old", "out")


class Review(BaseModel):
    stars: int


@pytest.mark.parametrize("odd", [Review(stars=5), {"a": {1, 2}}, "\ud800", float("nan"), object()])
def test_whatever_the_output_is_the_line_is_json(tmp_path, odd):
    text = written(tmp_path, finished(output=odd))

    assert text.count("\n") == 1
    assert "output" in json.loads(text)


def test_a_csv_holds_what_was_written(tmp_path):
    text = written(tmp_path, finished(output='a,"b"\nc'), name="a.csv")

    rows = list(csv.DictReader(text.splitlines(keepends=True)))
    assert rows[0]["output"] == 'a,"b"\nc'


def test_batch_lines_have_the_providers_shape(tmp_path):
    text = written(tmp_path, finished(body=b'{"id": "chatcmpl-1", "choices": []}'), is_batch=True)

    line = json.loads(text)
    assert line["response"] == {
        "status_code": 200,
        "request_id": None,
        "body": {"id": "chatcmpl-1", "choices": []},
    }
    assert line["error"] is None


def test_an_existing_file_is_refused_unless_it_may_be_replaced(tmp_path):
    written(tmp_path, finished())

    with pytest.raises(OutputExistsError, match="--overwrite"):
        ResultWriter(str(tmp_path / "a.jsonl"))
    assert written(tmp_path, overwrite=True) == ""


def test_failed_rows_keep_the_inputs_shape_and_the_latest_error(tmp_path):
    writer = FailedWriter(str(tmp_path / "f.jsonl"))
    assert not (tmp_path / "f.jsonl").exists()

    writer.write(Row("a", 1, {"id": "a", "error": "old"}), "new")
    writer.close()

    assert json.loads((tmp_path / "f.jsonl").read_text()) == {"id": "a", "error": "new"}


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_was_removed_or_replaced_meanwhile_is_told(tmp_path, is_replaced):
    path = tmp_path / "a.jsonl"
    writer = ResultWriter(str(path))
    writer.write(finished())
    if is_replaced:
        other = tmp_path / "saved-by-an-editor"
        other.write_bytes(path.read_bytes())
        other.replace(path)
    else:
        path.unlink()
    writer.write(finished())

    with pytest.raises(OutputGoneError, match="the same command again writes what is missing"):
        writer.close()
    writer.close()


def test_a_file_that_somebody_is_writing_is_not_touched(tmp_path):
    path = tmp_path / "a.jsonl"
    writer = ResultWriter(str(path))
    writer.write(finished())
    before = path.read_bytes()

    with pytest.raises(OutputInUseError, match="another process is writing"):
        ResultWriter(str(path), overwrite=True)

    assert path.read_bytes() == before
    writer.close()
    ResultWriter(str(path), overwrite=True).close()
    assert path.read_bytes() == b""


def test_what_is_longer_than_before_is_cut_where_the_new_rows_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"kept\n" + b"old\n" * 1000)

    writer = ResultWriter(str(path), overwrite=True, kept=(5, 1))
    writer.write(finished())
    writer.close()

    assert path.read_bytes().startswith(b"kept\n{")
    assert path.read_bytes().count(b"\n") == 2


def test_a_file_of_failed_rows_that_somebody_else_has_begun_is_told_as_lost(tmp_path):
    path = str(tmp_path / "f.jsonl")
    ours, others = FailedWriter(path, overwrite=True), FailedWriter(path, overwrite=True)
    others.write(Row("a", 1, {"id": "a"}), "theirs")

    with pytest.raises(OutputLostError, match="another process writes it"):
        ours.write(Row("a", 1, {"id": "a"}), "ours")
    others.close()


def test_a_device_takes_rows_and_is_asked_for_nothing(tmp_path):
    link = tmp_path / "o.jsonl"
    link.symlink_to("/dev/null")
    writer = ResultWriter(str(link), overwrite=True)
    writer.write(finished())
    writer.close()

    link.unlink()
    (tmp_path / "real.jsonl").touch()
    link.symlink_to(tmp_path / "real.jsonl")
    writer = ResultWriter(str(link), overwrite=True)
    writer.write(finished())
    writer.close()
    assert link.read_text().count("\n") == 1
