from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest

from batch_llm._engine.statistics import Counts
from batch_llm.cli.costs import (
    bill_note,
    bill_of_run,
    cost_fields,
    cost_pairs,
    cost_record,
    cost_summary,
    problem_of_note,
    tokens_in_all,
)
from batch_llm.cli.summary import summary_lines
from batch_llm.core.prices import ModelUsage, Price, Prices
from batch_llm.stores.base import Spent


def usage(**kinds):
    return ModelUsage(model="a:b", **{"calls": 1, "input_tokens": 1_000_000} | kinds)


OWN = Prices({"a:b": Price(input=1, output=2)})


def test_a_bill_is_shown_with_what_it_will_be_and_the_cap():
    counts = Counts()
    counts.succeeded = 50
    now = counts.snapshot(total=100, state="running", concurrency=1, elapsed_seconds=60)

    fields = cost_fields(now, OWN.bill([usage()]), 100, Decimal(20))

    assert fields == ["$1.00 so far", "~$2.00 at end", "$1.00/min", "cap $20.00"]


def test_what_has_no_price_is_said_to_have_none():
    bill = Prices().bill([ModelUsage(model="sim:fast", calls=1, input_tokens=5)])
    now = Counts().snapshot(total=1, state="running", concurrency=1)

    assert cost_fields(now, bill, 100, None) == ["n/a (no price for sim:fast)"]
    assert cost_pairs(bill) == ["cost_usd=unknown"]
    assert cost_summary(bill).startswith("unknown: no price for sim:fast")
    assert cost_record(bill)["cost_usd"] is None


def test_where_no_cost_is_known_at_all_none_is_named():
    of_code = Prices().bill([ModelUsage(model="", unmeasured_calls=60)])
    cut_off = OWN.bill([ModelUsage(model="a:b", unmeasured_calls=1)])

    words = "without known tokens, which may have cost more"
    assert cost_summary(of_code) == f"unknown; 60 calls {words}"
    assert cost_summary(cut_off) == f"unknown; 1 call {words}"


def test_a_sum_with_unknown_parts_says_so():
    used = [usage(unmeasured_calls=2), ModelUsage(model="c:d", calls=1)]
    bill = OWN.bill(used)

    assert cost_pairs(bill) == ["cost_usd=1.0000+"]
    assert cost_summary(bill) == (
        "$1.00, and what c:d cost; 2 calls without known tokens, which may have cost more"
    )
    assert cost_record(OWN.bill(used[:1])) == {
        "cost_usd": "1.000000",
        "unpriced_models": [],
        "unmeasured_calls": 2,
        "cost_before_usd": "0",
        "cut_off_calls": 0,
        "cut_off_likely_usd": "0",
        "cut_off_at_most_usd": "0",
    }


def test_a_run_without_earlier_sessions_tells_its_tokens_once():
    now = Counts().snapshot(total=1, state="finished", concurrency=1)

    assert not tokens_in_all(now)
    assert not any(line.startswith("  in all") for line in summary_lines(now))


def cut_off(sent, got, calls=2):
    return [ModelUsage(model="a:b", calls=calls, input_tokens=sent, output_tokens=got)]


@pytest.mark.parametrize(
    ("likely", "tokens", "cost"),
    [
        (
            cut_off(10**6, 10**6),
            "about 1,000,000 in, 1,000,000 out, at most 1,000,000 in, 4,000,000 out",
            "about $3.00, at most $9.00",
        ),
        # Of a model without another call nobody can tell; one of two calls is not both.
        (
            cut_off(10**6, 10**6, calls=1),
            "at most 1,000,000 in, 4,000,000 out",
            "at most $9.00",
        ),
    ],
)
def test_what_a_kill_has_cut_off_is_told_as_likely_and_at_the_most(likely, tokens, cost):
    now = msgspec.structs.replace(
        Counts().snapshot(total=1, state="finished", concurrency=1),
        usage_before=[ModelUsage(model="a:b", calls=1, input_tokens=5)],
        usage_at_most=cut_off(10**6, 4 * 10**6),
        usage_likely=likely,
    )
    bill = bill_of_run(OWN, now)

    assert tokens_in_all(now) == f"5 in, 0 out; and 2 calls cut off by a kill: {tokens}"
    assert cost_summary(bill).endswith(f"2 calls cut off by a kill: {cost}")
    record = cost_record(bill)
    assert record["cut_off_calls"] == 2
    assert record["cut_off_at_most_usd"] == "9.000000"
    assert record["cut_off_likely_usd"] == ("3.000000" if "about" in tokens else None)
    summary = summary_lines(now, bill=bill)
    assert all(len(line) < 80 for line in summary)
    where = next(at for at, line in enumerate(summary) if line.startswith("  in all"))
    assert len(summary[where + 1]) - len(summary[where + 1].lstrip()) == 12


def test_a_bill_that_the_attempts_do_not_hold_is_wrong():
    now = msgspec.structs.replace(
        Counts().snapshot(total=1, state="finished", concurrency=1), input_tokens=5
    )
    note = bill_note(now, bill_of_run(OWN, now), 3, "mine")
    assert (note["session"], note["prices"], note["cost_usd"]) == (3, "mine", "0")

    assert problem_of_note(note, Spent([usage(input_tokens=5)], [])) is None
    told = problem_of_note(note, Spent([usage(input_tokens=4)], []))

    assert (
        told == "ledger: the run was billed 5 tokens in, 0 out, and its attempts have 4 in, 0 out"
    )
