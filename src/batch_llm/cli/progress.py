"""Shows a run while it goes on: a live display in a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from batch_llm.cli.costs import bill_of_run, cost_record
from batch_llm.cli.display import RateWindow, live_lines, log_line, without_cancelled
from batch_llm.core.text import safe, width
from batch_llm.exceptions import OutputLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from decimal import Decimal

    from batch_llm._engine.statistics import Statistics
    from batch_llm.core.prices import Prices

LINE_SECONDS = 10.0
#: A change of state is told at once, but a run that flickers does not fill the log.
CHANGE_SECONDS = 2.0
_LOOK_SECONDS = 0.5
_LONGEST_LINE = 20_000
_FRAMES_PER_SECOND = 4


def say(text: str) -> None:
    """Talk to people: on standard error, line by line made fit for a terminal.

    Nobody may be there to hear it (a closed pipe, a full disk): that is no reason to end a run.
    """
    if sys.stderr is None:  # closed; and standard output is for results
        return
    lines = (safe(line, _LONGEST_LINE) for line in text.split("\n"))
    with contextlib.suppress(OSError):
        print("\n".join(lines), file=sys.stderr, flush=True)


def tell(record: dict[str, Any]) -> None:
    """Talk to programs: one JSON record on standard output, unless its reader has left."""
    try:
        print(json.dumps({"schema": 1} | record), flush=True)
    except BrokenPipeError:
        # Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputLostError("standard output", error.strerror or str(error)) from error


async def show_progress(
    mode: str,
    read: Callable[[], Statistics],
    *,
    title: str,
    total: int,
    prices: Prices,
    cap: Decimal | None = None,
) -> None:
    """Show a run until cancelled.

    Args:
        mode: ``rich``, ``plain``, ``json``, ``none``; ``auto`` asks the terminal.
        read: Returns the run's numbers.
        title: What runs.
        total: Rows to be done.
        prices: What tokens cost.
        cap: What they may cost.
    """
    if mode == "auto":
        mode = "rich" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"
    if mode == "rich":
        await _show_live(read, title, total, prices, cap)
    elif mode != "none":
        await _show_lines(read, total, prices, as_json=mode == "json")


async def _show_live(
    read: Callable[[], Statistics], title: str, total: int, prices: Prices, cap: Decimal | None
) -> None:
    from rich.console import Console
    from rich.control import Control
    from rich.live import Live
    from rich.segment import ControlType
    from rich.text import Text

    console = Console(stderr=True)
    window = RateWindow()
    one_up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))

    def frame(columns: int) -> list[str]:
        now = without_cancelled(read())
        rates = window.rates(now)
        return live_lines(
            now,
            rates,
            title=title,
            total=total,
            width=columns,
            bill=bill_of_run(prices, now),
            cap=cap,
        )

    def text(lines: list[str]) -> Text:
        return Text("\n".join(lines), no_wrap=True)

    lines = frame(console.width)
    with Live(text(lines), console=console, auto_refresh=False, transient=True) as live:
        while True:
            columns, rows = console.size
            if more := rows_more(lines[:rows], columns):
                console.control(Control(*one_up * more))
            lines = frame(columns)
            live.update(text(lines), refresh=True)
            await asyncio.sleep(1 / _FRAMES_PER_SECOND)


def rows_more(lines: Sequence[str], columns: int) -> int:
    """Return how many rows more than lines there are in a terminal that has become narrower.

    Terminals wrap what stands there already, and `rich` goes up by lines only.
    """
    return sum(max(0, -(-width(line) // columns) - 1) for line in lines)


async def _show_lines(
    read: Callable[[], Statistics], total: int, prices: Prices, *, as_json: bool
) -> None:
    window = RateWindow()
    last_state, last_at = "running", 0.0
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        now = without_cancelled(read())
        rates = window.rates(now)
        wait = LINE_SECONDS if now.state == last_state else CHANGE_SECONDS
        if now.elapsed_seconds < last_at + wait:
            continue
        last_state, last_at = now.state, now.elapsed_seconds
        bill = bill_of_run(prices, now)
        if as_json:
            record = {"schema": 1, "event": "progress"} | msgspec.to_builtins(now)
            record |= cost_record(bill)
            say(msgspec.json.encode(record | {"total": total}).decode())
        else:
            say(f"{time.strftime('%H:%M:%S')} {log_line(now, rates, total, bill)}")
