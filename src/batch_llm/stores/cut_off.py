"""Calls that a crash has cut off: the most that they took, and what is likely.

Nobody knows whether the provider had them, and what it has billed. Their input is what the next
call of the same item took, which asks the same: exactly that, as soon as there is one. Of their
output only the bound is certain. What is likely are the means of the run's other calls, where each
counts as often as it took long: a call that is under way at some moment is more often a long one.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from batch_llm.core.prices import CONTEXT_STARTS, ModelUsage
from batch_llm.stores.statements import statements

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from batch_llm.stores.base import Attempt
    from batch_llm.stores.call_notes import BilledAs


class CutOffCall:
    """A call that was under way when the process ended.

    Attributes:
        number: The item's; 0 where it is not known.
        content: The digest of what was asked; None where it is not known.
        attempt: The attempt's number.
        billed_as: Under which its tokens are counted.
        input_tokens: The most that it can have taken; exactly that, if it ``has_known_input``.
        output_tokens: The most.
        has_known_input: Whether a call that asked the same has told it.
    """

    __slots__ = (
        "attempt", "billed_as", "content", "has_known_input", "input_tokens", "number",
        "output_tokens",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        content: bytes | None,
        attempt: int,
        billed_as: BilledAs,
        most: tuple[int, int],
        known_input: int | None,
    ) -> None:
        self.number, self.content, self.attempt = number, content, attempt
        self.billed_as = billed_as
        self.has_known_input = known_input is not None
        self.input_tokens = most[0] if known_input is None else known_input
        self.output_tokens = most[1]


class Means:
    """The means of calls whose tokens are known; each counts once for each millisecond it took.

    In whole numbers, so that the order in which they are added makes no difference.
    """

    __slots__ = ("input", "output", "weight")

    def __init__(self, weight: int = 0, input: int = 0, output: int = 0) -> None:  # noqa: A002
        self.weight, self.input, self.output = weight, input, output

    def add(self, seconds: float, input_tokens: int, output_tokens: int) -> None:
        """Count a call."""
        weight = 1 + int(seconds * 1000)
        self.weight += weight
        self.input += weight * input_tokens
        self.output += weight * output_tokens


class CutOff:
    """The calls of a run that crashes have cut off, and what its other calls tell of them."""

    def __init__(self, calls: Iterable[CutOffCall], means: dict[BilledAs, Means]) -> None:
        self._calls = list(calls)
        self._means = means
        #: By item, those whose input the item's next answer tells.
        self._asking: dict[int, list[CutOffCall]] = {}
        for call in self._calls:
            # A further attempt may have shown the model its last answer: another input.
            if call.content is not None and call.attempt == 1 and not call.has_known_input:
                self._asking.setdefault(call.number, []).append(call)

    def __len__(self) -> int:
        return len(self._calls)

    def learn(self, attempt: Attempt) -> None:
        """Hear of a call whose end is known."""
        usage = attempt.usage
        if usage is None or attempt.billed_as is None:
            return
        sent, got = usage.get("input_tokens"), usage.get("output_tokens")
        if sent is None or got is None:
            return
        means = self._means.get(attempt.billed_as)
        if means is None:
            means = self._means[attempt.billed_as] = Means()
        means.add(attempt.seconds, sent, got)

    def learn_input(self, number: int, content: bytes, history: Iterable[Attempt]) -> None:
        """Hear of the calls that led to an item's result."""
        asking = self._asking.get(number)
        if asking is None:
            return
        for attempt in history:
            if attempt.number != 1 or attempt.usage is None or attempt.change is not None:
                continue
            for call in asking:
                if call.content == content and call.billed_as == attempt.billed_as:
                    call.input_tokens = attempt.usage.get("input_tokens", 0)
                    call.has_known_input = True
        asking[:] = [call for call in asking if not call.has_known_input]
        if not asking:
            del self._asking[number]

    def at_most(self) -> list[ModelUsage]:
        """Sum up by model what they took at the most."""
        sums = _Sums()
        for call in self._calls:
            sums.add(call.billed_as, call.input_tokens, call.output_tokens)
        return sums.found()

    def likely(self) -> list[ModelUsage]:
        """Sum up what they are likely to have taken; of a model without other calls, nothing."""
        sums = _Sums()
        for call in self._calls:
            means = self._means.get(call.billed_as)
            if means is None or not means.weight:
                continue
            sent, got = call.input_tokens, means.output // means.weight
            if not call.has_known_input:
                sent = min(sent, means.input // means.weight)
            sums.add(call.billed_as, sent, min(call.output_tokens, got))
        return sums.found()


class _Sums:
    """Tokens of calls that are no more than guessed at, by model and context class."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[BilledAs, int], ModelUsage] = {}

    def add(self, billed_as: BilledAs, input_tokens: int, output_tokens: int) -> None:
        key = billed_as, bisect_left(CONTEXT_STARTS, input_tokens)
        found = self._by_key.get(key)
        if found is None:
            model, server, tier = billed_as
            found = ModelUsage(model=model, server=server, tier=tier, context=key[1])
            self._by_key[key] = found
        found.calls += 1
        found.input_tokens += input_tokens
        found.output_tokens += output_tokens

    def found(self) -> list[ModelUsage]:
        return list(self._by_key.values())


def cut_off_calls(connection: sqlite3.Connection) -> CutOff | None:
    """Read what is known of the calls that were cut off; None where none was."""
    sql = statements()
    told = dict(connection.execute(sql["told_inputs"]).fetchall())
    calls = [
        CutOffCall(
            number, content, attempt, (model or "", server or "", tier or "standard"),
            (sent, got), told.get(at, known),
        )
        for at, number, content, attempt, model, server, tier, sent, got, known
        in connection.execute(sql["cut_off_calls"])
    ]  # fmt: skip
    if not calls:
        return None
    means = {
        (model, server, tier): Means(weight, sent, got)
        for model, server, tier, weight, sent, got in connection.execute(sql["means"])
    }
    return CutOff(calls, means)


def note_known_inputs(connection: sqlite3.Connection) -> None:
    """Note what the answers so far tell of the input of calls that were cut off.

    Before items are asked something else: what they asked is known of the last time alone.
    """
    sql = statements()
    told = connection.execute(sql["told_inputs"]).fetchall()
    connection.executemany(sql["note_known_input"], [(sent, at) for at, sent in told])
