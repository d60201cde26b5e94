"""The providers as data, one row each.

A provider that speaks a format we know is a row here and nothing else. From a model's name to where
its calls go is for ``registry``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batch_llm.providers.anthropic import MESSAGES, VERSION
from batch_llm.providers.gemini import GENERATE
from batch_llm.providers.limit_headers import ANTHROPIC_LIMITS, GROQ_LIMITS, MISTRAL_LIMITS
from batch_llm.providers.openai import CHAT, ChatCodec
from batch_llm.providers.openai_responses import RESPONSES
from batch_llm.strategies.costs import USUAL_CHARGE, Answers, ChargeRule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batch_llm.providers.codec import Codec
    from batch_llm.providers.limit_headers import LimitNames

AZURE, GOOGLE = "azure", "google"


@dataclass(frozen=True, slots=True)
class Provider:
    """What is known of a provider.

    Attributes:
        name: The prefix in model names; pydantic-ai's.
        base_url: Where its API is, version included; empty where each customer has an own address.
        key_variable: The environment variable with its key.
        url_variable: The environment variable that moves the API elsewhere.
        codec: Its wire format.
        codec_elsewhere: That of servers which only are compatible with it; None: the same.
        other_key_variables: Where its key is looked for next.
        version: What follows an address that names no version, as in its SDK: ``/v1``. Empty: an
            address is used as it is.
        key_header: Carries the key; ``authorization`` as a bearer.
        headers: Further headers of each call.
        limit_names: How the headers with its limits are called; None: as they look.
        charges: What its limit on tokens counts.
        is_local: Whether it is a server on the user's own machines: it needs no key.
        may_be_local: Whether servers on the user's own machines speak its format, as a rule.
    """

    name: str
    base_url: str
    key_variable: str
    url_variable: str
    codec: Codec
    codec_elsewhere: Codec | None = None
    other_key_variables: tuple[str, ...] = ()
    version: str = ""
    key_header: str = "authorization"
    headers: Mapping[str, str] = field(default_factory=dict)
    limit_names: LimitNames | None = None
    charges: ChargeRule = USUAL_CHARGE
    is_local: bool = False
    may_be_local: bool = True

    def find_key(self, environ: Mapping[str, str]) -> str:
        """Return the key that the environment holds, or nothing."""
        return environ.get(self.find_variable(environ), "").strip()

    def find_variable(self, environ: Mapping[str, str]) -> str:
        """Return the variable that holds the key, or the one in which it is looked for first."""
        names = (self.key_variable, *self.other_key_variables)
        return next((name for name in names if environ.get(name, "").strip()), self.key_variable)


#: Of servers that are compatible with OpenAI's chat completions, and no more.
_COMPATIBLE = ChatCodec("max_tokens", has_developers=False, thinks=False)
#: The same with the field's new name.
_COMPATIBLE_NEW = ChatCodec(has_developers=False, thinks=False)


def _compatible(
    name: str,
    base_url: str,
    codec: ChatCodec = _COMPATIBLE,
    *,
    is_local: bool = False,
    charges: ChargeRule = USUAL_CHARGE,
) -> Provider:
    """Make the row of a provider that speaks OpenAI's format; its variables are named after it."""
    prefix = name.upper()
    return Provider(
        name,
        base_url,
        f"{prefix}_API_KEY",
        f"{prefix}_BASE_URL",
        codec,
        is_local=is_local,
        charges=charges,
    )


PROVIDERS = {
    provider.name: provider
    for provider in [
        Provider(
            "openai",
            "https://api.openai.com/v1",
            "OPENAI_API_KEY",
            "OPENAI_BASE_URL",
            RESPONSES,
            charges=ChargeRule(Answers.AS_ASKED),
        ),
        Provider(
            "openai-chat",
            "https://api.openai.com/v1",
            "OPENAI_API_KEY",
            "OPENAI_BASE_URL",
            CHAT,
            ChatCodec("max_tokens"),
            charges=ChargeRule(Answers.AS_ASKED),
        ),
        Provider(
            "anthropic",
            "https://api.anthropic.com/v1",
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_BASE_URL",
            MESSAGES,
            other_key_variables=("ANTHROPIC_AUTH_TOKEN",),
            version="/v1",
            headers={"anthropic-version": VERSION},
            limit_names=ANTHROPIC_LIMITS,
            charges=ChargeRule(counts_cache_reads=False),
            may_be_local=False,
        ),
        Provider(
            GOOGLE,
            "https://generativelanguage.googleapis.com/v1",
            "GOOGLE_API_KEY",
            "GOOGLE_GEMINI_BASE_URL",
            GENERATE,
            other_key_variables=("GEMINI_API_KEY",),
            version="/v1",
            key_header="x-goog-api-key",
            charges=ChargeRule(Answers.NOT),
            may_be_local=False,
        ),
        Provider(
            "mistral",
            "https://api.mistral.ai/v1",
            "MISTRAL_API_KEY",
            "MISTRAL_BASE_URL",
            ChatCodec("max_tokens", "random_seed", has_developers=False, thinks=False),
            version="/v1",
            limit_names=MISTRAL_LIMITS,
            may_be_local=False,
        ),
        Provider(
            "groq",
            "https://api.groq.com/openai/v1",
            "GROQ_API_KEY",
            "GROQ_BASE_URL",
            _COMPATIBLE_NEW,
            version="/openai/v1",
            limit_names=GROQ_LIMITS,
            charges=ChargeRule(Answers.RESERVED, counts_cache_reads=False),
            may_be_local=False,
        ),
        Provider(
            AZURE,
            "",
            "AZURE_OPENAI_API_KEY",
            "AZURE_OPENAI_ENDPOINT",
            CHAT,
            version="/openai/v1",
            key_header="api-key",
            charges=ChargeRule(Answers.AS_ASKED),
            may_be_local=False,
        ),
        _compatible(
            "deepseek",
            "https://api.deepseek.com",
            ChatCodec("max_tokens", has_developers=False, schemas="json_object", thinks=False),
        ),
        _compatible("openrouter", "https://openrouter.ai/api/v1"),
        _compatible("together", "https://api.together.xyz/v1"),
        _compatible("fireworks", "https://api.fireworks.ai/inference/v1"),
        _compatible("xai", "https://api.x.ai/v1"),
        _compatible(
            "cerebras",
            "https://api.cerebras.ai/v1",
            _COMPATIBLE_NEW,
            charges=ChargeRule(Answers.RESERVED),
        ),
        _compatible("ollama", "http://127.0.0.1:11434/v1", is_local=True),
        _compatible("vllm", "http://127.0.0.1:8000/v1", is_local=True),
    ]
}
SIMULATOR = "sim"
#: Simulators of other formats than chat completions, by prefix: whose row of the table they play.
SIMULATED = {SIMULATOR: "openai-chat"} | {
    f"{SIMULATOR}-{name}": name for name in ("openai", "anthropic", "google", "mistral", "groq")
}


def is_simulator(provider: str) -> bool:
    """Tell whether calls with this prefix go to a simulator that is started for them."""
    return provider in SIMULATED
