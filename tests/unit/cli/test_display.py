from __future__ import annotations

import asyncio
from datetime import datetime

import msgspec
import pytest

from batch_llm import Limits
from batch_llm._engine.statistics import Counts, LanePause, LearnedLimit
from batch_llm.cli.display import (
    Rates,
    RateWindow,
    clock,
    live_lines,
    log_line,
    short,
    time_left,
    without_cancelled,
)
from batch_llm.cli.progress import rows_more
from batch_llm.cli.summary import summary_lines
from batch_llm.core.prices import Price, Prices
from fakes import Models, PermanentError, Script, asked, item, processor


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


@pytest.mark.parametrize("width", [40, 80])
async def test_wide_characters_take_two_cells(width):
    now = await numbers()

    lines = live_lines(now, RateWindow().rates(now), title="漢字" * 60, total=3, width=width)

    assert lines[0] == "漢字" * (width // 4)


async def test_a_run_that_has_not_begun_is_starting():
    now = processor(max_workers=4).statistics()

    lines = live_lines(now, RateWindow().rates(now), title="t", total=3, width=80)

    assert lines[-1] == "state  starting"


@pytest.mark.parametrize(("columns", "more"), [(80, 0), (79, 1), (40, 1), (39, 2), (20, 3)])
def test_rows_that_a_narrower_terminal_wraps_are_counted(columns, more):
    assert rows_more(["x" * 80, "short", "漢" * 10], columns) == more


async def test_failures_stand_before_retries():
    now = await numbers()
    lines = live_lines(now, RateWindow().rates(now), title="t", total=3, width=80)

    assert lines[5] == "errors bad_request 1 failed  bad_output 1 retried"


async def test_a_log_line_says_how_far_it_is():
    now = await numbers()
    line = log_line(now, RateWindow().rates(now), 8)

    assert line.startswith("batch-llm running 2/8 25.0% ok=1 failed=1 retrying=0 inflight=1")
    assert "err.bad_output=1 err.bad_request=1" in line


async def test_rows_that_a_stop_cut_off_are_not_shown_as_failed():
    now = await numbers()
    codes = now.failures_by_code | {"cancelled": 2}
    now = msgspec.structs.replace(now, failed=now.failed + 2, failures_by_code=codes)
    rates = RateWindow().rates(now)
    lines = live_lines(now, rates, title="t", total=9, width=80)
    line = log_line(now, rates, 9)

    assert "failed 1 " in lines[2]
    assert " failed=1 " in line
    assert "cancelled" not in lines[5] + line


async def test_numbers_without_what_a_stop_cut_off_still_add_up():
    now = await numbers()
    stopped = msgspec.structs.replace(
        now,
        processed=now.processed + 2,
        failed=now.failed + 2,
        failures_by_code=now.failures_by_code | {"cancelled": 2},
        error_counts=now.error_counts | {"AbandonedError": 2},
    )

    assert without_cancelled(stopped) == now
    assert without_cancelled(now) == now


async def test_the_summary_says_what_failed_and_why():
    text = "\n".join(summary_lines(await numbers(), not_done=1))

    assert "failed            1    50.0 %   bad_request 1" in text
    assert "bad_output 1" in text
    assert "not done          1" in text


async def test_the_summary_tells_of_rows_that_failed_before_and_are_kept():
    now = await numbers()

    assert "  kept             60            failed before" in "\n".join(
        summary_lines(now, failed_before=60)
    )
    assert "kept" not in "\n".join(summary_lines(now))


async def test_the_summary_shows_an_error_of_each_frequent_kind_fit_for_a_terminal():
    counts = {"timeout": 1, "bad_request": 7, "truncated": 2, "server_error": 3, "cancelled": 9}
    now = msgspec.structs.replace(await numbers(), failures_by_code=counts)
    examples = dict.fromkeys(counts, "StatusError: ") | {
        "bad_request": "StatusError: HTTP 400: \x1b[2Jboom\r\n" + "and so on " * 100
    }

    lines = summary_lines(now, cancelled=9, examples=examples)

    at = next(n for n, line in enumerate(lines) if "bad_request:" in line)
    assert lines[at].startswith("            bad_request: StatusError: HTTP 400:  [2Jboom  and so")
    assert all(len(line) < 80 for line in lines)
    assert sum(line.count("and so on") for line in lines) < 30
    shown = [line.split(":")[0].strip() for line in lines if ": StatusError:" in line]
    assert shown == ["bad_request", "server_error", "truncated"]


async def test_the_summarys_rate_is_without_rows_that_a_stop_cut_off():
    now = msgspec.structs.replace(await numbers(), elapsed_seconds=2.0, processed=10, failed=8)

    assert "  rate      1.0/s" in "\n".join(summary_lines(now, cancelled=8))


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
    assert [short(n) for n in (999.4, 999.6, 999_960)] == ["999", "1k", "1M"]
    assert [short(n) for n in (2e12, 1e15, 1e300)] == ["2T", ">999T", ">999T"]
    assert [clock(s) for s in (5, 65, 3661)] == ["0:05", "1:05", "1:01:01"]


async def parked(limits, count=12):
    """Return the numbers of a run that waits for its limits."""
    built = Models().processor(limits=limits)
    running = asyncio.create_task(built.process([asked("gpt", n) for n in range(count)]))
    await asyncio.sleep(60)
    now = built.statistics()
    built.stop(drain=False)
    await running
    return now


async def test_a_parked_run_says_until_when_and_for_what():
    now = await parked(Limits(requests_per_day=10))
    rates = RateWindow().rates(now)
    lines = live_lines(now, rates, title="t", total=12, width=79)

    assert lines[6].startswith("state  cooling  resumes in 2:23:0")
    assert lines[6].endswith("(RPD 10 (told) used up)")
    line = log_line(now, rates, 12)
    assert line.startswith("batch-llm cooling 10/12")
    assert "resumes_s=858" in line
    assert "waits_for=requests_per_day" in line


async def test_a_lane_that_is_closed_is_shown_beside_those_that_are_not():
    open_lane = await numbers()
    pause = LanePause("gpt \x1b[31m", 52.0, "refused", 7)
    now = msgspec.structs.replace(open_lane, pauses=[pause])
    lines = live_lines(now, RateWindow().rates(now), title="t", total=12, width=79)

    assert lines[6] == "state  running  gpt  [31m opens in 52s (refused)"


async def test_an_outage_is_shown_for_what_it_is():
    since = datetime(2026, 11, 26, 14, 5).astimezone()
    pause = LanePause("", 0.4, "overloaded", 7, 12.0, since)
    now = msgspec.structs.replace(await numbers(), state="cooling", pauses=[pause])
    lines = live_lines(now, RateWindow().rates(now), title="t", total=12, width=79)

    assert lines[6] == "state  cooling  the provider is overloaded since 14:05 (12s), probing"


async def test_each_limit_is_shown_with_its_source_and_further_lanes_are_counted():
    limits = [
        LearnedLimit("m #1", "requests", 500.0, "told"),
        LearnedLimit("m #1", "tokens", 200_000.0, "header"),
        LearnedLimit("m #1", "requests_per_day", 14_400.0, "remembered"),
        LearnedLimit("m #1", "concurrency", 20.0, "learned"),
        LearnedLimit("m #2", "requests", 400.0, "learned"),
    ]
    now = msgspec.structs.replace(await numbers(), limits=limits)
    (line,) = [
        line
        for line in live_lines(now, RateWindow().rates(now), title="t", total=1, width=150)
        if line.startswith("limits")
    ]

    assert line.endswith(
        "RPM 500 (told)  TPM 200k (header)  RPD 14.4k (remembered)  in flight 20 (learned)  +1 more"
    )


def test_the_summary_shows_what_is_known_of_the_limits():
    known = LearnedLimit("m", "concurrency", 4, "server")
    now = Counts().snapshot(total=1, state="finished", concurrency=6, limits=[known])

    assert "  limits    in flight 4 (server)" in summary_lines(now)
    assert not any(
        "limits" in line for line in summary_lines(msgspec.structs.replace(now, limits=[]))
    )


def test_the_summary_and_the_display_tell_the_cost():
    counts = Counts()
    counts.usage.note(
        "a:b", "", "standard", {"input_tokens": 10**6, "reasoning_tokens": 7, "a": 0, "b": 0}
    )
    now = counts.snapshot(total=1, state="running", concurrency=1)
    bill = Prices({"a:b": Price(input=1, output=2)}).bill(now.usage)

    lines = live_lines(now, Rates(0, 0, 0), title="t", total=9, width=80, bill=bill)
    summary = "\n".join(summary_lines(now, bill=bill))

    assert "cost   $1.00 so far" in lines
    assert "cost      $1.00" in summary
    assert "(7 thought)" in summary


async def test_what_no_call_was_made_for_is_shown_where_there_is_any():
    now = await numbers()
    plain = live_lines(now, RateWindow().rates(now), title="t", total=3, width=200)
    saved = msgspec.structs.replace(now, cached=1200, shared=30, following=4)
    line = live_lines(saved, RateWindow().rates(now), title="t", total=3, width=200)[2]
    pairs = log_line(saved, RateWindow().rates(now), 8)
    summary = "\n".join(summary_lines(saved))

    assert "following 4  cached 1,200  shared 30" in line
    assert "following=4 cached=1200 shared=30" in pairs
    assert "cached        1,200            answered by the cache; not sent" in summary
    assert "shared           30            asked the same as a row in flight; not sent" in summary
    assert all(word not in plain[2] for word in ("following", "cached", "shared"))


async def test_where_the_day_is_used_up_the_end_is_days_away():
    now = msgspec.structs.replace(
        await numbers(), processed=100, elapsed_seconds=4.0, cooldown_remaining_seconds=860.0
    )
    parked = msgspec.structs.replace(
        now,
        pauses=[LanePause("", 860.0, "requests_per_day", 7)],
        limits=[LearnedLimit("", "requests_per_day", 100, "told")],
    )

    assert time_left(now, 1500) == pytest.approx(1400 * 4 / 100 + 860)
    assert time_left(parked, 1500) == pytest.approx(14 * 86_400)
