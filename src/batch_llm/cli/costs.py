"""A run's bill, in words. Pure functions; what is not known is said, and never left out."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from batch_llm.core.prices import usd
from batch_llm.core.text import counted, safe
from batch_llm.stores.base import Spent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from batch_llm._engine.statistics import Statistics
    from batch_llm.core.prices import Bill, ModelUsage, Prices

#: No projection before so many rows.
_LEAST_ROWS = 20


def bill_of_run(prices: Prices, now: Statistics) -> Bill:
    """Return the bill of a run with all its sessions, those that were killed among them."""
    bill = prices.bill([*now.usage_before, *now.usage])
    if not now.usage_before and not now.usage_at_most:
        return bill
    bill = bill._replace(before_usd=prices.bill(now.usage_before).usd)
    return _with_cut_off(prices, bill, now.usage_at_most, now.usage_likely)


def bill_of_spent(prices: Prices, spent: Spent) -> Bill:
    """Return the bill of what a ledger holds."""
    return _with_cut_off(prices, prices.bill(spent.usage), spent.at_most, spent.likely)


def _with_cut_off(
    prices: Prices, bill: Bill, at_most: Sequence[ModelUsage], likely: Sequence[ModelUsage]
) -> Bill:
    is_known = _knows_likely(at_most, likely)
    return bill._replace(
        cut_off_calls=_calls(at_most),
        cut_off_usd=prices.at_most(at_most).known_usd,
        cut_off_likely_usd=prices.bill(likely).known_usd if is_known else None,
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
    unmeasured = counted(bill.unmeasured_calls, "call")
    if bill.unpriced and not bill.is_priced:
        text = f"unknown: no price for {safe(bill.unpriced[0], 200)} (--prices FILE gives one)"
    elif bill.unmeasured_calls and not bill.usd and not bill.unpriced:
        text = "unknown"  # of code whose model nobody sees, or of calls that were all cut off
    else:
        text = usd(bill.usd)
        if bill.before_usd:
            text += f" in all, {usd(bill.usd - bill.before_usd)} of it now"
        if bill.unpriced:
            text += f", and what {', '.join(safe(one, 60) for one in bill.unpriced)} cost"
    if bill.unmeasured_calls:
        text += f"; {unmeasured} without known tokens, which may have cost more"
    if bill.cut_off_calls:
        calls = _cut_off(bill.cut_off_calls)
        if bill.cut_off_usd is None or (bill.unpriced and not bill.is_priced):
            text += f"; and {calls}"
        else:
            text += f"; and {calls}: "
            if bill.cut_off_likely_usd is not None:
                text += f"about {usd(bill.cut_off_likely_usd)}, "
            text += f"at most {usd(bill.cut_off_usd)}"
    return text


def tokens_in_all(now: Statistics) -> str | None:
    """Return the tokens of all sessions of a run; None where this is the only one."""
    if not now.usage_before and not now.usage_at_most:
        return None
    sent, got = _tokens_in_all(now)
    return tokens_text(sent, got, Spent([], now.usage_at_most, now.usage_likely))


def tokens_spent(spent: Spent) -> str:
    """Return the same of what a ledger holds."""
    return tokens_text(*_tokens(spent.usage), spent)


def tokens_text(input_tokens: int, output_tokens: int, spent: Spent) -> str:
    """Return known tokens, and what calls that were cut off may have taken, as one line."""
    text = f"{input_tokens:,} in, {output_tokens:,} out"
    if not spent.at_most:
        return text
    calls, (sent, got) = _cut_off(_calls(spent.at_most)), _tokens(spent.at_most)
    text += f"; and {calls}: "
    if _knows_likely(spent.at_most, spent.likely):
        likely_sent, likely_got = _tokens(spent.likely)
        text += f"about {likely_sent:,} in, {likely_got:,} out, "
    return f"{text}at most {sent:,} in, {got:,} out"


def _cut_off(calls: int) -> str:
    return f"{counted(calls, 'call')} cut off by a kill"


def _knows_likely(at_most: Iterable[ModelUsage], likely: Iterable[ModelUsage]) -> bool:
    """Tell whether of every call that was cut off something is likely."""
    return _calls(at_most) == _calls(likely)


def _calls(usages: Iterable[ModelUsage]) -> int:
    return sum(one.calls for one in usages)


def _tokens(usages: Iterable[ModelUsage]) -> tuple[int, int]:
    sent = got = 0
    for one in usages:
        sent += one.input_tokens
        got += one.output_tokens
    return sent, got


def _tokens_in_all(now: Statistics) -> tuple[int, int]:
    sent, got = _tokens(now.usage_before)
    return now.input_tokens + sent, now.output_tokens + got


def bill_note(now: Statistics, bill: Bill, session: int, origin: str) -> dict[str, Any]:
    """Return what a ledger keeps of a run's bill at the end of a session."""
    sent, got = _tokens_in_all(now)
    told = {"session": session, "input_tokens": sent, "output_tokens": got, "prices": origin}
    return told | cost_record(bill) | {"text": cost_summary(bill)}


def problem_of_note(note: Mapping[str, Any], spent: Spent) -> str | None:
    """Return what is wrong with the bill that was noted; None where its tokens are all booked."""
    booked, noted = _tokens(spent.usage), (note["input_tokens"], note["output_tokens"])
    if booked == noted:
        return None
    return (
        f"ledger: the run was billed {noted[0]:,} tokens in, {noted[1]:,} out, "
        f"and its attempts have {booked[0]:,} in, {booked[1]:,} out"
    )


def cost_record(bill: Bill) -> dict[str, Any]:
    """Return the same for programs: ``cost_usd`` is text with all its digits, or null."""
    known = bill.known_usd
    return {
        "cost_usd": None if known is None else f"{known:f}",
        "unpriced_models": list(bill.unpriced),
        "unmeasured_calls": bill.unmeasured_calls,
        "cost_before_usd": None if known is None else f"{bill.before_usd:f}",
        "cut_off_calls": bill.cut_off_calls,
        "cut_off_likely_usd": _text(bill.cut_off_likely_usd),
        "cut_off_at_most_usd": _text(bill.cut_off_usd),
    }


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:f}"


def _missing_mark(bill: Bill) -> str:
    """Mark a sum to which something is to be added that nobody knows."""
    return "+" if bill.unpriced or bill.unmeasured_calls or bill.cut_off_calls else ""
