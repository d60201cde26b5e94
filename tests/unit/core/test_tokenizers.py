"""Tokens are counted where a tokenizer is given, and nothing is ever downloaded for it."""

from __future__ import annotations

import hashlib
import socket
import sys

import pytest
import tiktoken
import tiktoken.registry

from batch_llm import ConfigError, Image, Message, MissingExtraError, Request, Text
from batch_llm.core.tokenizers import (
    TOKENS_PER_MESSAGE,
    TOKENS_PER_REQUEST,
    count_request,
    open_tokenizer,
)
from batch_llm.runs.options import brief_from
from batch_llm.runs.plan import Plan


@pytest.fixture
def bytes_encoding(monkeypatch):
    """An encoding that needs no file: each byte is a token, but for one pair."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
    encoding = tiktoken.Encoding(
        "cl100k_base", pat_str=r".+", mergeable_ranks=ranks, special_tokens={}
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", encoding)


@pytest.fixture
def no_files(monkeypatch, tmp_path):
    """A machine on which tiktoken has never fetched anything, and where nobody may."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})

    def connect(*_):
        raise AssertionError("somebody wants to download")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    return tmp_path


@pytest.mark.usefixtures("bytes_encoding")
@pytest.mark.parametrize("name", ["cl100k_base", "gpt-4"])
def test_an_encoding_or_a_model_counts_a_text(name):
    count = open_tokenizer(name)

    assert [count("abc"), count("äb"), count("")] == [2, 3, 0]
    assert count("<|endoftext|>") == 13  # text like any other


@pytest.mark.usefixtures("bytes_encoding")
def test_a_request_is_all_its_texts_and_what_the_format_adds():
    request = Request(
        "m",
        (
            Message("system", "be"),
            Message("user", (Text("abc"), Image(url="https://example.org/a.png"), Text("d"))),
        ),
    )

    tokens = count_request(request, open_tokenizer("cl100k_base"))

    assert tokens == 2 + 2 + 1 + 2 * TOKENS_PER_MESSAGE + TOKENS_PER_REQUEST


def test_what_is_not_on_this_machine_is_not_downloaded(no_files):
    with pytest.raises(ConfigError, match=r"batch-llm downloads none: once, run python -c") as told:
        open_tokenizer("o200k_base", "--count-tokens")

    assert str(told.value).startswith("--count-tokens must be an encoding whose file is on this")
    assert list(no_files.iterdir()) == []


def test_a_damaged_file_is_not_downloaded_again(no_files):
    address = b"https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
    (no_files / hashlib.sha1(address, usedforsecurity=False).hexdigest()).write_bytes(b"torn")

    with pytest.raises(ConfigError, match="downloads none"):
        open_tokenizer("o200k_base")


def test_whoever_downloads_elsewhere_still_can(no_files):
    before = tiktoken.load.read_file

    with pytest.raises(ConfigError):
        open_tokenizer("o200k_base")

    assert tiktoken.load.read_file is before
    assert no_files.exists()


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"count_tokens must be .* or one of .*o200k_base"):
        open_tokenizer("claude")


def test_without_tiktoken_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)

    with pytest.raises(MissingExtraError, match=r"batch-llm\[tiktoken\]"):
        open_tokenizer("o200k_base")


@pytest.mark.usefixtures("bytes_encoding")
@pytest.mark.parametrize(
    ("counter", "tokens"), [(None, None), (len, 46), ("cl100k_base", 46), (lambda _: 7, 13)]
)
def test_what_is_counted_reaches_admission(tmp_path, counter, tokens):
    path = tmp_path / "a.txt"
    path.write_text("a" * 40 + "\n")

    (item,) = Plan(brief_from(str(path), "sim:fast", None, {"count_tokens": counter})).items()

    assert item.estimated_input_tokens == tokens
