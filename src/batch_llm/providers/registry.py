"""From a model's name to where its calls go. What is known of the providers is in ``table``."""

from __future__ import annotations

import difflib
import os
import re
from base64 import b64encode
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, unquote, urlsplit

from batch_llm.exceptions import ConfigError, MissingKeyError, UnknownModelError
from batch_llm.providers.local_servers import is_local_host
from batch_llm.providers.openai import CHAT
from batch_llm.providers.table import (
    AZURE,
    GOOGLE,
    PROVIDERS,
    SIMULATED,
    SIMULATOR,
    Provider,
    is_simulator,
)
from batch_llm.strategies.costs import USUAL_CHARGE, ChargeRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from batch_llm.providers.codec import Codec
    from batch_llm.providers.limit_headers import LimitNames


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model's calls go, and what to send along.

    Attributes:
        provider: The provider's name.
        model: The model's name on the wire.
        url: Of the calls. Never shown: its query may hold a key.
        headers: Of the calls. Never shown: they hold the key.
        codec: Its wire format.
        limit_names: See ``Provider``.
        charges: See ``Provider``.
        secret: The key or password, so that it can be struck out of what servers say; empty
            without one.
        is_local: Whether its server is one of the user's own, and may be asked about itself.
        key_variable: The name of the variable with the key; empty without a key.
    """

    provider: str
    model: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    codec: Codec = CHAT
    secret: str = field(default="", repr=False)
    limit_names: LimitNames | None = None
    charges: ChargeRule = USUAL_CHARGE
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
        if is_simulator(self.provider) or parts.hostname in _THIS_MACHINE:
            return None
        return account_name(f"{self.provider}:{self.model}", parts.hostname or "", self.secret)

    @property
    def base_url(self) -> str:
        """The part of the URL that all models and endpoints of the server share; no query."""
        parts = urlsplit(self.url)
        path = parts.path.removesuffix(self.codec.path(self.model))
        return parts._replace(path=path, query="", fragment="").geturl()

    @property
    def server(self) -> str:
        """Host and path of the server, unless it is the provider's own: whose prices hold there."""
        provider = PROVIDERS.get(self.provider)
        parts = urlsplit(self.base_url)
        own = urlsplit(provider.base_url).hostname if provider is not None else None
        if is_simulator(self.provider) or parts.hostname == own or own is None:
            return ""
        return parts.netloc + parts.path


def account_name(model: str, host: str, secret: str) -> str:
    """Name what shares limits: a model, its server, and of the key no more than a digest."""
    if not secret:
        return f"{model} {host}"
    digest = blake2b(secret.encode(), digest_size=6, person=b"batch-llm").hexdigest()
    return f"{model} {host} {digest}"


_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}
#: Where the hosted providers are: nobody asks there.
_PUBLIC_HOSTS = {
    urlsplit(provider.base_url).hostname for provider in PROVIDERS.values() if not provider.is_local
}
#: Names of variables. Whatever else stands there may be a key itself, and is not repeated.
_VARIABLE = re.compile("[A-Z_][A-Z0-9_]*")
_NAMES_OF_KEYS = "names of variables such as OPENAI_API_KEY, in capitals; not the keys themselves"
#: Prefixes that pydantic-ai knows and requests do not speak.
_NOT_SPOKEN = {"bedrock", "google-cloud", "litellm", "cohere", "huggingface", "moonshotai"}
#: The end of an address that names the version of an API.
_VERSION = re.compile(r"/v\d+(?:alpha|beta)?\d*$")
#: Ends of addresses that show that the whole URL of a call was given.
_ENDS_OF_CALLS = ("/chat/completions", "/responses", "/messages", ":generateContent")


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
        raise UnknownModelError(model, "It names no provider.", f"{_likely(model)}:{model}")
    if is_simulator(provider):
        return provider, name or "fast"
    if provider in _NOT_SPOKEN:
        reason = f'Requests are not sent to "{provider}" by this version; agents can use it.'
        raise UnknownModelError(model, reason)
    if provider not in PROVIDERS:
        raise UnknownModelError(
            model, f'No provider is called "{provider}".', _nearest(provider, name)
        )
    if not name:
        raise UnknownModelError(model, "The name of the model is missing after the colon.")
    return provider, name


def _nearest(provider: str, name: str) -> str | None:
    """Return a name that requests can be sent to, if one of them may have been meant."""
    known = [*PROVIDERS, *SIMULATED, *sorted(_NOT_SPOKEN)]
    near = difflib.get_close_matches(provider.lower(), known, 1, 0.6)
    if not near:
        return None
    return None if near[0] in _NOT_SPOKEN else f"{near[0]}:{name or 'MODEL'}"


def _likely(model: str) -> str:
    """Return the provider that a model's bare name points to."""
    names = {"claude": "anthropic", "gemini": "google", "mistral": "mistral"}
    found = (provider for start, provider in names.items() if model.startswith(start))
    return next(found, "openai")


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
        base_url: Of a compatible server, as its SDK takes it: of OpenAI's kind up to and including
            ``/v1``, of others with or without a version. A key is optional then, and is sent to
            that server if there is one, as the provider's own SDK does. A name and password in the
            URL are sent instead of the key.
        key_variable: The variable with the key, instead of the provider's usual one; it must be
            set.
        environ: Where keys and base URLs are looked up.

    Raises:
        UnknownModelError: The name cannot be resolved.
        MissingKeyError: The provider's own API needs a key, and there is none.
        ConfigError: The base URL or the key cannot be used.
    """
    provider_name, name = split_model(model)
    if is_simulator(provider_name):
        if base_url is None:
            raise UnknownModelError(model, "Its simulator has not been started.")
        return _simulated(provider_name, name, base_url)
    provider = PROVIDERS[provider_name]
    variable = key_variable or provider.find_variable(environ)
    key = environ.get(variable, "").strip()
    elsewhere = base_url or environ.get(provider.url_variable, "").strip() or None
    if elsewhere is None and not provider.base_url:
        expected = "the address of your resource, such as https://NAME.openai.azure.com"
        raise ConfigError(provider.url_variable, "", expected)
    is_own = elsewhere is None or elsewhere.rstrip("/") == provider.base_url
    needs_key = elsewhere is None or (base_url is None and not provider.base_url)
    if not key and (key_variable is not None or (needs_key and not provider.is_local)):
        raise MissingKeyError(provider.name, variable)
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(variable, "(hidden)", "one line of plain ASCII")
    codec = provider.codec if is_own else provider.codec_elsewhere or provider.codec
    address, login = _checked(elsewhere or provider.base_url)
    address = _versioned(address, provider, name, environ)
    headers = _headers(provider, key)
    if login is not None:
        headers.pop(provider.key_header, None)
        headers["authorization"] = f"Basic {b64encode(login.encode()).decode()}"
        key = login.partition(":")[2]
    host = address.hostname
    may_be_local = provider.may_be_local and (provider.is_local or is_local_host(host))
    return Endpoint(
        provider.name,
        name,
        address._replace(path=address.path + codec.path(name)).geturl(),
        headers,
        codec,
        key,
        provider.limit_names,
        provider.charges if is_own or not provider.base_url else provider.charges.elsewhere(),
        may_be_local and host not in _PUBLIC_HOSTS,
        "" if login is not None or not key else variable,
    )


def _simulated(prefix: str, name: str, base_url: str) -> Endpoint:
    """Return the endpoint of a simulator, whose address ends in ``/v1``. No key is sent to it."""
    from batch_llm.simulator.addresses import api_url

    provider = PROVIDERS[SIMULATED[prefix]]
    address, _ = _checked(api_url(base_url, SIMULATED[prefix].removesuffix("-chat")))
    url = address._replace(path=address.path + provider.codec.path(name)).geturl()
    return Endpoint(
        prefix,
        name,
        url,
        _headers(provider, "simulator"),
        provider.codec,
        "",
        provider.limit_names,
        provider.charges,
        is_local=prefix == SIMULATOR,  # which may play a local server
    )


def _headers(provider: Provider, key: str) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept": "application/json"}
    headers |= provider.headers
    if key:
        is_bearer = provider.key_header == "authorization"
        headers[provider.key_header] = f"Bearer {key}" if is_bearer else key
    return headers


def _versioned(
    address: SplitResult, provider: Provider, model: str, environ: Mapping[str, str]
) -> SplitResult:
    """Return an address with the version that its calls go to, where it names none."""
    if not provider.version or _VERSION.search(address.path):
        return address
    version, query = provider.version, address.query
    if provider.name == AZURE and (told := environ.get("OPENAI_API_VERSION", "").strip()):
        # The older surface: each model has an address, and the version is a parameter.
        version = f"/openai/deployments/{quote(model, safe='')}"
        query = f"{query}&api-version={quote(told)}".lstrip("&")
    elif provider.name == GOOGLE and (told := environ.get("GOOGLE_GENAI_API_VERSION", "").strip()):
        version = f"/{quote(told)}"
    return address._replace(path=address.path + version, query=query)


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
    if not is_simulator(provider) or base_url is not None:
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
    named = keys.split(",") if isinstance(keys, str) else keys  # one text, as `base_urls` is
    variables: Sequence[str | None] = [name.strip() for name in named]
    for name in variables:
        if not _VARIABLE.fullmatch(name or ""):
            raise ConfigError("keys", "(hidden)", _NAMES_OF_KEYS)
    pool = tuple(
        resolve(model, base_url=url, key_variable=variable, environ=environ)
        for url in urls or [None]
        for variable in variables or [None]
    )
    known: dict[object, Endpoint] = {}
    for one in pool:
        place = (one.url, *sorted(one.headers.items()))
        if place in known:  # their limits would be counted twice
            raise _same_place(known[place], one, variables)
        known[place] = one
    return pool


def _same_place(one: Endpoint, other: Endpoint, variables: Sequence[str | None]) -> ConfigError:
    """Say what makes two places of a pool the same."""
    name, second = one.key_variable, other.key_variable
    if name and second and name != second:
        told = f"the same key in {name} and {second}"
        return ConfigError("keys", told, "variables with keys that are all different")
    if len(set(variables)) < len(variables):
        return ConfigError("keys", f"{name} twice", "variables that are all different")
    return ConfigError("base_url", f"{other.shown_url} twice", "addresses that are all different")


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
    if not is_simulator(provider) or base_urls is not None:
        yield resolve_pool(model, base_urls=base_urls, keys=keys, environ=environ)
        return
    if keys:
        raise ConfigError("keys", ",".join(keys), "left out: the simulator takes any key")
    with open_endpoint(model, environ=environ) as endpoint:
        yield (endpoint,)


def _checked(base_url: str) -> tuple[SplitResult, str | None]:
    """Return an address without a slash at its end, and the ``name:password`` that stood in it."""
    shown = base_url.rpartition("@")[2]  # without a password
    try:
        parts = urlsplit(base_url)
        is_good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        parts, is_good = urlsplit(""), False
    if not is_good or not base_url.isprintable() or " " in base_url:
        raise ConfigError("base_url", shown, "a URL such as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/")
    for end in _ENDS_OF_CALLS:
        if path.endswith(end):
            raise ConfigError("base_url", shown, f"the part before {end}")
    login, at, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=host, path=path, fragment=""), unquote(login) if at else None
