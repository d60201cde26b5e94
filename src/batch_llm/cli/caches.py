"""Caches of answers: opens a brief's, tells what one holds, clears it."""

from __future__ import annotations

import contextlib
import json
from array import array
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from batch_llm._engine.sharing import key_of, may_share
from batch_llm.cli.exit_codes import ExitCode
from batch_llm.core.text import counted, safe
from batch_llm.providers.requests import exchange_of, where_of
from batch_llm.runs.plan import chunks
from batch_llm.runs.pools import open_cache
from batch_llm.stores.answers import AnswerCache

if TYPE_CHECKING:
    from batch_llm.providers.registry import Endpoint
    from batch_llm.runs.plan import Plan


class Foreseen(NamedTuple):
    """Rows that will not be sent, as far as that can be told before.

    Attributes:
        same: Rows that ask what a row before them asks: not sent where that one is in flight.
        cached: Rows that the cache answers.
        characters: Of those.
    """

    same: int = 0
    cached: int = 0
    characters: int = 0


def foresee(plan: Plan, endpoint: Endpoint) -> Foreseen:
    """Read a plan's rows once more, and count those that need no call of their own.

    Raises:
        CacheError: The cache cannot be used.
    """
    brief = plan.brief
    if brief.agent is not None or (not brief.dedupe and brief.cache is None):
        return Foreseen()
    where = where_of(endpoint)
    cached = characters = 0
    # Eight bytes of each digest are enough to count by, and little for a million rows.
    seen = array("Q")
    with contextlib.ExitStack() as opened:
        cache = None
        if brief.cache is not None and AnswerCache.is_in(brief.cache):
            cache = opened.enter_context(open_cache(brief))
        for chunk in chunks(plan.items()):
            keys: list[bytes] = []
            for item in chunk:
                assert item.request is not None  # noqa: S101 - rows are requests
                exchange = exchange_of(item.request, endpoint, where)
                is_shared = brief.dedupe and may_share(item, item.request)
                keys.append(key_of(item, exchange, is_shared=is_shared))
            found = {} if cache is None else cache.find(keys)
            for item, key in zip(chunk, keys, strict=True):
                if key not in found:
                    seen.append(int.from_bytes(key[:8]))
                elif item.request is not None:
                    cached += 1
                    characters += item.request.characters
    ordered = sorted(seen)
    same = sum(one == after for one, after in pairwise(ordered))
    return Foreseen(same, cached, characters)


def list_cache(folder: str, *, as_json: bool) -> int:
    """Print what a cache holds."""
    with AnswerCache(folder, must_exist=True) as cache:
        models = cache.models()
        size = cache.path.stat().st_size
    if as_json:
        rows = [
            {
                "model": one.model,
                "answers": one.answers,
                "oldest": _at(one.oldest_at).isoformat(timespec="seconds"),
                "newest": _at(one.newest_at).isoformat(timespec="seconds"),
            }
            for one in models
        ]
        print(json.dumps({"schema": 1, "path": str(cache.path), "bytes": size, "models": rows}))
        return ExitCode.OK
    for one in models:
        days = f"{_at(one.oldest_at):%Y-%m-%d %H:%M} to {_at(one.newest_at):%Y-%m-%d %H:%M}"
        print(f"{safe(one.model):<32} {counted(one.answers, 'answer'):>17}  {days}")
    answers = counted(sum(one.answers for one in models), "answer")
    print(f"{safe(str(cache.path))}: {answers}, {_size(size)}")
    return ExitCode.OK


def clear_cache(folder: str, *, model: str | None, older_than_seconds: float | None) -> int:
    """Remove answers from a cache."""
    with AnswerCache(folder, must_exist=True) as cache:
        count = cache.clear(model=model, older_than_seconds=older_than_seconds)
    print(f"{safe(str(cache.path))}: {counted(count, 'answer')} removed")
    return ExitCode.OK


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).astimezone()


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
