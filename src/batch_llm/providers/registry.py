"""From a model's name to where its calls go. Providers are data, one row each."""

from __future__ import annotations

import difflib
import os
import re
from base64 import b64encode
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from batch_llm.exceptions import ConfigError, MissingKeyError, UnknownModelError
from batch_llm.providers.local_servers import is_local_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Provider:
    """What is known of a provider.

    Attributes:
        name: The prefix in model names; pydantic-ai's.
        base_url: Where its API is.
        key_variable: The environment variable with its key.
        url_variable: The environment variable that moves the API elsewhere.
        max_tokens_field: What it calls the limit on an answer's length.
        charges_asked: Whether its token limit counts the longest answer that was asked for, and not
            the one that came.
        is_local: Whether it is a server on the user's own machines: it needs no key.
    """

    name: str
    base_url: str
    key_variable: str
    url_variable: str
    max_tokens_field: str = "max_tokens"
    charges_asked: bool = False
    is_local: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model's calls go, and what to send along.

    Attributes:
        provider: The provider's name.
        model: The model's name on the wire.
        url: Of the calls. Never shown: its query may hold a key.
        headers: Of the calls. Never shown: they hold the key.
        max_tokens_field: See ``Provider``.
        charges_asked: See ``Provider``.
        secret: The key or password, so that it can be struck out of what servers say; empty
            without one.
        is_local: Whether its server is one of the user's own, and may be asked about itself.
        key_variable: The name of the variable with the key; empty without a key.
    """

    provider: str
    model: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    max_tokens_field: str = "max_tokens"
    secret: str = field(default="", repr=False)
    charges_asked: bool = False
    is_local: bool = False
    key_variable: str = ""

    @property
    def shown_url(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()

    @property
    def account(self) -> str | None:
        """What shares limits: provider, server and model, and a digest of the key; None if local.

        The simulator's and this machine's own servers have a new address or new limits each time.
        """
        parts = urlsplit(self.url)
        if self.provider == SIMULATOR or parts.hostname in _THIS_MACHINE:
            return None
        name = f"{self.provider}:{self.model} {parts.hostname}"
        if not self.secret:
            return name
        digest = blake2b(self.secret.encode(), digest_size=6, person=b"batch-llm").hexdigest()
        return f"{name} {digest}"

    @property
    def server(self) -> str:
        """Host and path of the server, unless it is the provider's own: whose prices hold there."""
        provider = PROVIDERS.get(self.provider)
        parts = urlsplit(self.url)
        own = urlsplit(provider.base_url).hostname if provider is not None else None
        if self.provider == SIMULATOR or parts.hostname == own:
            return ""
        return parts.netloc + parts.path.removesuffix("/chat/completions")


_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}
PROVIDERS = {
    provider.name: provider
    for provider in [
        Provider(
            "openai-chat",
            "https://api.openai.com/v1",
            "OPENAI_API_KEY",
            "OPENAI_BASE_URL",
            "max_completion_tokens",
            charges_asked=True,
        ),
        Provider(
            "ollama",
            "http://127.0.0.1:11434/v1",
            "OLLAMA_API_KEY",
            "OLLAMA_BASE_URL",
            is_local=True,
        ),
        Provider(
            "vllm", "http://127.0.0.1:8000/v1", "VLLM_API_KEY", "VLLM_BASE_URL", is_local=True
        ),
    ]
}
#: Where the hosted providers are: nobody asks there.
_PUBLIC_HOSTS = {
    urlsplit(provider.base_url).hostname for provider in PROVIDERS.values() if not provider.is_local
}
SIMULATOR = "sim"
#: Names of variables. Whatever else stands there may be a key itself, and is not repeated.
_VARIABLE = re.compile("[A-Z_][A-Z0-9_]*")
_NAMES_OF_KEYS = "names of variables such as OPENAI_API_KEY, in capitals; not the keys themselves"
#: Prefixes that pydantic-ai knows and requests do not speak.
_NOT_SPOKEN = {"openai", "anthropic", "google", "mistral", "groq", "azure", "bedrock", "xai"}


def split_model(model: str) -> tuple[str, str]:
    """Return provider and name, split at the first colon.

    Raises:
        UnknownModelError: There is no such provider, or no name.
    """
    provider, colon, name = model.partition(":")
    if not colon:
        if "/" in model:
            reason = "Names are written provider:model, with a colon."
            raise UnknownModelError(model, reason, _nearest(*model.split("/", 1)))
        raise UnknownModelError(model, "It names no provider.", f"openai-chat:{model}")
    if provider == SIMULATOR:
        return provider, name or "fast"
    if provider in _NOT_SPOKEN and provider not in PROVIDERS:
        reason = f'Requests are not sent to "{provider}" by this version; agents can use it.'
        raise UnknownModelError(
            model, reason, f"openai-chat:{name}" if provider == "openai" else None
        )
    if provider not in PROVIDERS:
        raise UnknownModelError(
            model, f'No provider is called "{provider}".', _nearest(provider, name)
        )
    if not name:
        raise UnknownModelError(model, "The name of the model is missing after the colon.")
    return provider, name


def _nearest(provider: str, name: str) -> str | None:
    """Return a name that requests can be sent to, if one of them may have been meant."""
    known = [*PROVIDERS, SIMULATOR, *sorted(_NOT_SPOKEN)]
    near = difflib.get_close_matches(provider.lower(), known, 1, 0.6)
    if not near:
        return None
    found = "openai-chat" if near[0] == "openai" else near[0]
    return None if found in _NOT_SPOKEN else f"{found}:{name or 'MODEL'}"


def resolve(
    model: str,
    *,
    base_url: str | None = None,
    key_variable: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Endpoint:
    """Find out where a model's calls go.

    Args:
        model: ``provider:model``.
        base_url: Of a compatible server, up to and including ``/v1``; a key is optional then, and
            is sent to that server if there is one, as the provider's own SDK does. A name and
            password in the URL are sent instead of the key.
        key_variable: The variable with the key, instead of the provider's usual one; it must be
            set.
        environ: Where keys and base URLs are looked up.

    Raises:
        UnknownModelError: The name cannot be resolved.
        MissingKeyError: The provider's own API needs a key, and there is none.
        ConfigError: The base URL or the key cannot be used.
    """
    provider_name, name = split_model(model)
    headers = {"content-type": "application/json", "accept": "application/json"}
    if provider_name == SIMULATOR:
        if base_url is None:
            raise UnknownModelError(model, "Its simulator has not been started.")
        headers["authorization"] = "Bearer simulator"  # never the user's key
        url, _ = _chat_url(base_url)
        return Endpoint(
            SIMULATOR,
            name,
            url,
            headers,
            "max_completion_tokens",
            charges_asked=True,
            is_local=True,
        )
    provider = PROVIDERS[provider_name]
    variable = key_variable or provider.key_variable
    key = environ.get(variable, "").strip()
    elsewhere = base_url or environ.get(provider.url_variable, "").strip() or None
    needs_key = elsewhere is None and not provider.is_local
    if not key and (needs_key or key_variable is not None):
        raise MissingKeyError(provider.name, variable)
    if key:
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(variable, "(hidden)", "one line of plain ASCII")
        headers["authorization"] = f"Bearer {key}"
    url, login = _chat_url(elsewhere or provider.base_url)
    if login is not None:
        headers["authorization"] = f"Basic {b64encode(login.encode()).decode()}"
        key = login.partition(":")[2]
    is_own = elsewhere is None or elsewhere.rstrip("/") == provider.base_url
    field = provider.max_tokens_field if is_own else "max_tokens"
    host = urlsplit(url).hostname
    return Endpoint(
        provider.name,
        name,
        url,
        headers,
        field,
        key,
        is_own and provider.charges_asked,
        host not in _PUBLIC_HOSTS and (provider.is_local or is_local_host(host)),
        "" if login is not None or not key else variable,
    )


@contextmanager
def open_endpoint(
    model: str, *, base_url: str | None = None, environ: Mapping[str, str] = os.environ
) -> Iterator[Endpoint]:
    """Resolve a model; for ``sim:`` names, run its simulator for as long as the block lasts.

    Raises:
        UnknownModelError: See ``resolve``.
        MissingKeyError: See ``resolve``.
        ConfigError: See ``resolve``; or the simulator's profile has an impossible option.
    """
    provider, name = split_model(model)
    if provider != SIMULATOR or base_url is not None:
        yield resolve(model, base_url=base_url, environ=environ)
        return
    from batch_llm.simulator.server import SimulatorProcess

    with SimulatorProcess(name) as simulator:
        yield resolve(model, base_url=simulator.base_url, environ=environ)


def resolve_pool(
    model: str,
    *,
    base_urls: str | None = None,
    keys: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> tuple[Endpoint, ...]:
    """Find out where a model's calls may go: to each server, with each key.

    Args:
        model: ``provider:model``.
        base_urls: One server or several, separated by commas; see ``resolve``.
        keys: The names of the variables with the keys, instead of the provider's usual one.
        environ: Where keys and base URLs are looked up.

    Raises:
        UnknownModelError: See ``resolve``.
        MissingKeyError: See ``resolve``.
        ConfigError: See ``resolve``; or two places are the same, or a key stands where the name of
            its variable should be (it is not repeated).
    """
    urls: Sequence[str | None] = [url.strip() for url in base_urls.split(",")] if base_urls else []
    variables: Sequence[str | None] = [name.strip() for name in keys]
    for name in variables:
        if not _VARIABLE.fullmatch(name or ""):
            raise ConfigError("keys", "(hidden)", _NAMES_OF_KEYS)
    pool = tuple(
        resolve(model, base_url=url, key_variable=variable, environ=environ)
        for url in urls or [None]
        for variable in variables or [None]
    )
    places = {(one.url, one.headers.get("authorization")) for one in pool}
    if len(places) < len(pool):  # their limits would be counted twice
        setting = "keys" if len(variables) > 1 else "base_url"
        raise ConfigError(setting, "the same key or server twice", "all different")
    return pool


@contextmanager
def open_pool(
    model: str,
    *,
    base_urls: str | None = None,
    keys: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Iterator[tuple[Endpoint, ...]]:
    """Do what ``resolve_pool`` does; for ``sim:`` names, run the simulator meanwhile."""
    provider, _ = split_model(model)
    if provider != SIMULATOR or base_urls is not None:
        yield resolve_pool(model, base_urls=base_urls, keys=keys, environ=environ)
        return
    if keys:
        raise ConfigError("keys", ",".join(keys), "left out: the simulator takes any key")
    with open_endpoint(model, environ=environ) as endpoint:
        yield (endpoint,)


def _chat_url(base_url: str) -> tuple[str, str | None]:
    """Return the URL of the calls, and the ``name:password`` that stood in it."""
    shown = base_url.rpartition("@")[2]  # without a password
    try:
        parts = urlsplit(base_url)
        is_good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        parts, is_good = urlsplit(""), False
    if not is_good or not base_url.isprintable() or " " in base_url:
        raise ConfigError("base_url", shown, "a URL such as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/")
    if path.endswith("/chat/completions"):
        raise ConfigError("base_url", shown, "the part before /chat/completions")
    login, at, host = parts.netloc.rpartition("@")
    url = parts._replace(netloc=host, path=f"{path}/chat/completions", fragment="").geturl()
    return url, unquote(login) if at else None
