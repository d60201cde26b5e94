"""A run's plot says what happened, in bounded memory, and trusts no text."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET

import pytest

from batch_llm import ConfigError, Limits, LLMWorkItem, ParallelBatchProcessor, ProcessorConfig
from batch_llm._engine.statistics import Counts, LearnedLimit
from batch_llm.runs.plot import MOST_LOOKS, Plot, checked_plot
from batch_llm.runs.plot_drawing import BLUE, GREY, LEFT, PANEL, RED, RIGHT, SKY, WIDTH, Look, draw

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return ["".join(one.itertext()) for one in ET.fromstring(svg).iter(f"{SVG}text")]


def paths(svg, **wanted):
    found = ET.fromstring(svg).iter(f"{SVG}path")
    return [one.get("d") for one in found if all(one.get(k) == v for k, v in wanted.items())]


def rectangles(path):
    """Read bars: (left, right, height in pixels)."""
    bars = []
    for bar in path.removesuffix("Z").split("Z"):
        corner, high, right, _ = bar.replace("V", " ").replace("H", " ").lstrip("M").split(" ")
        left, low = map(float, corner.split(","))
        bars.append((left, float(right), round(low - float(high), 1)))
    return bars


def steady(seconds, per_second=10, *, refused=0, failed=0, limit=None):
    """One look a second at a run that sends evenly."""
    return [
        Look(at, per_second * at, refused * at, failed * at, 0, 5, 1000, limit)
        for at in range(1, seconds + 1)
    ]


def test_the_bars_are_what_was_let_in_refused_and_failed_each_second():
    svg = draw(steady(10, 10, refused=2, failed=1))

    let_in = rectangles(paths(svg, fill=SKY)[0])
    refused = rectangles(paths(svg, fill=RED)[0])
    failed = rectangles(paths(svg, fill=GREY)[0])
    highest = 1.15 * 10
    for bars, per_second in ((let_in, 7), (refused, 2), (failed, 1)):
        for *_, height in bars:
            assert height == pytest.approx(PANEL * per_second / highest, abs=0.2)
    assert (let_in[0][0], let_in[-1][1]) == (LEFT, WIDTH - RIGHT)
    assert "100 calls in 10.0 s, 20 refused (20.0 %), 10 failed otherwise" in texts(svg)


def test_the_limit_is_a_line_where_it_was_known_and_says_its_source():
    unknown, known = steady(9), steady(9, limit=(600.0, "learned"))
    svg = draw([*unknown[:3], *known[3:6], *unknown[6:]])

    (line,) = paths(svg, stroke=BLUE)
    xs = {float(point.split(",")[0]) for point in line.lstrip("M").split("L")}
    a_second = (WIDTH - LEFT - RIGHT) / 9
    assert min(xs) == pytest.approx(LEFT + 4 * a_second, abs=0.1)
    assert max(xs) == pytest.approx(LEFT + 7 * a_second, abs=0.1)
    assert "limit (learned)" in texts(svg)
    assert not paths(draw(unknown), stroke=BLUE)


def test_a_limit_far_above_what_was_sent_flattens_nothing():
    svg = draw(steady(10, 10, limit=(600_000.0, "header")))

    heights = {height for *_, height in rectangles(paths(svg, fill=SKY)[0])}
    assert min(heights) > PANEL / 2


def test_a_long_run_has_no_more_bars_than_can_be_seen():
    svg = draw(steady(86_400))

    assert len(rectangles(paths(svg, fill=SKY)[0])) <= 120
    assert "hours since the start" in texts(svg)


def test_titles_are_text_and_nothing_else():
    svg = draw(steady(3), 'a<script>alert("x")</script>\x1b[31m&\u202e')

    assert "<script" not in svg
    assert "\x1b" not in svg
    assert texts(svg)[0].startswith('a<script>alert("x")</script>')


@pytest.mark.parametrize("looks", [[], [Look(0.0, 0, 0, 0, 0, 0, 1, None)], steady(2, 0)])
def test_a_run_that_sent_nothing_has_a_picture_too(looks):
    assert "Nothing was sent." in texts(draw(looks))


def test_looks_are_bounded_and_span_the_whole_run():
    plot, counts = Plot(), Counts()
    for number in range(20 * MOST_LOOKS):
        counts.attempts = number
        plot.look(
            counts.snapshot(
                total=None, state="running", concurrency=1, elapsed_seconds=float(number)
            )
        )

    looks = plot.looks
    assert MOST_LOOKS / 2 <= len(looks) <= MOST_LOOKS + 1
    assert looks[0].seconds == 0
    assert looks[-1].seconds >= 20 * MOST_LOOKS - 40
    assert [look.calls for look in looks] == [look.seconds for look in looks]


@pytest.mark.parametrize(
    ("limits", "believed"),
    [
        ([("a", "requests", 60.0, "told"), ("b", "requests", 40.0, "told")], (100.0, "told")),
        ([("a", "requests", 60.0, "told"), ("b", "requests", 40.0, "header")], (100.0, "mixed")),
        ([("a", "requests", 60.0, "told"), ("b", "tokens", 40.0, "told")], None),
        ([("a", "tokens", 60.0, "told")], None),
    ],
)
def test_the_limit_of_several_lanes_is_their_sum_where_all_have_one(limits, believed):
    plot = Plot()
    plot.look(
        Counts().snapshot(
            total=None,
            state="running",
            concurrency=1,
            elapsed_seconds=1.0,
            limits=[LearnedLimit(*one) for one in limits],
        )
    )

    assert plot.looks[0].request_limit == believed


@pytest.mark.parametrize("path", ["run.png", "nowhere/run.svg", "results.jsonl"])
def test_a_path_that_cannot_be_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^--plot must be"):
        checked_plot("--plot", path)


def test_a_plot_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    old = tmp_path / "run.svg"
    old.write_text("old")
    plot = Plot()
    monkeypatch.setattr(plot, "svg", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        plot.save(old)

    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.anyio
async def test_any_processor_can_be_watched():
    async def answer(attempt, timeout):
        await asyncio.sleep(1.0)
        return "ok", {}

    limits = Limits(requests_per_minute=60, burst_seconds=1)
    processor = ParallelBatchProcessor(config=ProcessorConfig(limits=limits))
    for number in range(5):
        await processor.add_work(LLMWorkItem(str(number), direct_call=answer))
    plot = Plot("mine")

    async with plot.watching(processor.statistics):
        await processor.process_all()

    assert plot.looks[-1].calls == 5
    assert plot.looks[-1].request_limit == (60, "told")
    assert max(look.in_flight for look in plot.looks) >= 1
    assert len(plot.looks) > 20
    assert "limit (told)" in texts(plot.svg())
