"""Frames of pandas and polars go in and come out as they were, with results beside their rows."""

from __future__ import annotations

import pandas as pd
import polars as pl
import pytest

import batch_llm as bl
from batch_llm.simulator import answer_digest
from batch_llm.simulator.server import Simulator

TEXTS = [f"Text {n}" for n in range(12)]
ASKED = {"model": "openai-chat:x", "prompt": "Say: {{ text }}"}


@pytest.fixture
def there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with Simulator("fast?prefuse=0.3&seed=5") as running:
        yield {"base_url": running.base_url}


def are_in_their_rows(texts, outputs, statuses):
    assert {"ok", "failed"} == set(statuses)
    return all(
        answer_digest(f"Say: {text}") in output
        for text, output, status in zip(texts, outputs, statuses, strict=True)
        if status == "ok"
    )


async def test_a_pandas_index_stays_and_no_row_moves(there):
    index = [f"i{n}" for n in range(12, 0, -1)]
    frame = pd.DataFrame({"text": TEXTS, "stars": [None, *range(11)]}, index=index)

    found = await bl.run_frame(frame, **ASKED, **there)

    assert list(found.index) == index
    assert list(found["text"]) == TEXTS
    assert are_in_their_rows(found["text"], found["output"], found["status"])
    assert "output" not in frame.columns


async def test_polars_gives_polars(there):
    frame = pl.DataFrame({"text": TEXTS, "stars": range(12)})

    found = await bl.run_frame(frame, **ASKED, **there, prefix="llm_")

    assert isinstance(found, pl.DataFrame)
    assert found.columns[:3] == ["text", "stars", "llm_output"]
    assert are_in_their_rows(found["text"], found["llm_output"], found["llm_status"])


def test_a_frame_that_has_a_column_of_the_results_is_refused(there):
    frame = pl.DataFrame({"text": TEXTS, "model": TEXTS})

    with pytest.raises(bl.InputError, match="has a column model already; prefix='llm_'"):
        bl.run_frame_sync(frame, **ASKED, **there)
    with pytest.raises(bl.InputError, match="takes a DataFrame of pandas or polars"):
        bl.run_frame_sync([1], **ASKED, **there)
