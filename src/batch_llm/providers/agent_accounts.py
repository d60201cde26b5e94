"""Under which name the limits of an agent's model are remembered between runs.

It is that of requests to the same model with the same key: they share limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from batch_llm.providers.local_servers import is_local_host
from batch_llm.providers.registry import account_name
from batch_llm.providers.table import PROVIDERS

if TYPE_CHECKING:
    from collections.abc import Mapping


def account_of(lane: str, agent: Any, environ: Mapping[str, str]) -> str | None:
    """Name the account that an agent's calls go to; None where its model or key is not seen.

    Args:
        lane: The agent's, see ``lane_of``.
        agent: Whose client may hold the key; None where a model is asked by its name alone.
        environ: Where the key is looked for then.
    """
    model, _, server = lane.partition(" ")
    provider = PROVIDERS.get(model.partition(":")[0])
    if not server and provider is not None:
        server = urlsplit(provider.base_url).netloc
    host = _host(server)
    if is_local_host(host):  # new limits each time
        return None
    key = _key_of(agent)
    if not key and provider is not None:
        key = provider.find_key(environ)
    return account_name(model, host, key) if host and key else None


def _host(server: str) -> str:
    try:
        return urlsplit(f"//{server}").hostname or ""
    except ValueError:
        return ""


def _key_of(agent: Any) -> str:
    try:
        key = getattr(getattr(getattr(agent, "model", None), "client", None), "api_key", None)
    except Exception:  # noqa: BLE001 - a stranger's properties
        return ""
    return key if isinstance(key, str) else ""
