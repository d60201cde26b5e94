"""What a simulator does: limits, latency and faults, as one line of text or as data."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from batch_llm.exceptions import ConfigError

_FACTORS = {"k": 1e3, "m": 1e6}


@dataclass(frozen=True, slots=True)
class Profile:
    """How a simulated provider behaves. Durations in seconds, probabilities from 0 to 1.

    Attributes:
        latency: Median time to an answer.
        tail: Spread of the log-normal latency; 0 is constant, 1 has a heavy tail.
        rpm: Requests per minute; 0 = unlimited.
        tpm: Tokens per minute, reserved as ``max_tokens`` or the prompt's estimate, whichever is
            larger; 0 = unlimited.
        window: ``bucket`` refills continuously, ``fixed`` every minute.
        burst: How many seconds of the limit a bucket holds.
        retry_after: What a 429 says: ``header`` (whole seconds), ``ms`` or ``none``.
        p429: Refused for a moment, for no countable reason.
        p500: Server error.
        p503: Service unavailable.
        p529: Overloaded.
        ptimeout: Held back for ``hang`` seconds.
        preset: The connection is cut in mid-body.
        pgarbage: Broken JSON in a 200.
        pschema: An answer that does not fit the requested schema.
        ptruncate: Cut off, ``finish_reason`` ``length``.
        prefuse: The model refuses; for good.
        pfilter: The content filter withholds the answer; for good.
        pquota: The account is out of credit, for this request, for good.
        quota_after: The account is out of credit after so many answers; 0 = never.
        hang: How long a held-back answer is held.
        recover: After so many faults in a row, the same conversation gets its answer; 0 = never.
        seed: Two simulators of the same seed do the same to the same conversation.
    """

    latency: float = 0.005
    tail: float = 0.0
    rpm: float = 0
    tpm: float = 0
    window: str = "bucket"
    burst: float = 60.0
    retry_after: str = "header"
    p429: float = 0.0
    p500: float = 0.0
    p503: float = 0.0
    p529: float = 0.0
    ptimeout: float = 0.0
    preset: float = 0.0
    pgarbage: float = 0.0
    pschema: float = 0.0
    ptruncate: float = 0.0
    prefuse: float = 0.0
    pfilter: float = 0.0
    pquota: float = 0.0
    quota_after: int = 0
    hang: float = 600.0
    recover: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise ConfigError(option.name, value, "a finite number >= 0")
            if option.name.startswith("p") and value > 1:
                raise ConfigError(option.name, value, "a probability from 0 to 1")
        if self.window not in {"bucket", "fixed"}:
            raise ConfigError("window", self.window, "bucket or fixed")
        if self.retry_after not in {"header", "ms", "none"}:
            raise ConfigError("retry_after", self.retry_after, "header, ms or none")
        if sum(getattr(self, name) for name in FAULTS) > 1:
            raise ConfigError("the sum of all p…", "more than 1", "1 or less")

    @property
    def has_faults(self) -> bool:
        """Whether any call may fail."""
        return any(getattr(self, name) for name in FAULTS)


#: Faults that pass, and faults that stay with a conversation.
PASSING = (
    "p429",
    "p500",
    "p503",
    "p529",
    "ptimeout",
    "preset",
    "pgarbage",
    "pschema",
    "ptruncate",
)
LASTING = ("prefuse", "pfilter", "pquota")
FAULTS = PASSING + LASTING

PROFILES = {
    "fast": Profile(),
    "slow": Profile(latency=1.5, tail=0.6),
    "flaky": Profile(
        latency=0.06,
        tail=0.4,
        retry_after="ms",
        p429=0.03,
        p500=0.02,
        p503=0.01,
        p529=0.01,
        ptimeout=0.001,
        preset=0.01,
        pgarbage=0.01,
        pschema=0.02,
        ptruncate=0.01,
        hang=8.0,
        recover=3,
    ),
}


def parse_profile(text: str) -> Profile:
    """Read ``name?option=value&…``, for example ``fast?rpm=500&tpm=100k&p429=0.05``.

    Raises:
        ConfigError: An unknown profile or option, or an impossible value; the message names it.
    """
    name, _, query = text.partition("?")
    if name not in PROFILES:
        raise ConfigError(
            "profile", name, f"one of {', '.join(PROFILES)}{_nearest(name, PROFILES)}"
        )
    base = PROFILES[name]
    options = {option.name: getattr(base, option.name) for option in dataclasses.fields(base)}
    changes: dict[str, Any] = {}
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option not in options:
            expected = f"an option of the simulator{_nearest(option, options)}"
            raise ConfigError("option", option, expected)
        changes[option] = _read(option, value, type(options[option]))
    return dataclasses.replace(base, **changes)


def _read(option: str, value: str, kind: type) -> Any:
    if kind is str:
        return value
    factor = _FACTORS.get(value[-1:].lower(), 1.0)
    try:
        number = float(value[:-1] if factor != 1.0 else value) * factor
        return int(number) if kind is int else number
    except (ValueError, OverflowError):
        raise ConfigError(option, value, "a number such as 500, 10k or 1.5M") from None


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""
