"""A run's bill, in words. Pure functions; what is not known is said, and never left out."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from batch_llm.core.prices import usd
from batch_llm.core.text import safe

if TYPE_CHECKING:
    from batch_llm._engine.statistics import Statistics
    from batch_llm.core.prices import Bill, Prices

#: No projection before so many rows.
_LEAST_ROWS = 20


def bill_of_run(prices: Prices, now: Statistics) -> Bill:
    """Return the bill of a run with all its sessions, those that were killed among them."""
    bill = prices.bill([*now.usage_before, *now.usage])
    if not now.usage_before and not now.usage_at_most:
        return bill
    at_most = prices.at_most(now.usage_at_most)
    return bill._replace(
        before_usd=prices.bill(now.usage_before).usd,
        cut_off_calls=sum(one.calls for one in now.usage_at_most),
        cut_off_usd=at_most.known_usd,
    )


def cost_fields(now: Statistics, bill: Bill, total: int | None, cap: Decimal | None) -> list[str]:
    """Return what the display's line on cost says, the most important first."""
    if bill.unpriced and not bill.is_priced:
        fields = [f"n/a (no price for {safe(bill.unpriced[0], 60)})"]
    else:
        fields = [f"{usd(bill.usd)}{_missing_mark(bill)} so far"]
        of_session = bill.usd - bill.before_usd
        if total and now.processed >= _LEAST_ROWS and not bill.unpriced:
            at_end = bill.before_usd + of_session * total / now.processed
            fields.append(f"~{usd(at_end)} at end")
        if now.elapsed_seconds > 1 and of_session:
            fields.append(f"{usd(of_session * 60 / Decimal(now.elapsed_seconds))}/min")
    if cap is not None:
        fields.append(f"cap {usd(cap)}")
    return fields


def cost_pairs(bill: Bill) -> list[str]:
    """Return the same for a line of ``name=value`` pairs."""
    if bill.unpriced and not bill.is_priced:
        return ["cost_usd=unknown"]
    return [f"cost_usd={bill.usd:.4f}{_missing_mark(bill)}"]


def cost_summary(bill: Bill) -> str:
    """Return what the block at a run's end says of cost."""
    if bill.unpriced and not bill.is_priced:
        text = f"unknown: no price for {safe(bill.unpriced[0], 200)} (--prices FILE gives one)"
    else:
        text = usd(bill.usd)
        if bill.before_usd:
            text += f" in all, {usd(bill.usd - bill.before_usd)} of it now"
        if bill.unpriced:
            text += f", and what {', '.join(safe(one, 60) for one in bill.unpriced)} cost"
    if bill.unmeasured_calls:
        calls = "1 call" if bill.unmeasured_calls == 1 else f"{bill.unmeasured_calls:,} calls"
        text += f"; {calls} cut off or unreadable, which may have cost more"
    if bill.cut_off_calls:
        noun = "call" if bill.cut_off_calls == 1 else "calls"
        calls = f"{bill.cut_off_calls:,} {noun} under way when the run was killed"
        if bill.cut_off_usd is None or (bill.unpriced and not bill.is_priced):
            text += f"; and what {calls} cost"
        else:
            text += f"; and up to {usd(bill.cut_off_usd)} for {calls}"
    return text


def tokens_in_all(now: Statistics) -> str | None:
    """Return the tokens of all sessions of a run; None where this is the only one."""
    if not now.usage_before and not now.usage_at_most:
        return None
    sent = now.input_tokens + sum(one.input_tokens for one in now.usage_before)
    got = now.output_tokens + sum(one.output_tokens for one in now.usage_before)
    text = f"{sent:,} in, {got:,} out"
    if now.usage_at_most:
        sent = sum(one.input_tokens for one in now.usage_at_most)
        got = sum(one.output_tokens for one in now.usage_at_most)
        text += f"; and up to {sent:,} in, {got:,} out of calls cut off"
    return text


def cost_record(bill: Bill) -> dict[str, Any]:
    """Return the same for programs: ``cost_usd`` is text with all its digits, or null."""
    known = bill.known_usd
    return {
        "cost_usd": None if known is None else f"{known:f}",
        "unpriced_models": list(bill.unpriced),
        "unmeasured_calls": bill.unmeasured_calls,
        "cost_before_usd": None if known is None else f"{bill.before_usd:f}",
        "cut_off_calls": bill.cut_off_calls,
        "cut_off_at_most_usd": None if bill.cut_off_usd is None else f"{bill.cut_off_usd:f}",
    }


def _missing_mark(bill: Bill) -> str:
    """Mark a sum to which something is to be added that nobody knows."""
    return "+" if bill.unpriced or bill.unmeasured_calls or bill.cut_off_calls else ""
