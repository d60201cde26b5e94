from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import ConfigError, InputError
from batch_llm.inputs import Problem, Row, Source, Template


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def read(path, **options):
    source = Source(path, **options)
    return source.format, list(source)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"custom_id":"x","body":{}}', "openai-batch"),
        ("a.jsonl", '{"messages":[]}', "chat"),
        ("a.jsonl", '{"prompt":"hi"}', "prompt"),
        ("a.jsonl", '"hi"', "prompt"),
        ("a.jsonl", '{"question":"hi"}', "rows"),
        ("a.csv", "a,b\n1,2", "csv"),
        ("a.tsv", "a\tb\n1\t2", "tsv"),
        ("a.txt", "one\ntwo", "txt"),
    ],
)
def test_the_shape_is_seen_from_the_name_and_the_first_record(write, name, content, expected):
    assert read(write(name, content))[0] == expected


def test_shapes_of_other_providers_are_refused(write):
    with pytest.raises(ConfigError, match="Anthropic batch lines"):
        Source(write("a.jsonl", '{"custom_id":"x","params":{}}'))


def test_lines_end_at_newlines_only(write):
    text = "a\u2028b\u0085c"
    path = write(
        "a.jsonl", "\ufeff" + json.dumps({"prompt": text}, ensure_ascii=False) + "\r\n\r\n"
    )

    _, records = read(path)

    assert records == [Row("row-1", 1, {"prompt": text})]


@pytest.mark.parametrize(
    ("line", "code", "column"),
    [
        (b'{"a" 1}', "invalid_json_line", 6),
        (b'{"a": 1', "invalid_json_line", 8),
        (b"[1]", "invalid_row", None),
        (b"7", "invalid_row", None),
        (b'{"a": NaN}', "invalid_json_line", None),
        (b'{"a": "\xff"}', "invalid_utf8", 8),
    ],
)
def test_a_bad_line_has_its_place_and_the_others_are_read(write, line, code, column):
    path = write("a.jsonl", b'{"prompt":"x"}\n' + line + b'\n{"prompt":"y"}\n')

    _, records = read(path)

    assert [type(record) for record in records] == [Row, Problem, Row]
    assert (records[1].line, records[1].code, records[1].column) == (2, code, column)
    assert records[2].item_id == "row-3"


def test_duplicate_and_missing_ids_are_problems(write):
    lines = ['{"id":"a","p":1}', '{"id":"a","p":2}', '{"id":null,"p":3}', '{"id":7,"p":4}']

    _, records = read(write("a.jsonl", "\n".join(lines)))

    assert records[1].message == '"a" is already on line 1'
    assert records[2].code == "missing_id"
    assert records[2].message.endswith("must be a text that is not empty, or a number, got null")
    assert records[3].item_id == "7"


def test_a_row_without_an_id_is_told_that_it_has_none(write):
    _, records = read(write("a.jsonl", '{"id":"a"}\n{"p":2}\n{"id":[1]}'))

    assert records[1].message.endswith("or a number, got nothing")
    assert records[2].message.endswith("or a number, got [1]")


def test_a_real_csv_is_read(write):
    path = write("a.csv", '\ufeffid,text\r\n1,"a ""b""\nc"\r\n2,\r\n3,x,y\r\n')

    _, records = read(path)

    assert records[0] == Row("1", 2, {"id": "1", "text": 'a "b"\nc'}, has_own_id=True)
    assert records[1].data["text"] == ""
    assert (records[2].code, records[2].line) == ("wrong_field_count", 5)


def test_lone_quotes_in_a_tsv_are_text(write):
    path = write("a.tsv", 'ham\tsay "hi\nspam\t"quoted ""x"""\n')

    _, records = read(path, has_header=False)

    assert [record.data["2"] for record in records] == ['say "hi', 'quoted "x"']


def test_columns_can_be_named(write):
    _, records = read(write("a.tsv", "ham\thi"), columns=["label", "text"])

    assert records[0].data == {"label": "ham", "text": "hi"}


def test_a_long_text_over_several_lines_in_a_tsv_is_one_field(write):
    csv.field_size_limit(131_072)  # as a fresh process has it
    text = "line\n" * 40_000
    path = write("a.tsv", f'id\ttext\n1\t"{text}"\n2\tshort\n')

    _, records = read(path)

    assert [record.data["text"] for record in records] == [text, "short"]


@given(st.binary(max_size=300), st.sampled_from(["jsonl", "csv", "tsv", "txt"]))
def test_no_bytes_break_the_reader(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("any") / f"a.{suffix}"
    path.write_bytes(content)

    try:
        _, records = read(str(path))
    except (ConfigError, InputError):  # it says what the file is
        return
    for record in records:
        assert isinstance(record, Row) or record.render("a")


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=10)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("a", "b"), *rows])

    _, records = read(str(path))

    assert [(r.data["a"], r.data["b"]) for r in records] == rows


def test_a_template_takes_columns_by_name_and_number():
    assert Template("{{ a }}/{{ b.c }}").render({"a": "x", "b": {"c": 1}}) == "x/1"
    assert Template("{{ 1 }}-{{2}}").render({"1": "x", "2": "y"}) == "x-y"
    assert Template("{{ a }}|{{ b }}").render({"a": None, "b": [1]}) == "|[1]"


def test_a_missing_column_is_shown_with_the_nearest():
    text = Template("Classify {{ lables }}").check(["text", "labels"], "r.csv")

    assert 'the prompt uses "lables", but r.csv has no such column' in text
    assert "    Classify {{ lables }}\n                ^^^^^^" in text
    assert "did you mean {{ labels }}?" in text


def test_a_broken_template_names_its_line():
    with pytest.raises(ConfigError, match="line 2"):
        Template("fine\n{{ broken")


def test_a_row_without_a_column_of_the_prompt_is_told_which():
    with pytest.raises(ValueError, match=r'^the prompt uses "text", which this row is without$'):
        Template("{{ text }}").render({"id": "a"})
    with pytest.raises(ValueError, match="has no attribute 'c'"):
        Template("{{ b.c }}").render({"b": {}})


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 10000000000 }}",
        "{{ '%0900000000d' % 1 }}",
        "{{ x.ljust(900000000) }}",
        "{{ '{:900000000}'.format(1) }}",
        "{{ x.__class__.__mro__ }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 1/0 }}",
    ],
)
def test_a_template_cannot_do_harm(text):
    with pytest.raises(ValueError, match=r"\w"):
        Template(text).render({"x": "text"})


@pytest.mark.parametrize("text", ["{{ x | indent(900000000) }}", "{{ '%s' | format(x) }}"])
def test_a_filter_that_takes_a_width_does_not_exist(text):
    with pytest.raises(ConfigError, match="No filter named"):
        Template(text)


@pytest.mark.parametrize("name", ["range", "lipsum", "namespace"])
def test_what_jinja_offers_elsewhere_is_a_column_here(name):
    template = Template(f"{{{{ {name} }}}}")

    assert template.columns == {name}
    assert template.render({name: "x"}) == "x"


def test_filters_work_on_numbered_columns_and_on_null():
    assert Template("{{ 1|upper }}{{ 2 | upper }}").render({"1": "a", "2": None}) == "A"


def test_arrays_and_numbers_of_numpy_are_columns_like_others():
    row = {"text": "a", "far": np.array([1.5, 2.0]), "many": np.int64(3), "none": None}
    assert Template("{{ text }}").render(row) == "a"
    assert Template("{{ far }} {{ many }}{{ none }}").render(row) == "[1.5,2.0] 3"
    with pytest.raises(ValueError, match="a complex is no plain data"):
        Template("{{ text }}").render({"text": 1j})
