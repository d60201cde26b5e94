"""The pictures of docs/admission.md: the controller in virtual time, against small providers.

    uv run --group bench python benchmarks/pictures.py [--into docs/images] [NAME ...]

Nothing is timed and nothing is random but for a fixed seed: the same code draws the same files.
What decides is the engine's own lane with its admission; what is written by hand is the provider.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

from batch_llm._engine.lane import Lane
from batch_llm._engine.places import Place
from batch_llm.core.config import Limits
from batch_llm.providers.base import LaneFacts
from batch_llm.strategies.admission import Admission
from batch_llm.strategies.admission.header_belief import LimitHeader
from batch_llm.strategies.costs import Cost
from batch_llm.strategies.dimensions import REQUESTS
from batch_llm.strategies.errors import ErrorCode

CALL = Cost()
#: An answer comes after so long, more or less; a refusal or a failure after so long.
ANSWER_SECONDS, ANSWER_SPREAD, REFUSAL_SECONDS = 0.5, 0.3, 0.1
#: Colours that colour-blind people can tell apart (Okabe and Ito).
BLUE, SKY, ORANGE, RED, GREEN = "#0072B2", "#8FCBEE", "#E69F00", "#D55E00", "#009E73"
GREY = "#ECECEC"


class Reply(NamedTuple):
    """What becomes of a call: ``taken``, ``refused``, ``failed`` or ``unpaid``."""

    end: str
    retry_after: float | None = None
    header: LimitHeader | None = None


class Bucket:
    """Holds so many seconds of its rate, and fills evenly.

    Args:
        rate: Calls a second.
        burst_seconds: What it holds.
        change: From when on the rate is multiplied by what.
        tells: Whether answers have headers.
    """

    def __init__(self, rate, burst_seconds, *, change=(math.inf, 1.0), tells=False):
        self._rate, self._burst_seconds = rate, burst_seconds
        self._change, self._tells = change, tells
        self._level, self._at = rate * burst_seconds, 0.0

    def rate(self, now):
        at, factor = self._change
        return self._rate * (factor if now >= at else 1.0)

    def reply(self, now):
        rate = self.rate(now)
        holds = max(1.0, rate * self._burst_seconds)
        self._level = min(holds, self._level + rate * (now - self._at))
        self._at = now
        is_taken = self._level >= 1 - 1e-6  # the clock is made of fractions
        self._level -= is_taken
        header = None
        if self._tells:
            header = LimitHeader(60 * rate, math.floor(self._level), (holds - self._level) / rate)
        if is_taken:
            return Reply("taken", header=header)
        return Reply("refused", math.ceil((1 - self._level) / rate), header)


class FixedMinute:
    """Counts from each minute's start; the first minute had begun before."""

    def __init__(self, limit, first_end):
        self._limit, self._ends_at, self._used = limit, first_end, 0

    def reply(self, now):
        while now >= self._ends_at:
            self._ends_at, self._used = self._ends_at + 60, 0
        if self._used >= self._limit:
            return Reply("refused", math.ceil(self._ends_at - now))
        self._used += 1
        return Reply("taken")


class SlidingMinute:
    """Counts the last sixty seconds."""

    def __init__(self, limit):
        self._limit, self._taken = limit, deque()

    def reply(self, now):
        while self._taken and self._taken[0] <= now - 60:
            self._taken.popleft()
        if len(self._taken) >= self._limit:
            return Reply("refused", math.ceil(self._taken[0] + 60 - now))
        self._taken.append(now)
        return Reply("taken")


class Broken:
    """Another provider, but from one time to another it gives a different reply."""

    def __init__(self, provider, start, end, reply):
        self._provider, self._start, self._end, self._reply = provider, start, end, reply

    def reply(self, now):
        return self._reply if self._start <= now < self._end else self._provider.reply(now)


class Call(NamedTuple):
    """One call: when it was sent, by which place, and what became of it."""

    at: float
    place: int
    end: str


class Trial:
    """More calls than ever may go, sent as soon as the lane lets them.

    Args:
        providers: One for each key.
        limits: Told to the controller; None leaves it to find out.
        burst_seconds: Told with them.
    """

    def __init__(self, *providers, limits=None, burst_seconds=60.0):
        self.places = [
            Place(number, Admission(
                0.0, limits, dimensions=(REQUESTS,), burst_seconds=burst_seconds,
                dice=random.Random(number),
            ))
            for number in range(len(providers))
        ]  # fmt: skip
        self._lane = Lane("", LaneFacts(), self.places)
        self._providers = providers
        self.calls = []
        #: (time, believed calls a second, calls in flight) of the first place.
        self.beliefs = [(0.0, math.inf, 0)]

    def run(self, until):
        now, number, under_way, dice = 0.0, 0, [], random.Random(1)
        while now < until:
            place, wait = self._lane.best_place(now, CALL)
            while wait <= 0:
                reply = self._providers[place.number].reply(now)
                self.calls.append(Call(now, place.number, reply.end))
                seconds = REFUSAL_SECONDS
                if reply.end == "taken":
                    seconds = ANSWER_SECONDS * dice.lognormvariate(0, ANSWER_SPREAD)
                number += 1
                event = now + seconds, number, seconds, place, place.start(now, CALL), reply
                heapq.heappush(under_way, event)
                place, wait = self._lane.best_place(now, CALL)
            ends_at = under_way[0][0] if under_way else math.inf
            now = min(now + max(wait, 1e-3), max(ends_at, now))
            while under_way and under_way[0][0] <= now:
                self._end(now, *heapq.heappop(under_way)[2:])
            admission = self.places[0].admission
            self.beliefs.append((now, admission.budgets[REQUESTS].rate, admission.in_flight))
        return self

    def _end(self, now, seconds, place, grant, reply):
        headers = {} if reply.header is None else {REQUESTS: reply.header}
        if reply.end == "taken":
            place.ended(now, grant, is_good=True)
            place.admission.accepted(now, grant, None, headers)
        elif reply.end == "refused":
            place.ended(now, grant, is_good=None)
            place.admission.refused(
                now, grant, latency=seconds, retry_after=reply.retry_after, headers=headers
            )
        elif reply.end == "failed":
            place.ended(now, grant, is_good=None)
            place.admission.failed(now, grant)
        else:
            self._lane.failed(now, place, grant, ErrorCode.QUOTA, "out of credit")
            place.admission.accepted(now, grant)

    def at(self, end):
        """Return when the calls were sent that ended so."""
        return [call.at for call in self.calls if call.end == end]


def by_second(times, until):
    counts = Counter(math.floor(at) for at in times)
    return [counts[second] for second in range(until)]


def draw_calls(axis, trial, until, *, start=0):
    """Draw what was let in and what was refused in each second, one on the other."""
    let_in, refused = (by_second(trial.at(end), until) for end in ("taken", "refused"))
    both = [one + other for one, other in zip(let_in, refused, strict=True)]
    edges = range(until + 1)
    axis.stairs(let_in, edges, fill=True, color=SKY, linewidth=0, label="calls let in")
    axis.stairs(
        both, edges, baseline=let_in, fill=True, color=RED, linewidth=0,
        label="calls refused (429)",
    )  # fmt: skip
    marked = [second for second in range(start, until) if refused[second]]
    axis.plot(
        [second + 0.5 for second in marked], [both[second] for second in marked],
        linestyle="none", marker="x", markersize=4, color=RED,
    )  # fmt: skip


def draw_belief(axis, trial, until):
    known = [(at, rate) for at, rate, _ in trial.beliefs if rate < math.inf and at <= until]
    thinned = known[:1]
    for at, rate in known:
        last_at, last_rate = thinned[-1]
        if at - last_at > 0.2 or abs(rate - last_rate) > 0.03 * last_rate:
            thinned.append((at, rate))
    axis.step(
        *zip(*thinned, strict=True), where="post", color=BLUE, linewidth=1.6,
        label="the limit that batch-llm believes in",
    )  # fmt: skip


def draw_limit(axis, provider, until):
    seconds = range(until + 1)
    axis.step(
        seconds, [provider.rate(second) for second in seconds], where="post",
        color="black", linestyle=(0, (4, 2)), linewidth=1.2, label="the provider's limit",
    )  # fmt: skip


def frame(axis, until, title="", *, start=0):
    axis.set_xlim(start, until)
    axis.set_ylim(bottom=0)
    axis.set_title(title, fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def figure(width=8.0, height=3.4, **options):
    return plt.subplots(figsize=(width, height), layout="constrained", **options)


def what_a_limit_is():
    drawn, axis = figure(8, 3.4)
    axis.set(xlim=(0, 18.4), ylim=(0.7, 7.7))
    axis.set_aspect("equal")
    axis.axis("off")
    draw_buckets(axis, 0.3, 0.55, 0.6)
    draw_call(axis, 7.3, GREEN, "let in", "enough in both")
    draw_buckets(axis, 9.8, 0.5, 0.05)
    draw_call(axis, 16.8, RED, "refused: 429\nRetry-After: 2", "2,000 tokens\ntoo few")
    axis.plot([9.35, 9.35], [0.9, 7.3], color="#BBBBBB", linewidth=0.8)
    return drawn


def draw_buckets(axis, left, *shares):
    """Draw a bucket of requests and one of tokens, each filled to a share."""
    kinds = (("requests", 600, 60, SKY), ("tokens", 60_000, 20_000, ORANGE))
    for number, ((name, limit, holds, colour), share) in enumerate(zip(kinds, shares, strict=True)):
        x = left + 2.9 * number
        middle, full = x + 0.95, 3.2
        axis.add_patch(Rectangle((x, 1.6), 1.9, full * share, color=colour, linewidth=0))
        axis.plot(
            [x, x, x + 1.9, x + 1.9], [1.6 + full, 1.6, 1.6, 1.6 + full], color="black",
            linewidth=1.5, solid_capstyle="round",
        )  # fmt: skip
        arrow = (middle, 6.0), (middle, 4.9)
        axis.add_patch(FancyArrowPatch(*arrow, arrowstyle="-|>", mutation_scale=11, color=colour))
        unit = {"requests": "RPM", "tokens": "TPM"}[name]
        write(axis, middle, 6.75, f"{unit} {limit:,}:\n{limit // 60:,} {name}\na second")
        write(axis, middle, 2.0 + full * share, f"{holds * share:,.0f} left")
        write(axis, middle, 1.2, f"holds {holds:,}", color="#444444")


def draw_call(axis, x, colour, end, why):
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": colour, "linewidth": 1.5}
    write(axis, x, 4.6, "a call:\n1 request,\n3,000 tokens", bbox=box)
    write(axis, x, 3.15, why)
    write(axis, x, 2.0, end, color=colour, weight="bold")


def write(axis, x, y, text, **options):
    axis.text(x, y, text, ha="center", va="center", fontsize=8, **options)


def unknown_limit():
    until = 60
    provider = Bucket(50, 2)
    trial = Trial(provider).run(until)
    drawn, axis = figure(8, 3.6)
    draw_calls(axis, trial, until)
    draw_limit(axis, provider, until)
    draw_belief(axis, trial, until)
    frame(axis, until)
    refused = trial.at("refused")
    first = refused[0]
    found = next(at for at in refused if at > first + 1)  # not of the same burst
    top = 1.08 * axis.get_ylim()[1]
    axis.set_ylim(top=top)
    for edge in (first, found):
        axis.axvline(edge, color="#999999", linewidth=0.8)
    for at, text in (
        (first / 2, "start"),
        ((first + found) / 2, "search"),
        ((found + until) / 2, "hold, and search on where nothing is refused"),
    ):
        write(axis, at, 0.96 * top, text)
    axis.set_xlabel("seconds since the start", fontsize=9)
    axis.set_ylabel("calls per second", fontsize=9)
    axis.legend(fontsize=8, frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.65))
    return drawn


def limit_halved():
    until, limit = 70, {"change": (30, 0.5)}
    drawn, axes = figure(8, 3.4, ncols=2, sharey=True)
    titles = "Answers tell the limit (headers)", "Answers tell nothing"
    for axis, title, tells in zip(axes, titles, (True, False), strict=True):
        provider = Bucket(50, 2, tells=tells, **limit)
        trial = Trial(provider).run(until)
        draw_calls(axis, trial, until, start=20)
        draw_limit(axis, provider, until)
        draw_belief(axis, trial, until)
        frame(axis, until, title, start=20)
        axis.set_xlabel("seconds since the start", fontsize=9)
    axes[0].set_ylabel("calls per second", fontsize=9)
    axes[0].set_ylim(top=75)
    handles, labels = axes[1].get_legend_handles_labels()
    drawn.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    return drawn


def told_limit():
    until, limit = 240, 600
    drawn, axes = figure(8, 3.2, ncols=3, sharey=True)
    kinds = {
        "Bucket": (Bucket(limit / 60, 60), lambda second: limit + limit / 60 * second),
        "Fixed minute": (
            FixedMinute(limit, 40), lambda second: limit * (1 + math.floor((second + 20) / 60)),
        ),
        "Sliding minute": (
            SlidingMinute(limit), lambda second: limit * (1 + math.floor(second / 60)),
        ),
    }  # fmt: skip
    for axis, (title, (provider, most)) in zip(axes, kinds.items(), strict=True):
        told = Limits(requests_per_minute=limit)
        trial = Trial(provider, limits=told, burst_seconds=59.8).run(until)
        sums, total = [], 0
        for count in by_second(trial.at("taken"), until):
            sums.append(total)
            total += count
        axis.step(
            range(until), [most(second) for second in range(until)], where="post", color="black",
            linestyle=(0, (4, 2)), linewidth=1.0, label="the most that\nthe provider allows",
        )  # fmt: skip
        axis.plot(range(until), sums, color=BLUE, linewidth=1.8, label="calls let in")
        refused = trial.at("refused")
        axis.plot(
            refused, [sums[math.floor(at)] for at in refused], linestyle="none", marker="x",
            color=RED, markersize=5, label="calls refused (429)",
        )  # fmt: skip
        frame(axis, until, f"{title}: {len(refused)} refused")
        axis.set_xticks(range(0, until + 1, 60))
        axis.set_yticks(range(0, 3601, limit))
        axis.set_xlabel("seconds", fontsize=9)
    axes[0].set_ylabel("calls since the start", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    return drawn


def outage():
    until, start, end = 75, 20, 50
    provider = Broken(Bucket(20, 2, tells=True), start, end, Reply("failed"))
    trial = Trial(provider).run(until)
    drawn, (upper, lower) = figure(8, 3.4, nrows=2, sharex=True, height_ratios=(4, 1))
    for axis in (upper, lower):
        axis.axvspan(start, end, color=GREY, linewidth=0)
    draw_calls(upper, trial, until, start=10)
    frame(upper, until, start=10)
    top = 1.25 * upper.get_ylim()[1]
    upper.set_ylim(top=top)
    write(upper, (start + end) / 2, 0.9 * top, "the provider is down")
    failed = trial.at("failed")
    lower.plot(failed, [0.5] * len(failed), linestyle="none", marker="x", color=RED, markersize=5)
    frame(lower, until, start=10)
    lower.set(yticks=[], ylim=(0, 1))
    lower.set_ylabel("calls\nthat fail", fontsize=9)
    lower.set_xlabel("seconds since the start", fontsize=9)
    upper.set_ylabel("calls per second", fontsize=9)
    return drawn


def pool():
    until, start, end = 70, 20, 45
    keys = [Bucket(10, 2) for _ in range(3)]
    keys[1] = Broken(keys[1], start, end, Reply("unpaid"))
    trial = Trial(*keys, limits=Limits(requests_per_minute=600), burst_seconds=1.8).run(until)
    drawn, axis = figure(8, 3.0)
    axis.axvspan(start, end, color=GREY, linewidth=0)
    below = [0] * until
    for number, colour in enumerate((BLUE, ORANGE, SKY)):
        times = [call.at for call in trial.calls if call.place == number and call.end == "taken"]
        above = [one + new for one, new in zip(below, by_second(times, until), strict=True)]
        axis.stairs(
            above, range(until + 1), baseline=below, fill=True, color=colour, linewidth=0,
            label=f"key {number + 1}",
        )  # fmt: skip
        below = above
    frame(axis, until, start=10)
    axis.set_ylim(top=50)
    write(axis, (start + end) / 2, 35, "key 2 is out of credit")
    axis.annotate(
        "one call\ntries it", (50, 21), (47.5, 35), fontsize=8, ha="center", va="center",
        arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 0.8},
    )  # fmt: skip
    axis.set_xlabel("seconds since the start", fontsize=9)
    axis.set_ylabel("calls per second", fontsize=9)
    axis.legend(fontsize=8, frameon=False, loc="upper right", ncols=3)
    return drawn


PICTURES = {
    "what-a-limit-is": what_a_limit_is,
    "unknown-limit": unknown_limit,
    "limit-halved": limit_halved,
    "told-limit": told_limit,
    "outage": outage,
    "pool-of-keys": pool,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--into", type=Path, default=Path("docs/images"))
    parser.add_argument("--kind", choices=("svg", "png"), default="svg")
    options = parser.parse_args()
    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "batch-llm", "font.family": "DejaVu Sans"})
    metadata = {"Date": None, "Creator": None} if options.kind == "svg" else {}
    for name in options.names or PICTURES:
        drawn = PICTURES[name]()
        path = options.into / f"{name}.{options.kind}"
        drawn.savefig(path, dpi=100, facecolor="white", metadata=metadata)
        plt.close(drawn)
        print(path)


if __name__ == "__main__":
    main()
