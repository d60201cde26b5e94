"""What a run will take, from what is known before it is sent."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest

from batch_llm import ConfigError
from batch_llm.cli import values
from batch_llm.cli.estimate import (
    KnownLimit,
    Sample,
    input_estimate,
    make,
    output_interval,
)
from batch_llm.core.prices import ModelUsage, Price, Prices

PRICES = Prices({"a:b": Price(input=1, output=10, cache_read=0, batch="0.5")})


def estimate(**changes):
    given = {
        "rows": 100,
        "characters": 40_000,
        "most_output": None,
        "model": "a:b",
        "server": "",
        "prices": PRICES,
        "limits": [],
    }
    return make(**given | changes)


def test_without_a_pilot_only_the_bounds_are_known():
    found = estimate()

    assert found.input_tokens == 10_000
    assert found.output_tokens == (0, None, None)
    assert found.cost_usd == (Decimal("0.01"), None)
    assert found.seconds is None


def test_max_tokens_bounds_the_output_and_the_cost():
    found = estimate(most_output=50)

    assert found.output_tokens == (0, None, 5000)
    assert found.cost_usd == (Decimal("0.01"), Decimal("0.06"))
    assert found.batch_cost_usd == (Decimal("0.005"), Decimal("0.03"))


def test_no_price_is_no_cost_and_not_zero():
    found = estimate(model="c:d")

    assert found.cost_usd is found.batch_cost_usd is None


def test_a_pilot_teaches_tokens_per_character():
    assert input_estimate([Sample(100, 50, 1), Sample(300, 70, 1)], 4000) == 1200


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_holds_nine_times_in_ten(seed):
    draw = random.Random(seed)
    held = 0
    for _ in range(400):
        rows = [Sample(1, 1, round(draw.lognormvariate(5, 0.4))) for _ in range(300)]
        found = output_interval(draw.sample(rows, 20), 300, None)
        held += found.low <= sum(row.output_tokens for row in rows) <= found.high

    assert 0.85 <= held / 400 <= 0.95


def test_a_pilot_of_all_rows_knows_all():
    assert output_interval([Sample(1, 1, 5), Sample(1, 1, 9)], 2, None) == (14, 14, 14)


def test_a_pilot_of_one_row_knows_no_upper_end():
    assert output_interval([Sample(1, 1, 5)], 10, None) == (5, 50, None)


def test_no_interval_passes_max_tokens():
    samples = [Sample(1, 1, 1), Sample(1, 1, 99)]

    assert output_interval(samples, 10, 100).high == 1000


def test_what_came_from_caches_is_taken_to_go_on():
    used = [ModelUsage(model="a:b", input_tokens=100, output_tokens=10, cache_read_tokens=50)]
    samples = [Sample(200, 50, 5), Sample(200, 50, 5)]

    found = estimate(samples=samples, used=used)

    assert found.cost_usd == (Decimal("0.01"), Decimal("0.01"))  # 5,000 in at 1, 500 out at 10


def test_the_tightest_limit_says_how_long():
    limits = [KnownLimit("requests", 50, "told"), KnownLimit("input_tokens", 1000, "header")]

    found = estimate(limits=limits)

    assert (found.seconds, found.limit) == (540, limits[1])  # 1,000 of 10,000 go at once


def test_a_limit_a_day_counts_in_days():
    assert estimate(limits=[KnownLimit("requests_per_day", 50, "told")]).seconds == 86_400


def test_a_limit_that_is_not_reached_holds_nothing_up():
    limits = [KnownLimit("requests", 1000, "told"), KnownLimit("requests_per_day", 200, "told")]

    found = estimate(limits=limits)

    assert (found.seconds, found.limit) == (0, limits[1])


NOON = datetime(2026, 11, 26, 12, 0, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6h", 21_600), ("90m", 5400), ("12:30", 1800), ("11:59", 86_340), ("2026-11-26T13:00", 3600),
     ("2026-11-26T11:00Z", 3600)],
)  # fmt: skip
def test_a_deadline_is_a_duration_or_a_time(text, seconds):
    assert values.read_deadline("--deadline", text, NOON) == seconds


@pytest.mark.parametrize("text", ["25:00", "2020-01-01", "soon", "0s", "2026-13-01"])
def test_a_deadline_that_cannot_be_is_refused(text):
    with pytest.raises(ConfigError, match="--deadline"):
        values.read_deadline("--deadline", text, NOON)


@pytest.mark.parametrize(("text", "amount"), [("20", "20"), ("$0.10", "0.10"), ("1,000", "1000")])
def test_amounts_are_read_exactly(text, amount):
    assert values.read_usd("--max-cost", text) == Decimal(amount)


@pytest.mark.parametrize("text", ["0", "-1", "much", "inf", "nan"])
def test_amounts_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="--max-cost"):
        values.read_usd("--max-cost", text)
