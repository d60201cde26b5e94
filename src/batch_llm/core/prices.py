"""What tokens cost: counts by kind, times prices from a table of the user's own or a library's.

Tokens are counted per model, server, service tier and context class, and priced from those totals
when somebody looks: a look-up is too slow for each item. Sums are exact (``Decimal``). What has no
known price stays unknown, and is never taken for nothing.

The library is genai-prices. It is loaded at the first look-up of a model that the user's own table
does not have (0.6 s), and no network is used. Its figures are of its release's date.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batch_llm.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Service tiers. Others that a request names are priced where the library knows them.
STANDARD, BATCH = "standard", "batch"
#: Input lengths above which some model's call is dearer as a whole. The context class of a call is
#: how many of them its input passes, so that totals of one class have one price.
CONTEXT_STARTS = (32_000, 100_000, 128_000, 199_999, 200_000, 256_000, 272_000, 512_000, 524_288)
_MILLION = Decimal(1_000_000)
_NOTHING = Decimal(0)
#: Our names of providers, where genai-prices has others.
_PROVIDER_IDS = {
    "openai-chat": "openai",
    "openai-responses": "openai",
    "google-gla": "google",
    "google-vertex": "google",
    "gateway/openai": "openai",
    "gateway/anthropic": "anthropic",
    "xai": "x-ai",
    "grok": "x-ai",
    "bedrock": "aws",
}
#: What a request to the library is told of the tier.
_CONTEXTS = {BATCH: {"processing": "batch"}}


class ModelUsage(msgspec.Struct, kw_only=True):
    """Tokens of one model, at one server, in one tier and context class.

    Attributes:
        model: ``provider:model``, as asked for; empty where nobody knows it.
        server: Where the calls went, when that is not the provider's own address.
        tier: ``standard``, ``batch``, or what the request asked for: ``flex``, ``priority``.
        context: How many of ``CONTEXT_STARTS`` each call's input passes.
        calls: Calls whose tokens are known.
        unmeasured_calls: Calls that may have cost, and nobody knows how much: cut off, timed out or
            unreadable.
        input_tokens: All input, that from and to caches included.
        output_tokens: All output, reasoning included.
        cache_read_tokens: Input that was read from a cache.
        cache_write_tokens: Input that was written to one.
        cache_write_1h_tokens: Of those, written for an hour.
        reasoning_tokens: Output that was thought and not said.
    """

    model: str
    server: str = ""
    tier: str = STANDARD
    context: int = 0
    calls: int = 0
    unmeasured_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, usage: Mapping[str, int]) -> None:
        """Count one call."""
        self.calls += 1
        get = usage.get
        self.input_tokens += get("input_tokens", 0)
        self.output_tokens += get("output_tokens", 0)
        if len(usage) > 3:
            self.cache_read_tokens += get("cache_read_tokens", 0)
            self.cache_write_tokens += get("cache_write_tokens", 0)
            self.cache_write_1h_tokens += get("cache_write_1h_tokens", 0)
            self.reasoning_tokens += get("reasoning_tokens", 0)


class UsageByModel:
    """Counts tokens as they come: some additions each."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, str, str, int], ModelUsage] = {}

    def note(self, model: str, server: str, tier: str, usage: Mapping[str, int] | None) -> None:
        """Count a call; with None one that may have cost, and nobody knows how much."""
        context = bisect_left(CONTEXT_STARTS, usage.get("input_tokens", 0)) if usage else 0
        key = (model, server, tier, context)
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = ModelUsage(
                model=model, server=server, tier=tier, context=context
            )
        if usage is None:
            found.unmeasured_calls += 1
        else:
            found.add(usage)

    def snapshot(self) -> list[ModelUsage]:
        """Return the counts of this moment; they stay as they are."""
        return [msgspec.structs.replace(one) for one in self._by_key.values()]


class Rate(NamedTuple):
    """What tokens of one context class cost, in USD per token, and a call in itself."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal
    reasoning: Decimal
    call: Decimal = _NOTHING

    def cost(self, usage: ModelUsage | Mapping[str, int]) -> Decimal:
        """Price tokens by kind, exactly; of a mapping, those of one call."""
        if isinstance(usage, ModelUsage):
            return self._sum(
                usage.calls,
                usage.input_tokens,
                usage.output_tokens,
                usage.cache_read_tokens,
                usage.cache_write_tokens,
                usage.cache_write_1h_tokens,
                usage.reasoning_tokens,
            )
        get = usage.get
        return self._sum(
            1,
            get("input_tokens", 0),
            get("output_tokens", 0),
            get("cache_read_tokens", 0),
            get("cache_write_tokens", 0),
            get("cache_write_1h_tokens", 0),
            get("reasoning_tokens", 0),
        )

    def _sum(
        self, calls: int, sent: int, got: int, read: int, written: int, hour: int, thought: int
    ) -> Decimal:
        # Kinds are contained in their totals. A provider whose numbers say otherwise is billed for
        # what it names, and not for a negative rest.
        written = max(written, hour)
        return (
            self.input * max(0, sent - read - written)
            + self.cache_read * read
            + self.cache_write * (written - hour)
            + self.cache_write_1h * hour
            + self.output * max(0, got - thought)
            + self.reasoning * thought
            + self.call * calls
        )

    def most(self, input_tokens: int, output_tokens: int) -> Decimal:
        """Return what a call of so many tokens costs at the most, whatever kinds they are."""
        sent = max(self.input, self.cache_read, self.cache_write, self.cache_write_1h)
        return sent * input_tokens + max(self.output, self.reasoning) * output_tokens + self.call


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A model's price in USD per million tokens. Whole numbers, text and ``Decimal`` are exact.

    Attributes:
        input: Of input.
        output: Of output.
        cache_read: Of input that was read from a cache; None: as other input.
        cache_write: Of input that was written to a cache; None: as other input.
        cache_write_1h: The same for an hour; None: as ``cache_write``.
        reasoning: Of output that was thought; None: as other output.
        batch: What share of all that a batch job costs, such as 0.5; None: not known.
    """

    input: Decimal | float | str
    output: Decimal | float | str
    cache_read: Decimal | float | str | None = None
    cache_write: Decimal | float | str | None = None
    cache_write_1h: Decimal | float | str | None = None
    reasoning: Decimal | float | str | None = None
    batch: Decimal | float | str | None = None

    def rate(self, tier: str = STANDARD) -> Rate | None:
        """Return it per token; None for a tier of which nothing is said.

        Raises:
            ConfigError: One of the figures is no number, or below 0.
        """
        sent, got = _figure("input", self.input), _figure("output", self.output)
        read = sent if self.cache_read is None else _figure("cache_read", self.cache_read)
        written = sent if self.cache_write is None else _figure("cache_write", self.cache_write)
        hour = written
        if self.cache_write_1h is not None:
            hour = _figure("cache_write_1h", self.cache_write_1h)
        thought = got if self.reasoning is None else _figure("reasoning", self.reasoning)
        share = None if self.batch is None else _figure("batch", self.batch)
        factor = {STANDARD: Decimal(1), BATCH: share}.get(tier)
        if factor is None:
            return None
        per_token = factor / _MILLION
        return Rate(*(one * per_token for one in (sent, got, read, written, hour, thought)))


def _figure(name: str, value: object) -> Decimal:
    try:
        figure = Decimal(str(value))
    except InvalidOperation:
        figure = Decimal(-1)
    if isinstance(value, bool) or not figure.is_finite() or figure < 0:
        raise ConfigError(f"price {name}", value, "a number >= 0, in USD per million tokens")
    return figure


class Bill(NamedTuple):
    """What was spent, as far as that is known.

    Attributes:
        usd: The part whose price is known.
        unpriced: Models with tokens and without a known price.
        unmeasured_calls: Calls that may have cost, and nobody knows how much.
        is_priced: Whether anything could be priced at all.
        before_usd: The part of ``usd`` that earlier sessions of the run have spent.
        cut_off_calls: Calls that were under way when a process of the run was killed, in no sum.
        cut_off_usd: What those have cost at the most; None where they have no price.
        cut_off_likely_usd: What they are likely to have cost; None where nobody can tell.
    """

    usd: Decimal
    unpriced: tuple[str, ...] = ()
    unmeasured_calls: int = 0
    is_priced: bool = True
    before_usd: Decimal = _NOTHING
    cut_off_calls: int = 0
    cut_off_usd: Decimal | None = _NOTHING
    cut_off_likely_usd: Decimal | None = _NOTHING

    @property
    def known_usd(self) -> Decimal | None:
        """The sum, or None where a part of it has no price."""
        return None if self.unpriced else self.usd


class Prices:
    """Prices of models: the user's own first, then those of genai-prices.

    Args:
        table: By ``provider:model``, or by the model's name alone. What it has, the library is not
            asked for.

    Raises:
        ConfigError: A price is no number, or below 0.
    """

    def __init__(self, table: Mapping[str, Price] | None = None) -> None:
        self._table = dict(table or {})
        self._rates: dict[tuple[str, str, str, int], Rate | None] = {}
        for name, price in self._table.items():
            if not isinstance(price, Price):
                raise ConfigError(f"price of {name}", price, "a Price(input=…, output=…)")
            price.rate()

    @property
    def origin(self) -> str:
        """Where the prices are from: the library's version, and how many are the user's own.

        Two tables of the user's with the same origin have the same prices.
        """
        from hashlib import blake2b
        from importlib import metadata

        library = f"genai-prices {metadata.version('genai-prices')}"
        if not self._table:
            return library
        listed = repr(sorted(self._table.items())).encode()
        digest = blake2b(listed, digest_size=6).hexdigest()
        return f"{library}, before it {len(self._table)} of the user's own ({digest})"

    @classmethod
    def from_file(cls, path: str | Path) -> Prices:
        """Read a TOML file with one table per model, such as ``["openai:gpt-6-luna"]``.

        Each holds ``input`` and ``output``, and any other attribute of ``Price``.

        Raises:
            ConfigError: It is no such file; the message names the place.
        """
        import tomllib

        try:
            text = Path(path).read_text("utf-8")
            found = tomllib.loads(text, parse_float=Decimal)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(
                "prices", str(path), f"a TOML file that can be read ({error})"
            ) from None
        known = set(Price.__dataclass_fields__)
        table = {}
        for name, fields in found.items():
            if not isinstance(fields, dict) or not {"input", "output"} <= fields.keys() <= known:
                expected = (
                    f"a table with input and output, and no more than {', '.join(sorted(known))}"
                )
                raise ConfigError(f'["{name}"] in {path}', fields, expected)
            table[name] = Price(**fields)
        return cls(table)

    @property
    def needs_library(self) -> bool:
        """Whether a look-up is likely to load the library: there is no table of the user's own."""
        return not self._table and "genai_prices.data" not in sys.modules

    @staticmethod
    def load() -> None:
        """Load the library's figures now; else the first look-up does, and takes 0.6 s more."""
        from genai_prices import data  # noqa: F401

    def rate(
        self, model: str, server: str = "", tier: str = STANDARD, context: int = 0
    ) -> Rate | None:
        """Return a model's price per token; None where it is not known. Slow the first time.

        Args:
            model: ``provider:model``.
            server: Where its calls go, when not to the provider's own address: then the price is
                that of whose address it is, if anybody's.
            tier: See ``ModelUsage``.
            context: The context class.
        """
        key = (model, server, tier, context)
        if key not in self._rates:
            self._rates[key] = self._find(model, server, tier, context)
        return self._rates[key]

    def rate_of_call(self, model: str, server: str, tier: str, input_tokens: int) -> Rate | None:
        """Return the price of a call whose input has so many tokens."""
        return self.rate(model, server, tier, bisect_left(CONTEXT_STARTS, input_tokens))

    def bill(self, usages: Iterable[ModelUsage]) -> Bill:
        """Price what was used."""
        usd, unmeasured, is_priced = _NOTHING, 0, False
        unpriced: dict[str, None] = {}
        for usage in usages:
            unmeasured += usage.unmeasured_calls
            if not usage.calls and not (usage.model and usage.unmeasured_calls):
                continue
            rate = self.rate(usage.model, usage.server, usage.tier, usage.context)
            if rate is None:
                unpriced[usage.model or "items without a model's name"] = None
            else:
                usd += rate.cost(usage)
                is_priced = True
        return Bill(usd, tuple(unpriced), unmeasured, is_priced or not unpriced)

    def at_most(self, usages: Iterable[ModelUsage]) -> Bill:
        """Price what may have been used, at the dearest kinds of tokens."""
        usd, is_priced = _NOTHING, False
        unpriced: dict[str, None] = {}
        for usage in usages:
            rate = self.rate(usage.model, usage.server, usage.tier, usage.context)
            if rate is None:
                unpriced[usage.model or "items without a model's name"] = None
            else:
                usd += rate.most(usage.input_tokens, usage.output_tokens)
                usd += rate.call * (usage.calls - 1)
                is_priced = True
        return Bill(usd, tuple(unpriced), 0, is_priced or not unpriced)

    def _find(self, model: str, server: str, tier: str, context: int) -> Rate | None:
        own = self._own(model)
        if own is not None:
            return own.rate(tier)
        provider, _, name = model.partition(":")
        if not name or provider == "sim" or provider.startswith("sim-"):
            return None
        return _from_library(provider, name, server, tier, context)

    def _own(self, model: str) -> Price | None:
        plain = model.partition("?")[0]  # a simulator's name goes on with its options
        for name in (model, plain, model.partition(":")[2], plain.partition(":")[2]):
            if name and name in self._table:
                return self._table[name]
        return None


def _from_library(provider: str, name: str, server: str, tier: str, context: int) -> Rate | None:
    from genai_prices import Usage, calc_price

    where: dict[str, Any] = {"provider_id": _PROVIDER_IDS.get(provider, provider)}
    if server:
        where = {"provider_api_url": f"https://{server}"}
    nothing = Usage(input_tokens=0, output_tokens=0)
    try:
        found = calc_price(nothing, name, **where).model_price
        if tier != STANDARD:
            # The library knows no such tier of many models, and returns the usual price for them.
            wanted = _CONTEXTS.get(tier, {"service_tier": tier})
            usual, found = (
                found,
                calc_price(nothing, name, price_context=wanted, **where).model_price,
            )
            if found == usual:
                return None
    except LookupError:
        return None
    sent, got = _at(found, "input_mtok", context), _at(found, "output_mtok", context)
    if sent is None or got is None:  # by the hour, by the picture
        return None
    read = _at(found, "cache_read_mtok", context)
    written = _at(found, "cache_write_mtok", context)
    hour = _at(found, "cache_write_1h_mtok", context)
    thought = _at(found, "output_reasoning_mtok", context)
    call = _at(found, "requests_kcount", context)
    written = sent if written is None else written
    figures = (
        sent,
        got,
        sent if read is None else read,
        written,
        written if hour is None else hour,
        got if thought is None else thought,
    )
    per_call = _NOTHING if call is None else call / 1000
    return Rate._make([*(figure / _MILLION for figure in figures), per_call])


def _at(prices: Any, name: str, context: int) -> Decimal | None:
    """Return one price of a model in a context class."""
    found = getattr(prices, name, None)
    if found is None or isinstance(found, Decimal):
        return found
    figure: Decimal = found.base
    for step in found.tiers:  # in rising order; each holds for the call as a whole
        if bisect_left(CONTEXT_STARTS, step.start + 1) <= context:
            figure = step.price
    return figure


def usd(amount: Decimal) -> str:
    """Write an amount: ``$3.41``, with more digits where it is small."""
    if not amount or amount >= Decimal("0.1"):
        return f"${amount:,.2f}"
    rounded = amount.quantize(Decimal("0.000001"))
    return f"${rounded.normalize():f}" if rounded else "<$0.000001"
