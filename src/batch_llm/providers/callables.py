"""The callable modes of an item: an agent (be it made by a factory) and a direct call."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from batch_llm.core.usage import equal_parts, no_usage, read_usage, tokens, usage_of
from batch_llm.exceptions import ConfigError
from batch_llm.providers.agent_accounts import account_of
from batch_llm.providers.base import (
    SPENT,
    Caller,
    LaneFacts,
    Outcome,
    Repeatable,
    Try,
    content_digest,
)
from batch_llm.providers.limit_headers import limits_of_error
from batch_llm.providers.observed import Seen, seen, taken_over, watch
from batch_llm.providers.sdk_retries import SdkRetries
from batch_llm.providers.table import PROVIDERS

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from batch_llm.base import DirectCall, LLMWorkItem

_CO_VARARGS = 0x04


class CallByMode:
    """Calls each item the way it says.

    Args:
        requests: Calls the items that are plain data; None when there is no provider for them.
    """

    def __init__(self, requests: Caller | None = None) -> None:
        self._requests = requests
        self.tells_departures: bool = getattr(requests, "tells_departures", False)
        self._retries = SdkRetries()
        #: Of fallbacks, by name: each has an HTTP client of its own.
        self._models: dict[str, Any] = {}

    def lane(self, item: LLMWorkItem[Any, Any, Any], /) -> str:
        """Name the item's lane: its agent's model, where one can be seen, and where that is.

        A direct call shows nothing; all of them have one lane.
        """
        if item.request is not None and self._requests is not None:
            return self._requests.lane(item)
        if item.asked_model is not None:
            return item.asked_model
        return lane_of(item.agent) if item.agent is not None else ""

    def facts(self, item: LLMWorkItem[Any, Any, Any], /) -> LaneFacts:
        """Tell what is known of an item's lane: of callables, their model where it can be seen."""
        if item.request is not None and self._requests is not None:
            return self._requests.facts(item)
        lane = self.lane(item)
        model, _, server = lane.partition(" ")
        account = account_of(lane, item.agent if item.asked_model is None else None, os.environ)
        keys = _key_variables(model)
        return LaneFacts(model=model, server=server, keys=keys, remembered_as=(account,))

    def content(self, item: LLMWorkItem[Any, Any, Any], /) -> bytes:
        """Return the digest of what an item asks; of code, of its prompt and version."""
        if item.request is not None and self._requests is not None:
            return self._requests.content(item)
        return content_digest(
            item.item_id.encode("utf-8", "surrogatepass"),
            item.prompt.encode("utf-8", "surrogatepass"),
            item.version.encode("utf-8", "surrogatepass"),
        )

    @property
    def repeatable(self) -> Repeatable | None:
        """Whoever can tell the exchanges of requests apart; code shows nothing of what it asks."""
        requests: object = self._requests
        return requests if isinstance(requests, Repeatable) else None

    def call(
        self, item: LLMWorkItem[Any, Any, Any], attempt: Try, /
    ) -> Coroutine[Any, Any, Outcome]:
        """Make one call.

        Raises:
            Exception: Whatever the agent or the user's function raised.
            ConfigError: The item is a request, and nothing here can send it.
        """
        if item.direct_call is not None:
            return _call_directly(item, item.direct_call, attempt)
        if item.agent is None and self._requests is not None:
            return self._requests.call(item, attempt)
        return self._call_agent(item, attempt)

    async def _call_agent(self, item: LLMWorkItem[Any, Any, Any], attempt: Try) -> Outcome:
        if item.agent is not None:
            name = item.asked_model
            if is_pydantic_ai(item.agent):
                self._retries.look_at(item.agent)
                model = None if name is None else self._model(name)
                return await _run_pydantic_ai(item.agent, item.prompt, attempt, model)
            if name is not None:
                expected = "another agent: only one of pydantic-ai can be asked of a model by name"
                raise ConfigError("fallbacks", name, expected)
            return await _run_agent(item.agent, item.prompt)
        raise ConfigError("requests", None, "a caller for items that are requests")

    def _model(self, name: str) -> Any:
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = _inferred(name)
        return found


def _inferred(name: str) -> Any:
    from pydantic_ai.models import infer_model

    return taken_over(infer_model(name))


def _key_variables(model: str) -> tuple[str, ...]:
    """Return the variable that an agent's key is likely to come from, where it is set."""
    provider = PROVIDERS.get(model.partition(":")[0])
    if provider is None or not provider.find_key(os.environ):
        return ()
    return (provider.find_variable(os.environ),)


def lane_of(agent: Any) -> str:
    """Name an agent's model and where it is, as far as that can be seen."""
    try:
        model = getattr(agent, "model", None)
        if isinstance(model, str):  # pydantic-ai has not looked it up yet
            return model
        name = getattr(model, "model_name", None)
        if not isinstance(name, str):
            return ""
        system, url = getattr(model, "system", None), getattr(model, "base_url", None)
        host = urlsplit(url).netloc.rpartition("@")[2] if isinstance(url, str) else ""
    except Exception:  # noqa: BLE001 - a stranger's properties
        return ""
    name = f"{system}:{name}" if isinstance(system, str) else name
    return f"{name} {host}".rstrip()


async def _run_agent(agent: Any, prompt: str) -> Outcome:
    result = await agent.run(prompt)
    usage = usage_of(result)
    try:
        output = result.output
    except Exception as error:  # noqa: BLE001 - the answer was paid for, whatever it holds
        return Outcome(usage=usage, error=error)
    return Outcome(output, usage, None, _model_name(result), _safety_ratings(result))


async def _run_pydantic_ai(agent: Any, prompt: str, attempt: Try, model: Any) -> Outcome:
    """Run an agent of pydantic-ai's; ``model`` is asked in place of its own, unless it is None."""
    from pydantic_ai.usage import RunUsage

    # Filled in while the run goes on: after a failure it tells what was spent.
    attempt.memory[SPENT] = spent = RunUsage()
    found = Seen() if watch.is_on else None
    token = None if found is None else seen.set(found)
    try:
        if model is None:
            result = await agent.run(prompt, usage=spent)
        else:
            result = await agent.run(prompt, usage=spent, model=model)
    except Exception as error:
        if spent.requests <= 1:
            raise
        usage, parts = read_usage(spent), equal_parts(spent)
        return Outcome(usage=usage, error=error, parts=parts, limits=limits_of_error(error))
    finally:
        if token is not None:
            seen.reset(token)
    has_parts = spent.requests > 1 or hasattr(getattr(agent, "model", None), "models")
    parts = _parts(result, agent) or equal_parts(spent) if has_parts else None
    limits = None if found is None else found.limits()
    return Outcome(
        result.output,
        usage_of(result),
        None,
        _model_name(result),
        _safety_ratings(result),
        limits=limits,
        parts=parts,
    )


def _parts(result: Any, agent: Any) -> tuple[tuple[str, dict[str, int]], ...] | None:
    """Return what each request of a run took; those to a model within another under its own name.

    A run's sum is priced otherwise than its requests: some models' long calls are dearer.
    """
    has_models = hasattr(getattr(agent, "model", None), "models")
    parts: list[tuple[str, dict[str, int]]] = []
    for message in result.new_messages():
        if getattr(message, "kind", None) == "response":
            name = f"{message.provider_name}:{message.model_name}" if has_models else ""
            parts.append((name, read_usage(message.usage) or no_usage()))
    total = sum(tokens(usage, "total_tokens") for _, usage in parts)
    # Tools may have run agents of their own with the same usage object.
    return tuple(parts) if total == tokens(usage_of(result) or {}, "total_tokens") else None


def is_pydantic_ai(agent: Any) -> bool:
    """Whether it is an agent of pydantic-ai."""
    # An instance can only exist if its module is loaded, so nothing is imported for others.
    module = sys.modules.get("pydantic_ai.agent")
    return module is not None and isinstance(agent, module.AbstractAgent)


def _model_name(result: Any) -> str | None:
    name = getattr(getattr(result, "response", None), "model_name", None)
    return name if isinstance(name, str) else None


def _safety_ratings(result: Any) -> dict[str, str] | None:
    ratings = getattr(result, "gemini_safety_ratings", None)
    if ratings is None:
        details = getattr(getattr(result, "response", None), "provider_details", None)
        ratings = details.get("safety_ratings") if isinstance(details, Mapping) else None
    if isinstance(ratings, Mapping):
        return {str(category): str(rating) for category, rating in ratings.items()}
    if isinstance(ratings, list | tuple):
        return {
            str(rating["category"]): str(rating.get("probability"))
            for rating in ratings
            if isinstance(rating, Mapping) and "category" in rating
        }
    return None


async def _call_directly(
    item: LLMWorkItem[Any, Any, Any], call: DirectCall, attempt: Try
) -> Outcome:
    answer: Any
    data = item.input_data
    if (
        data is None
        and type(call) is FunctionType
        and call.__code__.co_argcount == 2
        and not call.__dict__  # nothing is wrapped: as most are, what it takes is seen at once
    ):
        answer = await call(attempt.number, attempt.timeout_seconds)
    elif _takes_input(call, has_input=data is not None):
        answer = await call(attempt.number, attempt.timeout_seconds, data)
    else:
        answer = await call(attempt.number, attempt.timeout_seconds)
    if not isinstance(answer, tuple) or len(answer) != 2:
        kind = type(answer).__name__
        raise TypeError(f"direct_call must return the tuple (output, usage_dict), got {kind}")
    output, usage = answer
    return Outcome(output, read_usage(usage))


def _takes_input(call: DirectCall, *, has_input: bool) -> bool:
    """Tell whether ``call`` has a third positional parameter that is meant for the input data.

    One with a default is taken for the caller's own (``lambda attempt, timeout, row=row: …``)
    unless there is input data to hand over.
    """
    code = getattr(call, "__code__", None)
    if code is not None and not hasattr(call, "__wrapped__"):
        arguments = code.co_argcount - (getattr(call, "__self__", None) is not None)
        if arguments < 3:
            return bool(code.co_flags & _CO_VARARGS) and has_input
        return has_input or arguments - len(getattr(call, "__defaults__", None) or ()) >= 3
    return _signature_takes_input(call, has_input=has_input)


def _signature_takes_input(call: DirectCall, *, has_input: bool) -> bool:
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return has_input
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    if len(positional) >= 3:
        return has_input or positional[2].default is inspect.Parameter.empty
    return has_input and any(p.kind is p.VAR_POSITIONAL for p in parameters)
