"""Going on with rows that have pictures: an address says all, a file is read again."""

from __future__ import annotations

import asyncio
import os
from collections import Counter

import pytest

from batch_llm import runs
from batch_llm.providers.base import Outcome
from batch_llm.providers.requests import RequestCaller
from batch_llm.runs.indexed_input import IndexedInput

PICTURE = b"\x89PNG\r\n\x1a\n" + b"a" * 20
USAGE = {"input_tokens": 2, "output_tokens": 1, "total_tokens": 3}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Count the calls by row; answers cost nothing."""
    calls = Counter()

    async def call(_self, item, _attempt):
        calls[item.item_id] += 1
        await asyncio.sleep(0)
        return Outcome("seen", USAGE, model="nobody")

    monkeypatch.setattr(RequestCaller, "call", call)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return calls


@pytest.fixture
def passed(monkeypatch):
    """Collect for each session whether rows are known without being read."""
    found = []
    settle = IndexedInput.settle

    def noting(self):
        found.append([block.known is not None for block in self.blocks])
        return settle(self)

    monkeypatch.setattr(IndexedInput, "settle", noting)
    return found


def look(*pictures):
    rows = [{"id": f"r{n}", "image": one} for n, one in enumerate(pictures)]
    return runs.run_sync(
        rows, model="openai-chat:m", prompt="What is this?", image="image", store="ledger.sqlite",
        dedupe=False, ignore_slots=True, base_url="http://127.0.0.1:9/v1",
    )  # fmt: skip


def test_rows_whose_pictures_are_addresses_are_passed_over(asked, passed):
    pictures = ["https://example.org/a.png", "data:image/png;base64,AAAA", "", None]
    look(*pictures)

    again = look(*pictures)

    assert passed == [[False], [True]]
    assert (again.reused, set(asked.values())) == (4, {1})


def test_a_picture_that_was_replaced_is_asked_about_again_whatever_its_file_says(
    asked, passed, tmp_path
):
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    before = path.stat()
    look("a.png", "https://example.org/b.png")

    path.write_bytes(PICTURE.replace(b"a", b"b"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = look("a.png", "https://example.org/b.png")

    assert passed == [[False], [False]]
    assert (again.reused, asked) == (1, {"r0": 2, "r1": 1})
