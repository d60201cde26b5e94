from __future__ import annotations

import asyncio

import msgspec
import pytest

from batch_llm import ConfigError
from batch_llm.cli import values
from batch_llm.cli.display import (
    RateWindow,
    clock,
    live_lines,
    log_line,
    short,
    summary_lines,
)
from fakes import PermanentError, Script, item, processor


async def numbers():
    built = processor(max_workers=4)
    calls = [Script(PermanentError()), Script(ValueError("\x1b]0;pwned\x07")), Script(50.0)]
    running = asyncio.create_task(built.process([item(str(n), c) for n, c in enumerate(calls)]))
    await asyncio.sleep(10)
    now = built.statistics()
    running.cancel()
    return now


@pytest.mark.parametrize("width", [40, 80, 120])
async def test_the_display_has_seven_lines_that_fit(width):
    now = await numbers()
    rates = RateWindow().rates(now)
    lines = live_lines(now, rates, title="sim:\x1b[31m → x" * 9, total=100, width=width)

    assert len(lines) == 7
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)


async def test_failures_stand_before_retries():
    now = await numbers()
    lines = live_lines(now, RateWindow().rates(now), title="t", total=3, width=80)

    assert lines[5] == "errors bad_request 1 failed  bad_output 1 retried"


async def test_a_log_line_says_how_far_it_is():
    now = await numbers()
    line = log_line(now, RateWindow().rates(now), 8)

    assert line.startswith("batch-llm running 2/8 25.0% ok=1 failed=1 retrying=0 inflight=1")
    assert "err.bad_output=1 err.bad_request=1" in line


async def test_the_summary_says_what_failed_and_why():
    text = "\n".join(summary_lines(await numbers(), not_done=1))

    assert "failed            1    50.0 %   bad_request 1" in text
    assert "bad_output 1" in text
    assert "not done          1" in text


async def test_second_copies_are_told_when_there_were_any():
    now = await numbers()
    rates = RateWindow().rates(now)
    some = msgspec.structs.replace(now, hedged=3, hedges_won=2, hedge_tokens_lost=1234)

    def shown(numbers):
        lines = live_lines(numbers, rates, title="t", total=3, width=120)
        return "\n".join([*lines, *summary_lines(numbers), log_line(numbers, rates, 3)])

    assert "hedged" not in shown(now)
    assert "in flight 1  hedged 3  elapsed" in shown(some)
    assert "hedged            3            2 copies were faster, about 1.23k tokens" in shown(some)
    assert " hedged=3 " in shown(some)


def test_numbers_are_short():
    assert [short(n) for n in (7, 987, 41_200, 3_010_000)] == ["7", "987", "41.2k", "3.01M"]
    assert [clock(s) for s in (5, 65, 3661)] == ["0:05", "1:05", "1:01:01"]


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
    assert values.read_tolerance("--fail-over", "1%") == (0.01, True)
    assert values.read_tolerance("--fail-over", "50") == (50, False)
    with pytest.raises(ConfigError):
        values.read_tolerance("--fail-over", "many")


@pytest.mark.parametrize(("text", "count"), [("500", 500), ("10k", 10_000), ("1.5M", 1_500_000)])
def test_counts_are_read(text, count):
    assert values.read_count("--limit", text, at_least=1) == count


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "many", "inf", "nan", "k"])
def test_nonsense_is_no_count(text):
    with pytest.raises(ConfigError, match="--limit must be >= 1"):
        values.read_count("--limit", text, at_least=1)
