"""How each provider counts its customers' calls against their limits, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batch_llm.simulator.calls import Call

#: What a call counts against tokens per minute. ``asked``: the larger of prompt and longest
#: answer. ``settled``: the same, and what was not used is given back with the answer. ``sum``: the
#: same for prompt and longest answer together. ``input``: the prompt. ``used``: the prompt, and the
#: answer when it is there.
CHARGES = ("asked", "settled", "sum", "input", "used")

#: The ways to say that an account is out of credit, of all providers.
QUOTAS = (
    "insufficient_quota",
    "billing_hard_limit_reached",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "credit_balance_too_low",
    "billing_error",
    "contract_spend_limit_reached",
    "enforced_spend_limit_reached",
    "linked_organization_spend_limit_reached",
    "linked_organization_billing_unavailable",
    "ramp_limit_exceeded",
)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a provider counts, where the profile does not say otherwise.

    Attributes:
        charge: One of ``CHARGES``.
        window: ``bucket``, ``fixed`` or ``sliding``.
        rejects: Whether refused calls use limits up too (``count``) or not (``free``).
        retry_after: How a 429 says when to come back: ``header``, ``decimal``, ``ms``, ``date`` or
            ``none``.
        day: ``fixed`` or ``bucket``.
        counts_answers: Whether a day counts good answers; otherwise all calls that were let in.
        refuses_large: Whether a call that is larger than the whole limit on tokens is refused for
            good (413). Elsewhere it passes when the limit is untouched.
    """

    charge: str
    window: str = "bucket"
    rejects: str = "free"
    retry_after: str = "header"
    day: str = "fixed"
    counts_answers: bool = False
    refuses_large: bool = False


RULES = {
    "openai": Rules("asked", rejects="count", counts_answers=True),
    # Limits on input tokens (without those read from a cache) and output tokens each.
    "anthropic": Rules("used"),
    "google": Rules("input"),
    "mistral": Rules("used", window="fixed", retry_after="none"),
    "groq": Rules("sum", day="bucket", refuses_large=True),
}


def reserved(charge: str, call: Call) -> int:
    """Return what a call counts against tokens per minute when it is let in."""
    if charge in {"asked", "settled"}:
        return call.reserved_tokens
    if charge == "sum":
        return call.input_tokens + (call.max_tokens or 0)
    return call.input_tokens


def owed(charge: str, reserved_tokens: int, input_tokens: int, output_tokens: int) -> int:
    """Return what is still to be taken with the answer; below 0, what is given back."""
    if charge in {"settled", "sum"}:
        return input_tokens + output_tokens - reserved_tokens
    return output_tokens if charge == "used" else 0
