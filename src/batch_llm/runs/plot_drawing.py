"""A run's pace as a picture: pure functions from looks at its numbers to SVG.

The colours are ones that colour-blind people can tell apart (Okabe and Ito).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

from batch_llm.core.text import safe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WIDTH, LEFT, RIGHT = 960, 76, 16
HEAD, PANEL, GAP, FOOT = 84, 170, 34, 44
#: Bars at the most; each is so many seconds wide as there is a round number for.
MOST_BARS = 120
#: A limit far above everything that happened does not flatten the rest.
MOST_ABOVE = 1.5
SKY, BLUE, RED, GREY, INK = "#8FCBEE", "#0072B2", "#D55E00", "#999999", "#222222"


class Look(NamedTuple):
    """A run's numbers at one moment; counts are since its start.

    Attributes:
        seconds: Since the run's start.
        calls: Sent, refused and failed ones included.
        refused: By a rate limit.
        failed: Otherwise, and tried again.
        tokens: Of all answers, input and output.
        in_flight: Calls under way.
        most: Calls in flight at the most.
        request_limit: Per minute, and its source; None where none is known.
    """

    seconds: float
    calls: int
    refused: int
    failed: int
    tokens: int
    in_flight: int
    most: int
    request_limit: tuple[float, str] | None


class _Scale(NamedTuple):
    """Where values are in the picture."""

    seconds: float
    top: float
    highest: float

    def x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.seconds

    def y(self, value: float) -> float:
        return self.top + PANEL * (1 - min(value, self.highest) / self.highest)


def draw(looks: Sequence[Look], title: str = "") -> str:
    """Return the picture of a run as SVG.

    Args:
        looks: In order. Without two of them at different times there is nothing to be seen.
        title: Hostile text; it is cleaned and escaped.
    """
    seconds = looks[-1].seconds if looks else 0.0
    if seconds <= 0 or looks[-1].calls == 0:
        return _page(HEAD, title, "Nothing was sent.", [])
    step = _bar_seconds(seconds)
    edges = [min(step * number, seconds) for number in range(math.ceil(seconds / step) + 1)]
    has_tokens = looks[-1].tokens > 0
    panels = [_calls_panel, _tokens_panel, _flight_panel] if has_tokens else [
        _calls_panel, _flight_panel,
    ]  # fmt: skip
    parts: list[str] = []
    top = float(HEAD)
    for panel in panels:
        parts += panel(looks, edges, top)
        top += PANEL + GAP
    bottom = top - GAP
    parts += _time_axis(seconds, bottom)
    last = looks[-1]
    told = (
        f"{last.calls:,} calls in {_duration(seconds)}, {last.refused:,} refused "
        f"({100 * last.refused / last.calls:.1f} %), {last.failed:,} failed otherwise"
    )
    return _page(bottom + FOOT, title, told, parts)


def _calls_panel(looks: Sequence[Look], edges: Sequence[float], top: float) -> list[str]:
    refused = _rates(looks, edges, lambda look: look.refused)
    failed = _rates(looks, edges, lambda look: look.failed)
    # A call is counted when it is sent, and its refusal when that comes.
    let_in = [
        max(0.0, sent - lost - other)
        for sent, lost, other in zip(
            _rates(looks, edges, lambda look: look.calls), refused, failed, strict=True
        )
    ]
    layers = [("let in", SKY, let_in), ("refused (429)", RED, refused)]
    if any(failed):
        layers.append(("failed otherwise", GREY, failed))
    limit = [(look.seconds, look.request_limit) for look in looks]
    return _panel("calls per second", layers, limit, edges, top)


def _tokens_panel(looks: Sequence[Look], edges: Sequence[float], top: float) -> list[str]:
    layers = [("of answers, input and output", SKY, _rates(looks, edges, lambda look: look.tokens))]
    # No limit beside them: what counts against one is another number at each provider.
    return _panel("tokens per second", layers, [], edges, top)


def _flight_panel(looks: Sequence[Look], edges: Sequence[float], top: float) -> list[str]:
    highest = 1.15 * max(1, *(look.in_flight for look in looks))
    scale = _Scale(edges[-1], top, highest)
    points = [(0.0, 0), *((look.seconds, look.in_flight) for look in looks)]
    steps = " ".join(
        f"V{scale.y(value):.1f}H{scale.x(after):.1f}"
        for (_, value), (after, _) in zip(points, [*points[1:], (edges[-1], 0)], strict=True)
    )
    area = f"M{LEFT},{scale.y(0):.1f}{steps}V{scale.y(0):.1f}Z"
    parts = [f'<path d="{area}" fill="{SKY}"/>', *_frame("calls in flight", scale)]
    legend = [("in flight", SKY, False)]
    most = looks[-1].most
    if most <= highest:
        parts.append(_line([(0.0, most), (edges[-1], most)], scale))
        legend.append((f"the most: {most:,}", BLUE, True))
    return parts + _legend(legend, top)


def _panel(
    name: str,
    layers: Sequence[tuple[str, str, list[float]]],
    limit: Sequence[tuple[float, tuple[float, str] | None]],
    edges: Sequence[float],
    top: float,
) -> list[str]:
    """Draw bars upon each other, and the limit as it was believed at each moment."""
    highest_bar = max(map(sum, zip(*(values for _, _, values in layers), strict=True)))
    believed = [(at, one[0] / 60) for at, one in limit if one is not None]
    highest_limit = max((value for _, value in believed), default=0.0)
    highest = 1.15 * max(highest_bar, min(highest_limit, MOST_ABOVE * highest_bar), 1e-9)
    scale = _Scale(edges[-1], top, highest)
    parts = []
    floors = [0.0] * (len(edges) - 1)
    for _, colour, values in layers:
        shapes = []
        for number, value in enumerate(values):
            if value <= 0:
                continue
            left, right = scale.x(edges[number]), scale.x(edges[number + 1])
            low, high = scale.y(floors[number]), scale.y(floors[number] + value)
            shapes.append(f"M{left:.1f},{low:.1f}V{high:.1f}H{right:.1f}V{low:.1f}Z")
            floors[number] += value
        if shapes:
            parts.append(f'<path d="{"".join(shapes)}" fill="{colour}"/>')
    parts += _frame(name, scale)
    legend = [(label, colour, False) for label, colour, _ in layers]
    if believed:
        source = next(one[1] for _, one in reversed(limit) if one is not None)
        parts += [_line(stretch, scale) for stretch in _stretches(limit, edges[-1])]
        legend.append((f"limit ({source})", BLUE, True))
    return parts + _legend(legend, top)


def _stretches(
    limit: Sequence[tuple[float, tuple[float, str] | None]], end: float
) -> Iterator[list[tuple[float, float]]]:
    """Give the stretches of time in which a limit was believed in, per second."""
    points: list[tuple[float, float]] = []
    for at, one in limit:
        if points:
            points.append((at, points[-1][1]))
        if one is not None:
            points.append((at, one[0] / 60))
        elif points:
            yield points
            points = []
    if points:
        yield [*points, (end, points[-1][1])]


def _rates(
    looks: Sequence[Look], edges: Sequence[float], count: Callable[[Look], int]
) -> list[float]:
    """Return how much a count grew per second, from one edge to the next."""
    points = [(0.0, 0.0), *((look.seconds, float(count(look))) for look in looks)]
    values, at = [], 0
    for edge in edges:
        while at < len(points) - 1 and points[at + 1][0] <= edge:
            at += 1
        (before, low), (after, high) = points[at], points[min(at + 1, len(points) - 1)]
        share = (edge - before) / (after - before) if after > before else 0.0
        values.append(low + share * (high - low))
    return [
        (high - low) / (after - before) if after > before else 0.0
        for low, high, before, after in zip(values, values[1:], edges, edges[1:], strict=False)
    ]


def _bar_seconds(seconds: float) -> float:
    least = max(seconds / MOST_BARS, 0.1)
    rounds = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600]
    return next((one for one in rounds if one >= least), 3600.0 * math.ceil(least / 3600))


def _ticks(highest: float, most: int) -> list[float]:
    """Return round numbers from 0 to at most ``highest``, some ``most`` of them."""
    least = highest / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    return [step * number for number in range(int(highest / step) + 1)]


def _frame(name: str, scale: _Scale) -> list[str]:
    bottom = scale.top + PANEL
    middle = scale.top + PANEL / 2
    parts = [
        f'<path d="M{LEFT},{scale.top}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="{INK}"/>',
        (
            f'<text x="16" y="{middle}" text-anchor="middle" '
            f'transform="rotate(-90 16 {middle})">{name}</text>'
        ),
    ]
    parts += [
        f'<path d="M{LEFT - 5},{scale.y(tick):.1f}H{LEFT}" stroke="{INK}"/>'
        f'<text x="{LEFT - 8}" y="{scale.y(tick) + 4:.1f}" text-anchor="end">{tick:,.6g}</text>'
        for tick in _ticks(scale.highest, 5)
    ]
    return parts


def _time_axis(seconds: float, bottom: float) -> list[str]:
    unit, factor = ("seconds", 1.0) if seconds < 180 else ("minutes", 60.0)
    if seconds >= 10_800:
        unit, factor = "hours", 3600.0
    scale = _Scale(seconds, 0.0, 1.0)
    parts = [
        f'<path d="M{scale.x(tick * factor):.1f},{bottom}v5" stroke="{INK}"/>'
        f'<text x="{scale.x(tick * factor):.1f}" y="{bottom + 19}" text-anchor="middle">'
        f"{tick:,.6g}</text>"
        for tick in _ticks(seconds / factor, 10)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{bottom + 37}" text-anchor="middle">{unit} since the start</text>'
    )
    return parts


def _line(points: Sequence[tuple[float, float]], scale: _Scale) -> str:
    path = "L".join(f"{scale.x(at):.1f},{scale.y(value):.1f}" for at, value in points)
    return f'<path d="M{path}" fill="none" stroke="{BLUE}" stroke-width="2"/>'


def _legend(entries: Sequence[tuple[str, str, bool]], top: float) -> list[str]:
    parts, x, y = [], LEFT + 10.0, top - 8
    for label, colour, is_line in entries:
        height, up = (3, 5) if is_line else (10, 9)
        parts.append(f'<rect x="{x}" y="{y - up}" width="18" height="{height}" fill="{colour}"/>')
        parts.append(f'<text x="{x + 24}" y="{y}">{escape(label)}</text>')
        x += 24 + 7.2 * len(label) + 26
    return parts


def _page(height: float, title: str, told: str, parts: Sequence[str]) -> str:
    head = escape(safe(title, 90))
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" font-family="sans-serif" font-size="13" '
            f'fill="{INK}" role="img">'
        ),
        f"<title>{head}</title>",
        f'<rect width="{WIDTH}" height="{height:g}" fill="#FFFFFF"/>',
        f'<text x="16" y="22" font-size="15" font-weight="bold">{head}</text>',
        f'<text x="16" y="42">{escape(told)}</text>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    if seconds < 180:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
