"""What an item's attempts ask: the item as it is, or a copy that asks more or somebody else.

A change is made to a copy, so that lanes, caps, prices and codecs see an item like any other. What
follows from which failure is not decided here: that is the table in ``strategies/policies.py``.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from batch_llm.exceptions import BadOutputError, TruncatedError
from batch_llm.strategies.errors import ErrorCode
from batch_llm.strategies.policies import Next, Situation, higher_cap, next_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batch_llm.base import LLMWorkItem
    from batch_llm.core.config import RetryConfig
    from batch_llm.core.protocols import AgentLike
    from batch_llm.core.request import Request
    from batch_llm.strategies.errors import ErrorInfo

    Item = LLMWorkItem[Any, Any, Any]

_AGENT = "agent"


class Ceilings:
    """Up to where models let their cap be raised: learned from those that would not have it."""

    def __init__(self) -> None:
        self._refused: dict[str, int] = {}

    def note_refused(self, model: str, cap: int) -> None:
        """Note that a model would not have a cap."""
        self._refused[model] = min(cap, self._refused.get(model, cap))

    def allow(self, model: str, cap: int) -> bool:
        """Whether a model may have a cap, as far as is known."""
        refused = self._refused.get(model)
        return refused is None or cap < refused


class Escalation:
    """One item's way through its attempts, made when the first of them has failed.

    Args:
        item: As it was given.
        config: How often, how high, and what leads to a fallback.
        falls_back_on: The failures that lead to one.
        fallbacks: Who is asked in turn.
        ceilings: Of all items of the run.
    """

    __slots__ = (
        "_ceilings",
        "_config",
        "_failures",
        "_fallbacks",
        "_falls_back_on",
        "_item",
        "_raised_to",
        "_truncated",
        "asked",
        "change",
        "changes",
        "feedback",
        "model",
    )

    def __init__(
        self,
        item: Item,
        config: RetryConfig,
        falls_back_on: frozenset[ErrorCode],
        fallbacks: Sequence[AgentLike | str],
        ceilings: Ceilings,
    ) -> None:
        self._item = self.asked = item
        self._config = config
        self._falls_back_on = falls_back_on
        self._fallbacks = list(fallbacks)
        self._ceilings = ceilings
        #: Attempts at the model that is asked now, by what failed.
        self._failures: dict[ErrorCode, int] = {}
        self._raised_to: int | None = None
        self._truncated: Exception | None = None
        #: The fallback that is asked; None: the item's own model.
        self.model: str | None = None
        #: What the next attempt asks otherwise; None: nothing.
        self.change: str | None = None
        self.changes: list[str] = []
        #: Why the last answer of the model that is asked now could not be used.
        self.feedback: Exception | None = None

    def goes_on(self, number: int, code: ErrorCode, verdict: ErrorInfo, error: Exception) -> bool:
        """Take a failure of attempt ``number`` into account; return whether there is another."""
        self.change = None
        if code is ErrorCode.BAD_REQUEST and self._refuses_cap():
            code, error = ErrorCode.TRUNCATED, self.original(error)
            is_retryable = False
        else:
            is_retryable = verdict.is_retryable
            self._truncated = None
        failures = self._failures[code] = self._failures.get(code, 0) + 1
        cap = None
        if code is ErrorCode.TRUNCATED and self.asked.request is not None:
            cap = self.asked.request.settings.longest_answer
            is_retryable = is_retryable and (cap is not None or failures == 1)
        raised = None if cap is None else self._higher(cap)
        step = next_step(
            Situation(
                code,
                is_retryable,
                max(0, self._config.max_attempts - number),
                failures,
                cap,
                raised,
                bool(self._fallbacks),
                code in self._falls_back_on,
            )
        )
        if step is Next.NOTHING:
            return False
        self.feedback = error
        if step is Next.HIGHER_CAP:
            assert cap is not None and raised is not None  # noqa: S101, PT018 - else no such step
            self._raise(cap, raised, error)
        elif step is Next.FALLBACK:
            self._fall_back(number, code)
        elif isinstance(error, BadOutputError) and self.asked.request is not None:
            self._note("the model is told what is wrong with its answer")
        return True

    def leaves_lane(self, number: int, code: ErrorCode) -> bool:
        """Ask the next fallback, if there is one, because of the lane; no attempt was made."""
        if not self._fallbacks or code not in self._falls_back_on:
            return False
        self._fall_back(number - 1, code)
        return True

    def original(self, error: Exception) -> Exception:
        """Return what the item failed with: a cap that could not be raised is not the reason."""
        return self._truncated or error

    def _refuses_cap(self) -> bool:
        """Whether a call was refused for the cap that we had raised; note that."""
        if self._raised_to is None or self._truncated is None:
            return False
        self._ceilings.note_refused(_model(self.asked), self._raised_to)
        return True

    def _higher(self, cap: int) -> int | None:
        if self._raised_to is not None:  # once
            return None
        raised = higher_cap(cap, self._config.max_tokens_cap)
        if raised is None or not self._ceilings.allow(_model(self.asked), raised):
            return None
        return raised

    def _raise(self, cap: int, raised: int, error: Exception) -> None:
        self._raised_to = raised
        self._truncated = error if isinstance(error, TruncatedError) else None
        request = self.asked.request
        assert request is not None  # noqa: S101 - only requests have a cap that we know
        self.asked = copy.copy(self.asked)
        settings = request.settings.with_longest_answer(raised)
        self.asked.request = dataclasses.replace(request, settings=settings)
        self._note(f"max_tokens {cap} → {raised}")

    def _fall_back(self, number: int, code: ErrorCode) -> None:
        fallback = self._fallbacks.pop(0)
        self.asked = asked = copy.copy(self._item)
        self._failures.clear()
        self._raised_to = self._truncated = self.feedback = None
        if isinstance(fallback, str):
            name = asked.asked_model = fallback
            if asked.request is not None:
                asked.request = _of_model(asked.request, fallback, number)
        else:
            name, asked.agent = _name(fallback), fallback
        self.model = name
        self._note(f"{code.value}: {name} is asked")

    def _note(self, change: str) -> None:
        self.change = change
        self.changes.append(change)


def with_agent(item: Item, number: int, memory: dict[str, Any]) -> Item:
    """Make an attempt's agent, once: a refused call is repeated with the same one.

    The item is given as one that has that agent: so its lane and its prices are those of the
    agent's model. What the factory raises is raised by the call.
    """
    made_for, asked = memory.get(_AGENT, (0, None))
    if made_for == number:
        return asked  # type: ignore[no-any-return]
    assert item.agent_factory is not None  # noqa: S101 - the caller has looked
    agent: Any
    try:
        agent = item.agent_factory(number)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the user's code
        agent = _NotMade(error)
    asked = copy.copy(item)
    asked.agent, asked.agent_factory = agent, None
    memory[_AGENT] = (number, asked)
    return asked


class _NotMade:
    """Stands for an agent that its factory did not make."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def run(self, _prompt: str, /, **_: Any) -> Any:
        raise self._error


def _model(item: Item) -> str:
    return item.asked_model or (item.request.model if item.request is not None else "")


def _of_model(request: Request, model: str, number: int) -> Request:
    """Return a request to another model, whose temperatures begin anew after attempt ``number``."""
    settings = request.settings
    temperature = settings.temperature
    if isinstance(temperature, tuple) and temperature:
        settings = dataclasses.replace(settings, temperature=temperature[:1] * number + temperature)
    return dataclasses.replace(request, model=model, settings=settings)


def _name(agent: Any) -> str:
    """Name an agent by its model, or by itself, as far as that can be seen."""
    try:
        model = getattr(agent, "model", None)
        name, system = getattr(model, "model_name", None), getattr(model, "system", None)
        if isinstance(name, str):
            return f"{system}:{name}" if isinstance(system, str) else name
        for name in (model, getattr(agent, "name", None)):
            if isinstance(name, str):
                return name
    except Exception:  # noqa: BLE001 - a stranger's properties
        return "another agent"
    return "another agent"
