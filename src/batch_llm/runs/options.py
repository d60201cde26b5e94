"""The arguments of ``run``, ``stream`` and ``submit``, and the brief that they make."""

from __future__ import annotations

import difflib
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import msgspec

from batch_llm.core.plain import as_plain
from batch_llm.core.prices import Prices
from batch_llm.core.request import Settings
from batch_llm.core.schema import OutputSchema
from batch_llm.core.tokenizers import open_tokenizer
from batch_llm.exceptions import ConfigError, InputError
from batch_llm.inputs.values import NAME
from batch_llm.runs.brief import Brief
from batch_llm.runs.ledgers import FOLDER, named_ledger
from batch_llm.runs.plot import checked_plot
from batch_llm.runs.recipe import read_settings
from batch_llm.stores.values import from_json, to_json
from batch_llm.strategies.policies import fallback_codes

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
    from os import PathLike

    from batch_llm.core.config import Limits
    from batch_llm.core.protocols import AgentLike
    from batch_llm.runs.answering_agent import AnsweringAgent

    Rows = str | PathLike[str] | Iterable[Any] | AsyncIterable[Any]
    Answering = str | AgentLike | Callable[[int], AgentLike]


class PaceOptions(TypedDict, total=False):
    """What may be another each time a run goes on: how fast, and how far.

    Attributes:
        base_url: Another address, as the provider's SDK takes it (of OpenAI's kind up to ``/v1``);
            several that serve the model: ``URL,URL``.
        keys: Names of variables with keys for the model, used side by side.
        concurrency: Calls in flight at the most; ``"auto"`` (default): as many as limits or a local
            server allow; ``"knee"``: searched.
        ignore_slots: Do not ask a local server how many calls it works on at once.
        limits: Ceilings that are never passed; others are learned.
        forget_limits: Forget what earlier runs have learned of the model's limits.
        longest_pause_seconds: Rows that would wait longer for a limit fail; None waits.
        timeout_seconds: For one call; default 120.
        retries: Further attempts of a row; default 5. Refusals by a rate limit do not count.
        fallbacks: Models that are asked in turn where a row fails at its own.
        fallback_on: Failures after which they are asked, as codes; None: the usual ones
            (``docs/errors.md``).
        max_tokens_cap: What a ``max_tokens`` that cut an answer off is raised to, once; None: twice
            as much; 0: not at all.
        hedge: Send slow rows a second time at the end of the run.
        max_cost_usd: End before it costs more, failed attempts included.
        max_tokens_total: The same in tokens.
        deadline_seconds: Send nothing any more after this.
        max_failed: End when more rows have failed.
        max_failed_share: End when a larger share of the finished rows has failed: 0.01.
        prices: Of models, before those of genai-prices.
        cache: A folder with answers of earlier runs: what was asked before is not asked again.
        cache_expires_seconds: Ask again what was answered longer ago; None: never.
        dedupe: Whether one row that is in flight answers others that ask the same; default True.
        count_tokens: Counts the tokens of a text, for limits on tokens; or the name of an encoding
            or model of tiktoken's (``batch-llm[tiktoken]``). None estimates them from characters.
        plot: An SVG file, in which what was let in, refused and believed of limits is drawn over
            time when the run ends. One that is there is replaced.
    """

    base_url: str | None
    keys: Sequence[str]
    concurrency: int | Literal["auto", "knee"]
    ignore_slots: bool
    limits: Limits | None
    forget_limits: bool
    longest_pause_seconds: float | None
    timeout_seconds: float
    retries: int
    fallbacks: Sequence[str]
    fallback_on: Sequence[str] | None
    max_tokens_cap: int | None
    hedge: bool
    max_cost_usd: Decimal | float | None
    max_tokens_total: int | None
    deadline_seconds: float | None
    max_failed: int | None
    max_failed_share: float | None
    prices: Prices | None
    cache: str | PathLike[str] | None
    cache_expires_seconds: float | None
    dedupe: bool
    count_tokens: Callable[[str], int] | str | None
    plot: str | PathLike[str] | None


class RunOptions(PaceOptions, total=False):
    """All arguments of a run but its rows, model and schema.

    Attributes:
        prompt: A template over the rows' columns: ``"Classify {{ text }}"``.
        system: The system message, a template too.
        image: The column with a picture for each row: an address, a ``data:`` URL, or a path,
            seen from the input's folder. Where it is empty there is none.
        settings: Such as ``{"temperature": 0, "max_tokens": 500}``; a list of temperatures is one
            per attempt.
        format: Of a file; None sees it from the name and the first record.
        columns: Names for a CSV or TSV without a header line.
        id_column: Holds the ids; None looks for ``custom_id`` and ``id``, else numbers the rows.
        limit: Stop after so many rows.
        bad_rows: What to do about rows that cannot be used: ``"stop"`` (default) raises before
            anything is sent, ``"fail"`` gives them failed results, ``"skip"`` leaves them out.
        name: Keeps a ledger under this name: the same call again goes on.
        store: Where the ledger is: a file, or with ``name`` a folder. Without both there is none.
        overwrite: Begin anew: put a ledger that is there aside as ``.old``.
    """

    prompt: str | None
    system: str | None
    image: str | None
    settings: Mapping[str, Any] | Settings | None
    format: str | None
    columns: Sequence[str] | None
    id_column: str | None
    limit: int | None
    bad_rows: Literal["stop", "fail", "skip"]
    name: str | None
    store: str | PathLike[str] | None
    overwrite: bool


_KNOWN = frozenset(RunOptions.__annotations__)
_BAD_ROWS = ("stop", "fail", "skip")


def brief_from(
    rows: Rows,
    model: str | None,
    schema: Any,
    options: RunOptions,
    agent: Answering | None = None,
) -> Brief:
    """Understand the arguments of a run.

    Raises:
        ConfigError: One of them cannot be.
        MissingExtraError: An agent's file needs pydantic-ai, or PyYAML.
        InputError: A path leads to no file.
        TypeError: There is no such argument.
    """
    unknown = sorted(set(options) - _KNOWN)
    if unknown:
        near = difflib.get_close_matches(unknown[0], _KNOWN, 1)
        known = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(_KNOWN))}"
        raise TypeError(f"a run has no argument {unknown[0]!r}; {known}")
    options = cast("RunOptions", {name: _of_python(value) for name, value in options.items()})
    bad_rows = options.get("bad_rows", "stop")
    if bad_rows not in _BAD_ROWS:
        raise ConfigError("bad_rows", bad_rows, f"one of {', '.join(_BAD_ROWS)}")
    columns = options.get("columns")
    settings = options.get("settings")
    answering = None if agent is None else _answering(agent)
    asked = model if answering is None or model is not None else answering.model
    if asked is None:
        raise ConfigError("model", None, 'given: "provider:name", or agent=')
    if model is None and options.get("base_url") is not None:
        raise ConfigError("model", None, "given with base_url")
    return Brief(
        input=_input_of(rows),
        model=asked,
        agent=answering,
        agent_model=None if answering is None else model,
        format=options.get("format"),
        columns=None if columns is None else tuple(columns),
        id_column=options.get("id_column"),
        limit=_at_least("limit", options.get("limit"), 1),
        prompt=options.get("prompt"),
        system=options.get("system"),
        image=options.get("image"),
        settings=settings if isinstance(settings, Settings) else settings_from(settings or {}),
        shape=None if schema is None else OutputSchema.of(schema),
        bad_rows=bad_rows,
        ledger=_ledger_for(options.get("name"), options.get("store")),
        **pace_of(options),
    )


def _answering(agent: Answering) -> AnsweringAgent:
    # Most runs have none.
    from batch_llm.runs.answering_agent import load_agent, named_agent

    return load_agent(agent) if isinstance(agent, str) else named_agent(agent)


def pace_of(options: PaceOptions) -> dict[str, Any]:
    """Return the fields of a brief that say how fast and how far.

    Raises:
        ConfigError: One of them cannot be.
    """
    if options.get("max_failed") is not None and options.get("max_failed_share") is not None:
        raise ConfigError("max_failed and max_failed_share", "both", "given one at a time")
    concurrency = options.get("concurrency", "auto")
    cost = options.get("max_cost_usd")
    cache = options.get("cache")
    if cache is None and options.get("cache_expires_seconds") is not None:
        raise ConfigError(
            "cache_expires_seconds", options["cache_expires_seconds"], "given with cache"
        )
    named = options.get("fallback_on")
    fallback_on = None if named is None else _names(named)
    fallback_codes(fallback_on)
    plot, counter = options.get("plot"), options.get("count_tokens")
    return {
        "base_url": options.get("base_url"),
        "keys": _names(options.get("keys", ())),
        "concurrency": None if concurrency == "auto" else concurrency,
        "ignore_slots": options.get("ignore_slots", False),
        "limits": options.get("limits"),
        "forget_limits": options.get("forget_limits", False),
        "longest_pause_seconds": options.get("longest_pause_seconds"),
        "timeout_seconds": options.get("timeout_seconds", 120.0),
        "retries": _at_least("retries", options.get("retries", 5), 0),
        "fallbacks": _names(options.get("fallbacks", ())),
        "fallback_on": fallback_on,
        "max_tokens_cap": _at_least("max_tokens_cap", options.get("max_tokens_cap"), 0),
        "hedge": options.get("hedge", False),
        "max_cost_usd": None if cost is None else Decimal(str(cost)),
        "max_tokens_total": options.get("max_tokens_total"),
        "deadline_seconds": options.get("deadline_seconds"),
        "max_failed": options.get("max_failed"),
        "max_failed_share": options.get("max_failed_share"),
        "prices": options.get("prices") or Prices(),
        "cache": None if cache is None else os.fspath(cache),
        "cache_expires_seconds": options.get("cache_expires_seconds"),
        "dedupe": options.get("dedupe", True),
        "count_tokens": open_tokenizer(counter) if isinstance(counter, str) else counter,
        "plot": None if plot is None else checked_plot("plot", os.fspath(plot)),
    }


def _names(given: Sequence[str]) -> tuple[str, ...]:
    """Return names as they are given; a text, which is a sequence of letters, as the flags do."""
    return (
        tuple(name.strip() for name in given.split(",")) if isinstance(given, str) else tuple(given)
    )


def settings_from(given: Mapping[str, Any]) -> Settings:
    """Read settings by their names: known ones are checked, others are passed on as they are.

    Raises:
        ConfigError: They would break the run.
    """
    given = _plain_settings(given)
    known = {name: given[name] for name in Settings.__slots__ if name in given and name != "extra"}
    extra = {name: value for name, value in given.items() if name not in known}
    for name in ("model", "messages", "stream", "stream_options"):
        if name in extra:
            raise ConfigError("settings", name, "settings; a row is one message and one answer")
    if isinstance(known.get("stop"), str):
        known["stop"] = (known["stop"],)
    return read_settings(known | {"extra": extra})


def _of_python(value: Any) -> Any:
    """Return a number of numpy as Python's, and anything else as it is."""
    return as_plain(value) if type(value).__module__ == "numpy" else value


def _plain_settings(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings as they are, or as plain data where they have numbers of numpy, say."""
    try:
        msgspec.json.encode(dict(given))
    except TypeError:
        try:
            plain: dict[str, Any] = from_json(to_json(dict(given)))
        except TypeError as error:
            raise ConfigError("settings", given, f"plain data ({error})") from error
        return plain
    except (ValueError, OverflowError, RecursionError):
        pass  # the call will say what is wrong
    return given


def _at_least(name: str, value: Any, bound: int) -> Any:
    if value is not None and (not isinstance(value, int) or value < bound):
        raise ConfigError(name, value, f">= {bound}")
    return value


def _input_of(rows: Rows) -> str:
    if not isinstance(rows, str | os.PathLike):
        return NAME
    path = os.fspath(rows)
    if path == "-" or Path(path).is_file():
        return path
    raise InputError(f"{path} is not a file that can be read; one prompt is a list: [{path!r:.40}]")


def _ledger_for(name: str | None, store: str | PathLike[str] | None) -> str | None:
    if store is None:
        return None if name is None else named_ledger(name)
    path = Path(store)
    if name is None:
        if path.is_dir():
            raise ConfigError("store", str(store), "a file, or a folder together with a name")
        return str(path)
    own = Path(named_ledger(name))
    return str(own if path == FOLDER else path / own.name)


#: How the command's flags are called here.
_WORDS = {
    "--bad-rows fail": 'bad_rows="fail"',
    "--bad-rows skip": 'bad_rows="skip"',
    "--prompt '": "prompt='",
    "--schema or --choices": "schema",
    "--set": "settings",
    "--max-tokens-total 10M": "max_tokens_total=10_000_000",
    "(--prices FILE": "(prices=Prices({…})",
    "--max-tokens-total": "max_tokens_total",
    "--max-cost": "max_cost_usd",
    "--longest-pause": "longest_pause_seconds",
    "--max-failed": "max_failed",
    "--overwrite": "overwrite=True",
    "--agent": "agent",
    "--model": "model",
    "--fallback": "fallbacks",
    "--cache": "cache",
    "--base-url": "base_url",
    "--prompt": "prompt",
    "--system": "system",
    "--image": "image",
    "--columns": "columns",
    "--format": "format",
    "--keys": "keys",
    "Leave the flag out": "Leave it out",
    "or run with ": "or use ",
    "Run the command again": "Call it again",
}
_FLAG = re.compile("|".join(map(re.escape, _WORDS)))
#: The example of a price is a table in a file there.
_PRICE = re.compile(r'--prices FILE +gives .*?\["(?P<model>.*?)"\].*?output = [0-9.]+', re.DOTALL)


def in_python(text: str) -> str:
    """Return a message to users of the command in the words of those who call it from Python."""
    told = _PRICE.sub(
        r'prices=Prices({"\g<model>": Price(input=0.25, output=2)})   gives its price', text
    )
    return _FLAG.sub(lambda found: _WORDS[found[0]], told)
