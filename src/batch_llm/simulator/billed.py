"""The calls that a simulator has billed, and which of them nobody has collected. Pure.

A provider bills an answer that it made, whether somebody reads it or not. So what a client knows of
its costs and what the bill says differ by the answers that were not collected: the client was gone
before they were handed over, or went without reading them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batch_llm.simulator.answers import answer_digest

if TYPE_CHECKING:
    from batch_llm.simulator.calls import Call
    from batch_llm.simulator.completions import Completion
    from batch_llm.simulator.fields import Headers

#: The headers in which providers tell a call's id.
_IDS = {b"x-request-id", b"request-id", b"mistral-correlation-id"}


class Uncollected(msgspec.Struct):
    """Billed answers of one model that nobody has collected.

    Attributes:
        calls: Their number.
        input_tokens: Billed for them.
        output_tokens: The same.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class BilledCall(msgspec.Struct):
    """One call that was billed.

    Attributes:
        model: As asked for.
        request_id: As the answer's headers told it; empty where its format has none.
        asked: What was asked: ``answer_digest`` of the last user message.
        input_tokens: Billed.
        output_tokens: The same.
        is_collected: Whether the client has taken the answer, as far as that is known by now.
    """

    model: str
    request_id: str
    asked: str
    input_tokens: int
    output_tokens: int
    is_collected: bool = True


class Billed:
    """What was billed, call by call, as far as it is kept.

    Args:
        keeps_all: Keep every call; otherwise sums of the uncollected ones alone.
    """

    def __init__(self, *, keeps_all: bool) -> None:
        self._uncollected: dict[str, Uncollected] = {}
        self._calls: list[BilledCall] | None = [] if keeps_all else None

    def add(self, call: Call, completion: Completion, headers: Headers) -> BilledCall | None:
        """Note a call that is billed; return it where calls are kept."""
        if self._calls is None:
            return None
        billed = BilledCall(
            call.model,
            next((value.decode() for name, value in headers if name in _IDS), ""),
            answer_digest(call.prompt),
            completion.input_tokens,
            completion.output_tokens,
        )
        self._calls.append(billed)
        return billed

    def not_collected(self, call: Call, completion: Completion, kept: BilledCall | None) -> None:
        """Note that nobody has taken the answer to a call that is billed; once."""
        found = self._uncollected.setdefault(call.model, Uncollected())
        found.calls += 1
        found.input_tokens += completion.input_tokens
        found.output_tokens += completion.output_tokens
        if kept is not None:
            kept.is_collected = False

    def uncollected(self) -> dict[str, Uncollected]:
        """Return the sums by model of what nobody has collected; from any thread."""
        return {model: msgspec.structs.replace(one) for model, one in self._uncollected.items()}

    def calls(self) -> list[BilledCall] | None:
        """Return all calls, in the order in which they were billed; None: they are not kept."""
        return None if self._calls is None else list(self._calls)
