"""What a simulator does: limits, latency and faults, as one line of text or as data."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from batch_llm.exceptions import ConfigError
from batch_llm.simulator.rules import CHARGES, QUOTAS

if TYPE_CHECKING:
    from collections.abc import Iterable

_FACTORS = {"k": 1e3, "m": 1e6}


@dataclass(frozen=True, slots=True)
class Profile:
    """How a simulated provider behaves. Durations in seconds, probabilities from 0 to 1.

    Attributes:
        latency: Median time to an answer, or to the first piece of a streamed one.
        per_token: Further time for each token of the answer; 0 = none.
        tail: Spread of the log-normal latency; 0 is constant, 1 has a heavy tail.
        rpm: Requests per minute; 0 = unlimited.
        tpm: Tokens per minute; 0 = unlimited. What counts is said by ``charge``.
        itpm: Input tokens per minute, without those read from a cache; 0 = unlimited.
        otpm: Output tokens per minute, counted when they are there; 0 = unlimited.
        charge: What a call counts against tpm. ``asked``: ``max_tokens`` or the prompt, whichever
            is larger. ``settled``: the same, and what was not used is given back with the answer.
            ``sum``: the same for both together. ``input``: the prompt. ``used``: the prompt, and
            the answer when it is there. ``own``: as the provider does whose format is spoken.
        window: ``bucket`` refills continuously; ``fixed`` starts anew with each window;
            ``sliding`` counts what passed in the last window's length; ``own`` is as the provider
            does.
        burst: How many seconds of the limit a bucket holds, or a window is long. A bucket holds
            one at least, and a window is long enough for one.
        change: When rpm and tpm become how many times as much, counted from the first call;
            written ``AT:FACTOR``, ``10:0.5`` halves them after 10 seconds. ``(0, 1)`` = never.
        rpd: Requests per day; 0 = unlimited. Days are counted from the start. OpenAI's format
            counts good answers, the others all calls that were let in.
        day: How long a day is.
        server: What it is: ``hosted``, or ``llama`` (llama.cpp), ``vllm`` or ``ollama``, servers
            of one's own that take calls without a key, queue what is beyond their slots, and tell
            of themselves at their usual addresses.
        slots: Calls in work at the most; further ones are refused without a Retry-After by a
            ``hosted`` one and wait at the others. 0 = unlimited, or what is usual there: 4, 256
            and 1.
        tps: Tokens that are written per second for all calls together; 0 = unlimited.
        rejects: Whether refused calls use up the limits per minute too (``count``) or not
            (``free``); ``own`` is as the provider does.
        retry_after: What a 429 says: ``header`` (whole seconds), ``decimal`` (seconds with a
            fraction), ``ms``, ``date`` or ``none``; ``own`` is as the provider does.
        should_retry: What error answers tell the SDKs in ``x-should-retry``: ``true``, ``false`` or
            nothing (``none``).
        headers: Whether answers tell of the limits, ``on`` or ``off``. A 429 has its wait in
            either case.
        cached: The share of the input that is read from a cache.
        cache_writes: The share of the other input that is written to a cache, where a provider
            bills that.
        reasoning: Tokens of thought for each token of an answer, billed as output.
        context: Tokens of a prompt at the most; 0 = unlimited.
        largest: Bytes of a call at the most; 0 = unlimited.
        p408: Request timeout.
        p429: Refused for a moment, for no countable reason.
        p500: Server error.
        p502: Bad gateway, told in HTML.
        p503: Service unavailable.
        p504: Gateway timeout.
        p529: Overloaded.
        ptimeout: Held back for ``hang`` seconds.
        preset: The connection is cut in mid-body.
        pgarbage: Broken JSON in a 200.
        pmidway: An error inside of an answer that began as a 200, where the format knows that: in
            the middle of a stream, or in a body.
        pschema: An answer that does not fit the requested schema.
        ptruncate: Cut off, ``finish_reason`` ``length``.
        prefuse: The model refuses; for good.
        pfilter: The content filter withholds the answer; for good.
        pquota: The account is out of credit, for this request, for good.
        quota: In which of the provider's ways it says that it is out of credit, such as
            ``billing_hard_limit_reached``; its usual one where it does not know the word.
        quota_after: The account is out of credit after so many good answers; 0 = never.
        down: From when to when every call gets a 503, counted from the start; written
            ``START-END``. ``(0, 0)`` = never.
        hang: How long a held-back answer is held.
        recover: After so many passing faults in a row, the same conversation gets its answer;
            0 = never. Refusals, filters and ``pquota`` stay.
        log: Whether every billed call is kept, to be looked at: ``on`` or ``off``.
        seed: Two simulators of the same seed do the same to the same conversation.
    """

    latency: float = 0.005
    per_token: float = 0.0
    tail: float = 0.0
    rpm: float = 0
    tpm: float = 0
    itpm: float = 0
    otpm: float = 0
    charge: str = "own"
    window: str = "own"
    burst: float = 60.0
    change: tuple[float, float] = (0.0, 1.0)
    rpd: int = 0
    day: float = 86_400.0
    server: str = "hosted"
    slots: int = 0
    tps: float = 0
    rejects: str = "free"
    retry_after: str = "own"
    should_retry: str = "none"
    headers: str = "on"
    cached: float = 0.0
    cache_writes: float = 0.0
    reasoning: float = 0.0
    context: int = 0
    largest: int = 0
    p408: float = 0.0
    p429: float = 0.0
    p500: float = 0.0
    p502: float = 0.0
    p503: float = 0.0
    p504: float = 0.0
    p529: float = 0.0
    ptimeout: float = 0.0
    preset: float = 0.0
    pgarbage: float = 0.0
    pmidway: float = 0.0
    pschema: float = 0.0
    ptruncate: float = 0.0
    prefuse: float = 0.0
    pfilter: float = 0.0
    pquota: float = 0.0
    quota: str = "usual"
    quota_after: int = 0
    down: tuple[float, float] = (0.0, 0.0)
    hang: float = 600.0
    recover: int = 0
    log: str = "off"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise ConfigError(field.name, value, "a finite number >= 0")
        for fault, chance in self.chances(FAULTS):
            if chance > 1:
                raise ConfigError(fault, chance, "a probability from 0 to 1")
        for option, words in _CHOICES.items():
            _check_word(option, getattr(self, option), words)
        start, end = self.down
        if not 0 <= start <= end < float("inf"):
            raise ConfigError("down", self.down, "START-END in seconds, START not after END")
        at, factor = self.change
        if not (0 <= at < float("inf") and 0 < factor < float("inf")):
            raise ConfigError("change", self.change, "AT:FACTOR, AT in seconds, FACTOR above 0")
        for share in ("cached", "cache_writes"):
            if getattr(self, share) > 1:
                raise ConfigError(share, getattr(self, share), "a share from 0 to 1")
        if self.day == 0:
            raise ConfigError("day", self.day, "above 0 seconds")
        total = sum(chance for _, chance in self.chances(FAULTS))
        if total > 1 + 1e-9:
            raise ConfigError("the sum of all p…", round(total, 6), "1 or less")

    def chances(self, names: Iterable[str]) -> list[tuple[str, float]]:
        """Return the named options with their probabilities, without those that are 0."""
        return [(name, getattr(self, name)) for name in names if getattr(self, name)]

    @property
    def is_hosted(self) -> bool:
        """Whether it refuses what is beyond its limits, and wants a key."""
        return self.server == "hosted"


#: Faults that pass, and faults that stay with a conversation.
PASSING = (
    "p408",
    "p429",
    "p500",
    "p502",
    "p503",
    "p504",
    "p529",
    "ptimeout",
    "preset",
    "pgarbage",
    "pmidway",
    "pschema",
    "ptruncate",
)
LASTING = ("prefuse", "pfilter", "pquota")
FAULTS = PASSING + LASTING

_CHOICES = {
    "server": ("hosted", "llama", "vllm", "ollama"),
    "charge": ("own", *CHARGES),
    "window": ("own", "bucket", "fixed", "sliding"),
    "rejects": ("own", "free", "count"),
    "retry_after": ("own", "header", "decimal", "ms", "date", "none"),
    "should_retry": ("none", "true", "false"),
    "quota": ("usual", *QUOTAS),
    "headers": ("on", "off"),
    "log": ("on", "off"),
}
#: Of the types that the options are declared with.
_KINDS: dict[Any, type] = {
    "str": str,
    "int": int,
    "float": float,
    "tuple[float, float]": tuple,
}
#: What stands between the two numbers of an option, and how to write it.
_PAIRS = {
    "down": ("-", "START-END in seconds, for example 5-20"),
    "change": (":", "AT:FACTOR, for example 10:0.5"),
}


def parse_profile(text: str) -> Profile:
    """Read ``name?option=value&…``, for example ``fast?rpm=500&tpm=100k&p429=0.05``.

    Raises:
        ConfigError: An unknown profile or option, or an impossible value; the message names it.
    """
    name, _, query = text.partition("?")
    if name not in PROFILES:
        expected = f"one of {', '.join(PROFILES)}{_nearest(name, PROFILES)}"
        raise ConfigError("the simulator's profile", name, expected)
    base = PROFILES[name]
    options = {option.name: getattr(base, option.name) for option in dataclasses.fields(base)}
    kinds = {option.name: _KINDS[option.type] for option in dataclasses.fields(base)}
    changes: dict[str, Any] = {}
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option not in options:
            near = _nearest(option, options)
            all_of_them = f"one of {', '.join(options)}"
            expected = "one that docs/simulator.md lists" if near else all_of_them
            raise ConfigError("the simulator's option", option, expected + near)
        changes[option] = _read(option, value, kinds[option])
    return dataclasses.replace(base, **changes)


def _read(option: str, value: str, kind: type) -> Any:
    if kind is str:
        return value
    if kind is tuple:
        mark, expected = _PAIRS[option]
        first, found, second = value.partition(mark)
        if not found:
            raise ConfigError(option, value, expected)
        return _number(option, first), _number(option, second)
    number = _number(option, value)
    if kind is not int:
        return number
    if not number.is_integer():
        raise ConfigError(option, value, "a whole number")
    return int(number)


def _number(option: str, text: str) -> float:
    factor = _FACTORS.get(text[-1:].lower(), 1.0)
    try:
        return float(text[:-1] if factor != 1.0 else text) * factor
    except ValueError:
        raise ConfigError(option, text, "a number such as 500, 10k or 1.5M") from None


def _check_word(option: str, word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        listed = f"{', '.join(words[:-1])} or {words[-1]}"
        raise ConfigError(option, word, f"{listed}{_nearest(word, words)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


PROFILES = {
    "fast": Profile(),
    "slow": Profile(latency=1.5, tail=0.6),
    "flaky": Profile(
        latency=0.06,
        tail=0.4,
        rpm=12_000,
        retry_after="ms",
        p429=0.03,
        p500=0.02,
        p503=0.01,
        p529=0.01,
        ptimeout=0.001,
        preset=0.01,
        pgarbage=0.01,
        pschema=0.02,
        ptruncate=0.002,
        hang=8.0,
        recover=3,
    ),
}
