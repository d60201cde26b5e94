from __future__ import annotations

import pickle
from base64 import b64encode

import pytest

from batch_llm import ConfigError, Image, Message, OtherPart, Request, Settings, Text
from batch_llm.core.schema import OutputSchema


@pytest.mark.parametrize(
    ("temperature", "sent"),
    [(None, [None, None]), (0.3, [0.3, 0.3]), ((0.0, 0.5), [0.0, 0.5, 0.5]), ((), [None])],
)
def test_each_attempt_has_its_temperature_and_the_last_serves_the_rest(temperature, sent):
    settings = Settings(temperature=temperature)

    assert [settings.temperature_for(n) for n in range(1, len(sent) + 1)] == sent


def test_requests_are_values():
    def make():
        parts = (OtherPart({"type": "file", "file": {"id": "1"}}),)
        return Request(
            "openai-chat:m",
            (Message("user", parts, {"name": "ada"}),),
            Settings(extra={"tools": [{}]}),
            OutputSchema.choices("a", "b"),
        )

    assert make() == make()
    assert len({make(), make()}) == 1
    assert pickle.loads(pickle.dumps(make())) == make()


def test_the_common_case_is_a_prompt_with_or_without_a_system_message():
    assert Request.of("sim:fast", "hi").messages == (Message("user", "hi"),)
    assert Request.of("sim:fast", "hi", system="be brief").messages == (
        Message("system", "be brief"),
        Message("user", "hi"),
    )


def test_its_characters_are_those_of_all_its_texts():
    parts = (Text("12345"), Image("https://x/p.png"), Text("6"))
    turns = (Message("system", "1234"), Message("user", parts), Message("assistant", None))

    assert Request("sim:fast", turns).characters == 10


@pytest.mark.parametrize(
    ("settings", "is_sampled"),
    [
        (Settings(), False),
        (Settings(temperature=0), False),
        (Settings(temperature=0.1), True),
        (Settings(temperature=0.1, seed=0), False),
        (Settings(temperature=(0.0, 0.9)), False),
        (Settings(temperature=(0.9, 0.0)), True),
        (Settings(temperature=()), False),
        (Settings(temperature="hot"), False),  # the provider will say so
    ],
)
def test_a_temperature_without_a_seed_asks_for_answers_of_their_own(settings, is_sampled):
    assert settings.is_sampled is is_sampled


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        (Settings(), None),
        (Settings(max_tokens=7), 7),
        (Settings(max_tokens=7, extra={"max_output_tokens": 9}), 7),
        (Settings(extra={"max_tokens": 7}), 7),
        (Settings(extra={"max_output_tokens": 7}), 7),
        (Settings(extra={"max_tokens": 9, "max_completion_tokens": 7}), 7),
        (Settings(extra={"max_tokens": True, "tools": []}), None),
    ],
)
def test_the_bound_of_an_answers_length_is_found_and_changed_where_it_stands(settings, bound):
    assert settings.longest_answer == bound

    raised = settings.with_longest_answer(50)

    assert raised.longest_answer == 50
    assert (raised.max_tokens is None) == (settings.max_tokens is None and bound is not None)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBP", "image/webp"),
    ],
)
def test_a_picture_from_a_file_is_told_by_how_it_begins(tmp_path, start, kind):
    path = tmp_path / "picture.txt"
    path.write_bytes(start + b"...")

    image = Image.from_file(path, "low")

    assert image == Image(f"data:{kind};base64,{b64encode(start + b'...').decode()}", "low")


@pytest.mark.parametrize("data", [b"", b"<svg>", b"RIFF\x00\x00\x00\x00WAVE"])
def test_a_file_that_is_no_picture_is_refused(tmp_path, data):
    path = tmp_path / "picture.png"
    path.write_bytes(data)

    with pytest.raises(ConfigError, match="PNG, JPEG, GIF or WebP"):
        Image.from_file(path)
