"""Settings, with all durations in seconds. The processor calls ``validate``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from batch_llm.core.prices import Prices
from batch_llm.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

#: Calls in flight at the most where nobody says how many: sockets and memory for more are rare.
AUTO_MOST = 1000
#: The same where it is known that more have somewhere to go, by the provider's limit or a server's
#: slots. What is answered in 10 s at 30,000 a minute.
AUTO_MOST_KNOWN = 5000


class _Default(int):
    """A number that nobody gave."""

    __slots__ = ()


#: ``max_workers`` where nobody gave it: it bounds cooldowns, and nothing where limits are learned.
DEFAULT_WORKERS = _Default(5)

#: Prices without a table of the user's own; they keep what they have looked up.
_LIBRARY_PRICES = Prices()

#: Values of ``concurrency`` with which the number of calls in flight is found.
_SELF_FINDING = ("auto", "knee")


def _require(condition: bool, setting: str, value: object, expected: str) -> None:  # noqa: FBT001
    if not condition:
        raise ConfigError(setting, value, expected)


def _is_finite(value: object, low: float) -> bool:
    return isinstance(value, int | float) and low <= value < math.inf


def _is_whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


@dataclass(slots=True)
class RetryConfig:
    """How often one item is tried, and how long to wait in between.

    The wait before attempt ``n + 1`` is ``initial_wait * exponential_base ** (n - 1)``, capped at
    ``max_wait``.

    Attributes:
        max_attempts: Total number of attempts per item, the first one included. A call that was
            refused by a rate limit does not count.
        initial_wait: Seconds to wait after the first failure.
        max_wait: Upper bound of any computed wait, in seconds.
        exponential_base: Factor by which the wait grows after each failure.
        jitter: Draw each wait uniformly from zero to its computed value, so that items that
            failed together do not come back together.
        max_rate_limits: An item refused more often than this fails with
            ``RateLimitedTooOftenError``, so that a run always ends. 0 waits for ever. Where limits
            are learned, the same holds for an overloaded provider (503, 529).
        max_tokens_cap: What a request's ``max_tokens`` may be raised to, once, when its answer is
            cut off there. None: twice as much. 0: it is never raised.
        fallback_on: The failures after which an item's next fallback is asked, as ``ErrorCode``
            values; None: the usual ones (``docs/errors.md`` has the table). Each fallback has one
            attempt at least, beyond ``max_attempts`` if need be.
    """

    max_attempts: int = 3
    initial_wait: float = 1.0
    max_wait: float = 60.0
    exponential_base: float = 2.0
    jitter: bool = True
    max_rate_limits: int = 100
    max_tokens_cap: int | None = None
    fallback_on: Collection[str] | None = None

    def validate(self) -> None:
        """Check every field against its bounds.

        Raises:
            ConfigError: A value is out of range; the message names it and the bound.
        """
        _require(_is_whole(self.max_attempts, 1), "max_attempts", self.max_attempts, ">= 1")
        _require(
            _is_finite(self.initial_wait, 0), "initial_wait", self.initial_wait, ">= 0 and finite"
        )
        _require(
            _is_finite(self.max_wait, self.initial_wait),
            "max_wait",
            self.max_wait,
            f">= initial_wait ({self.initial_wait}) and finite",
        )
        _require(
            _is_finite(self.exponential_base, 1),
            "exponential_base",
            self.exponential_base,
            ">= 1 and finite",
        )
        _require(
            _is_whole(self.max_rate_limits, 0), "max_rate_limits", self.max_rate_limits, ">= 0"
        )
        _require(
            self.max_tokens_cap is None or _is_whole(self.max_tokens_cap, 0),
            "max_tokens_cap",
            self.max_tokens_cap,
            ">= 0, or None",
        )
        _require(
            not isinstance(self.fallback_on, str),
            "fallback_on",
            self.fallback_on,
            'a collection of codes such as {"bad_output", "truncated"}',
        )


@dataclass(slots=True)
class RateLimitConfig:
    """What everyone does when the provider refuses a call: a cooldown, then a slow start.

    Attributes:
        cooldown_seconds: Length of the first cooldown, unless the provider says how long.
        slow_start_items: Calls released one at a time after a cooldown; 0 turns the ramp off.
        slow_start_initial_delay: Seconds between the first of them.
        slow_start_final_delay: Seconds between the last of them.
        backoff_multiplier: Factor by which each further cooldown without a success in between
            is longer.
    """

    cooldown_seconds: float = 300.0
    slow_start_items: int = 50
    slow_start_initial_delay: float = 2.0
    slow_start_final_delay: float = 0.1
    backoff_multiplier: float = 1.5
    #: Whether nobody asked for it: limits are learned then instead.
    _is_default: bool = field(default=False, init=False, repr=False, compare=False)

    @classmethod
    def _unasked(cls) -> RateLimitConfig:
        config = cls()
        config._is_default = True
        return config

    @property
    def is_asked_for(self) -> bool:
        """Whether somebody gave it, or changed something in it."""
        return not self._is_default or self != RateLimitConfig()

    def validate(self) -> None:
        """Check every field against its bounds.

        Raises:
            ConfigError: A value is out of range; the message names it and the bound.
        """
        for setting, low in (
            ("cooldown_seconds", 0),
            ("slow_start_items", 0),
            ("slow_start_initial_delay", 0),
            ("slow_start_final_delay", 0),
            ("backoff_multiplier", 1),
        ):
            value = getattr(self, setting)
            _require(_is_finite(value, low), setting, value, f">= {low} and finite")


@dataclass(slots=True, kw_only=True)
class Limits:
    """What a provider allows per minute and per day: ceilings that are never passed.

    With none given all are learned. With some given, the others are taken for unlimited.

    Attributes:
        requests_per_minute: Calls.
        tokens_per_minute: Input and output together.
        input_tokens_per_minute: Input alone.
        output_tokens_per_minute: Output alone.
        requests_per_day: Calls per day, used up as fast as the others allow. The bucket starts
            full and fills again meanwhile: the first 24 hours may see up to twice as many.
        burst_seconds: How many seconds of a limit per minute may be used up at once, where the
            provider does not say: 60 lets a whole minute's calls go at once.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    input_tokens_per_minute: float | None = None
    output_tokens_per_minute: float | None = None
    requests_per_day: float | None = None
    burst_seconds: float | None = None

    def validate(self) -> None:
        """Check every field against its bounds.

        Raises:
            ConfigError: A value is out of range; the message names it and the bound.
        """
        for limit in fields(self):
            value = getattr(self, limit.name)
            is_good = value is None or (_is_finite(value, 0) and value > 0)
            _require(is_good, limit.name, value, "> 0 and finite")


@dataclass(slots=True)
class ProcessorConfig:
    """How a processor works.

    Attributes:
        max_workers: Calls in flight at the most. Where it is not given and limits are learned,
            there are as many as the limits have room for.
        timeout_per_item: Seconds that one attempt may take.
        retry: How often an item is tried.
        rate_limit: What happens when the provider refuses calls. Only where it is given, or a
            ``rate_limit_strategy``: otherwise limits are learned, and hardly any call is refused.
        progress_interval: A progress line is logged each time that so many items are finished;
            0 logs none.
        enable_detailed_logging: Log each attempt's failure at INFO instead of DEBUG.
        max_queue_size: ``add_work`` waits while so many items are queued. 0 = unlimited.
        limits: What is known of the provider's limits. With it, ``rate_limit`` is not used.
        concurrency: Calls in flight at the most, instead of ``max_workers``; ``"auto"`` lets as
            many in as the limits have room for, or as a local server works on; ``"knee"`` searches
            the number that gets most done. ``max_workers`` is their ceiling where it is given too.
            With either, ``rate_limit`` is not used.
        longest_pause_seconds: Where limits are learned: items whose limit opens again later than
            that fail, with ``LimitPauseError``. None waits, be it for tomorrow's calls.
        remember_limits: Where limits are learned: start from what earlier runs learned of the same
            key and model, and write it down for the next (``docs/admission.md`` says where).
        hedge: Send second copies of unusually slow calls, once nothing else is left to send, and
            take whichever answer comes first (``docs/tail.md`` says when, and what it costs).
        max_cost_usd: What a run may cost, failed attempts included. It ends before a call is sent
            whose worst case would pass it (``docs/money.md`` says what is exact in that). Each run
            has it anew; with a ledger, what earlier sessions of the run took counts too. None: as
            much as it takes.
        max_tokens_total: The same of tokens, input and output together.
        deadline_seconds: A run sends nothing any more so long after its start, and ends when what
            is in flight has ended.
        max_failed: A run ends when more than this many of its items have failed; those in flight
            then may add to them.
        max_failed_share: A run ends when more than this share of its finished items has failed,
            as soon as so many are finished that the share is a share of them: ``1 / share``, and
            20 at the least; 0 ends it at the first failure.
        prices: What tokens cost: the user's own, before the library's.
        dedupe: Send requests that ask the same once while one of them is in work, and give each
            its answer, tokens booked once. Not those that sample: see ``LLMWorkItem.can_share``.
        fallbacks: Who is asked in turn where an item fails at its own model, for items that name
            none themselves: names of models (``LLMWorkItem.fallbacks``). ``retry.fallback_on`` says
            after which failures.
    """

    max_workers: int = DEFAULT_WORKERS
    timeout_per_item: float = 120.0
    retry: RetryConfig = field(default_factory=RetryConfig)
    rate_limit: RateLimitConfig = field(default_factory=RateLimitConfig._unasked)  # noqa: SLF001
    progress_interval: int = 10
    enable_detailed_logging: bool = False
    max_queue_size: int = 0
    limits: Limits | None = None
    concurrency: int | Literal["auto", "knee"] | None = None
    longest_pause_seconds: float | None = None
    remember_limits: bool = True
    hedge: bool = False
    max_cost_usd: Decimal | float | None = None
    max_tokens_total: int | None = None
    deadline_seconds: float | None = None
    max_failed: int | None = None
    max_failed_share: float | None = None
    prices: Prices = field(default_factory=lambda: _LIBRARY_PRICES)
    dedupe: bool = True
    fallbacks: Sequence[str] = ()

    @property
    def bounds_failures(self) -> bool:
        """Whether a run ends when too many of its items have failed."""
        return self.max_failed is not None or self.max_failed_share is not None

    @property
    def learns_limits(self) -> bool:
        """Whether admission learns the provider's limits, in place of the cooldown."""
        is_asked_for = self.limits is not None or self.concurrency in _SELF_FINDING
        return is_asked_for or not self.rate_limit.is_asked_for

    @property
    def is_auto(self) -> bool:
        """Whether the number of calls in flight is found, and not given."""
        if self.concurrency is None:
            return self.learns_limits and isinstance(self.max_workers, _Default)
        return self.concurrency in _SELF_FINDING

    @property
    def seeks_knee(self) -> bool:
        """Whether the number of calls in flight that gets most done is searched."""
        return self.concurrency == "knee"

    @property
    def most_in_flight(self) -> int:
        """Calls in flight at the most, as long as nothing is known of limits and servers."""
        given = self._given
        if given is None:
            return AUTO_MOST
        return min(AUTO_MOST, given) if self.concurrency == "auto" else given

    @property
    def ceiling(self) -> int:
        """Calls in flight at the most, whatever limits and servers allow."""
        return AUTO_MOST_KNOWN if self._given is None else self._given

    @property
    def _given(self) -> int | None:
        """The number of calls in flight that somebody gave."""
        if isinstance(self.concurrency, int):
            return self.concurrency
        is_given = not (self.is_auto and isinstance(self.max_workers, _Default))
        return int(self.max_workers) if is_given else None

    def validate(self) -> None:
        """Check every field, and those of ``retry`` and ``rate_limit``.

        Raises:
            ConfigError: A value is out of range; the message names it and the bound.
        """
        self._validate_pace()
        self._validate_ends()
        _require(isinstance(self.hedge, bool), "hedge", self.hedge, "True or False")
        _require(isinstance(self.prices, Prices), "prices", self.prices, "Prices(...)")
        names = self.fallbacks
        _require(
            not isinstance(names, str) and all(isinstance(one, str) for one in names),
            "fallbacks",
            names,
            'names such as ("anthropic:claude-haiku-5-5",)',
        )
        self.retry.validate()
        self.rate_limit.validate()
        if self.limits is not None:
            _require(isinstance(self.limits, Limits), "limits", self.limits, "Limits(...), or None")
            self.limits.validate()

    def _validate_pace(self) -> None:
        """Check how many items are in work, and how long they may take."""
        _require(_is_whole(self.max_workers, 1), "max_workers", self.max_workers, ">= 1")
        _require(
            _is_finite(self.timeout_per_item, 0) and self.timeout_per_item > 0,
            "timeout_per_item",
            self.timeout_per_item,
            "> 0 and finite",
        )
        _require(
            _is_whole(self.progress_interval, 0),
            "progress_interval",
            self.progress_interval,
            ">= 0",
        )
        _require(
            _is_whole(self.max_queue_size, 0),
            "max_queue_size",
            self.max_queue_size,
            ">= 0 (0 = unlimited)",
        )
        _require(
            self.concurrency is None
            or self.concurrency in _SELF_FINDING
            or _is_whole(self.concurrency, 1),
            "concurrency",
            self.concurrency,
            '>= 1, "auto" or "knee"',
        )
        _require(
            self.longest_pause_seconds is None or _is_finite(self.longest_pause_seconds, 0),
            "longest_pause_seconds",
            self.longest_pause_seconds,
            ">= 0 and finite, or None",
        )

    def _validate_ends(self) -> None:
        """Check what ends a run early."""
        for setting in ("max_cost_usd", "deadline_seconds"):
            value = getattr(self, setting)
            is_amount = isinstance(value, int | float | Decimal) and 0 < value < math.inf
            _require(value is None or is_amount, setting, value, "> 0 and finite, or None")
        _require(
            self.max_tokens_total is None or _is_whole(self.max_tokens_total, 1),
            "max_tokens_total",
            self.max_tokens_total,
            ">= 1, or None",
        )
        _require(
            self.max_failed is None or _is_whole(self.max_failed, 0),
            "max_failed",
            self.max_failed,
            ">= 0, or None",
        )
        _require(
            self.max_failed_share is None
            or (_is_finite(self.max_failed_share, 0) and self.max_failed_share <= 1),
            "max_failed_share",
            self.max_failed_share,
            "a share from 0 to 1, or None",
        )
