"""How large calls are: estimated before they are sent, and learned from their answers.

No tokenizer is asked. Input is counted in characters and output by what came so far, both made to
fit by the answers of the lane.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from batch_llm.core.request import CHARACTERS_PER_TOKEN
from batch_llm.strategies.costs import Answers, Cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_llm.base import LLMWorkItem
    from batch_llm.core.request import Request
    from batch_llm.strategies.costs import ChargeRule

    Item = LLMWorkItem[Any, Any, Any]

#: An answer's tokens until the first has come.
FIRST_OUTPUT_TOKENS = 400.0
#: How fast the estimates follow: the share of one answer.
LEARNING_SHARE = 0.03
#: Makes a ``Cost`` of its five fields: without the Python function in between, on the hot path.
_cost: Callable[[tuple[float, float, float, float, float]], Cost] = partial(tuple.__new__, Cost)


class Sizes:
    """What the calls of one lane take.

    Args:
        charges: What its provider counts.
    """

    __slots__ = ("_answers", "_counts_cache_reads", "_input_per_character", "_output")

    def __init__(self, charges: ChargeRule) -> None:
        self._answers = charges.answers
        self._counts_cache_reads = charges.counts_cache_reads
        self._input_per_character = 1 / CHARACTERS_PER_TOKEN
        self._output = FIRST_OUTPUT_TOKENS

    def cost_of(self, item: Item) -> Cost:
        """Estimate what a call of the item takes."""
        request: Request | None = item.request
        sent: float | None = item.estimated_input_tokens
        if sent is None:
            characters = len(item.prompt) if request is None else request.characters
            sent = characters * self._input_per_character
        got: float | None = item.estimated_output_tokens
        if got is None:
            got = self._output
        if request is not None and (asked := request.settings.longest_answer) is not None:
            got = min(got, asked)
            if self._answers is Answers.AS_ASKED:
                return Cost(1.0, max(asked, sent), sent, got)
            if self._answers is Answers.RESERVED:  # the rest comes back at the end
                return Cost(1.0, sent + asked, sent, asked)
        elif self._answers is Answers.AS_ASKED:
            return Cost(1.0, sent, sent, got)
        if self._answers is Answers.NOT:
            return _cost((1.0, sent, sent, got, 0.0))
        return _cost((1.0, sent + got, sent, got, got))

    def learn(self, item: Item, usage: dict[str, int] | None) -> Cost | None:
        """Take an answer's size into account; return what it cost, if that is known."""
        if not usage:
            return None
        sent, got = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
        self._output += LEARNING_SHARE * (got - self._output)
        if sent:
            request = item.request
            characters = len(item.prompt) if request is None else request.characters
            if characters:
                seen = sent / characters
                self._input_per_character += LEARNING_SHARE * (seen - self._input_per_character)
        if not self._counts_cache_reads:
            sent = max(0, sent - usage.get("cache_read_tokens", 0))
        if self._answers is Answers.AS_ASKED:  # of the answer nothing comes back
            asked = None if item.request is None else item.request.settings.longest_answer
            return Cost(1.0, max(asked or 0, sent), sent, got)
        return _cost((1.0, sent if self._answers is Answers.NOT else sent + got, sent, got, 0.0))
