"""Retries that the SDK below a user's agent makes by itself, beside ours.

They multiply calls, hide refusals from whoever learns the limits, and may sleep for as long as a
server says. We cannot turn them off in other people's clients; we say so, once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("batch_llm.agents")

#: Prefixes whose SDK retries unless it is told not to, for agents that only have a model's name.
_RETRYING = {
    *("openai", "openai-chat", "openai-responses", "anthropic", "groq", "azure", "deepseek"),
    *("openrouter", "together", "fireworks", "cerebras", "xai", "grok", "ollama", "vllm"),
    *("litellm", "moonshotai", "cohere"),
}
#: What those SDKs do by default.
_USUAL_RETRIES = 2
_MOST_DEEP = 4


class SdkRetries:
    """Looks at agents as they come, and warns about the first whose SDK retries."""

    def __init__(self) -> None:
        self._has_warned = False
        self._seen: Any = None

    def look_at(self, agent: Any) -> None:
        """Warn, once, if calls of a pydantic-ai agent may be tried again by its SDK."""
        if self._has_warned:
            return
        model = getattr(agent, "model", None)
        if model is None or model is self._seen:
            return
        self._seen = model
        retries = sdk_retries(agent)
        if retries:
            self._has_warned = True
            logger.warning(
                "The SDK below the agent's model %s tries each call again by itself, up to %d "
                "times (max_retries). Together with the retries of this run that multiplies calls, "
                "and hides refusals that would tell the limits. Turn it off: "
                "Agent(…, model_settings={'max_retries': 0}).",
                _name(model),
                retries,
            )


def sdk_retries(agent: Any) -> int:
    """Return how often the SDK below a pydantic-ai agent repeats a call; 0 where it is not seen."""
    try:
        if _turned_off(getattr(agent, "model_settings", None)):
            return 0
        return _retries_of(getattr(agent, "model", None), _MOST_DEEP)
    except Exception:  # noqa: BLE001 - a stranger's properties
        return 0


def _retries_of(model: Any, depth: int) -> int:
    if isinstance(model, str):
        return _USUAL_RETRIES if model.partition(":")[0] in _RETRYING else 0
    if model is None or depth == 0 or _turned_off(getattr(model, "settings", None)):
        return 0
    inner = getattr(model, "models", None)  # a chain of fallbacks
    if not isinstance(inner, list | tuple):
        wrapped = getattr(model, "wrapped", None)
        inner = [] if wrapped is None else [wrapped]
    own = getattr(getattr(model, "client", None), "max_retries", 0)
    found = [own] if isinstance(own, int) and not isinstance(own, bool) else []
    return max([*found, *(_retries_of(one, depth - 1) for one in inner)], default=0)


def _turned_off(settings: Any) -> bool:
    return isinstance(settings, Mapping) and settings.get("max_retries") == 0


def _name(model: Any) -> str:
    name = model if isinstance(model, str) else getattr(model, "model_name", None)
    return repr(name) if isinstance(name, str) else type(model).__name__
