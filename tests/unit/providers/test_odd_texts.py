"""Texts and numbers that are more than Python's own are sent as what they say."""

from __future__ import annotations

import enum

import msgspec
import numpy as np
import pytest

from batch_llm.core.plain import as_plain
from batch_llm.core.request import Message, Request, Settings
from batch_llm.providers.openai import CHAT
from batch_llm.providers.requests import content_of


class Kind(str):
    """A text that is shown as another one."""

    __slots__ = ()

    def __str__(self):
        return "shown"


class Share(float):
    """A number of a type of its own."""


class Level(enum.IntEnum):
    LOW = 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Kind("a"), '"a"'),
        ({Kind("a"): Kind("b")}, '{"a":"b"}'),
        (np.str_("a"), '"a"'),
        (np.float64(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.bool_(True), "true"),
        (np.array([[1, 2], [3, 4]]), "[[1,2],[3,4]]"),
        (Share(0.5), "0.5"),
        (type("Count", (int,), {})(7), "7"),
        (Level.LOW, "2"),
    ],
)
def test_an_encoder_writes_them_as_what_they_are(value, expected):
    assert msgspec.json.encode(value, enc_hook=as_plain).decode() == expected


def test_what_is_neither_text_nor_number_is_refused():
    with pytest.raises(TypeError, match="a object is no plain data"):
        msgspec.json.encode(object(), enc_hook=as_plain)


def test_a_request_of_such_texts_asks_the_same_as_one_of_plain_ones():
    plain = Request("openai-chat:m", (Message("user", "a"),), Settings(0.5, 9, stop=("x",)))
    odd = Request(
        "openai-chat:m",
        (Message(Kind("user"), np.str_("a")),),
        Settings(np.float64(0.5), np.int64(9), stop=(Kind("x"),)),
    )
    assert CHAT.encode(odd) == CHAT.encode(plain)
    assert content_of("r", odd) == content_of("r", plain)
