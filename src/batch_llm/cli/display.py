"""A run's numbers while it goes on, as lines: for a terminal, for a log. Pure functions.

What is said at its end is in ``summary.py``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batch_llm.cli.costs import cost_fields, cost_pairs
from batch_llm.core.text import cut, safe
from batch_llm.exceptions import AbandonedError
from batch_llm.strategies.dimensions import DAY, REQUESTS_PER_DAY

if TYPE_CHECKING:
    from decimal import Decimal

    from batch_llm._engine.statistics import LanePause, LearnedLimit, Statistics
    from batch_llm.core.prices import Bill


#: Longer waits are shown as a clock does.
_LONG_SECONDS = 120.0


#: The error of an item that a stop cut off.
_CUT_OFF = AbandonedError.__name__
#: What three digits write as one of the next higher ones.
_ROUNDED_UP = 0.9995


def short(number: float) -> str:
    """Write a count in four characters or so: ``987``, ``41.2k``, ``3.01M``."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= _ROUNDED_UP * factor:
            scaled = number / factor
            return f"{scaled:.3g}{unit}" if scaled < _ROUNDED_UP * 1000 else f">999{unit}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """Write a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Rates(NamedTuple):
    """What a run got done per second."""

    items: float
    input_tokens: float
    output_tokens: float


class RateWindow:
    """Rates over the last seconds of a run, from looks at its numbers."""

    def __init__(self, seconds: float = 30.0) -> None:
        self._seconds = seconds
        self._points = deque([(0.0, 0, 0, 0)])

    def rates(self, now: Statistics) -> Rates:
        """Take one more look; return the rates since the oldest one within the window."""
        points = self._points
        last = (now.elapsed_seconds, now.processed, now.input_tokens, now.output_tokens)
        points.append(last)
        while last[0] - points[1][0] >= self._seconds:
            points.popleft()
        first = points[0]
        seconds = max(last[0] - first[0], 1e-9)
        return Rates(*((new - old) / seconds for old, new in zip(first[1:], last[1:], strict=True)))


def time_left(now: Statistics, total: int | None) -> float | None:
    """Estimate the seconds to the end: from the rate outside of cooldowns, plus this one's rest.

    Where the day's calls are used up, from what comes back of them in a day.
    """
    open_seconds = now.elapsed_seconds - now.cooldown_seconds
    if not total or now.processed < 20 or open_seconds <= 0:
        return None
    left = total - now.processed
    seconds = left * open_seconds / now.processed + now.cooldown_remaining_seconds
    if any(pause.reason == REQUESTS_PER_DAY for pause in now.pauses):
        a_day = sum(one.limit for one in now.limits if one.dimension == REQUESTS_PER_DAY)
        seconds = max(seconds, left * DAY / a_day) if a_day else seconds
    return seconds


def live_lines(
    now: Statistics,
    rates: Rates,
    *,
    title: str,
    total: int | None,
    width: int,
    bill: Bill | None = None,
    cap: Decimal | None = None,
) -> list[str]:
    """Return the display of a terminal: 8 lines, none wider than ``width``; 7 without a bill."""
    lines = [
        safe(title, width),
        _bar(now, total, width),
        _fitted(
            "items ",
            [
                f"ok {now.succeeded:,}",
                f"failed {_failed(now):,}",
                f"retrying {now.retrying:,}",
                f"in flight {now.in_flight:,}",
                *([f"hedged {now.hedged:,}"] if now.hedged else []),
                *([f"following {now.following:,}"] if now.following else []),
                *([f"cached {now.cached:,}"] if now.cached else []),
                *([f"shared {now.shared:,}"] if now.shared else []),
                f"elapsed {clock(now.elapsed_seconds)}",
            ],
            width,
        ),
        _fitted(
            "rate  ",
            [
                f"{rates.items:.1f} items/s",
                f"in {short(rates.input_tokens)} tok/s",
                f"out {short(rates.output_tokens)} tok/s",
                *([f"latency p50 {now.latency_p50:.2g}s"] if now.latency_p50 else []),
                *([f"p99 {now.latency_p99:.2g}s"] if now.latency_p99 else []),
            ],
            width,
        ),
        _fitted(
            "limits",
            [f"concurrency {now.in_flight:,}/{now.concurrency:,}", *limit_fields(now)],
            width,
        ),
        *([_fitted("cost  ", cost_fields(now, bill, total, cap), width)] if bill else []),
        _fitted("errors", _errors(now) or ["none"], width),
        safe(_state(now), width - 3),  # room for the terminal's own "^C", which would wrap
    ]
    return [cut(line, width) for line in lines]


def log_line(now: Statistics, rates: Rates, total: int | None, bill: Bill | None = None) -> str:
    """Return one line of ``name=value`` pairs."""
    done = f"{now.processed}/{total} {100 * now.processed / total:.1f}%" if total else now.processed
    pairs = [
        f"ok={now.succeeded}",
        f"failed={_failed(now)}",
        f"retrying={now.retrying}",
        f"inflight={now.in_flight}",
        *([f"hedged={now.hedged}"] if now.hedged else []),
        *([f"following={now.following}"] if now.following else []),
        *([f"cached={now.cached}"] if now.cached else []),
        *([f"shared={now.shared}"] if now.shared else []),
        f"rps={rates.items:.1f}",
        f"in_tps={short(rates.input_tokens)}",
        f"out_tps={short(rates.output_tokens)}",
        *(cost_pairs(bill) if bill else []),
    ]
    if now.state == "cooling":
        pairs.append(f"resumes_s={now.cooldown_remaining_seconds:.0f}")
    pairs += [f"waits_for={reason.replace(' ', '_')}" for reason in _waits_for(now)]
    pairs += [f"overloaded_since={_time(pause)}" for pause in now.pauses if pause.overloaded_since]
    pairs += [f"stopped={safe(lane.model).replace(' ', '_')}" for lane in now.stopped_lanes]
    if (left := time_left(now, total)) is not None:
        pairs.append(f"eta_s={left:.0f}")
    failures = _failures(now)
    for code in sorted(failures.keys() | now.retries_by_code.keys()):
        count = failures.get(code, 0) + now.retries_by_code.get(code, 0)
        pairs.append(f"err.{code}={count}")
    return f"batch-llm {now.state} {done} {' '.join(pairs)}"


def _failures(now: Statistics) -> dict[str, int]:
    """Return the failed items by code; those that a stop cut off have not failed."""
    return {code: count for code, count in now.failures_by_code.items() if code != "cancelled"}


def _failed(now: Statistics) -> int:
    return now.failed - now.failures_by_code.get("cancelled", 0)


def without_cancelled(now: Statistics) -> Statistics:
    """Return the numbers without the items that a stop cut off: those have not failed."""
    cut_off = now.failures_by_code.get("cancelled", 0)
    if not cut_off:
        return now
    return msgspec.structs.replace(
        now,
        processed=now.processed - cut_off,
        failed=_failed(now),
        failures_by_code=_failures(now),
        error_counts={name: count for name, count in now.error_counts.items() if name != _CUT_OFF},
    )


def _waits_for(now: Statistics) -> list[str]:
    return list(dict.fromkeys(pause.reason for pause in now.pauses))


def _bar(now: Statistics, total: int | None, width: int) -> str:
    if not total:
        return f"{now.processed:,} done (total unknown)"[:width]
    share = min(1.0, now.processed / total)
    left = time_left(now, total)
    tail = f"  {share:4.0%}  {now.processed:,}/{total:,}"
    tail += f"  ETA {clock(left)}" if left is not None else ""
    room = max(4, width - len(tail))
    full = int(share * room)
    return "━" * full + "╌" * (room - full) + tail


_SHORT_NAMES = {
    "requests": "RPM",
    "tokens": "TPM",
    "input_tokens": "ITPM",
    "output_tokens": "OTPM",
    "requests_per_day": "RPD",
    "concurrency": "in flight",
}


def limit_fields(now: Statistics) -> list[str]:
    """Return the limits of the first lane or key, and how many others there are.

    Their numbers are in the JSON.
    """
    lanes = list(dict.fromkeys(limit.lane for limit in now.limits))
    shown = [_limit(limit) for limit in now.limits if limit.lane == lanes[0]]
    return [*shown, f"+{len(lanes) - 1} more"] if len(lanes) > 1 else shown


def limit_name(dimension: str) -> str:
    """Return how a limit is called where there is little room."""
    return _SHORT_NAMES[dimension]


def _limit(limit: LearnedLimit) -> str:
    return f"{_SHORT_NAMES[limit.dimension]} {short(limit.limit)} ({limit.source})"


def _errors(now: Statistics) -> list[str]:
    """Failures before retries: what is lost matters more than what was healed."""
    failed = sorted(_failures(now).items(), key=lambda pair: -pair[1])
    retried = sorted(now.retries_by_code.items(), key=lambda pair: -pair[1])
    return [f"{code} {count:,} failed" for code, count in failed] + [
        f"{code} {count:,} retried" for code, count in retried
    ]


def _state(now: Statistics) -> str:
    if now.start_time is None:
        return "state  starting"
    stopped = [
        f"{lane.model or 'the provider'} is stopped ({lane.code})" for lane in now.stopped_lanes
    ]
    outages = [
        f"{pause.lane or 'the provider'} is overloaded since {_time(pause)}"
        f" ({_long(pause.overloaded_seconds)}), probing"
        for pause in now.pauses
        if pause.overloaded_seconds
    ]
    if outages or stopped:
        return "  ".join([f"state  {now.state}", *outages, *stopped])
    if now.state == "cooling":
        detail = f"resumes in {_long(now.cooldown_remaining_seconds)} ({_reason(now)})"
        return f"state  cooling  {detail}"
    pauses = [
        f"{pause.lane or 'the provider'} opens in {_long(pause.seconds)} ({pause.reason})"
        for pause in now.pauses
    ]
    return "  ".join([f"state  {now.state}", *pauses])


def _time(pause: LanePause) -> str:
    since = pause.overloaded_since
    return "?" if since is None else since.astimezone().strftime("%H:%M")


def _long(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds < _LONG_SECONDS else clock(seconds)


def _reason(now: Statistics) -> str | None:
    """Name the limit that is used up as the limits are named, with where it is known from."""
    reason = now.cooldown_reason
    for limit in now.limits:
        if limit.dimension == reason:
            return f"{_limit(limit)} used up"
    return reason


def _fitted(label: str, fields: list[str], width: int) -> str:
    """Join fields as long as they fit; those on the right are dropped first, and that is shown."""
    line = f"{label} {fields[0]}"
    for position, field in enumerate(fields[1:], 1):
        is_last = position == len(fields) - 1
        if len(line) + 2 + len(field) + (0 if is_last else 3) > width:
            return f"{line}  …"
        line += f"  {field}"
    return line
