"""What ends a run, as lines: its numbers, what failed and why, its bill. Pure functions."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from batch_llm.cli.costs import cost_summary, tokens_in_all
from batch_llm.cli.display import limit_fields, short
from batch_llm.core.text import safe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm._engine.statistics import Statistics
    from batch_llm.core.prices import Bill

_WIDTH = 79
_REASONS_AT, _VALUES_AT = 34, 12
#: Lines that hold one value, and not a number with its reasons.
_OF_ONE_VALUE = ("  tokens ", "  in all ", "  cost ", "  limits ", " " * _VALUES_AT)
#: Of how many kinds of failures an error is shown, and how much of it.
_MOST_EXAMPLES, _LONGEST_EXAMPLE = 3, 250


def summary_lines(
    now: Statistics,
    *,
    not_done: int = 0,
    cancelled: int = 0,
    bad_rows: int = 0,
    left_out: int = 0,
    reused: int = 0,
    failed_before: int = 0,
    bill: Bill | None = None,
    examples: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the block that ends a run: what succeeded, failed, was retried, and why.

    Args:
        now: The run's numbers.
        not_done: Rows without a result, the cancelled ones among them.
        cancelled: Rows that were cut off when the run was stopped; they have not failed.
        bad_rows: Records that could not be sent.
        left_out: Such records that have no result either.
        bill: What was spent.
        reused: Rows whose answer an earlier run has brought.
        failed_before: Rows that have failed in an earlier run, and are not sent.
        examples: An error of each code, which may be a stranger's words.
    """
    failed = now.failed - cancelled
    total = max(1, now.succeeded + failed)
    reasons = {code: count for code, count in now.failures_by_code.items() if code != "cancelled"}
    hedged = (
        f"{now.hedges_won:,} copies were faster, about {short(now.hedge_tokens_lost)} tokens lost"
    )
    lines = [
        f"  succeeded {now.succeeded:>9,}   {100 * now.succeeded / total:5.1f} %",
        f"  failed    {failed:>9,}   {100 * failed / total:5.1f} %" + _reasons(reasons),
        *_examples(reasons, examples or {}),
        f"  retried   {sum(now.retries_by_code.values()):>9,}          "
        + _reasons(now.retries_by_code),
        *_counted("reused", reused, "answered before; not sent again"),
        *_counted("kept", failed_before, "failed before; not sent again"),
        *_counted("cached", now.cached, "answered by the cache; not sent"),
        *_counted("shared", now.shared, "asked the same as a row in flight; not sent"),
        *_counted("hedged", now.hedged, hedged),
        *_counted("bad rows", bad_rows, "not sent; see the file of failed rows"),
        *_counted("left out", left_out, "bad rows; neither sent nor written"),
        *_counted("not done", not_done, ""),
        "",
        *_pace(now, now.processed - cancelled),
    ]
    if in_all := tokens_in_all(now):
        lines.append(f"  in all    {in_all}")
    if bill is not None:
        lines.append(f"  cost      {cost_summary(bill)}")
    if limits := limit_fields(now):
        lines.append(f"  limits    {', '.join(limits)}")
    return [line.rstrip() for long in lines for line in wrapped(long)]


def _counted(name: str, count: int, what: str) -> list[str]:
    """Return the line of a count, where there is anything to count."""
    return [f"  {name:<9} {count:>9,}            {what}"] if count else []


def _pace(now: Statistics, finished: int) -> list[str]:
    """Say how fast it went, and what it took."""
    rate = finished / now.elapsed_seconds if now.elapsed_seconds > 0 else 0.0
    shares = (("p50", now.latency_p50), ("p90", now.latency_p90), ("p99", now.latency_p99))
    latency = "   ".join(f"{name} {value:.2g}s" for name, value in shares if value is not None)
    return [
        f"  rate      {rate:,.1f}/s" + (f"        latency  {latency}" if latency else ""),
        f"  tokens    {short(now.input_tokens)} in, {short(now.output_tokens)} out{_kinds(now)}",
    ]


def _kinds(now: Statistics) -> str:
    """Name the kinds of tokens that are priced apart, where there are any."""
    kinds = {
        "read from caches": sum(one.cache_read_tokens for one in now.usage),
        "written to caches": sum(one.cache_write_tokens for one in now.usage),
        "thought": sum(one.reasoning_tokens for one in now.usage),
    }
    found = ", ".join(f"{short(count)} {name}" for name, count in kinds.items() if count)
    return f" ({found})" if found else ""


def wrapped(line: str) -> list[str]:
    """Break a line that is too long for a narrow terminal, below where what it says starts."""
    indent = _VALUES_AT if line.startswith(_OF_ONE_VALUE) else _REASONS_AT
    return textwrap.wrap(
        line,
        _WIDTH,
        subsequent_indent=" " * indent,
        drop_whitespace=True,
        break_long_words=False,
    ) or [""]


def _reasons(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return "   " + ", ".join(f"{code} {count:,}" for code, count in ordered) if ordered else ""


def _examples(counts: dict[str, int], examples: Mapping[str, str]) -> list[str]:
    """Say how the most frequent failures were worded, the first time."""
    ordered = sorted(counts, key=lambda code: -counts[code])
    shown = [code for code in ordered[:_MOST_EXAMPLES] if code in examples]
    indent = " " * _VALUES_AT
    return [f"{indent}{code}: {safe(examples[code], _LONGEST_EXAMPLE)}" for code in shown]
