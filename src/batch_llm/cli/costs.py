"""A run's bill, in words. Pure functions; what is not known is said, and never left out."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from batch_llm.core.prices import usd
from batch_llm.core.text import safe

if TYPE_CHECKING:
    from batch_llm._engine.statistics import Statistics
    from batch_llm.core.prices import Bill

#: No projection before so many rows.
_LEAST_ROWS = 20


def cost_fields(now: Statistics, bill: Bill, total: int | None, cap: Decimal | None) -> list[str]:
    """Return what the display's line on cost says, the most important first."""
    if bill.unpriced and not bill.is_priced:
        fields = [f"n/a (no price for {safe(bill.unpriced[0], 60)})"]
    else:
        fields = [f"{usd(bill.usd)}{_missing_mark(bill)} so far"]
        if total and now.processed >= _LEAST_ROWS and not bill.unpriced:
            fields.append(f"~{usd(bill.usd * total / now.processed)} at end")
        if now.elapsed_seconds > 1 and bill.usd:
            fields.append(f"{usd(bill.usd * 60 / Decimal(now.elapsed_seconds))}/min")
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
        if bill.unpriced:
            text += f", and what {', '.join(safe(one, 60) for one in bill.unpriced)} cost"
    if bill.unmeasured_calls:
        calls = "1 call" if bill.unmeasured_calls == 1 else f"{bill.unmeasured_calls:,} calls"
        text += f"; {calls} cut off or unreadable, which may have cost more"
    return text


def cost_record(bill: Bill) -> dict[str, Any]:
    """Return the same for programs: ``cost_usd`` is text with all its digits, or null."""
    known = bill.known_usd
    return {
        "cost_usd": None if known is None else f"{known:f}",
        "unpriced_models": list(bill.unpriced),
        "unmeasured_calls": bill.unmeasured_calls,
    }


def _missing_mark(bill: Bill) -> str:
    """Mark a sum to which something is to be added that nobody knows."""
    return "+" if bill.unpriced or bill.unmeasured_calls else ""
