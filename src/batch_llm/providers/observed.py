"""What the HTTP clients of agents are told of limits: seen by a hook, and handed on to admission.

SDKs keep the headers of good answers to themselves. ``observe`` adds a hook to the HTTP client of
an agent's model, which notes them for the call that is under way. It changes nothing else: neither
the request nor what the agent gets.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from batch_llm.exceptions import ConfigError
from batch_llm.providers.limit_headers import read_limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batch_llm.strategies.admission.header_belief import LimitHeader

T = TypeVar("T")

_MOST_MODELS = 20
#: Where SDK clients keep their HTTP client: OpenAI, Anthropic and Groq; Google; Mistral.
_PATHS = (
    ("client", "_client"),
    ("client", "_api_client", "_async_httpx_client"),
    ("client", "sdk_configuration", "async_client"),
)


class Seen:
    """The headers of the answer that came last in one call."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: Any = None

    def limits(self) -> dict[str, LimitHeader] | None:
        """Return what they say of limits."""
        return None if self.headers is None else read_limits(self.headers)


#: Of the call that is under way in this context. Tasks that it starts inherit it.
seen: ContextVar[Seen | None] = ContextVar("batch_llm_seen", default=None)


class _Watch:
    """Whether any client is observed; calls need not look for headers before."""

    is_on = False


watch = _Watch()


async def _note(response: Any) -> None:
    found = seen.get()
    if found is not None:
        found.headers = response.headers


def observe(agent: T) -> T:
    """Let admission see the limit headers that an agent's HTTP client gets.

    Args:
        agent: A pydantic-ai agent whose model is set, or a model. Doing it again changes nothing.

    Returns:
        The same object.

    Raises:
        ConfigError: No HTTP client of httpx or httpx2 can be found in it. Nothing was changed.
    """
    clients = list(_clients(agent))
    if not clients:
        raise ConfigError("observe", type(agent).__name__, "an agent or model over httpx")
    for client in clients:
        hooks = client.event_hooks["response"]
        if _note not in hooks:
            hooks.append(_note)
    watch.is_on = True
    return agent


def taken_over(model: T) -> T:
    """Return a model that was made here: its SDK does not retry, and its headers are seen.

    Args:
        model: A model of pydantic-ai whose client is nobody else's.
    """
    client: Any = getattr(model, "client", None)
    if hasattr(client, "max_retries"):
        client.max_retries = 0
    return observe(model) if can_observe(model) else model


def can_observe(agent: object) -> bool:
    """Whether ``observe`` would find an HTTP client."""
    return any(True for _ in _clients(agent))


def _clients(agent: object) -> Iterator[Any]:
    """Give the HTTP clients of an agent's model, and of the models within it."""
    waiting = [agent if hasattr(agent, "model_name") else getattr(agent, "model", None)]
    for _ in range(_MOST_MODELS):
        if not waiting:
            return
        model = waiting.pop()
        waiting += [one for one in (getattr(model, "wrapped", None),) if one is not None]
        waiting += list(getattr(model, "models", ()))
        for path in _PATHS:
            found = model
            for name in path:
                found = getattr(found, name, None)
            if isinstance(getattr(found, "event_hooks", None), dict):
                yield found
