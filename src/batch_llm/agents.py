"""pydantic-ai's agents and models beside admission: what their HTTP clients see, and who retries.

An agent works without any of this. Then its limits are learned from refusals alone, because SDKs do
not hand on the headers of good answers; and its SDK may retry on its own.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, NamedTuple

from batch_llm.exceptions import (
    ConfigError,
    MissingExtraError,
    MissingKeyError,
    UnknownModelError,
)
from batch_llm.providers.observed import observe, taken_over

__all__ = ["model", "observe"]


class _Kind(NamedTuple):
    """How a provider's models are made: module and class, and what follows its base URL."""

    module: str
    model: str
    provider: str
    path: str
    extra: str


#: By prefix. Others are made by their name alone.
_KINDS = {
    "openai": _Kind("openai", "OpenAIResponsesModel", "OpenAIProvider", "/responses", "openai"),
    "openai-chat": _Kind(
        "openai", "OpenAIChatModel", "OpenAIProvider", "/chat/completions", "openai"
    ),
    "anthropic": _Kind(
        "anthropic", "AnthropicModel", "AnthropicProvider", "/v1/messages", "anthropic"
    ),
    "google": _Kind("google", "GoogleModel", "GoogleProvider", r"/v1(beta)?/models/.*", "gemini"),
    "groq": _Kind("groq", "GroqModel", "GroqProvider", "/openai/v1/chat/completions", "groq"),
    "mistral": _Kind(
        "mistral", "MistralModel", "MistralProvider", "/v1/chat/completions", "mistral"
    ),
}


#: How pydantic-ai asks for a key.
_VARIABLE = re.compile(r"Set the `([A-Z][A-Z0-9_]*)` environment variable")


def model(name: str, *, base_url: str | None = None, api_key: str | None = None) -> Any:
    """Return a pydantic-ai model whose limits are seen, and whose SDK does not retry by itself.

        agent = Agent(batch_llm.agents.model("openai:gpt-6-luna"))

    Args:
        name: ``provider:model``, as pydantic-ai writes it.
        base_url: Another address, as the provider's SDK takes it.
        api_key: Another key than that in the provider's usual variable.

    Raises:
        MissingKeyError: There is no key for it.
        UnknownModelError: pydantic-ai cannot make it; the reason says why.
        ConfigError: An address or a key is given for a provider that is not known here.
        MissingExtraError: pydantic-ai, or the provider's SDK, is not installed.
    """
    prefix, _, plain = name.partition(":")
    kind = _KINDS.get(prefix)
    extra = kind.extra if kind is not None else "pydantic-ai"
    try:
        if base_url is None and api_key is None:
            made = import_module("pydantic_ai.models").infer_model(name)
        elif kind is None:
            known = ", ".join(_KINDS)
            raise ConfigError("base_url", base_url, f"given for one of {known}; {prefix} is none")
        else:
            made = _made(kind, plain, base_url, api_key)
    except ImportError as error:
        raise MissingExtraError(f"the model {name}", extra) from error
    except (ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        if (missing := _VARIABLE.search(str(error))) is not None:
            raise MissingKeyError(prefix, missing[1]) from error
        raise UnknownModelError(name, str(error)) from error
    return taken_over(made)


def _made(kind: _Kind, plain: str, base_url: str | None, api_key: str | None) -> Any:
    providers = import_module(f"pydantic_ai.providers.{kind.module}")
    models = import_module(f"pydantic_ai.models.{kind.module}")
    given = {"base_url": base_url, "api_key": api_key}
    arguments = {key: value for key, value in given.items() if value is not None}
    return getattr(models, kind.model)(
        plain, provider=getattr(providers, kind.provider)(**arguments)
    )


def sdk_base_url(prefix: str, url: str) -> str:
    """Return the address that a provider's SDK wants, of the address of its calls."""
    kind = _KINDS.get(prefix) or _KINDS["openai-chat"]
    return re.sub(f"{kind.path}$", "", url.partition("?")[0])


def sdk_prefix(prefix: str) -> str:
    """Return whose SDK speaks a provider's format: its own, or OpenAI's for all compatible ones."""
    return prefix if prefix in _KINDS else "openai-chat"
