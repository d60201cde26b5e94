"""Flags' values: durations, shares, settings."""

from __future__ import annotations

import difflib
import json
import math
from datetime import datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

from batch_llm.core.request import Settings
from batch_llm.core.schema import OutputSchema
from batch_llm.exceptions import ConfigError, InputError

_FACTORS = {"k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
#: Settings of chat completions, to find slips near them. Others are passed on as they are.
_SETTINGS = (
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "min_p",
    "n",
    "parallel_tool_calls",
    "presence_penalty",
    "prediction",
    "reasoning_effort",
    "repetition_penalty",
    "seed",
    "service_tier",
    "stop",
    "store",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def read_count(flag: str, text: str, *, at_least: int = 0) -> int:
    """Read ``500``, ``10k`` or ``1.5M``."""
    factor = _FACTORS.get(text[-1:], 1)
    try:
        number = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        number = float("nan")
    if not number.is_integer() or number < at_least:
        raise ConfigError(flag, text, f">= {at_least}: a whole number such as 500 or 10k")
    return int(number)


def read_concurrency(text: str) -> int | Literal["knee"] | None:
    """Read a number of calls in flight, or ``knee``; None for ``auto``."""
    if text in {"auto", "knee"}:
        return "knee" if text == "knee" else None
    try:
        return read_count("--concurrency", text, at_least=1)
    except ConfigError:
        expected = "auto, knee, or a whole number >= 1 such as 50 or 1k"
        raise ConfigError("--concurrency", text, expected) from None


def read_limit(flag: str, text: str | None) -> float | None:
    """Read a limit per minute, ``500`` or ``2M``; None where there is none."""
    return None if text is None else float(read_count(flag, text, at_least=1))


def read_seconds(flag: str, text: str) -> float:
    """Read ``60``, ``30s``, ``2m``, ``1.5h`` or ``7d``."""
    unit = next((u for u in ("ms", "s", "m", "h", "d") if text.endswith(u)), "")
    try:
        seconds = float(text.removesuffix(unit)) * _SECONDS.get(unit, 1.0)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(flag, text, "a duration such as 60, 30s, 2m, 1h or 7d")
    return seconds


def read_usd(flag: str, text: str) -> Decimal:
    """Read an amount of US dollars: ``20``, ``0.5`` or ``$20``, exactly."""
    try:
        amount = Decimal(text.removeprefix("$").replace(",", ""))
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or amount <= 0:
        raise ConfigError(flag, text, "an amount in US dollars above 0, such as 20 or 0.50")
    return amount


def read_deadline(flag: str, text: str, now: datetime) -> float:
    """Read how long a run may take: ``6h``, or until when: ``23:30``, ``2026-11-30T08:00``.

    Args:
        flag: Its name, for the error.
        text: What it says.
        now: The local time, aware of its zone. A time of day that has passed is tomorrow's.
    """
    expected = "a duration such as 90m or 6h, or a time to come such as 23:30 or 2026-11-30T08:00"
    at: datetime
    try:
        if len(text) <= len("23:30:00") and ":" in text:
            at = datetime.combine(now.date(), time.fromisoformat(text), now.tzinfo)
            if at <= now:
                at += timedelta(days=1)
        elif "-" in text:
            at = datetime.fromisoformat(text)
            at = at.replace(tzinfo=now.tzinfo) if at.tzinfo is None else at
        else:
            return read_seconds(flag, text)
    except ValueError:
        raise ConfigError(flag, text, expected) from None
    if at <= now:
        raise ConfigError(flag, text, expected)
    return (at - now).total_seconds()


def read_tolerance(flag: str, text: str) -> tuple[int | None, float | None]:
    """Read ``50`` or ``1%``; return the number of rows, or their share; None is the other."""
    try:
        if not text.endswith("%"):
            return read_count(flag, text), None  # a ConfigError is a ValueError
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(flag, text, "a number of rows such as 50, or a share such as 1%")
    return None, share


def read_text(flag: str, value: str | None) -> str | None:
    """Return a flag's text; ``@FILE`` reads it from a file."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag}: {value[1:]} cannot be read: {_reason(error)}") from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error.strerror)


def read_settings(pairs: list[str]) -> Settings:
    """Read ``-s name=value`` pairs. ``temperature=0,0.3,0.7`` is one value per attempt."""
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ConfigError("--set", pair, "name=value, such as temperature=0")
        value = _json_or_text(text)
        if name == "temperature":
            values = tuple(_json_or_text(part) for part in text.split(","))
            if not all(_is_number(one) for one in values):
                raise ConfigError("temperature", text, "a number, or one per attempt: 0,0.3,0.7")
            known[name] = values if len(values) > 1 else values[0]
        elif name in {"max_tokens", "seed"}:
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(name, text, "a whole number")
            known[name] = value
        elif name == "top_p":
            if not _is_number(value):
                raise ConfigError(name, text, "a number")
            known[name] = value
        elif name == "stop":
            known[name] = tuple(value) if isinstance(value, list) else (str(value),)
        else:
            _check_setting(name, pair, value)
            extra[name] = value
    return Settings(**known, extra=extra)


def _check_setting(name: str, pair: str, value: Any) -> None:
    """Refuse what would break the run, and what looks like a slip of the finger."""
    if name in {"model", "messages", "stream", "stream_options"} or (name == "n" and value != 1):
        raise ConfigError("--set", pair, "a setting; a row is one message and has one whole answer")
    near = difflib.get_close_matches(name, _SETTINGS, 1, 0.86)
    if near and name not in _SETTINGS:
        raise ConfigError("--set", pair, f"a known setting (did you mean {near[0]}?)")


def read_shape(schema: str | None, choices: str | None) -> OutputSchema | None:
    """Read ``--schema FILE|MODULE:TYPE`` or ``--choices a,b,c``."""
    if schema is not None and choices is not None:
        raise ConfigError("--schema and --choices", "both", "given one at a time")
    if choices is not None:
        return OutputSchema.choices(*[name.strip() for name in choices.split(",") if name.strip()])
    if schema is None:
        return None
    if Path(schema).suffix == ".json" or Path(schema).is_file():
        try:
            found = json.loads(Path(schema).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--schema: {schema} cannot be read: {_reason(error)}") from None
        except json.JSONDecodeError as error:
            place = f"{schema}:{error.lineno}:{error.colno}"
            raise InputError(f"--schema: {place} is no JSON: {error.msg}") from None
        if not isinstance(found, dict):
            raise InputError(f"--schema: {schema} must hold an object, a JSON schema")
        return OutputSchema.json_schema(found)
    return OutputSchema.from_type(_imported(schema))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _imported(name: str) -> Any:
    import importlib
    import sys

    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError("--schema", name, "a JSON file, or module:Type")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # noqa: BLE001 - whatever the user's module raises
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError("--schema", name, f"importable ({reason})") from None
    finally:
        sys.path.pop(0)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
