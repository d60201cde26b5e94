from __future__ import annotations

import pytest

from batch_llm import ConfigError
from batch_llm.cli import values


@pytest.mark.parametrize(
    ("text", "seconds"), [("60", 60), ("1.5s", 1.5), ("2m", 120), ("5ms", 0.005)]
)
def test_durations_are_read(text, seconds):
    assert values.read_seconds("--timeout", text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "0", "inf"])
def test_nonsense_is_no_duration(text):
    with pytest.raises(ConfigError, match="--timeout must be a duration"):
        values.read_seconds("--timeout", text)


def test_settings_are_read():
    settings = values.read_settings(["temperature=0,0.5", "max_tokens=9", "stop=x", "user=me"])

    assert settings.temperature == (0, 0.5)
    assert (settings.max_tokens, settings.stop, settings.extra) == (9, ("x",), {"user": "me"})


@pytest.mark.parametrize("pair", ["temperature", "temperature=hot", "max_tokens=1.5", "top_p=x"])
def test_impossible_settings_are_refused(pair):
    with pytest.raises(ConfigError, match="must be"):
        values.read_settings([pair])


def test_tolerances_are_read():
    assert values.read_tolerance("--max-failed", "1%") == (None, 0.01)
    assert values.read_tolerance("--max-failed", "50") == (50, None)


@pytest.mark.parametrize("text", ["many", "1.5", "-1", "101%", "x%", "%", ""])
def test_nonsense_is_no_tolerance(text):
    with pytest.raises(ConfigError, match="a number of rows such as 50, or a share such as 1%"):
        values.read_tolerance("--max-failed", text)


@pytest.mark.parametrize(("text", "count"), [("500", 500), ("10k", 10_000), ("1.5M", 1_500_000)])
def test_counts_are_read(text, count):
    assert values.read_count("--limit", text, at_least=1) == count


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "many", "inf", "nan", "k"])
def test_nonsense_is_no_count(text):
    with pytest.raises(ConfigError, match="--limit must be >= 1"):
        values.read_count("--limit", text, at_least=1)


def test_a_number_of_calls_is_one_or_is_found():
    assert values.read_concurrency("200") == 200
    assert values.read_concurrency("auto") is None
    assert values.read_concurrency("knee") == "knee"
    for text in ("elbow", "0", "1.5"):
        with pytest.raises(
            ConfigError, match="--concurrency must be auto, knee, or a whole number"
        ):
            values.read_concurrency(text)
