"""What a brief's calls need, checked and opened: pools of endpoints, prices, the cache.

Nothing is sent here: that is ``session.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from batch_llm.core.config import AUTO_MOST, AUTO_MOST_KNOWN
from batch_llm.core.request import Request
from batch_llm.exceptions import (
    BatchLLMError,
    ConfigError,
    InputError,
    MissingKeyError,
    UnknownModelError,
    UnsupportedRequestError,
)
from batch_llm.providers.registry import open_pool, resolve_pool, split_model
from batch_llm.providers.requests import RequestCaller
from batch_llm.providers.table import is_simulator
from batch_llm.providers.transport import raise_file_limit
from batch_llm.simulator import parse_profile
from batch_llm.stores.answers import AnswerCache
from batch_llm.stores.limit_memory import LimitMemory, limits_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batch_llm.providers.registry import Endpoint
    from batch_llm.providers.transport import HttpTransport
    from batch_llm.runs.brief import Brief
    from batch_llm.runs.recipe import Variant


@dataclasses.dataclass(frozen=True, slots=True)
class Pools:
    """Where a brief's calls go.

    Attributes:
        own: The endpoints of the run's model.
        others: Those of models that rows were retried with; or why there are none: then the rows
            that still wait for such a model fail with it, and all others are as they are.
        fallbacks: Those of the models that are asked where a row's own fails, by name.
        possible: Connections that can be opened, where these are fewer than wanted; else None.
    """

    own: Sequence[Endpoint]
    others: dict[str, Sequence[Endpoint] | BatchLLMError]
    fallbacks: dict[str, Sequence[Endpoint]]
    possible: int | None

    @property
    def servers(self) -> list[str]:
        """Where the run's own calls go, other than to the provider's own address."""
        return [endpoint.server for endpoint in self.own if endpoint.server]

    def _of(self, model: str) -> Sequence[Endpoint]:
        found = self.others.get(model) or self.fallbacks.get(model, self.own)
        if isinstance(found, BatchLLMError):
            raise found
        return found

    def caller(
        self, transport: HttpTransport, brief: Brief, *, keep_bodies: bool
    ) -> RequestCaller | None:
        """Return who makes the calls of requests; an agent makes its own."""
        if brief.agent is not None:
            return None
        return RequestCaller(
            self._of if self.others else self.own,
            transport,
            keep_bodies=keep_bodies,
            ignore_slots=brief.ignore_slots,
            fallback=self.fallbacks.__getitem__,
        )


def check_model(
    model: str, run_model: str, base_url: str | None = None, keys: Sequence[str] = ()
) -> None:
    """Refuse a model that cannot be reached from here, before rows are marked for it.

    Args:
        model: What rows are to be retried with.
        run_model: The run's own, whose servers and keys are those of its provider.
        base_url: The run's.
        keys: The run's.

    Raises:
        UnknownModelError: There is no such model.
        MissingKeyError: There is no key for it.
        ConfigError: Its profile or address cannot be used.
    """
    provider, name = split_model(model)
    if is_simulator(provider):
        parse_profile(name)
    elif provider == split_model(run_model)[0]:
        resolve_pool(model, base_urls=base_url, keys=keys)
    else:
        resolve_pool(model)


@contextlib.contextmanager
def open_pools(brief: Brief, variants: Sequence[Variant] = ()) -> Iterator[Pools]:
    """Find out where a brief's calls go; run the simulator meanwhile where it is asked for.

    Servers and keys that are given for the run are those of its provider: a model of another one,
    with which rows are retried, goes to that one's own address.

    Raises:
        UnknownModelError: A model cannot be resolved.
        MissingKeyError: There is no key.
        ConfigError: An address or a key cannot be used.
        InputError: A cap on cost cannot be kept.
    """
    with contextlib.ExitStack() as opened:
        if brief.agent is not None:
            brief.agent.open(brief, opened)
            check_price(brief, brief.agent.places[0])
            yield Pools(brief.agent.places, {}, {}, None)
            return
        own = opened.enter_context(
            open_pool(brief.model, base_urls=brief.base_url, keys=brief.keys)
        )
        others: dict[str, Sequence[Endpoint] | BatchLLMError] = {}
        for model in dict.fromkeys(variant.model for variant in variants):
            if model is None or model == brief.model:
                continue
            try:
                others[model] = opened.enter_context(open_pool(model, **brief.places_of(model)))
            except (MissingKeyError, UnknownModelError, ConfigError) as error:
                others[model] = error
        fallbacks: dict[str, Sequence[Endpoint]] = {
            model: opened.enter_context(open_pool(model, **brief.places_of(model)))
            for model in brief.fallbacks
        }
        pools = [
            own,
            *(one for one in others.values() if not isinstance(one, BatchLLMError)),
            *fallbacks.values(),
        ]
        given = brief.concurrency if isinstance(brief.concurrency, int) else None
        possible = raise_file_limit(given or AUTO_MOST_KNOWN)
        if brief.forget_limits and (path := limits_file()) is not None:
            accounts = [one.account for pool in pools for one in pool if one.account]
            LimitMemory(path).forget(accounts)
        check_settings(brief, own[0])
        for one in pools:  # prices are loaded here, where nothing waits: a display asks in mid-run
            check_price(brief, one[0])
        yield Pools(own, others, fallbacks, possible)


def open_cache(brief: Brief) -> AnswerCache:
    """Open a brief's cache, new or old.

    Raises:
        CacheError: It cannot be used.
    """
    assert brief.cache is not None  # noqa: S101 - the caller has looked
    return AnswerCache(brief.cache, expires_seconds=brief.cache_expires_seconds)


def is_short_of_connections(brief: Brief, possible: int | None) -> bool:
    """Tell whether fewer connections can be opened than the brief wants."""
    is_told = isinstance(brief.concurrency, int)
    return possible is not None and (is_told or possible < AUTO_MOST)


def check_settings(brief: Brief, endpoint: Endpoint) -> None:
    """Refuse settings for which the provider's format has no place, before anything is sent.

    Raises:
        InputError: It has none.
    """
    request = Request.of(brief.model, "-", output=brief.shape, settings=brief.settings)
    try:
        endpoint.codec.encode(request, model=endpoint.model)
    except UnsupportedRequestError as error:
        raise InputError(
            f"{error.wire_format} of {brief.model} has no place for {error.part}; nothing was sent"
        ) from None


def check_price(brief: Brief, endpoint: Endpoint) -> None:
    """Refuse a cap on cost that cannot be kept, before anything is sent.

    Raises:
        InputError: The model's price is not known.
    """
    model = f"{endpoint.provider}:{endpoint.model}"
    if brief.prices.rate(model, endpoint.server) is None and brief.max_cost_usd is not None:
        where = f" at {endpoint.server}" if endpoint.server else ""
        raise InputError(
            f"--max-cost cannot be kept: no price is known for {model}{where}; nothing was sent\n\n"
            "  --prices FILE              gives its price, in USD per million tokens:\n"
            f'                             ["{model.partition("?")[0]}"]\n'
            "                             input = 0.25\n"
            "                             output = 2.00\n"
            "  --max-tokens-total 10M     caps tokens instead"
        )
