from __future__ import annotations

import pytest

from batch_llm import Image, Request, Text
from batch_llm.exceptions import InputError
from batch_llm.inputs import Row
from batch_llm.runs.brief import Brief
from batch_llm.runs.ledgers import brief_facts, settings_of
from batch_llm.runs.recipe import Recipe, with_picture

PNG = b"\x89PNG\r\n\x1a\n"
ASKED = Request.of("x:m", "What is it?", system="Be brief.")


def brief(tmp_path, **more):
    chosen = {"prompt": "What is {{ id }}?", "image": "photo"} | more
    return Brief(input=str(tmp_path / "rows.csv"), model="x:m", **chosen)


@pytest.mark.parametrize("value", ["https://example.com/a.png", "data:image/png;base64,AAAA"])
def test_an_address_is_handed_on_as_it_is(tmp_path, value):
    request = with_picture(ASKED, value, tmp_path)

    assert request.messages[0] == ASKED.messages[0]
    assert request.messages[1].content == (Text("What is it?"), Image(value))


def test_a_path_is_seen_from_the_inputs_folder(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    recipe = Recipe(brief(tmp_path), "rows.csv", "csv", ["id", "photo"])

    request = recipe.request_for(Row("1", 1, {"id": "1", "photo": "a.png"}))

    assert request.messages[-1].content == (
        Text("What is 1?"),
        Image.from_file(tmp_path / "a.png"),
    )


@pytest.mark.parametrize("value", ["", None])
def test_a_row_without_a_picture_has_none(tmp_path, value):
    assert with_picture(ASKED, value, tmp_path) is ASKED


@pytest.mark.parametrize(
    ("value", "problem"),
    [("gone.png", "cannot be read"), ("notes.txt", "PNG, JPEG"), (5, "an address or a path")],
)
def test_what_is_no_picture_is_told(tmp_path, value, problem):
    (tmp_path / "notes.txt").write_text("hi")

    with pytest.raises(ValueError, match=problem):
        with_picture(ASKED, value, tmp_path)


@pytest.mark.parametrize(
    ("format_", "columns", "more", "problem"),
    [
        ("csv", ["id"], {}, 'no column "photo" for the pictures'),
        ("chat", ["messages"], {"prompt": None}, "--image cannot change"),
        ("openai-batch", ["body"], {"prompt": None}, "--image cannot change"),
    ],
)
def test_it_is_refused_where_it_would_do_nothing(tmp_path, format_, columns, more, problem):
    with pytest.raises(InputError, match=problem):
        Recipe(brief(tmp_path, **more), "rows", format_, columns)


def test_the_column_belongs_to_the_run(tmp_path):
    assert settings_of(brief(tmp_path), "csv")["image column"] == "photo"
    assert "image column" not in settings_of(brief(tmp_path, image=None), "csv")
    assert brief_facts(brief(tmp_path))["image"] == "photo"
