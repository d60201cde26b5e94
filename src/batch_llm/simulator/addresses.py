"""Where each provider is on a simulator's one port, as its SDK wants to be told."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """Where a provider is.

    Attributes:
        sdk: What follows host and port in the base URL that its SDK takes.
        api: What follows them in the addresses of its API, before ``/chat/completions``,
            ``/responses``, ``/messages`` or ``/models/…``.
        variables: The environment variables that tell its SDK: URL and key. Empty where the SDK
            reads none for its URL.
    """

    sdk: str
    api: str
    variables: tuple[str, str]


ADDRESSES = {
    "openai": Address("/v1", "/v1", ("OPENAI_BASE_URL", "OPENAI_API_KEY")),
    "anthropic": Address("", "/v1", ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY")),
    "google": Address("", "/v1beta", ("GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY")),
    "mistral": Address("/mistral", "/mistral/v1", ("", "MISTRAL_API_KEY")),
    "groq": Address("", "/openai/v1", ("GROQ_BASE_URL", "GROQ_API_KEY")),
}


def sdk_url(base_url: str, provider: str) -> str:
    """Return the base URL that a provider's SDK takes.

    Args:
        base_url: A simulator's own, which ends in ``/v1``.
        provider: ``openai``, ``anthropic``, ``google``, ``mistral`` or ``groq``.
    """
    return base_url.removesuffix("/v1") + ADDRESSES[provider].sdk


def api_url(base_url: str, provider: str) -> str:
    """Return what stands before the endpoints in a provider's API; arguments as ``sdk_url``."""
    return base_url.removesuffix("/v1") + ADDRESSES[provider].api
